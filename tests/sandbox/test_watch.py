"""The watcher fails closed: whatever a child says or does, its limits hold and it ends."""

import errno
import time

import psutil
import pytest

import sandbox
from sandbox import processes
from tests.sandbox import hostile

PATIENCE_S = 60.0


def ended(child):
    outcome = child.wait(PATIENCE_S)
    assert outcome is not None, "it still runs"
    assert not psutil.pid_exists(child.pid)
    return outcome


@pytest.mark.parametrize(
    "said",
    ["b'[' * 100_000 + b'\\n'", "b'{\"type\":\"progress\",\"m\":' + b'[' * 950 + b']' * 950 + b'}\\n'", "b'x' * (17 << 20)",
     "b'{\"type\":\"progress\"}\\n' * 100_000", "b'{\"type\":\"result\",\"ok\":1e999}\\n'", "bytes(range(256)) * 100"],
)  # fmt: skip
def test_a_child_that_says_nonsense_is_ended_whatever_else_it_ignores(tmp_path, monkeypatch, said):
    code = f"""
        import signal
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        left = memoryview({said})
        while left:
            left = left[os.write(EVENTS, left):]
        time.sleep(100)
    """
    outcome = ended(hostile.start(tmp_path, monkeypatch, code))
    assert outcome.kind == "garbled", outcome
    assert "[garbled: " in outcome.log


def test_limits_and_cancel_hold_while_it_floods_its_pipes(tmp_path, monkeypatch):
    code = """
        print("ready", flush=True)
        tell({"type": "progress"})
        while True:
            os.write(1, b"\\x1b[2J" * 10_000)
    """
    child = hostile.start(tmp_path, monkeypatch, code)
    end = time.monotonic() + PATIENCE_S
    while not any(event["type"] == "progress" for event in child.events()):
        assert time.monotonic() < end
        time.sleep(0.01)
    outcome = child.kill()
    assert outcome.kind == "killed"
    assert "\x1b" not in outcome.log
    assert len(outcome.log) <= 64 << 10
    limits = sandbox.Limits(runtime_s=2, memory_bytes=2 << 30)
    assert ended(hostile.start(tmp_path, monkeypatch, code, limits=limits)).kind == "runtime_limit"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((error, "unwatched") for error in (RecursionError, MemoryError, KeyboardInterrupt, OSError)),
        # That is not the child's fault.
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
    ],
)
def test_a_watcher_that_dies_ends_its_child(tmp_path, monkeypatch, error, kind):
    child = hostile.start(tmp_path, monkeypatch, "time.sleep(100)")

    def die(_pid):
        raise error

    monkeypatch.setattr(processes, "resident_bytes", die)
    assert ended(child).kind == kind


def test_a_process_with_a_name_of_any_bytes_is_watched_like_others(tmp_path, monkeypatch):
    code = r"""
        import ctypes
        ctypes.CDLL(None).prctl(15, b"\xff) R 1 (\n", 0, 0, 0)
        tell({"type": "progress"})
        time.sleep(100)
    """
    child = hostile.start(tmp_path, monkeypatch, code, limits=sandbox.Limits(runtime_s=3, memory_bytes=2 << 30))
    assert ended(child).kind == "runtime_limit"
    assert child.cpu_s > 0
