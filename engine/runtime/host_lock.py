"""One measurement at a time on a host, and no heavy work of ours beside it."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HostLock:
    """A lock that all units on a host share through one file. `HostLock(None)` locks nothing.

    Any number may be `working()`, or one may be `measuring()`. Whoever wants to measure holds a turnstile while it waits for
    those at work, so new work queues behind it and a measurement always gets its turn. The kernel lets go of both locks when
    their process dies, however it dies.

    A thread that is measuring may enter both again (the inner ones do nothing). To measure inside `working()` would wait for
    itself, so that raises RuntimeError.
    """

    def __init__(self, path: Path | None) -> None:
        self._room = path
        self._turnstile = path.with_name(path.name + ".turnstile") if path else None
        self._held = threading.local()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the host's shared side: take it round each batch of heavy work, never for long."""
        if self._mode:
            yield
            return
        with _locked(self._turnstile, fcntl.LOCK_SH):
            room = _lock(self._room, fcntl.LOCK_SH)
        yield from self._hold(room, "working")

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold the host alone."""
        if self._mode == "working":
            raise RuntimeError("measuring() inside working() would wait for itself")
        if self._mode:
            yield
            return
        with _locked(self._turnstile, fcntl.LOCK_EX):
            room = _lock(self._room, fcntl.LOCK_EX)
        yield from self._hold(room, "measuring")

    @property
    def _mode(self) -> str | None:
        mode: str | None = getattr(self._held, "mode", None)
        return mode

    def _hold(self, room: int | None, mode: str) -> Iterator[None]:
        self._held.mode = mode
        try:
            yield
        finally:
            self._held.mode = None
            _unlock(room)


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
