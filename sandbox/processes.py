"""The processes below one: their memory, and their end."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_KILL_ROUNDS, _ROUND_S = 200, 0.01
_DEAD = frozenset({b"Z", b"X"})


def resident_bytes(pid: int) -> int:
    """Give the resident memory of a process and all below it."""
    total = 0
    for member in tree(pid):
        try:
            total += int((_PROC / str(member) / "statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError):
            # It ended meanwhile.
            continue
    return total


def cpu_seconds(pid: int) -> float:
    """Give the processor time of a process and all below it, those that it has waited for included."""
    total = 0
    for member in tree(pid):
        try:
            fields = _stat(member)
        except OSError:
            # It ended meanwhile.
            continue
        total += sum(map(int, fields[11:15]))
    return total / _TICKS


def tree(pid: int) -> Iterator[int]:
    """Give a process and all below it."""
    todo = [pid]
    while todo:
        member = todo.pop()
        yield member
        try:
            for task in (_PROC / str(member) / "task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue


def stop(pid: int) -> None:
    """Have a process and all below it stand still."""
    stopped: set[int] = set()
    # Again for those that were started meanwhile.
    while found := set(tree(pid)) - stopped:
        for member in found:
            _signal(member, signal.SIGSTOP)
        stopped |= found


def go_on(pid: int) -> None:
    """Have a process and all below it go on."""
    for member in tree(pid):
        _signal(member, signal.SIGCONT)


def sweep(pid: int) -> None:
    """Kill everything below a child that leads a session, and everything that stayed in its session; itself it goes on."""
    # A stopped process starts nothing, and inherits what loses its parent.
    _signal(pid, signal.SIGSTOP)
    for _ in range(_KILL_ROUNDS):
        members = {member for member in {*tree(pid), *_session(pid)} - {pid} if _lives(member)}
        if not members:
            break
        for member in members:
            _signal(member, signal.SIGKILL)
        time.sleep(_ROUND_S)
    _signal(pid, signal.SIGCONT)


def kill(pid: int) -> None:
    """Kill a child that leads a session, everything below it, and everything that stayed in its session."""
    # From below: what loses its parent becomes its own, if it has said that it takes orphans.
    _signal(pid, signal.SIGSTOP)
    for _ in range(_KILL_ROUNDS):
        members = {member for member in {*tree(pid), *_session(pid)} if _lives(member)}
        if not members:
            return
        for member in members - {pid} or members:
            _signal(member, signal.SIGKILL)
        time.sleep(_ROUND_S)


def _signal(pid: int, number: int) -> None:
    # Gone, or no process of ours any more.
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _lives(pid: int) -> bool:
    try:
        return _stat(pid)[0] not in _DEAD
    except OSError:
        return False


def _session(sid: int) -> Iterator[int]:
    for path in _PROC.iterdir():
        if not path.name.isdigit():
            continue
        try:
            fields = _stat(path.name)
        except OSError:
            continue
        if int(fields[3]) == sid and fields[0] not in _DEAD:
            yield int(path.name)


def _stat(pid: int | str) -> list[bytes]:
    """Give the fields from the state on. The name before them is the process's own choice: any bytes, parentheses too."""
    return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
