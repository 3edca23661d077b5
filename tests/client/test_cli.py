"""Commands against a service that says what the test wants: exit codes, and what goes to stdout and to stderr."""

import contextlib
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import onnxpress
from onnxpress.exit_codes import ExitCode

KEY = "opk_test_secret"
NETWORK = os.urandom(5000)
SHA256 = hashlib.sha256(NETWORK).hexdigest()
JOB = {
    "id": "job_1",
    "kind": "compress",
    "status": "queued",
    "verdict": "none",
    "output_model": "mdl_2",
    "labels": {"branch": "main"},
    "steps": [{"index": 0, "type": "simplify", "status": "waiting"}],
    "warnings": ["no gates: the verdict will be none"],
    "created_at": "2026-01-02T03:04:05Z",
}
RUNNING = JOB | {"status": "running", "progress": {"step": 0, "fraction": 0.5, "message": "folding"}}
DONE = JOB | {"status": "succeeded", "steps": [JOB["steps"][0] | {"status": "applied"}]}


@pytest.fixture
def press(scripted, report):
    """Give a function that scripts a whole job with an outcome."""

    def script(outcome="pass", **job):
        scripted.on("POST", "/models", {"status": 201, "json": {"id": "mdl_1", "state": "ready", "sha256": "0"}})
        scripted.on("POST", "/datasets", {"status": 201, "json": {"id": "dst_1", "state": "ready", "sha256": "0"}})
        scripted.on("POST", "/jobs", {"status": 202, "json": JOB})
        scripted.on("GET", "/jobs/job_1", {"json": JOB}, {"json": RUNNING}, {"json": DONE | {"verdict": outcome} | job})
        report["verdict"]["outcome"] = outcome
        scripted.on("GET", "/jobs/job_1/report.json", {"json": report})
        scripted.on(
            "GET", "/jobs/job_1/report.md", {"body": b"# Report\n", "headers": {"Content-Type": "text/markdown"}}
        )
        scripted.on("GET", "/models/mdl_2", {"json": {"id": "mdl_2", "state": "ready", "sha256": SHA256}})
        scripted.on("GET", "/models/mdl_2/content", {"body": NETWORK})
        scripted.on("POST", "/jobs/job_1:cancel", {"json": RUNNING | {"status": "cancelling"}})
        return scripted

    return script


@pytest.fixture
def files(tmp_path):
    """Give the words that name a network and its data."""
    (tmp_path / "net.onnx").write_bytes(b"network")
    (tmp_path / "data.npz").write_bytes(b"data")
    return ["compress", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--recipe", "int8"]


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("pass", ExitCode.OK),
        ("none", ExitCode.OK),
        ("fail", ExitCode.GATE_FAILED),
        ("inconclusive", ExitCode.INCONCLUSIVE),
    ],
)
def test_compress_ends_with_the_verdict(press, cli, files, outcome, code):
    scripted = press(outcome)
    done = cli(scripted.url, KEY, *files, "--out", "small.onnx", "--report", "report.md")
    assert done.code == code, done.stderr
    assert done.stdout == "job_1\n"
    assert Path("small.onnx").read_bytes() == NETWORK
    assert Path("report.md").read_text() == "# Report\n"
    assert f"verdict: {outcome}" in done.stderr
    assert "warning: no gates" in done.stderr
    assert "step 1/1 simplify: folding" in done.stderr
    assert "step 1/1 simplify applied" in done.stderr


def test_compress_asks_for_what_was_typed(press, cli, files):
    scripted = press()
    more = [
        "--gate",
        "top1 max_drop 1%",
        "--provider",
        "cpu",
        "--threads",
        2,
        "--label",
        "branch=main",
        "--metric",
        "top1",
    ]
    assert cli(scripted.url, KEY, *files, *more).code == 0
    (asked,) = scripted.asked("POST", "/jobs")
    assert json.loads(asked.body) == {
        "kind": "compress",
        "model": "mdl_1",
        "dataset": "dst_1",
        "recipe": {"passes": [{"type": "simplify"}, {"type": "quantize_static"}]},
        "target": {"provider": "cpu", "threads": 2},
        "gates": [{"metric": "top1", "rule": "max_drop", "value": 0.01}],
        "labels": {"branch": "main"},
    }
    assert "metric=top1" in scripted.asked("POST", "/datasets")[0].path


