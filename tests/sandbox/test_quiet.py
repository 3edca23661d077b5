"""Turns on a host: work together, measure alone, every tenant in its turn, and nobody for ever."""

import errno
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

import sandbox
from sandbox import quiet
from sandbox.quiet import Room
from tests.sandbox import hostile

PATIENCE_S = 60.0


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path / "quiet")


def places(room):
    with room.guarded():
        return room.places()


def test_many_work_and_one_measures(room):
    first, second = room.ask("working", "a"), room.ask("working", "b")
    assert first.enter()
    assert second.enter()
    measuring, late = room.ask("measuring", "a"), room.ask("working", "b")
    assert not measuring.enter()
    # Or it would never get its turn.
    assert not late.enter()
    assert first.is_wanted()
    first.leave()
    assert not measuring.enter()
    second.leave()
    assert measuring.enter()
    assert not late.enter()
    measuring.leave()
    assert late.enter()
    assert not late.is_wanted()


def test_turns_to_measure_go_round_among_tenants(room):
    many = [room.ask("measuring", "many") for _ in range(3)]
    one = room.ask("measuring", "one")
    order, waiting = [], {*many, one}
    while waiting:
        [inside] = [turn for turn in waiting if turn.enter()]
        order.append(inside.place.tenant)
        waiting.remove(inside)
        if inside is one:
            again = room.ask("measuring", "one")
            waiting.add(again)
            one = None
        inside.leave()
    assert order == ["many", "one", "many", "one", "many"]


def test_who_had_to_be_ended_measures_no_more_beside_others_jobs(room, monkeypatch):
    monkeypatch.setattr(quiet, "_ENDED_TIMES", 1e9)
    hostile, job = room.ask("measuring", "hostile"), room.attend("other")
    assert hostile.enter()
    waiting = room.ask("measuring", "other")
    assert not waiting.enter()
    hostile.leave(by_force=True)
    again = room.ask("measuring", "hostile")
    assert waiting.enter()
    waiting.leave()
    # Nobody waits, but the other's job goes on: it would wait at each of its measurements.
    assert not again.enter()
    working = room.ask("working", "other")
    assert working.enter()
    assert not working.is_wanted()
    measuring = room.ask("measuring", "third")
    assert not measuring.enter()
    working.leave()
    assert measuring.enter()
    assert not measuring.is_wanted()
    measuring.leave()
    job.leave()
    assert again.enter()


def test_who_had_to_be_stopped_in_working_stands_back_behind_others_jobs(room, monkeypatch):
    monkeypatch.setattr(quiet, "_STOPPED_TIMES", 1e9)
    looping, job = room.ask("working", "loops"), room.attend("other")
    assert looping.enter()
    measuring = room.ask("measuring", "other")
    assert not measuring.enter()
    looping.pause()
    assert measuring.enter()
    assert not measuring.is_wanted()
    measuring.leave()
    # The next measurement of that job waits for nobody.
    assert not looping.enter()
    assert not room.ask("working", "loops").enter()
    again = room.ask("measuring", "other")
    assert again.enter()
    again.leave()
    job.leave()
    assert looping.enter()


def test_who_ends_a_measurement_that_nobody_waits_for_owes_nothing(room):
    first = room.ask("measuring", "a")
    job = room.attend("b")
    assert first.enter()
    first.leave(by_force=True)
    second = room.ask("measuring", "a")
    assert second.enter()
    second.leave()
    job.leave()


