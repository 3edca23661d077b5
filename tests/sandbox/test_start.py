"""The child is limited, watched, and never outlives anybody."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import sandbox
from sandbox import processes
from sandbox.quiet import Room
from tests import descriptors

PATIENCE_S = 60.0
ROOMY = sandbox.Limits(runtime_s=60, memory_bytes=2 << 30)


@pytest.fixture
def workspace(tmp_path):
    for name in ("model", "data", "out", "steps", "tmp"):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / "data" / "data.npz", image=np.zeros((4, 3), np.float32))
    (tmp_path / "data" / "dataset.json").write_text("{}")
    return tmp_path


def data_order(workspace):
    return sandbox.Order("inspect_dataset", workspace, {"file": "data.npz"})


def worker_of(child):
    """Give the process that works, when it has locked itself down."""
    end = time.monotonic() + PATIENCE_S
    while child.confinement is None:
        assert time.monotonic() < end
        time.sleep(0.002)
    [worker] = psutil.Process(child.pid).children()
    return worker


def stopped(child):
    """Stop the child; a stopped process is a hanging one."""
    worker = worker_of(child)
    worker.suspend()
    return worker


def test_a_value_comes_back(workspace):
    child = sandbox.start(data_order(workspace), limits=ROOMY)
    outcome = child.wait(PATIENCE_S)
    assert outcome.kind == "done", outcome
    assert outcome.value["samples"] == 4
    assert child.events() == []
    assert child.confinement == sandbox.Confinement("strict")
    assert [path.name for path in workspace.parent.iterdir() if path.name.startswith(".canary")] == []


def test_a_refusal_comes_back_as_a_problem(workspace):
    (workspace / "model" / "model.onnx").write_text("no network")
    outcome = sandbox.start(sandbox.Order("inspect_model", workspace), limits=ROOMY).wait(PATIENCE_S)
    assert outcome.kind == "refused"
    assert outcome.problem["code"] == "model_invalid"
    assert str(workspace) not in str(outcome.problem)


def test_an_unexpected_error_tells_nothing_of_itself(workspace):
    outcome = sandbox.start(sandbox.Order("inspect_dataset", workspace, {}), limits=ROOMY).wait(PATIENCE_S)
    assert outcome.problem["code"] == "engine_failed"
    assert "KeyError" in outcome.log
    assert "KeyError" not in str(outcome.problem)


def test_targets_are_proven(workspace):
    outcome = sandbox.start(sandbox.Order("targets", workspace), limits=ROOMY).wait(PATIENCE_S)
    assert outcome.kind == "done", outcome
    assert "cpu" in {target["provider"] for target in outcome.value["targets"]}


@pytest.mark.parametrize("verb", ["inspect_model", "inspect_archive", "inspect_dataset", "prunability", "targets"])
def test_no_child_works_beside_a_measurement(workspace, verb):
    """It waits, not by its limit's account; then it works, or is refused for what it was given."""
    quiet = workspace / "quiet"
    payload = {"file": "data.npz"} if verb == "inspect_dataset" else {"limit": 1 << 20}
    payload = {} if verb == "targets" else payload
    for name in ("model.onnx", "archive.zip"):
        (workspace / "model" / name).write_text("no network")
    measuring = Room(quiet).ask("measuring", "other")
    assert measuring.enter()
    child = sandbox.start(sandbox.Order(verb, workspace, payload, quiet), limits=ROOMY)
    events = []
    while not events:
        assert child.wait(0.05) is None
        events = child.events()
    measuring.leave()
    outcome = child.wait(PATIENCE_S)
    assert outcome.kind == ("done" if verb in {"inspect_dataset", "targets"} else "refused"), outcome
    assert [event["type"] for event in [*events, *child.events()]] == ["waiting_for_quiet", "quiet"]
    assert child.waited_s >= 0.5
    assert [file.name for file in quiet.iterdir() if not file.name.startswith(".")] == []


def test_the_clock_stands_while_a_child_waits(workspace):
    quiet = workspace / "quiet"
    # Enough for the child's own work on a busy machine.
    limits = sandbox.Limits(runtime_s=12, memory_bytes=2 << 30)
    measuring = Room(quiet).ask("measuring", "other")
    assert measuring.enter()
    child = sandbox.start(sandbox.Order("inspect_dataset", workspace, {"file": "data.npz"}, quiet), limits=limits)
    while child.waited_s < limits.runtime_s + 0.5:
        assert child.wait(0.05) is None
    measuring.leave()
    assert child.wait(PATIENCE_S).kind == "done"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_told_apart(workspace, number):
    child = sandbox.start(sandbox.Order("targets", workspace), limits=ROOMY)
    worker_of(child).send_signal(number)
    outcome = child.wait(PATIENCE_S)
    assert (outcome.kind, outcome.exit_code) == ("crashed", -number)


def test_a_hanging_child_ends_at_its_limit(workspace):
    child = sandbox.start(data_order(workspace), limits=sandbox.Limits(runtime_s=2, memory_bytes=2 << 30))
    stopped(child)
    assert child.wait(PATIENCE_S).kind == "runtime_limit"


def test_memory_is_limited_from_outside(workspace):
    child = sandbox.start(data_order(workspace), limits=sandbox.Limits(runtime_s=60, memory_bytes=12 << 20))
    assert child.wait(PATIENCE_S).kind == "memory_limit"


def test_a_child_can_be_killed(workspace):
    child = sandbox.start(sandbox.Order("targets", workspace), limits=ROOMY)
    assert child.wait(0.01) is None
    assert child.kill().kind == "killed"
    assert not psutil.pid_exists(child.pid)


