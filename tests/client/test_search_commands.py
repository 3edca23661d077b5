"""A goal on the command line: what is asked for, what is shown while it is looked for, and what there is to choose from."""

import contextlib
import hashlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from onnxpress import Client
from onnxpress.exit_codes import ExitCode

from ..search_reports import search_report

KEY = "opk_test_secret"
LOSS = {"metric": "top1", "rule": "max_drop", "value": 0.01}
SPEC = {"kind": "search", "goal": {"minimise": "latency", "subject_to": [LOSS]}}
JOB = {"id": "job_1", "kind": "search", "status": "running", "output_model": "mdl_2", "spec": SPEC}
DONE = JOB | {"status": "succeeded", "verdict": "pass"}
POINT = {"dropped": ["add1"], "widths": {}, "ranks": {}, "precision": "static", "in_float": []}
VALUES = {
    "size_bytes": 180_000,
    "macs": 100,
    "parameters": 9,
    "latency": {"value": 0.5, "interval": {"low": 0.49, "high": 0.51}},
    "quality": [{"metric": "top1", "output": "y", "original": 0.9, "compressed": 0.896, "difference": -0.004}],
}
PROPOSAL = {"point": POINT, "level": "refit", "because": "solver: uniform", "predicted": None}


def _trial(number, state, ratio=None, lost=0.0, **more):
    quality = [{"metric": "top1", "output": "y", "original": 0.9, "compressed": 0.9 - lost, "difference": -lost}]
    told = {} if ratio is None else {"size_bytes": 180_000, "latency_ratio": ratio, "quality": quality}
    return "trial_ended", {"number": number, "state": state, **told, **more}


EVENTS = (
    ("trial_queued", {"number": 1, "level": "refit", "because": "solver: uniform"}),
    ("trial_started", {"number": 1}),
    _trial(1, "succeeded", 0.25, lost=0.05),
    _trial(2, "failed", code="crashed"),
    _trial(3, "succeeded", 0.5, lost=0.004),
    _trial(4, "succeeded", 0.6),
    _trial(5, "succeeded", 0.4),
)


@pytest.fixture
def press(scripted, report):
    """Give a service that finds a network for a goal."""
    labels = {"metric": "top1", "labelled": 300}
    data = {"id": "dst_1", "state": "ready", "sha256": "0", "inspection": labels, "outputs": {}}
    scripted.on("POST", "/models", {"status": 201, "json": {"id": "mdl_1", "state": "ready"}})
    scripted.on("POST", "/datasets", {"status": 201, "json": data})
    scripted.on("GET", "/datasets/dst_1", {"json": data})
    inspection = {"outputs": [{"name": "logits", "shape": ["n", 10]}]}
    scripted.on("GET", "/models/mdl_1", {"json": {"id": "mdl_1", "state": "ready", "inspection": inspection}})
    scripted.on("POST", "/jobs", {"status": 202, "json": JOB | {"status": "queued"}})
    scripted.on("GET", "/jobs/job_1", {"json": JOB}, {"json": DONE})
    lines = [f"id: {at}\nevent: {kind}\ndata: {json.dumps(told)}\n\n" for at, (kind, told) in enumerate(EVENTS, 1)]
    body = {"body": "".join(lines).encode(), "headers": {"Content-Type": "text/event-stream"}}
    scripted.on("GET", "/jobs/job_1/events", body, {"status": 204})
    report |= {"kind": "search", "search": search_report().model_dump(mode="json"), "steps": []}
    report["verdict"]["outcome"] = "pass"
    scripted.on("GET", "/jobs/job_1/report.json", {"json": report})
    return scripted


@pytest.fixture
def words(tmp_path):
    """Give the words that name a network and its data."""
    (tmp_path / "net.onnx").write_bytes(b"network")
    (tmp_path / "data.npz").write_bytes(b"data")
    return ["compress", tmp_path / "net.onnx", "--data", tmp_path / "data.npz"]


def _asked(scripted):
    """Give the body of the last job that was asked for, which the engine has to take."""
    body = json.loads(scripted.asked("POST", "/jobs")[-1].body)
    about = {name: body.pop(name) for name in ("model", "dataset", "labels", "cache", "priority") if name in body}
    engine.read_spec(body)
    return body, about