def test_who_is_dead_holds_nothing(room):
    code = (
        "import sys, pathlib\nfrom sandbox.quiet import Room\n"
        "turn = Room(pathlib.Path(sys.argv[1])).ask('measuring', 'a')\nprint(turn.enter(), flush=True)\ninput()"
    )
    argv = [sys.executable, "-c", code, str(room.folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        turn = room.ask("working", "b")
        assert not turn.enter()
        other.kill()
        other.wait()
    assert turn.enter()
    assert len(places(room)) == 1


def test_who_has_no_disk_left_for_a_place_spoils_nobody_elses(room):
    code = """
        import fcntl, os, pathlib, resource, signal, sys
        from sandbox.quiet import Room
        folder = pathlib.Path(sys.argv[1])
        # What was left of a place on a disk that is full.
        torn = os.open(folder / "torn", os.O_RDWR | os.O_CREAT)
        fcntl.flock(torn, fcntl.LOCK_EX)
        turn = Room(folder).ask("working", "a")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        for write in (turn.enter, lambda: Room(folder).ask("measuring", "a")):
            try:
                write()
            except OSError as error:
                print(error.errno, flush=True)
        input()
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(room.folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as other:
        assert {int(other.stdout.readline()) for _ in range(2)} == {errno.EFBIG}
        # What it had before is as it was, and what it could not write is not there.
        assert [(place.side, place.state) for place in places(room)] == [("working", "waiting")]
        turn = room.ask("working", "b")
        assert turn.enter()
        other.kill()


@pytest.fixture
def looping(tmp_path, monkeypatch, room):
    """A child that works without end and gives way to nobody."""
    code = """
        import engine
        with engine.HostLock(payload["host"]).working():
            (workspace / "tmp" / "works").touch()
            while True:
                pass
    """
    script = hostile._SCRIPT.replace(
        "child._VERBS[", "work = child._work\nchild._work = lambda order, *rest: work({**order, 'host': None, 'payload':"
        " {'host': order['host']}}, *rest)\nchild._VERBS[", 1)  # fmt: skip
    monkeypatch.setattr(hostile, "_SCRIPT", script)
    limits = sandbox.Limits(runtime_s=60, memory_bytes=2 << 30, working_s=0.5)
    child = hostile.start(tmp_path, monkeypatch, code, limits=limits, quiet=room.folder, tenant="loops")
    works = tmp_path / "work" / "attempt" / "tmp" / "works"
    while not works.exists():
        assert child.wait(0.01) is None
    yield child
    assert child.kill().kind == "killed"


def test_work_without_end_stands_still_for_a_measurement(looping, room):
    measuring = room.ask("measuring", "other")
    end = time.monotonic() + PATIENCE_S
    while not measuring.enter():
        assert time.monotonic() < end
        time.sleep(0.01)
    [worker] = psutil.Process(looping.pid).children()
    while worker.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end
    used = worker.cpu_times()
    time.sleep(0.3)
    assert worker.cpu_times() == used
    assert looping.waited_s > 0
    measuring.leave()
    while worker.cpu_times() == used:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_measurement_without_end_is_ended_when_others_wait(tmp_path, monkeypatch, room):
    code = """
        tell({"type": "leave", "turn": 1})
        tell({"type": "turn", "turn": 1000, "side": "measuring"})
        while True:
            pass
    """
    limits = sandbox.Limits(runtime_s=60, memory_bytes=2 << 30, measuring_s=0.5)
    child = hostile.start(tmp_path, monkeypatch, code, limits=limits, quiet=room.folder, tenant="loops")
    while [(place.side, place.state) for place in places(room) if place.side == "measuring"] != [
        ("measuring", "inside")
    ]:
        assert child.wait(0.01) is None
    assert child.wait(1.0) is None
    turn = room.ask("measuring", "other")
    assert child.wait(PATIENCE_S).kind == "measuring_limit"
    assert turn.enter()


@pytest.mark.parametrize(
    "said",
    [
        {"type": "turn"}, {"type": "turn", "turn": "1", "side": "working"}, {"type": "turn", "turn": 9, "side": "both"},
        {"type": "leave", "turn": 9}, {"type": "leave", "turn": [1]}, {"type": "quiet"}, {"type": "waiting_for_quiet"},
        {"type": "turn", "turn": 9, "side": "measuring"},
    ],
)  # fmt: skip
def test_a_child_cannot_wish_for_what_makes_no_sense(tmp_path, monkeypatch, room, said):
    child = hostile.start(tmp_path, monkeypatch, f"tell({said!r})\ntime.sleep(100)", quiet=room.folder)
    assert child.wait(PATIENCE_S).kind == "garbled"
    assert places(room) == []


def test_no_more_turns_than_threads(tmp_path, monkeypatch, room):
    code = """
        for number in range(100, 300):
            tell({"type": "turn", "turn": number, "side": "working"})
        time.sleep(100)
    """
    child = hostile.start(tmp_path, monkeypatch, code, quiet=room.folder)
    assert child.wait(PATIENCE_S).kind == "garbled"
    assert places(room) == []
