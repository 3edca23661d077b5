"""The keeper of a child: the process above the one that works, and of all that is below. It never touches a foreign byte.

Whatever the worker leaves behind, however often it has forked and whatever session it is in, becomes the keeper's child, and
ends with it. The keeper also starts what the worker may not start itself: a fresh process that loads a network to see how much
memory it takes.
"""

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sandbox import confine, messages, processes

_ENDED = "ended"
_TICK_S = 0.02
_READ = 1 << 16

Probe = Callable[[dict[str, Any]], Mapping[str, Any]]


@dataclass
class Requests:
    """The worker's end: asks the keeper for a fresh process, one at a time."""

    to_keeper: int
    from_keeper: int
    _one: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any] | None:
        """Give what the process said; None where it died without a word. TimeoutError where it took too long."""
        with self._one:
            os.write(self.to_keeper, json.dumps({**request, "timeout": timeout}).encode() + b"\n")
            lines, answer = messages.Lines(), None
            while part := os.read(self.from_keeper, _READ):
                for line in lines.feed(part):
                    told = messages.read(line)
                    if _ENDED not in told:
                        answer = told
                    elif told[_ENDED] == "timeout":
                        raise TimeoutError
                    else:
                        return answer if told[_ENDED] == 0 else None
        raise ConnectionError("the keeper is gone")


class Keeper:
    """Keeps one worker until it ends, then ends in the same way."""

    def __init__(self, worker: int, requests: int, answers: int, probe: Probe) -> None:
        self._worker = worker
        self._requests, self._answers = requests, answers
        self._probe = probe
        self._lines = messages.Lines()
        self._me = os.getpid()
        self._status: int | None = None
        self._ending = _ending(worker)

    def keep(self) -> NoReturn:
        """Serve the worker until it has ended, end all that it has left, and exit as it did."""
        confine.keep_to_children()
        while self._status is None:
            if self._requests in _ready([self._requests, self._ending]):
                self._serve()
            self._reap()
        self._end_all()
        _exit_like(self._status)

    def _serve(self) -> None:
        part = os.read(self._requests, _READ)
        if not part:
            os.close(self._requests)
            self._requests = -1
            return
        try:
            for line in self._lines.feed(part):
                self._start(messages.read(line))
        except (messages.GarbledError, KeyError, TypeError, ValueError):
            # Only a worker that is no longer ours says such a thing.
            os.kill(self._worker, signal.SIGKILL)

    def _start(self, request: dict[str, Any]) -> None:
        give_up = time.monotonic() + float(request["timeout"])
        probe = os.fork()
        if probe == 0:
            self._be_probe(request)
        ended: int | str | None = None
        ending = _ending(probe)
        while ended is None and self._status is None:
            _ready([ending, self._ending], timeout=give_up - time.monotonic())
            ended = self._reap(probe)
            if ended is None and time.monotonic() > give_up:
                os.kill(probe, signal.SIGKILL)
                ended = "timeout"
        if ending >= 0:
            os.close(ending)
        if self._status is None:
            os.write(self._answers, json.dumps({_ENDED: ended}).encode() + b"\n")

    def _be_probe(self, request: dict[str, Any]) -> NoReturn:
        try:
            confine.die_with_parent(self._me)
            os.close(self._requests)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os.write(self._answers, json.dumps(self._probe(request)).encode() + b"\n")
            os._exit(0)
        finally:
            os._exit(1)

    def _reap(self, probe: int | None = None) -> int | None:
        """Take leave of whoever has ended; gives the exit code of the one asked for."""
        found = None
        with suppress(ChildProcessError):
            while (gone := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = gone
                if pid == self._worker:
                    self._status = status
                elif pid == probe:
                    found = os.waitstatus_to_exitcode(status)
        return found

    def _end_all(self) -> None:
        """End everything below: whatever has lost its parent is a child of this process now."""
        with suppress(ChildProcessError):
            while True:
                for member in set(processes.tree(self._me)) - {self._me}:
                    with suppress(ProcessLookupError):
                        os.kill(member, signal.SIGKILL)
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    time.sleep(_TICK_S / 4)


def _ending(pid: int) -> int:
    """Give a descriptor that is ready when the process has ended; -1 where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _ready(descriptors: list[int], timeout: float | None = None) -> list[int]:
    """Wait for one of them; where one is missing, not for long."""
    there = [descriptor for descriptor in descriptors if descriptor >= 0]
    if len(there) < len(descriptors):
        timeout = _TICK_S
    elif timeout is not None:
        timeout = max(0.0, timeout)
    return select.select(there, [], [], timeout)[0]


def _exit_like(status: int) -> NoReturn:
    sys.stdout.flush()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))