def test_a_goal_with_its_limits_is_what_the_engine_takes(press, cli, words):
    more = [
        "--goal",
        "size",
        "--max-drop",
        "0.5%",
        "--min-speedup",
        "4",
        "--max-size",
        "2MB",
        "--max-memory",
        "80%",
        "--max-p99",
        "5ms",
        "--effort",
        "high",
    ]
    more += [
        "--budget",
        "10m",
        "--trials",
        "60",
        "--strategy",
        "tpe",
        "--seed",
        "1",
        "--flip",
        "--threads",
        "2",
        "--label",
        "branch=main",
        "--no-cache",
    ]
    done = cli(press.url, KEY, *words, *more, "--gate", "sqnr_db min 20 warn", "--output", "logits=classes")
    assert done.code == 0, done.stderr
    body, about = _asked(press)
    assert body == {
        "kind": "search",
        "goal": {
            "minimise": "size",
            "subject_to": [
                {"metric": "sqnr_db", "rule": "min", "value": 20.0, "level": "warn"},
                {"metric": "latency_p50", "rule": "max_ratio", "value": 0.25},
                {"metric": "size_bytes", "rule": "max", "value": 2_000_000},
                {"metric": "peak_memory", "rule": "max_ratio", "value": 0.8},
                {"metric": "latency_p99", "rule": "max", "value": 5.0},
                {"metric": "top1", "rule": "max_drop", "value": 0.005},
            ],
            "effort": "high",
        },
        "budget": {"max_seconds": 600.0, "max_trials": 60},
        "strategy": "tpe",
        "seed": 1,
        "space": {"flip": True},
        "target": {"threads": 2},
        "outputs": {"logits": {"kind": "classes"}},
    }
    assert about == {"model": "mdl_1", "dataset": "dst_1", "labels": {"branch": "main"}, "cache": "refuse"}
    assert "limit: top1 may fall by at most 0.5 points, by the labels of the data\n" in done.stderr


def test_without_a_recipe_the_goal_is_speed_at_the_usual_loss(press, cli, words):
    done = cli(press.url, KEY, *words)
    assert done.code == 0, done.stderr
    assert _asked(press)[0] == {"kind": "search", "goal": {"minimise": "latency", "subject_to": [LOSS]}}
    assert "top1 may fall by at most 1 points, by the labels of the data; --max-drop says otherwise" in done.stderr


def test_without_data_or_with_a_limit_on_quality_the_usual_loss_is_not_added(press, cli, words):
    assert cli(press.url, KEY, *words[:2]).code == 0
    assert _asked(press)[0] == {"kind": "search", "goal": {"minimise": "latency"}}
    assert cli(press.url, KEY, *words, "--gate", "top1_agreement@logits min 98%").code == 0
    limit = {"metric": "top1_agreement@logits", "rule": "min", "value": 0.98}
    assert _asked(press)[0]["goal"]["subject_to"] == [limit]
    assert press.asked("GET", "/models/mdl_1") == []


def test_a_loss_that_cannot_be_told_is_refused_where_it_was_asked_for(press, cli, words):
    press.on("GET", "/datasets/dst_1", {"json": {"id": "dst_1", "state": "ready", "inspection": {"labelled": 0}}})
    assert cli(press.url, KEY, *words).code == 0
    (limit,) = _asked(press)[0]["goal"]["subject_to"]
    assert limit == {"metric": "top1_agreement", "rule": "min", "value": 0.99}
    inspection = {"outputs": [{"name": "y", "shape": ["n", 10]}]}
    press.on("GET", "/models/mdl_1", {"json": {"id": "mdl_1", "state": "ready", "inspection": inspection}})
    done = cli(press.url, KEY, *words)
    assert "no limit on quality" in done.stderr
    assert "subject_to" not in _asked(press)[0]["goal"]
    done = cli(press.url, KEY, *words, "--max-drop", "1%")
    assert done.code == ExitCode.USAGE
    assert "--output y=classes" in done.stderr
    assert cli(press.url, KEY, *words, "--max-drop", "1%", "--output", "y=mask").code == 0
    assert _asked(press)[0]["goal"]["subject_to"] == [{"metric": "mask_iou", "rule": "min", "value": 0.99}]


def test_the_options_for_limits_are_gates_of_a_recipe_too(press, cli, words):
    assert cli(press.url, KEY, *words, "--recipe", "int8", "--max-drop", "1%", "--max-size", "50%").code == 0
    body = json.loads(press.asked("POST", "/jobs")[-1].body)
    assert body["gates"] == [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.5}, LOSS]


