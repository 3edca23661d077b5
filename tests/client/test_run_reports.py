"""Whatever a run's end is, its reports are there with the reason, and the pipeline's files say the same."""

import json
from html import escape
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import onnxpress
from engine.report.unfinished import Unfinished
from onnxpress.exit_codes import ExitCode
from onnxpress.pipeline import Pipeline, fitting

KEY = "opk_test_secret"
SCHEMA = json.loads(resources.files(onnxpress).joinpath("run.schema.json").read_text())
JOB = {
    "id": "job_1",
    "kind": "compress",
    "status": "queued",
    "verdict": "none",
    "output_model": "mdl_2",
    "dataset": "dst_1",
    "spec": {"kind": "compress", "target": {"provider": "cpu", "threads": 1, "batch": 1}},
    "labels": {},
    "steps": [],
    "warnings": [],
}
FILES = ("report.json", "report.md", "report.xml", "report.prom", "report.html")
REPORTS = [word for name in FILES for word in ("--report", name)]
WORDS = ["compress", "mdl_1", "--data", "dst_1", "--recipe", "int8", "--gate", "top1 max_drop 1%"]
JUNIT = '<?xml version="1.0"?><testsuite name="onnxpress compress" tests="1"><testcase name="top1"/></testsuite>'


def done(outcome="pass", **more):
    return {"json": JOB | {"status": "succeeded", "verdict": outcome} | more}


@pytest.fixture
def press(scripted, report):
    """Give a function that scripts a job, its reports, and where `beside` is given a comparison with what is in production."""

    def script(outcome="pass", beside=None):
        scripted.on("GET", "/jobs/job_1", done(outcome))
        scripted.on("POST", "/jobs", {"status": 202, "json": JOB}, {"status": 202, "json": JOB | {"id": "job_2"}})
        report["verdict"]["outcome"] = outcome
        scripted.on("GET", "/jobs/job_1/report.json", {"json": report})
        for job, said in (("job_1", outcome), ("job_2", beside)):
            scripted.on("GET", f"/jobs/{job}/report.md", {"body": f"# Report: {said}\n\n## Gates\n".encode()})
            scripted.on("GET", f"/jobs/{job}/report.junit.xml", {"body": JUNIT.encode()})
            scripted.on("GET", f"/jobs/{job}/report.prom", {"body": b"# TYPE a gauge\na 1\n"})
            scripted.on("GET", f"/jobs/{job}/report.html", {"body": b"<html><main><h1>Report</h1></main></html>"})
        if beside is not None:
            data = {"id": "dst_1", "state": "ready", "inspection": {"metric": "top1", "labelled": 100}}
            scripted.on("GET", "/models/@prod", {"json": {"id": "mdl_9", "state": "ready"}})
            scripted.on("GET", "/datasets/dst_1", {"json": data})
            scripted.on("GET", "/jobs/job_2", done(beside, id="job_2", kind="profile", output_model=None))
            gate = {"metric": "latency_p50", "rule": "max_ratio", "value": 1.05, "level": "error"}
            judged = {"gate": gate, "measured": 1.2, "bound": 1.1, "outcome": beside, "reason": "as measured"}
            verdict = {"outcome": beside, "gates": [{**judged, "target": 0}]}
            told = {"kind": "profile", "summary": "s", "targets": [], "verdict": verdict, "warnings": []}
            scripted.on("GET", "/jobs/job_2/report.json", {"json": told})
            moved = {"name": "prod", "model": "mdl_2", "moved_at": "2026-01-02T03:04:05Z"}
            scripted.on("PUT", "/aliases/prod", {"json": moved})
        return scripted

    return script


def reports():
    """Give the files as they are read; the page says how it ended too."""
    told = json.loads(Path("report.json").read_text())
    # Here: it loads a grammar for seconds, and every process with tests reads this file.
    import jsonschema

    jsonschema.validate(told["run"], SCHEMA, format_checker=jsonschema.FormatChecker())
    page = Path("report.html").read_text()
    assert "<h1>Report</h1>" in page or escape(told["run"]["reason"]) in page
    if told["kind"] == "unfinished":
        assert Unfinished.model_validate(told, extra="allow").reason
    assert list(text_string_to_metric_families(Path("report.prom").read_text()))
    return told["run"], Path("report.md").read_text(), ET.parse("report.xml").getroot(), Path("report.prom").read_text()