@pytest.mark.parametrize("stored", [False, True])
def test_a_second_dataset_judges(press, cli, files, tmp_path, stored):
    scripted = press()
    (tmp_path / "test.npz").write_bytes(b"others")
    named = "dst_7" if stored else tmp_path / "test.npz"
    assert cli(scripted.url, KEY, *files, "--judge", named, "--metric", "top1").code == 0
    (asked,) = scripted.asked("POST", "/jobs")
    body = json.loads(asked.body)
    assert (body["dataset"], body["judge"]) == ("dst_1", "dst_7" if stored else "dst_1")
    uploads = scripted.asked("POST", "/datasets")
    assert [each.body for each in uploads] == ([b"data"] if stored else [b"data", b"others"])
    # The same words with other data are another job.
    (tmp_path / "test.npz").write_bytes(b"yet others")
    assert cli(scripted.url, KEY, *files, "--judge", tmp_path / "test.npz", "--metric", "top1").code == 0
    keys = {each.headers["Idempotency-Key"] for each in scripted.asked("POST", "/jobs")}
    assert len(keys) == 2


@pytest.mark.parametrize("name", ["small", "fast", "fastest"])
def test_a_recipe_that_the_service_knows_is_asked_for_by_its_name(press, cli, files, name):
    scripted = press()
    assert cli(scripted.url, KEY, *files[:-1], name).code == 0
    (asked,) = scripted.asked("POST", "/jobs")
    assert json.loads(asked.body)["recipe"] == name
    refused = cli(scripted.url, KEY, *files[:-1], "smallest")
    assert refused.code == ExitCode.USAGE
    assert "no recipe of that name: simplify, int8, small, fast, fastest" in refused.stderr


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_student_or_a_teacher_goes_along(press, cli, files, tmp_path, role, stored):
    scripted = press()
    (tmp_path / "tiny.onnx").write_bytes(b"another network")
    named = "mdl_7" if stored else tmp_path / "tiny.onnx"
    assert cli(scripted.url, KEY, *files, f"--{role}", named).code == 0
    (asked,) = scripted.asked("POST", "/jobs")
    body = json.loads(asked.body)
    assert (body["model"], body[role]) == ("mdl_1", "mdl_7" if stored else "mdl_1")
    uploads = [each.body for each in scripted.asked("POST", "/models")]
    assert uploads == ([b"network"] if stored else [b"network", b"another network"])
    # The same network in the other part is another job.
    other = {"student": "teacher", "teacher": "student"}[role]
    assert cli(scripted.url, KEY, *files, f"--{other}", named).code == 0
    keys = {each.headers["Idempotency-Key"] for each in scripted.asked("POST", "/jobs")}
    assert len(keys) == 2


def test_a_target_with_options_and_a_search_for_more_are_asked_for(press, cli, files):
    scripted = press()
    words = [*files, "--target", "cuda:batch=32,prefer_nhwc=1", "--batch", 16, "--tune"]
    assert cli(scripted.url, KEY, *words).code == 0
    body = json.loads(scripted.asked("POST", "/jobs")[0].body)
    assert body["target"] == {"provider": "cuda", "batch": 16, "provider_options": {"prefer_nhwc": "1"}}
    assert body["tune"] == {}


def test_options_add_to_a_job_file(press, cli, files, tmp_path):
    job = {
        "recipe": {"passes": [{"type": "simplify"}]},
        "target": {"provider": "openvino", "threads": 1},
        "gates": [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.5}],
        "limits": {"max_runtime_s": 60},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    scripted = press()
    words = [*files[:4], "--recipe", tmp_path / "job.json", "--threads", 4, "--gate", "top1 min 0.9"]
    assert cli(scripted.url, KEY, *words).code == 0
    body = json.loads(scripted.asked("POST", "/jobs")[0].body)
    assert body["target"] == {"provider": "openvino", "threads": 4}
    assert [gate["metric"] for gate in body["gates"]] == ["size_bytes", "top1"]
    assert body["limits"] == {"max_runtime_s": 60}


