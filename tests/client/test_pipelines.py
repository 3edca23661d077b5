"""The Action's and GitLab's steps as they are shipped, run by a small runner against the live service."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import onnxpress
from onnxpress.commands.pipelines import TEMPLATES
from onnxpress.exit_codes import ExitCode
from onnxpress.review_comment import Review, write_comment

from .pipeline_runner import environment, filled, run_action, run_gitlab_job

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / "examples/ci/github/action.yml"
GITLAB = ROOT / "examples/ci/gitlab/onnxpress.gitlab-ci.yml"
EXAMPLES = {
    "github-action.yml": "github/action.yml",
    "github-workflow.yml": "github/workflow.yml",
    "gitlab-ci.yml": "gitlab/onnxpress.gitlab-ci.yml",
}
NOWHERE = "http://127.0.0.1:9"
# They hold, whichever network comes of it.
LIMITS = ("size_bytes max_ratio 3", "top1 max_drop 50%")


@pytest.fixture
def repository(tmp_path, net, npz):
    """Give a checkout with a network and its data."""
    for path, name in ((net, "model.onnx"), (npz, "data.npz")):
        (tmp_path / name).symlink_to(path)
    return tmp_path


@pytest.fixture(params=["github", "gitlab"])
def step(request, repository, embedded, key):
    """Give a function that runs the shipped step with options and limits."""

    def run(*gates, options="", url=None, during=None, run_id=None, after=False, **more):
        access = {"ONNXPRESS_URL": url or embedded.url, "ONNXPRESS_API_KEY": key}
        named = {"ONNXPRESS_RUN_ID": run_id} if run_id else {}
        if request.param == "github":
            given = {"model": "model.onnx", "data": "data.npz", "recipe": "simplify", "install": "", "options": options}
            given |= {"gates": "\n".join(gates), "url": access["ONNXPRESS_URL"], "api-key": key, **more}
            return run_action(ACTION, given, repository, env=named, during=during)
        words = ["--data data.npz --recipe simplify", options, *(f"--{name} {value}" for name, value in more.items())]
        # A list of options in a variable has no quotes: limits of several words are in a file.
        (repository / "job.yaml").write_text(
            yaml.safe_dump({"recipe": {"passes": [{"type": "simplify"}]}, "gates": [*gates]})
        )
        words[0] = "--data data.npz --recipe job.yaml"
        given = {"MODEL": "model.onnx", "OPTIONS": " ".join(words), "INSTALL": "", "CI_JOB_NAME": "press"}
        return run_gitlab_job(GITLAB, given, repository, env={**access, **named}, during=during, after=after)

    run.folder = repository / "onnxpress-report"
    run.system = request.param
    return run


def _reported(step):
    """Give what the four reports say, the same in each."""
    run = json.loads((step.folder / "report.json").read_text())["run"]
    assert (step.folder / "report.md").read_text().startswith("# ")
    assert f'ended="{run["ended"]}"}} {run["exit_code"]}' in (step.folder / "metrics.prom").read_text()
    ET.parse(step.folder / "junit.xml")
    return run


def _job_of(process):
    """Give the id that the step says first, and what it said until then."""
    said = ""
    while not (found := re.search(r"job_\w{26}", said)):
        line = process.stdout.readline()
        assert line, said
        said += line
    return found[0], said


def _check(step, ran, ended, code):
    run = _reported(step)
    assert (ran.code, run["ended"], run["exit_code"]) == (code, ended, code), ran.log
    if step.system == "github":
        assert (ran.outputs["ended"], ran.outputs["exit-code"]) == (ended, str(int(code)))
        assert ran.used[-1][1]["path"] == "onnxpress-report"
        assert (step.folder.parent / "summary.md").read_text().startswith("# ")
    return run


def test_pass_fail_and_inconclusive(step, service):
    out = {"out": "small.onnx"} if step.system == "github" else {"after": True}
    ran = step(*LIMITS, **out)
    run = _check(step, ran, "pass", ExitCode.OK)
    assert run["output_model"].startswith("mdl_")
    if step.system == "github":
        assert float(ran.outputs["size-ratio"]) > 0
    # Only limits are others: what was measured for the passing ones is held against them.
    run = _check(step, step("size_bytes max_ratio 1%", "top1 max_drop 40%"), "fail", ExitCode.GATE_FAILED)
    assert service.jobs.get(run["job"]).cache == "hit"
    (case,) = ET.parse(step.folder / "junit.xml").getroot().iter("failure")
    assert "size_bytes" in case.get("message")
    # Without loss of any, 64 labels still cannot show that less than a thousandth is lost.
    # Both systems' steps are attempts of one run: the later finds the job of the one before.
    undecided = step(LIMITS[0], "top1 max_drop 0.1%", run_id="undecided")
    _check(step, undecided, "inconclusive", ExitCode.INCONCLUSIVE)
    for meant, code in (("fail", ExitCode.GATE_FAILED), ("pass", ExitCode.OK)):
        ran = step(LIMITS[0], "top1 max_drop 0.1%", run_id="undecided", **{"on-inconclusive": meant})
        _check(step, ran, "inconclusive", code)


def test_a_gate_that_can_never_fail_is_refused(step):
    run = _check(step, step("top1 max_drop 1"), "refused", ExitCode.USAGE)
    assert "1%" in run["reason"]
    assert ET.parse(step.folder / "junit.xml").getroot().find(".//failure") is not None


def test_the_job_ends_without_a_result(step, service):
    def cancel(process):
        job, said = _job_of(process)
        service.jobs.cancel(job)
        return said

    run = _check(step, step(*LIMITS, options="--no-cache", during=cancel), "job_failed", ExitCode.JOB_FAILED)
    assert "cancelled" in run["reason"]


def test_interrupted(step, service):
    jobs = []

    def interrupt(process):
        job, said = _job_of(process)
        jobs.append(job)
        # As CI systems do: the whole group of the step.
        os.killpg(process.pid, signal.SIGINT if step.system == "github" else signal.SIGTERM)
        return said

    ran = step(*LIMITS, options="--no-cache", during=interrupt)
    _check(step, ran, "interrupted", ExitCode.INTERRUPTED)
    with pytest.raises(onnxpress.JobFailedError) as caught:
        service.jobs.wait(jobs[0], timeout=240)
    assert caught.value.job.status == "cancelled"


def test_timeout(step, service):
    ran = step(*LIMITS, options="--no-cache", timeout="1s")
    run = _check(step, ran, "timeout", ExitCode.TIMEOUT)
    if run["job"]:
        service.jobs.cancel(run["job"])


def test_the_service_is_away(step):
    run = _check(step, step(*LIMITS, url=NOWHERE), "service_unavailable", ExitCode.SERVICE)
    assert NOWHERE in run["reason"]
    ran = step(*LIMITS, url=NOWHERE, **{"service-outage": "skip"})
    assert _check(step, ran, "service_unavailable", ExitCode.OK)["skipped"]
    assert ET.parse(step.folder / "junit.xml").getroot().find("testcase/skipped") is not None


def test_the_first_result_becomes_production_and_the_next_is_judged_beside_it(
    repository, embedded, key, service, scripted
):
    given = {"model": "model.onnx", "data": "data.npz", "recipe": "simplify", "gates": "\n".join(LIMITS)}
    given |= {"baseline": "@prod", "promote": "prod", "url": embedded.url, "api-key": key, "install": ""}
    pull = {"GITHUB_REF": "refs/pull/5/merge", "GITHUB_REPOSITORY": "a/b", "GITHUB_API_URL": f"{scripted.url}/v1"}
    env = {"GITHUB_RUN_ID": "1", "GITHUB_JOB": "press", "GITHUB_SHA": "c0ffee", **pull}
    first = run_action(ACTION, given, repository, env=env)
    assert (first.code, first.outputs["promoted"]) == (0, "prod"), first.log
    assert service.models.get("@prod").id == first.outputs["output-model"]
    # The same step again finds its job; what it makes is measured beside itself.
    scripted.on("GET", "/repos/a/b/issues/5/comments", {"json": []})
    scripted.on("POST", "/repos/a/b/issues/5/comments", {"status": 201, "json": {}})
    more = {**env, "GITHUB_RUN_ATTEMPT": "2"}
    again = run_action(ACTION, given, repository, {"event_name": "pull_request"}, env=more)
    assert again.outputs["job"] == first.outputs["job"], again.log
    run = json.loads((repository / "onnxpress-report/report.json").read_text())["run"]
    assert run["beside"]["model"] == first.outputs["output-model"]
    (comment,) = scripted.asked("POST", "/repos/a/b/issues/5/comments")
    said = json.loads(comment.body)["body"]
    assert said.startswith("<!-- onnxpress: report -->\n# onnxpress: ")
    assert "beside" in json.loads((repository / "onnxpress-report/report.json").read_text())["run"]
    assert service.jobs.get(first.outputs["job"]).labels["commit"] == "c0ffee"
    assert "c0ffee" in service.aliases.get("prod").history[0].note


def _scoring(path, first, last):
    """Save a network with one hidden layer."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "last"], ["logits"]),
    ]
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])]
        for name, size in (("x", 64), ("logits", 10))
    ]
    weights = [
        numpy_helper.from_array(each.astype(np.float32), name) for name, each in (("first", first), ("last", last))
    ]
    graph = helper.make_graph(nodes, "scoring", *infos, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture
def product(tmp_path, service):
    """Give a folder with a network, data whose classes it is sure of, and in production one that takes many times as long."""
    random = np.random.default_rng(0)
    first, last = random.standard_normal((64, 512)) / 8, random.standard_normal((512, 10)) / 22
    _scoring(tmp_path / "model.onnx", first, last)
    idle = 15 * 512
    _scoring(tmp_path / "old.onnx", np.pad(first, ((0, 0), (0, idle))), np.pad(last, ((0, idle), (0, 0))))
    x = random.standard_normal((4000, 64)).astype(np.float32)
    scores = np.maximum(x @ first, 0) @ last
    best = np.sort(scores, axis=1)
    sure = np.argsort(best[:, -2] - best[:, -1])[:1200]
    np.savez(tmp_path / "data.npz", x=x[sure], label=scores[sure].argmax(axis=1))
    service.aliases.move("prod", service.models.upload(tmp_path / "old.onnx").id)
    yield tmp_path
    service.aliases.remove("prod")


def test_the_whole_step_is_three_lines(product, embedded, key, service):
    step = re.search(r"```sh\n(onnxpress compress.*?)\n```", (ROOT / "docs/ci.md").read_text(), re.DOTALL)[1]
    assert len(step.splitlines()) == 3
    replaced = service.aliases.get("prod").model
    env = environment(product, ONNXPRESS_URL=embedded.url, ONNXPRESS_API_KEY=key, ONNXPRESS_RUN_ID="three lines")
    # As it stands but for how long it may search.
    words = ["bash", "-euo", "pipefail", "-c", f"{step} --effort low --budget 60s --trials 1"]
    done = subprocess.run(words, cwd=product, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job = service.jobs.get(done.stdout.strip())
    assert (job.kind, job.verdict) == ("search", "pass")
    promoted = service.aliases.get("prod")
    assert (promoted.model, promoted.history[1].model) == (job.output_model, replaced)
    assert "beside @prod" in done.stderr
    suites = {suite.get("name"): suite for suite in ET.parse(product / "junit.xml").getroot().iter("testsuite")}
    assert [*suites] == ["onnxpress search", "onnxpress beside @prod"]
    assert all(suite.get("failures") == "0" and [*suite.iter("testcase")] for suite in suites.values())
    assert "beside @prod" in (product / "report.md").read_text()


def test_the_shipped_files_are_what_init_ci_writes(cli, tmp_path):
    for system, wanted in TEMPLATES.items():
        (tmp_path / system).mkdir()
        done = cli(NOWHERE, "", "init-ci", system, "--folder", system)
        assert done.code == 0, done.stderr
        assert len(done.stdout.splitlines()) == len(wanted)
        for name, path in wanted.items():
            written = (tmp_path / system / path).read_text()
            assert written == (ROOT / "examples/ci" / EXAMPLES[name]).read_text()
            assert yaml.safe_load(written)
        assert cli(NOWHERE, "", "init-ci", system, "--folder", system).code == ExitCode.USAGE
        assert cli(NOWHERE, "", "init-ci", system, "--folder", system, "--force").code == 0
    assert cli(NOWHERE, "", "init-ci", "jenkins").code == ExitCode.USAGE


def test_the_workflow_gives_the_action_what_it_takes():
    workflow = yaml.safe_load((ROOT / "examples/ci/github/workflow.yml").read_text())
    action = yaml.safe_load(ACTION.read_text())
    given = workflow["jobs"]["compress"]["steps"][1]["with"]
    assert set(given) <= set(action["inputs"])
    assert {name for name, told in action["inputs"].items() if told.get("required")} <= set(given)
    for ref, promoted in (("refs/heads/main", "prod"), ("refs/pull/1/merge", "")):
        assert filled(given["promote"], {"github": {"ref": ref}, "success": True}) == promoted


@pytest.fixture
def hosts(scripted):
    """Give the variables of a pull and of a merge request whose host is the scripted server, with the comments there."""
    github = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_REF": "refs/pull/5/merge",
        "GITHUB_REPOSITORY": "a/b",
        "GITHUB_TOKEN": "t",
    }
    gitlab = {"GITLAB_CI": "true", "CI_MERGE_REQUEST_IID": "5", "CI_PROJECT_ID": "7", "GITLAB_TOKEN": "t"}
    return {
        "github": (github | {"GITHUB_API_URL": f"{scripted.url}/v1"}, "/repos/a/b/issues", "/5/comments", "/comments", "PATCH"),
        "gitlab": (gitlab | {"CI_API_V4_URL": f"{scripted.url}/v1"}, "/projects/7/merge_requests/5", "/notes", "/notes", "PUT"),
    }  # fmt: skip


@pytest.mark.parametrize("host", ["github", "gitlab"])
def test_a_comment_is_written_anew(scripted, hosts, host):
    variables, base, listed, one, change = hosts[host]
    review = Review.of(variables)
    others = [{"id": number, "body": "words"} for number in range(100)]
    ours = [{"id": 200, "body": "<!-- onnxpress: other -->\nx"}, {"id": 201, "body": "<!-- onnxpress: report -->\nold"}]
    scripted.on("GET", base + listed, {"json": others}, {"json": ours})
    scripted.on(change, f"{base}{one}/201", {"json": {}})
    assert write_comment(review, "report", "# Report: pass\n")
    (asked,) = scripted.asked(change, f"{base}{one}/201")
    assert json.loads(asked.body)["body"] == "<!-- onnxpress: report -->\n# Report: pass\n"
    scripted.on("GET", base + listed, {"json": []})
    scripted.on("POST", base + listed, {"status": 201, "json": {}})
    assert not write_comment(review, "report", "x" * 100_000)
    (made,) = scripted.asked("POST", base + listed)
    assert len(json.loads(made.body)["body"].encode()) <= 65_000


def test_comments_of_the_command(scripted, hosts, cli, monkeypatch):
    Path("report.md").write_text("# Report\n")
    assert cli(NOWHERE, "", "comment", "report.md").code == ExitCode.USAGE
    for name, value in hosts["github"][0].items():
        monkeypatch.setenv(name, value)
    scripted.on("GET", "/repos/a/b/issues/5/comments", {"status": 403, "json": {"message": "no"}})
    refused = cli(NOWHERE, "", "comment", "report.md")
    assert (refused.code, "must be allowed to write" in refused.stderr) == (ExitCode.SERVICE, True)
    monkeypatch.setenv("GITHUB_REF", "refs/heads/main")
    assert cli(NOWHERE, "", "comment", "report.md").code == 0
    monkeypatch.setenv("GITHUB_REF", "refs/pull/5/merge")
    monkeypatch.delenv("GITHUB_TOKEN")
    assert cli(NOWHERE, "", "comment", "report.md").code == ExitCode.USAGE
