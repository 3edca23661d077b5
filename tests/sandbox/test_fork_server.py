"""What is forked from a prepared process is a child as any other: ours, alone, limited, and gone with us.

That it is confined as strictly is held in test_escapes.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import psutil
import pytest

import sandbox
from tests.sandbox import hostile

PATIENCE_S = 60.0
ROOMY = sandbox.Limits(runtime_s=60, memory_bytes=2 << 30)


@pytest.fixture
def workspace(tmp_path):
    folder = tmp_path / "workspace"
    for name in ("data", "out", "tmp"):
        (folder / name).mkdir(parents=True)
    np.savez(folder / "data" / "data.npz", image=np.zeros((4, 3), np.float32))
    (folder / "data" / "dataset.json").write_text("{}")
    return folder


@pytest.fixture
def server():
    with closing(sandbox.ForkServer()) as made:
        yield made


def start(workspace, server, *, limits=ROOMY):
    return sandbox.start(
        sandbox.Order("inspect_dataset", workspace, {"file": "data.npz"}), limits=limits, server=server
    )


def prepared():
    """The processes that children are forked from."""
    return [one for one in psutil.Process().children() if "sandbox.forking" in words(one)]


def words(process):
    """What a process was started with; between `fork` and `exec` there is a moment without any."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            found = process.cmdline()
        except psutil.NoSuchProcess:
            return []
        if found or process.status() == psutil.STATUS_ZOMBIE:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{process} has no command line")


def test_each_child_is_a_new_process_of_ours(workspace, server):
    pids = set()
    for _ in range(3):
        child = start(workspace, server)
        pids.add(child.pid)
        outcome = child.wait(PATIENCE_S)
        assert (outcome.kind, outcome.exit_code) == ("done", 0), outcome
        assert outcome.value["samples"] == 4
        assert child.confinement == sandbox.Confinement("strict")
    assert len(pids) == 3
    [process] = prepared()
    assert process.pid not in pids
    # Nobody is left to be waited for, here or there, and nothing is open there but what it hears its parent by.
    assert not [one for one in psutil.Process().children() if one.status() == psutil.STATUS_ZOMBIE]
    assert process.children() == []
    assert process.num_threads() == 1
    assert sorted(path.name for path in os.scandir(f"/proc/{process.pid}/fd"))[:3] == ["0", "1", "2"]
    assert process.num_fds() == 4


def test_it_has_the_folder_the_environment_and_the_descriptors_of_a_child_that_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXPRESS_SECRET", "x")
    code = """
        import tempfile
        opened = []
        for name in os.listdir("/proc/self/fd"):
            # The one that lists them is gone by now.
            if os.path.lexists(f"/proc/self/fd/{name}"):
                opened.append(os.readlink(f"/proc/self/fd/{name}").partition(":")[0])
        answer = {"environment": dict(os.environ), "cwd": os.getcwd(), "temporary": tempfile.gettempdir(),
                  "session": os.getsid(0),
                  "opened": sorted(opened)}
    """
    told = []
    with closing(hostile.fork_server(tmp_path, monkeypatch)) as server:
        for way in (None, server):
            child = hostile.start(tmp_path, monkeypatch, code, server=way)
            outcome = child.wait(PATIENCE_S)
            assert outcome.kind == "done", outcome
            assert outcome.value["session"] == child.pid
            told.append({name: value for name, value in outcome.value.items() if name != "session"})
            told[-1]["opened"] = [name for name in told[-1]["opened"] if not name.startswith("/proc/")]
            assert set(told[-1]["opened"]) == {"/dev/null", "pipe"}
    assert told[0] == told[1]
    assert told[1]["cwd"] == told[1]["environment"]["HOME"] == str(tmp_path / "work" / "attempt")


@pytest.mark.parametrize(
    ("code", "limits", "kind"),
    [
        ("os.kill(os.getpid(), 11)", ROOMY, "crashed"),
        ("held = bytearray(900 << 20); time.sleep(100)", sandbox.Limits(60, 600 << 20), "memory_limit"),
        ("time.sleep(100)", sandbox.Limits(1, 2 << 30), "runtime_limit"),
    ],
)
def test_it_is_limited_and_its_end_is_seen(tmp_path, monkeypatch, code, limits, kind):
    with closing(hostile.fork_server(tmp_path, monkeypatch)) as server:
        child = hostile.start(tmp_path, monkeypatch, code, limits=limits, server=server)
        outcome = child.wait(PATIENCE_S)
        assert outcome.kind == kind, outcome
        assert outcome.exit_code == (-signal.SIGSEGV if kind == "crashed" else -signal.SIGKILL)


def test_where_it_has_died_children_are_started_until_there_is_a_new_one(workspace, server):
    assert start(workspace, server).wait(PATIENCE_S).kind == "done"
    [process] = prepared()
    process.kill()
    child = start(workspace, server)
    assert "sandbox.child" in words(psutil.Process(child.pid))
    assert child.wait(PATIENCE_S).kind == "done"
    child = start(workspace, server)
    assert "sandbox.forking" in words(psutil.Process(child.pid))
    assert child.wait(PATIENCE_S).kind == "done"
    assert [one.pid for one in prepared()] != [process.pid]


def test_one_that_never_works_is_not_started_again_and_again(workspace, server, monkeypatch):
    monkeypatch.setattr(sandbox.fork_server, "_PROGRAM", ("-c", "import sys; sys.exit(1)"))
    monkeypatch.setattr(sandbox.fork_server, "_TRIES", 1)
    started = []
    monkeypatch.setattr(server, "_start", lambda begin=server._start: started.append(1) or begin())
    for _ in range(2):
        child = start(workspace, server)
        assert "sandbox.child" in words(psutil.Process(child.pid))
        child.kill()
    assert len(started) == 1


def test_all_of_it_dies_with_us(workspace):
    code = (
        "import sys, time, pathlib, sandbox\n"
        "order = sandbox.Order('inspect_dataset', pathlib.Path(sys.argv[1]), {'file': 'data.npz'})\n"
        "limits = sandbox.Limits(runtime_s=60, memory_bytes=2 << 30)\n"
        "child = sandbox.start(order, limits=limits, server=sandbox.ForkServer())\n"
        "while child.confinement is None: time.sleep(0.002)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    psutil.Process(int(parent.stdout.readline())).suspend()
    below = psutil.Process(parent.pid).children(recursive=True)
    assert len(below) >= 2
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    for process in below:
        process.wait(PATIENCE_S)