def test_stored_models_and_datasets_are_named_by_id(press, cli):
    scripted = press()
    done = cli(scripted.url, KEY, "compress", "mdl_9", "--data", "dst_9", "--recipe", "int8")
    assert done.code == 0, done.stderr
    body = json.loads(scripted.asked("POST", "/jobs")[0].body)
    assert (body["model"], body["dataset"]) == ("mdl_9", "dst_9")
    assert scripted.asked("POST", "/models") == []


def test_json_is_the_only_thing_on_stdout(press, cli, files, tmp_path):
    done = cli(press("fail").url, KEY, *files, "--json", "--out", tmp_path / "small.onnx")
    assert done.code == 3
    assert done.json["exit_code"] == 3
    assert done.json["job"]["id"] == "job_1"
    assert done.json["report"]["verdict"]["outcome"] == "fail"
    assert done.json["out"] == str(tmp_path / "small.onnx")


def test_without_wait_there_is_an_id_and_nothing_else(press, cli, files):
    scripted = press()
    assert cli(scripted.url, KEY, *files, "--no-wait").stdout == "job_1\n"
    assert scripted.asked("GET", "/jobs/job_1") == []
    done = cli(scripted.url, KEY, *files, "--no-wait", "--json")
    assert (done.code, done.json["job"]["status"]) == (0, "queued")


def test_a_further_attempt_finds_its_job_and_replaces_one_that_came_to_nothing(press, cli, files, monkeypatch):
    scripted = press()
    monkeypatch.setenv("GITHUB_RUN_ID", "7")
    for attempt in ("1", "2"):
        monkeypatch.setenv("GITHUB_RUN_ATTEMPT", attempt)
        cli(scripted.url, KEY, *files, "--no-wait")
    for path in ("/models", "/datasets", "/jobs"):
        first, again = (asked.headers["Idempotency-Key"] for asked in scripted.asked("POST", path))
        assert first == again
    jobs = {asked.headers["Idempotency-Key"] for asked in scripted.asked("POST", "/jobs")}
    for status in ("cancelled", "failed"):
        dead = {"status": 202, "json": JOB | {"id": "job_0", "status": status}}
        scripted.on("POST", "/jobs", dead, dead, {"status": 202, "json": JOB})
        assert cli(scripted.url, KEY, *files, "--no-wait").stdout == "job_1\n"
        turns = [asked.headers["Idempotency-Key"] for asked in scripted.asked("POST", "/jobs")[-3:]]
        assert (len(set(turns)), turns[0]) == (3, *jobs)


@pytest.mark.parametrize(
    "words",
    [
        ["--recipe", "int9"],
        ["--recipe", "int8", "--gate", "top1"],
        ["--recipe", "int8", "--label", "x"],
        ["--recipe", "int8", "--out", "nowhere/small.onnx"],
        ["--recipe", "int8", "--out", "."],
        ["--recipe", "int8", "--no-wait", "--out", "small.onnx"],
        ["--recipe", "int8", "--data", "missing.npz"],
        ["--recipe", "int8", "--nonsense"],
        ["--recipe", "int8", "--goal", "latency"],
        ["--recipe", "int8", "--effort", "low"],
        ["--goal", "speed"],
        ["--max-drop", "1"],
        ["--max-size", "2"],
        ["--budget", "10"],
        ["--effort", "extreme"],
        ["--strategy", "luck"],
        ["--output", "y=classy"],
        ["--goal", "latency", "--student", "mdl_9"],
    ],
)
def test_wrong_usage_is_2_before_anything_is_sent(press, cli, files, words):
    scripted = press()
    done = cli(scripted.url, KEY, "compress", files[1], *words)
    assert done.code == ExitCode.USAGE
    assert done.stderr
    assert scripted.requests == []


def test_a_refused_spec_is_2_with_its_places(press, cli, files):
    scripted = press()
    problem = {
        "title": "Unprocessable Content",
        "status": 422,
        "code": "invalid",
        "detail": "The request is not valid.",
        "request_id": "req_7",
        "errors": [{"pointer": "/recipe/passes/0/type", "detail": "Unknown type."}],
    }
    scripted.on("POST", "/jobs", {"status": 422, "json": problem})
    done = cli(scripted.url, KEY, *files, "--json")
    assert done.code == ExitCode.USAGE
    assert "/recipe/passes/0/type: Unknown type." in done.stderr
    assert "req_7" in done.stderr
    assert done.json == {"error": problem, "exit_code": 2}