@pytest.mark.parametrize("option", ["--goal", "--recipe"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_holds_a_goal_or_a_whole_job_and_options_win(press, cli, words, tmp_path, option, whole):
    goal = {"minimise": "size", "subject_to": [LOSS], "effort": "high"}
    job = {"goal": goal, "budget": {"max_seconds": 60}, "limits": {"max_runtime_s": 900}}
    (tmp_path / "goal.json").write_text(json.dumps(job if whole else goal))
    done = cli(press.url, KEY, *words, option, tmp_path / "goal.json", "--effort", "low", "--trials", 5)
    if option == "--recipe" and not whole:
        assert done.code == ExitCode.USAGE
        assert "neither a recipe" in done.stderr
        return
    assert done.code == 0, done.stderr
    body, _ = _asked(press)
    assert body["goal"] == {"minimise": "size", "subject_to": [LOSS], "effort": "low"}
    assert body["budget"] == ({"max_seconds": 60} if whole else {}) | {"max_trials": 5}
    assert ("limits" in body) is whole


@pytest.mark.parametrize("document", [{"goal": "latency"}, {"goal": {}, "kind": "profile"}, {"passes": []}])
def test_a_file_without_a_goal_is_refused_in_words(press, cli, words, tmp_path, document):
    (tmp_path / "goal.json").write_text(json.dumps(document))
    done = cli(press.url, KEY, *words, "--goal", tmp_path / "goal.json")
    assert done.code == ExitCode.USAGE
    assert '"goal"' in done.stderr or "a goal" in done.stderr
    assert press.requests == []


def test_a_long_budget_may_take_as_long_as_it_says(press, cli, words):
    assert cli(press.url, KEY, *words, "--budget", "2h").code == 0
    body, _ = _asked(press)
    assert body["budget"] == {"max_seconds": 7200.0}
    assert body["limits"]["max_runtime_s"] > 7200


def test_on_a_terminal_candidates_stand_above_the_bar(press):
    ours, theirs = pty.openpty()
    env = {
        "PATH": os.environ["PATH"],
        "ONNXPRESS_URL": press.url,
        "ONNXPRESS_API_KEY": KEY,
        "NO_COLOR": "1",
        "TERM": "xterm",
    }
    env["COLUMNS"] = "160"
    argv = [sys.executable, "-m", "onnxpress", "wait", "job_1"]
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    told = b""
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # noqa: PTH123 - a descriptor
        while piece := terminal.read(65536):
            told += piece
    stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "job_1\n")
    assert "trial 5: 2.50x as fast, 180.0 kB, top1 +0.00 points; the fastest so far" in told.decode()


@pytest.mark.parametrize("command", ["compress", "wait"])
def test_candidates_are_shown_as_they_end(press, cli, words, command):
    done = cli(press.url, KEY, *(words if command == "compress" else ["wait", "job_1"]))
    assert done.code == 0, done.stderr
    assert done.stdout == "job_1\n"
    lines = [line for line in done.stderr.splitlines() if line.startswith("trial ")]
    assert lines == [
        "trial 1: 4.00x as fast, 180.0 kB, top1 -5.00 points; beyond a limit",
        "trial 2: failed: crashed",
        "trial 3: 2.00x as fast, 180.0 kB, top1 -0.40 points; the fastest so far whose figures are within the limits",
        "trial 4: 1.67x as fast, 180.0 kB, top1 +0.00 points",
        "trial 5: 2.50x as fast, 180.0 kB, top1 +0.00 points; the fastest so far whose figures are within the limits",
    ]


def test_the_end_shows_what_was_tried_and_what_there_is(press, cli, words):
    text = cli(press.url, KEY, *words).stderr
    assert "what was tried" in text
    assert "front: what there is to choose from" in text
    assert "onnxpress pick job_1 NUMBER" in text


def _front(scripted, **more):
    point = {"number": 3, "level": "refit", "because": "solver", "point": POINT, "recipe": None, "predicted": None}
    front = {"job": "job_1", "status": "succeeded", "final": True, "minimise": "latency", "chosen": 3}
    scripted.on("GET", "/jobs/job_1/front", {"json": front | {"points": [point | {"measured": VALUES}]} | more})


def test_a_front_is_a_table_for_people_and_numbers_for_programs(scripted, cli):
    _front(scripted)
    done = cli(scripted.url, KEY, "front", "job_1")
    assert (done.code, done.stdout) == (0, "3\n")
    assert "1 block dropped, 8-bit integers" in done.stderr
    assert "chosen" in done.stderr
    assert cli(scripted.url, KEY, "front", "job_1", "--json").json["points"][0]["number"] == 3
    _front(scripted, points=[], final=False)
    assert "nothing has been measured yet" in cli(scripted.url, KEY, "front", "job_1").stderr


def test_a_front_of_another_job_is_refused_in_the_services_words(scripted, cli):
    problem = {"title": "Conflict", "status": 409, "code": "not_a_search", "detail": "Only a search has trials."}
    scripted.on("GET", "/jobs/job_1/front", {"status": 409, "json": problem})
    done = cli(scripted.url, KEY, "front", "job_1")
    assert done.code == ExitCode.USAGE
    assert "Only a search has trials." in done.stderr


def test_a_point_is_picked_measured_and_fetched(press, cli):
    made = {"id": "job_2", "kind": "compress", "status": "queued", "output_model": "mdl_3"}
    done = made | {"status": "succeeded", "verdict": "fail"}
    press.on("POST", "/jobs/job_1/front/3:pick", {"status": 202, "json": made})
    press.on("GET", "/jobs/job_2", {"json": done})
    report = press.scripts["GET", "/v1/jobs/job_1/report.json"][0]["json"]
    press.on("GET", "/jobs/job_2/report.json", {"json": report | {"kind": "compress", "search": None}})
    press.on("GET", "/models/mdl_3", {"json": {"id": "mdl_3", "state": "ready", "sha256": _sha256(b"small")}})
    press.on("GET", "/models/mdl_3/content", {"body": b"small"})
    picked = cli(press.url, KEY, "pick", "job_1", 3, "--out", "small.onnx", "--gate", "top1 max_drop 2%")
    assert picked.code == ExitCode.GATE_FAILED, picked.stderr
    assert picked.stdout == "job_2\n"
    assert Path("small.onnx").read_bytes() == b"small"
    (asked,) = press.asked("POST", "/jobs/job_1/front/3:pick")
    assert json.loads(asked.body) == {"gates": [{"metric": "top1", "rule": "max_drop", "value": 0.02}]}
    assert asked.headers["Idempotency-Key"]
    at_once = cli(press.url, KEY, "pick", "job_1", 3, "--json")
    assert (at_once.code, at_once.json["job"]["status"]) == (0, "queued")
    assert cli(press.url, KEY, "pick", "job_1", 9).code == ExitCode.USAGE


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_search_rests_and_goes_on(scripted, cli, verb):
    scripted.on("POST", f"/jobs/job_1:{verb}", {"json": JOB})
    done = cli(scripted.url, KEY, verb, "job_1")
    assert (done.code, done.stdout) == (0, "job_1\n")
    assert "job_1" in done.stderr
    assert cli(scripted.url, KEY, verb, "job_1", "--json").json["exit_code"] == 0


def test_trials_come_page_by_page(scripted, cli):
    said = [
        {"number": number, "state": "succeeded", "proposal": PROPOSAL, "values": VALUES, "seconds": 2.0}
        for number in (1, 2)
    ]
    scripted.on(
        "GET",
        "/jobs/job_1/trials",
        lambda asked: {
            "json": {"items": said[1:], "next_after": None}
            if "after=1" in asked.path
            else {"items": said[:1], "next_after": 1}
        },
    )
    done = cli(scripted.url, KEY, "trials", "job_1")
    assert done.code == 0, done.stderr
    assert done.stderr.count("solver:") == 2
    assert [one["number"] for one in cli(scripted.url, KEY, "trials", "job_1", "--json").json["items"]] == [1, 2]


def test_the_sdk_asks_for_a_goal_as_the_engine_takes_it(press):
    with Client(press.url, KEY, patience=5.0) as client:
        job = client.jobs.search(
            "mdl_1", "size", dataset="dst_1", subject_to=[LOSS], max_seconds=60, target={"threads": 2}, seed=3
        )
    assert job.kind == "search"
    body, about = _asked(press)
    assert body == {
        "kind": "search",
        "goal": {"minimise": "size", "subject_to": [LOSS], "effort": "medium"},
        "budget": {"max_seconds": 60},
        "target": {"threads": 2},
        "seed": 3,
    }
    assert about == {"model": "mdl_1", "dataset": "dst_1"}
