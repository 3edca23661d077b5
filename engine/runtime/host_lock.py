"""One measurement at a time on a host, and no heavy work of ours beside it."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

Side = Literal["working", "measuring"]
Leave = Callable[[], None]


class Host(Protocol):
    """Who says whose turn it is: a file that all share, or whoever started this process."""

    def enter(self, side: Side) -> Leave:
        """Wait for a side; give what lets go of it."""
        ...

    def is_wanted(self) -> bool:
        """Tell whether somebody may be waiting for this process's work to let go."""
        ...


class HostLock:
    """A lock that all units on a host share, through one file or another `Host`. `HostLock(None)` locks nothing.

    Any number may be `working()`, or one may be `measuring()`. Whoever wants to measure holds a turnstile while it waits for
    those at work, so new work queues behind it and a measurement always gets its turn. The kernel lets go of both locks when
    their process dies, however it dies.

    A thread may enter again what it holds. Long work is made of shorter pieces: on leaving an inner `working()`, and in
    `give_way()`, a measurement that waits gets its turn. To measure, a thread lets go of its own work until it is done; while
    it measures, its own work is part of the measurement.
    """

    def __init__(self, host: Path | Host | None) -> None:
        self._host: Host = _Nobody() if host is None else _File(host) if isinstance(host, Path) else host
        self._held = _Held()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the host's shared side."""
        if self._held.mode:
            try:
                yield
            finally:
                self.give_way()
            return
        self._enter_work()
        try:
            yield
        finally:
            self._leave()

    def give_way(self) -> None:
        """Let a measurement that waits for this thread's work have its turn; nothing where this thread is not at work."""
        if self._held.mode == "working" and self._host.is_wanted():
            self._leave()
            self._enter_work()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold the host alone."""
        if self._held.mode == "measuring":
            yield
            return
        was_working = self._held.mode == "working"
        if was_working:
            self._leave()
        try:
            with self._alone():
                yield
        finally:
            if was_working:
                self._enter_work()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._held.leave = self._host.enter("measuring")
        self._held.mode = "measuring"
        try:
            yield
        finally:
            self._leave()

    def _enter_work(self) -> None:
        self._held.leave = self._host.enter("working")
        self._held.mode = "working"

    def _leave(self) -> None:
        self._held.mode = None
        self._held.leave()


class _Held(threading.local):
    """What a thread holds."""

    mode: Side | None = None
    leave: Leave = staticmethod(lambda: None)


class _Nobody:
    """A host of this process's own."""

    def enter(self, side: Side) -> Leave:
        del side
        return lambda: None

    def is_wanted(self) -> bool:
        return False


class _File:
    """A host whose processes share a file, and one beside it as a turnstile."""

    def __init__(self, path: Path) -> None:
        self._room, self._turnstile = path, path.with_name(path.name + ".turnstile")

    def enter(self, side: Side) -> Leave:
        operation = fcntl.LOCK_EX if side == "measuring" else fcntl.LOCK_SH
        turnstile = _lock(self._turnstile, operation)
        try:
            room = _lock(self._room, operation)
        finally:
            os.close(turnstile)
        return lambda: os.close(room)

    def is_wanted(self) -> bool:
        # Nobody can see who waits for a lock.
        return True


def _lock(path: Path, operation: int) -> int:
    """Wait for the lock; give the descriptor that holds it. A descriptor of its own, so that threads exclude each other too."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