def test_a_failed_job_is_4_with_its_reason(press, cli, files, tmp_path):
    problem = {"code": "memory_limit", "message": "4096 MiB were not enough", "hint": "Raise max_memory_mb."}
    scripted = press(status="failed", problem=problem)
    done = cli(scripted.url, KEY, *files, "--out", tmp_path / "small.onnx", "--json")
    assert done.code == ExitCode.JOB_FAILED
    assert "4096 MiB were not enough" in done.stderr
    assert "Raise max_memory_mb." in done.stderr
    assert done.json["error"]["code"] == "memory_limit"
    assert not (tmp_path / "small.onnx").exists()
    assert cli(scripted.url, KEY, "download", "job_1", "--out", tmp_path / "small.onnx").code == 4
    assert cli(scripted.url, KEY, "wait", "job_1").code == 4


def test_a_service_that_is_away_is_5(cli, files):
    done = cli("http://127.0.0.1:9", KEY, *files, patience=0.5)
    assert done.code == ExitCode.SERVICE
    assert "trying again" in done.stderr
    assert "cannot be reached" in done.stderr


def test_other_bytes_than_promised_are_5(press, cli, files, tmp_path):
    scripted = press()
    scripted.on("GET", "/models/mdl_2/content", {"body": b"other"})
    assert cli(scripted.url, KEY, *files, "--out", tmp_path / "small.onnx").code == ExitCode.SERVICE
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize("silent", ["POST /models", "GET /jobs/job_1"])
def test_a_deadline_is_6_wherever_it_passes(press, cli, files, silent):
    scripted = press()
    method, path = silent.split()
    scripted.on(method, path, {"silent": True})
    done = cli(scripted.url, KEY, *files, "--timeout", 0.5, "--json")
    assert done.code == ExitCode.TIMEOUT
    assert done.json["exit_code"] == 6
    # It did not wait for the end of the silence.
    assert not scripted.silence_over


def test_a_wait_that_runs_out_says_how_to_go_on(press, cli):
    scripted = press()
    scripted.on("GET", "/jobs/job_1", {"json": RUNNING}, {"silent": True})
    done = cli(scripted.url, KEY, "wait", "job_1", "--timeout", 0.3, "--json")
    assert done.code == ExitCode.TIMEOUT
    assert done.json["job"]["status"] == "running"
    assert "onnxpress wait job_1" in done.stderr


def test_a_missing_key_says_where_keys_are_looked_for(scripted, cli):
    scripted.on("GET", "/jobs", {"status": 401, "json": {"title": "Unauthorized", "status": 401}})
    done = cli(scripted.url, "wrong", "jobs")
    assert done.code == ExitCode.USAGE
    assert "ONNXPRESS_API_KEY" in done.stderr


def test_what_nobody_foresaw_is_1(scripted, files):
    scripted.on("POST", "/models", {"status": 201, "json": {"surprise": True}})
    done = run(scripted.url, files)
    assert done.wait(240) == ExitCode.UNEXPECTED
    done.communicate()


def run(url, words, stderr=subprocess.PIPE, **env):
    """Start the command in a process of its own."""
    argv = [sys.executable, "-m", "onnxpress", *map(str, words)]
    env = {"PATH": os.environ["PATH"], "ONNXPRESS_URL": url, "ONNXPRESS_API_KEY": KEY, "NO_COLOR": "1", **env}
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)


def test_sigterm_cancels_the_remote_job(press, files):
    asked = threading.Event()
    scripted = press()
    scripted.on("GET", "/jobs/job_1", lambda _: asked.set() or {"silent": True})
    process = run(scripted.url, files)
    assert asked.wait(240)
    process.terminate()
    _, told = process.communicate(timeout=240)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "job job_1 is cancelling" in told
    assert len(scripted.asked("POST", "/jobs/job_1:cancel")) == 1


