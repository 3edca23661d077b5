import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from engine.runtime.host_lock import HostLock

HOLD = """
import sys
from pathlib import Path
from engine.runtime.host_lock import HostLock
with getattr(HostLock(Path(sys.argv[1])), sys.argv[2])():
    print("held", flush=True)
    sys.stdin.read()
"""


def start(path, side):
    """A process that holds a side until its stdin closes."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def let_go(child):
    child.stdin.close()
    assert child.wait(timeout=60) == 0
    child.stdout.close()


def in_thread(path, side, order, name):
    entered = threading.Event()

    def hold():
        with getattr(HostLock(path), side)():
            order.append(name)
            entered.set()

    thread = threading.Thread(target=hold)
    thread.start()
    return thread, entered


def waits(entered):
    return not entered.wait(0.2)


def test_workers_share_and_exclude_a_measurement(tmp_path):
    path = tmp_path / "quiet"
    other = start(path, "working")
    assert other.stdout.readline() == "held\n"
    with HostLock(path).working():
        pass  # a second worker comes in
    measuring, entered = in_thread(path, "measuring", [], "m")
    assert waits(entered)
    let_go(other)
    measuring.join(60)
    assert entered.is_set()


def test_new_work_queues_behind_a_waiting_measurement(tmp_path):
    path, order = tmp_path / "quiet", []
    with HostLock(path).working():
        measuring, measured = in_thread(path, "measuring", order, "measurement")
        assert waits(measured)
        working, worked = in_thread(path, "working", order, "new work")
        assert waits(worked)
    measuring.join(60)
    working.join(60)
    assert order == ["measurement", "new work"]


def test_a_dead_process_lets_go(tmp_path):
    path = tmp_path / "quiet"
    other = start(path, "measuring")
    assert other.stdout.readline() == "held\n"
    other.kill()
    other.wait(60)
    other.stdin.close()
    other.stdout.close()
    started = time.monotonic()
    with HostLock(path).measuring():
        assert time.monotonic() - started < 60


def test_nesting(tmp_path):
    path = tmp_path / "quiet"
    lock = HostLock(path)
    with lock.measuring(), lock.measuring(), lock.working():
        other, entered = in_thread(path, "working", [], "other")
        assert waits(entered)  # what works inside a measurement does not open it to others
    other.join(60)
    with lock.working():
        with lock.measuring():
            other, entered = in_thread(path, "working", [], "other")
            assert waits(entered)  # it waits for others' work, not for its own
        other.join(60)
        measuring, entered = in_thread(path, "measuring", [], "m")
        assert waits(entered)  # and is at work again
    measuring.join(60)
    with lock.measuring():
        pass


def test_a_measurement_gets_its_turn_between_the_pieces_of_work(tmp_path):
    path, order = tmp_path / "quiet", []
    lock = HostLock(path)
    with lock.working():
        measuring, measured = in_thread(path, "measuring", order, "measurement")
        assert waits(measured)
        with lock.working():
            assert waits(measured)
            order.append("first piece")
        assert measured.is_set()
        order.append("second piece")
    measuring.join(60)
    assert order == ["first piece", "measurement", "second piece"]


def test_giving_way_where_nobody_is_at_work_locks_nothing(tmp_path):
    lock = HostLock(tmp_path / "quiet")
    lock.give_way()
    with HostLock(tmp_path / "quiet").measuring():
        pass


def test_no_path_locks_nothing():
    before = set(Path("/proc/self/fd").iterdir())
    with HostLock(None).working(), HostLock(None).measuring():
        assert set(Path("/proc/self/fd").iterdir()) == before


def test_an_error_inside_lets_go(tmp_path):
    lock = HostLock(tmp_path / "quiet")
    with pytest.raises(KeyError), lock.measuring():
        raise KeyError
    with lock.working():
        pass