def test_several_reports_of_one_run(press, cli):
    scripted = press()
    assert cli(scripted.url, KEY, *WORDS, *REPORTS).code == 0
    run, text, junit, prom = reports()
    assert (run["ended"], run["exit_code"], run["job"], run["output_model"]) == ("pass", 0, "job_1", "mdl_2")
    assert json.loads(Path("report.json").read_text())["size"]["original"] > 0
    assert text.startswith("# Report: pass")
    assert junit.tag == "testsuite"
    assert prom == (
        "# TYPE a gauge\na 1\n# TYPE onnxpress_run_exit_code gauge\n"
        "# HELP onnxpress_run_exit_code How the run ended, as the command's exit code.\n"
        'onnxpress_run_exit_code{ended="pass"} 0\n# EOF\n'
    )


@pytest.mark.parametrize(
    ("script", "more", "ended", "code", "kind"),
    [
        ({"GET /jobs/job_1": done("none", status="failed")}, (), "job_failed", ExitCode.JOB_FAILED, "error"),
        ({"GET /jobs/job_1": {"json": JOB}}, ("--timeout", "0.4"), "timeout", ExitCode.TIMEOUT, "error"),
        ({"POST /jobs": {"status": 503, "json": {}}}, (), "service_unavailable", ExitCode.SERVICE, "error"),
        (
            {"POST /jobs": {"status": 503, "json": {}}},
            ("--service-outage", "skip"),
            "service_unavailable",
            ExitCode.OK,
            "skipped",
        ),
        ({"POST /jobs": {"status": 422, "json": {"title": "No."}}}, (), "refused", ExitCode.USAGE, "failure"),
        ({}, ("--gate", "top1 max_drop 1"), "refused", ExitCode.USAGE, "failure"),
    ],
)
def test_an_end_without_a_result_is_reported_with_its_reason(press, cli, script, more, ended, code, kind):
    scripted = press()
    for request, answer in script.items():
        scripted.on(*request.split(), answer)
    found = cli(scripted.url, KEY, *WORDS, *REPORTS, *more, patience=0.3)
    assert found.code == code, found.stderr
    run, text, junit, prom = reports()
    assert (run["ended"], run["exit_code"], bool(run["reason"])) == (ended, code, True)
    assert run["reason"] in text
    (case,) = junit.findall("testcase")
    assert run["reason"].splitlines()[0] in case.find(kind).get("message")
    assert f'onnxpress_run_exit_code{{ended="{ended}"}} {int(code)}' in prom


@pytest.mark.parametrize(
    ("choice", "code"), [("inconclusive", ExitCode.INCONCLUSIVE), ("fail", ExitCode.GATE_FAILED), ("pass", ExitCode.OK)]
)
def test_what_undecided_means_is_chosen(press, cli, choice, code):
    scripted = press("inconclusive")
    assert cli(scripted.url, KEY, *WORDS, *REPORTS, "--on-inconclusive", choice).code == code
    assert (reports()[0]["ended"], reports()[0]["exit_code"]) == ("inconclusive", code)
    assert cli(scripted.url, KEY, *WORDS, "--on-inconclusive", "maybe").code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("outcome", "beside", "code"),
    [
        ("pass", "pass", ExitCode.OK),
        ("pass", "fail", ExitCode.GATE_FAILED),
        ("pass", "inconclusive", ExitCode.INCONCLUSIVE),
        ("fail", "pass", ExitCode.GATE_FAILED),
    ],
)
def test_production_is_replaced_on_a_pass_beside_it_only(press, cli, outcome, beside, code):
    scripted = press(outcome, beside)
    done = cli(scripted.url, KEY, *WORDS, *REPORTS, "--baseline", "@prod", "--promote", "prod")
    assert done.code == code, done.stderr
    assert done.stdout == "job_1\n"
    posted = [json.loads(asked.body) for asked in scripted.asked("POST", "/jobs")]
    moves = [json.loads(asked.body) for asked in scripted.asked("PUT", "/aliases/prod")]
    run, text, junit, _ = reports()
    if outcome == "fail":
        assert (len(posted), moves) == (1, []), "what failed beside the original is not compared"
        return
    assert posted[1] == {
        "kind": "profile",
        "model": "mdl_2",
        "baseline": "mdl_9",
        "dataset": "dst_1",
        "targets": [JOB["spec"]["target"]],
        "gates": [
            {"metric": "latency_p50", "rule": "max_ratio", "value": 1.05},
            {"metric": "size_bytes", "rule": "max_ratio", "value": 1.05},
            {"metric": "top1", "rule": "max_drop", "value": 0.01},
        ],
    }
    # Nobody overwrites what another pipeline put there meanwhile.
    assert moves == ([{"model": "mdl_2", "expected": "mdl_9", "note": "job_1"}] if beside == "pass" else [])
    assert (run["promoted"], run["beside"]["job"]) == ("prod" if beside == "pass" else None, "job_2")
    assert f"## Report: {beside}" in text
    assert f"| latency_p50 max_ratio 1.05 | {beside} | as measured |" in text.partition("## Report")[0]
    assert [suite.get("name") for suite in junit] == ["onnxpress compress", "onnxpress beside @prod"]
    # The service's page has the figures of both.
    (page,) = scripted.asked("GET", "/jobs/job_1/report.html")
    assert page.path.endswith("?beside=job_2")