def ctrl_c(_request):
    """Press Ctrl-C while the command waits for an answer that does not come."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    return {"silent": True}


def test_ctrl_c_cancels_the_remote_job(press, cli, files):
    scripted = press()
    scripted.on("GET", "/jobs/job_1", ctrl_c)
    done = cli(scripted.url, KEY, *files)
    assert done.code == ExitCode.INTERRUPTED
    assert "job job_1 is cancelling" in done.stderr
    assert len(scripted.asked("POST", "/jobs/job_1:cancel")) == 1


def test_a_job_whose_answer_ctrl_c_lost_is_found_and_cancelled(press, cli, files):
    scripted = press()
    scripted.on("POST", "/jobs", ctrl_c, {"status": 202, "json": JOB})
    assert cli(scripted.url, KEY, *files).code == ExitCode.INTERRUPTED
    first, again = scripted.asked("POST", "/jobs")
    assert first.headers["Idempotency-Key"] == again.headers["Idempotency-Key"]
    assert len(scripted.asked("POST", "/jobs/job_1:cancel")) == 1


def test_an_interrupted_upload_submits_nothing(press, cli, files):
    scripted = press()
    scripted.on("POST", "/datasets", ctrl_c)
    assert cli(scripted.url, KEY, *files).code == ExitCode.INTERRUPTED
    assert scripted.asked("POST", "/jobs") == []


def test_a_job_that_cannot_be_cancelled_is_named(press, cli, files):
    scripted = press()
    scripted.on("GET", "/jobs/job_1", ctrl_c)
    scripted.on("POST", "/jobs/job_1:cancel", {"status": 500, "json": {"title": "Internal Server Error"}})
    done = cli(scripted.url, KEY, *files)
    assert done.code == ExitCode.INTERRUPTED
    assert "onnxpress cancel job_1" in done.stderr


@pytest.mark.parametrize(("words", "cancels"), [([], 1), (["--keep"], 0)])
def test_wait_cancels_unless_told_to_keep(press, cli, words, cancels):
    scripted = press()
    scripted.on("GET", "/jobs/job_1", ctrl_c)
    done = cli(scripted.url, KEY, "wait", "job_1", *words)
    assert done.code == ExitCode.INTERRUPTED
    assert len(scripted.asked("POST", "/jobs/job_1:cancel")) == cancels
    assert ("onnxpress wait job_1" in done.stderr) == (not cancels)


@pytest.mark.parametrize("path", ["/jobs/job_1", "/jobs/job_1/report.json", "/models/mdl_2/content"])
def test_whoever_gives_up_is_told_how_to_wait_again(press, cli, files, tmp_path, path):
    scripted = press()
    scripted.on("GET", path, {"status": 503, "json": {"title": "Service Unavailable", "status": 503}})
    done = cli(scripted.url, KEY, *files, "--out", tmp_path / "small.onnx", "--json", patience=0)
    assert done.code == ExitCode.SERVICE
    assert "onnxpress wait job_1" in done.stderr
    assert done.json["job_id"] == "job_1"


def test_on_a_terminal_bars_move_and_ids_still_go_into_the_pipe(press, files):
    scripted = press()
    ours, theirs = pty.openpty()
    process = run(scripted.url, files, stderr=theirs, TERM="xterm", COLUMNS="160")
    os.close(theirs)
    told = b""
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # noqa: PTH123 - a descriptor
        while piece := terminal.read(65536):
            told += piece
    stdout, _ = process.communicate(timeout=240)
    assert (process.returncode, stdout) == (0, "job_1\n")
    assert "━" in told.decode()
    assert "step 1/1 simplify applied" in told.decode()
    assert "verdict: pass" in told.decode()


def test_lists_are_bare_in_a_pipe_and_whole_in_json(scripted, cli):
    scripted.on("GET", "/jobs", {"json": {"items": [DONE, JOB | {"id": "job_0"}], "next_cursor": None}})
    assert cli(scripted.url, KEY, "jobs").stdout == "job_1\njob_0\n"
    assert cli(scripted.url, KEY, "jobs", "--json").json["items"][0] == DONE
    assert cli(scripted.url, KEY, "jobs", "--status", "queued", "--label", "a=b", "--limit", 1).stdout == "job_1\n"
    assert scripted.requests[-1].path == "/v1/jobs?status=queued&label=a%3Db&limit=1"


def test_the_version_and_the_module_agree(cli):
    assert cli("http://127.0.0.1:9", KEY, "--version").stdout.strip() == onnxpress.__version__