def test_it_limits_itself_before_it_reads_a_byte(workspace):
    limits = sandbox.Limits(runtime_s=60, memory_bytes=1 << 30, threads=2, file_bytes=1 << 20, open_files=100)
    child = sandbox.start(sandbox.Order("targets", workspace), limits=limits)
    try:
        process = stopped(child)
        proc = Path("/proc") / str(process.pid)
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        assert status["NoNewPrivs"].strip() == "1"
        assert (proc / "oom_score_adj").read_text().strip() == "1000"
        assert os.getsid(process.pid) == os.getpgid(process.pid) == child.pid
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_FSIZE)[1] == 1 << 20
        assert process.rlimit(psutil.RLIMIT_NOFILE)[1] == 100
        assert process.rlimit(psutil.RLIMIT_CPU) == (121, 126)
        assert process.cwd() == str(workspace)
    finally:
        child.kill()


def test_it_gets_no_environment_and_no_descriptors_of_ours(workspace, monkeypatch):
    monkeypatch.setenv("ONNXPRESS_SECRET", "x")
    with (workspace / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        child = sandbox.start(sandbox.Order("targets", workspace), limits=ROOMY)
        try:
            process = stopped(child)
            assert set(process.environ()) <= {
                "PATH",
                "LD_LIBRARY_PATH",
                "HOME",
                "TMPDIR",
                "LANG",
                "ORT_DISABLE_TELEMETRY",
                "PYDANTIC_DISABLE_PLUGINS",
            }
            assert process.environ()["HOME"] == str(workspace)
            opened = descriptors.links(process.pid)
            assert str(workspace / "ours") not in opened
            assert not [name for name in opened if name.startswith("socket")]
        finally:
            child.kill()


def test_files_in_the_workspace_are_not_imported(workspace):
    for name in ("json.py", "sandbox.py", "engine.py", "sitecustomize.py"):
        (workspace / name).write_text("import pathlib; pathlib.Path('planted').touch()")
    assert sandbox.start(data_order(workspace), limits=ROOMY).wait(PATIENCE_S).kind == "done"
    assert not (workspace / "planted").exists()


def test_it_dies_with_its_parent(workspace):
    code = (
        "import sys, time, pathlib, sandbox\n"
        "order = sandbox.Order('targets', pathlib.Path(sys.argv[1]))\n"
        "child = sandbox.start(order, limits=sandbox.Limits(runtime_s=60, memory_bytes=2 << 30))\n"
        "while child.confinement is None: time.sleep(0.002)\n"
        "print(child.pid, *pathlib.Path(f'/proc/{child.pid}/task/{child.pid}/children').read_text().split(), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(workspace)], stdout=subprocess.PIPE, text=True)
    keeper, worker = map(psutil.Process, map(int, parent.stdout.readline().split()))
    # Even ones that cannot do anything themselves any more.
    keeper.suspend()
    worker.suspend()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    keeper.wait(PATIENCE_S)
    worker.wait(PATIENCE_S)


def test_a_child_whose_parent_is_gone_before_it_starts_does_nothing(workspace):
    # Process 1 is never its parent here.
    code = [sys.executable, "-I", "-m", "sandbox.child", "0", "1", "1"]
    done = subprocess.run(code, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_no_descriptor_and_no_thread_stays_here(workspace):
    def count():
        # Of Python's threads: a library of an earlier test may start one of its own at any time.
        return [len(list(Path("/proc/self/fd").iterdir())), threading.active_count()]

    sandbox.start(data_order(workspace), limits=ROOMY).wait(PATIENCE_S)
    before = count()
    for _ in range(3):
        sandbox.start(data_order(workspace), limits=ROOMY).wait(PATIENCE_S)
    # A thread that was joined may take a moment to leave the kernel, and those of earlier tests may end meanwhile.
    end = time.monotonic() + PATIENCE_S
    while any(now > then for now, then in zip(count(), before, strict=True)):
        assert time.monotonic() < end, (count(), before)
        time.sleep(0.01)


def test_the_whole_tree_is_seen_and_killed():
    # None of the shells ends by itself when those below it are killed first.
    code = "sleep 100 & sh -c 'sleep 100 & wait; sleep 100' & wait; sleep 100"
    leader = subprocess.Popen(["sh", "-c", code], start_new_session=True)
    end = time.monotonic() + PATIENCE_S
    while len(set(processes.tree(leader.pid))) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    members = [psutil.Process(pid) for pid in processes.tree(leader.pid)]

    def resident():
        return processes.resident_bytes(leader.pid), sum(member.memory_info().rss for member in members)

    # Those that were forked last still load what they are to run.
    while len(set(resident())) > 1 and time.monotonic() < end:
        time.sleep(0.01)
    told, summed = resident()
    processes.kill(leader.pid)
    assert leader.wait() == -signal.SIGKILL
    assert (len(members), told) == (4, summed)
    psutil.wait_procs(members, timeout=PATIENCE_S)
    assert not [member for member in members if member.is_running()]


def test_orphans_in_the_session_are_killed_too():
    leader = subprocess.Popen(
        ["sh", "-c", "sh -c 'sleep 100 & echo $!'; sleep 100"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    orphan = psutil.Process(int(leader.stdout.readline()))
    processes.kill(leader.pid)
    leader.wait()
    leader.stdout.close()
    psutil.wait_procs([orphan], timeout=PATIENCE_S)
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_hard_limits_of_ours_are_kept(workspace):
    # A child may not ask for more than we have ourselves.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = sandbox.Limits(runtime_s=60, memory_bytes=2 << 30, open_files=hard + 1)
    assert sandbox.start(data_order(workspace), limits=limits).wait(PATIENCE_S).kind == "done"
