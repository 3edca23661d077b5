"""One measurement at a time on a host, and no heavy work of ours beside it."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal


class HostLock:
    """A lock that all units on a host share through one file. `HostLock(None)` locks nothing.

    Any number may be `working()`, or one may be `measuring()`. Whoever wants to measure holds a turnstile while it waits for
    those at work, so new work queues behind it and a measurement always gets its turn. The kernel lets go of both locks when
    their process dies, however it dies.

    A thread may enter again what it holds. Long work is made of shorter pieces: on leaving an inner `working()`, and in
    `give_way()`, a measurement that waits gets its turn. To measure, a thread lets go of its own work until it is done; while
    it measures, its own work is part of the measurement.
    """

    def __init__(self, path: Path | None) -> None:
        self._room = path
        self._turnstile = path.with_name(path.name + ".turnstile") if path else None
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
        if self._held.mode == "working":
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
        with _locked(self._turnstile, fcntl.LOCK_EX):
            self._held.room = _lock(self._room, fcntl.LOCK_EX)
        self._held.mode = "measuring"
        try:
            yield
        finally:
            self._leave()

    def _enter_work(self) -> None:
        with _locked(self._turnstile, fcntl.LOCK_SH):
            self._held.room = _lock(self._room, fcntl.LOCK_SH)
        self._held.mode = "working"

    def _leave(self) -> None:
        self._held.mode = None
        _unlock(self._held.room)
        self._held.room = None


class _Held(threading.local):
    """What a thread holds."""

    mode: Literal["working", "measuring"] | None = None
    room: int | None = None


def _lock(path: Path | None, operation: int) -> int | None:
    """Wait for the lock; give the descriptor that holds it. A descriptor of its own, so that threads exclude each other too."""
    if path is None:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def _locked(path: Path | None, operation: int) -> Iterator[None]:
    descriptor = _lock(path, operation)
    try:
        yield
    finally:
        _unlock(descriptor)