def test_whoever_waits_for_a_job_of_another_step_has_its_reports_too(press, cli):
    scripted = press("inconclusive")
    assert cli(scripted.url, KEY, "wait", "job_1", *REPORTS, "--on-inconclusive", "pass").code == 0
    assert (reports()[0]["ended"], reports()[0]["exit_code"]) == ("inconclusive", 0)
    scripted.on("GET", "/jobs/job_1", done("none", status="failed"))
    assert cli(scripted.url, KEY, "wait", "job_1", *REPORTS).code == ExitCode.JOB_FAILED
    assert reports()[0]["ended"] == "job_failed"


def test_the_first_result_has_nothing_to_replace(press, cli):
    scripted = press("pass", "pass")
    scripted.on("GET", "/models/@prod", {"status": 404, "json": {"title": "No model has the alias prod."}})
    words = [*WORDS, "--baseline", "@prod"]
    assert cli(scripted.url, KEY, *words).code == ExitCode.USAGE
    first = cli(scripted.url, KEY, *words, "--promote", "@prod")
    assert first.code == 0, first.stderr
    assert "the result is the first" in first.stderr
    assert len(scripted.asked("PUT", "/aliases/prod")) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--baseline", "@prod", "--no-wait"],
        ["--baseline-gate", "size_bytes max 1MB"],
        ["--recipe", "int8", "--promote", "prod"],
        ["--service-outage", "ignore"],
    ],
)
def test_what_cannot_be_meant_is_usage(scripted, cli, words):
    assert cli(scripted.url, KEY, "compress", "mdl_1", *words).code == ExitCode.USAGE
    assert scripted.requests == []


def test_github_hears_of_the_end(press, cli, monkeypatch, tmp_path):
    scripted = press("pass", "fail")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name, value in {"SHA": "abc", "REF_NAME": "main", "REPOSITORY": "a/b", "RUN_ID": "7"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    done = cli(scripted.url, KEY, *WORDS, "--baseline", "@prod")
    assert done.code == ExitCode.GATE_FAILED
    outputs = dict(line.split("=", 1) for line in Path("GITHUB_OUTPUT").read_text().splitlines())
    assert {name: outputs[name] for name in ("ended", "verdict", "exit-code", "job", "promoted")} == {
        "ended": "fail", "verdict": "fail", "exit-code": "3", "job": "job_1", "promoted": "",
    }  # fmt: skip
    assert float(outputs["size-ratio"]) < 1
    assert "# onnxpress: FAIL" in Path("GITHUB_STEP_SUMMARY").read_text()
    assert "::error title=latency_p50 max_ratio 1.05 beside @prod%3A fail::as measured" in done.stderr
    run = "https://github.com/a/b/actions/runs/7"
    assert json.loads(scripted.asked("POST", "/jobs")[0].body)["labels"] == {
        "commit": "abc", "branch": "main", "pipeline": run,
    }  # fmt: skip


def test_gitlab_marks_its_jobs():
    found = {
        "GITLAB_CI": "true",
        "CI_COMMIT_SHA": "abc",
        "CI_COMMIT_REF_NAME": "main",
        "CI_PIPELINE_URL": "https://x/1",
    }
    assert Pipeline.of(found).labels == {"commit": "abc", "branch": "main", "pipeline": "https://x/1"}
    assert Pipeline.of({"CI": "true"}) == Pipeline()


def test_what_does_not_fit_leaves_out_details_first():
    details = "".join(f"<details>{name * 400}</details>\n" for name in "ab")
    text = f"# Report: pass\n\ngates\n\n{details}"
    assert fitting(text, 2000) == text
    less = fitting(text, 700)
    assert ("a" * 400 in less, "b" * 400 in less, "_Left out to fit here" in less) == (True, False, True)
    least = fitting(text, 120)
    assert len(least.encode()) <= 120
    assert least.startswith("# Report: pass")
