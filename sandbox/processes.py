"""The processes below one: their memory, and their end."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_KILL_ROUNDS = 50


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
            # The name in parentheses may hold anything, also spaces and parentheses.
            fields = (_PROC / str(member) / "stat").read_text().rpartition(")")[2].split()
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


def kill(pid: int) -> None:
    """Kill a child that leads a session, everything below it, and everything that stayed in its session."""
    members = set(tree(pid))
    for _ in range(_KILL_ROUNDS):
        for member in members:
            _kill(member)
        # A process that forked just then is still in the session.
        members = set(_session(pid)) - {pid}
        if not members:
            return
        time.sleep(0.01)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _session(sid: int) -> Iterator[int]:
    for path in _PROC.iterdir():
        if not path.name.isdigit():
            continue
        try:
            # The name in parentheses may hold anything, also spaces and parentheses.
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        state, session = fields[0], int(fields[3])
        if session == sid and state not in {"Z", "X"}:
            yield int(path.name)
