"""Watches over a child: its events, its memory, its time, its end. Whatever goes wrong in the watching ends the child."""

import errno
import json
import logging
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from sandbox import level, messages, processes
from sandbox.fork_server import Forked
from sandbox.level import Confinement, Level
from sandbox.messages import GarbledError
from sandbox.quiet import Room
from sandbox.turns import Turns

_log = logging.getLogger(__name__)
Process = subprocess.Popen[bytes] | Forked
Kind = Literal[
    "done",
    "refused",
    "crashed",
    "memory_limit",
    "runtime_limit",
    "killed",
    "garbled",
    "unwatched",
    # Its parent's: what it is to write down of its child finds no room.
    "disk_full",
    "unconfined",
    "measuring_limit",
]
# How often the resident memory is looked at.
_LOOK_S = 0.1
# While it waits for its turn, how often it is seen whether that has come.
_WAITING_LOOK_S = 0.02
_LOG_LIMIT = 64 << 10
# Of what is printed, as much is read between two looks; who prints more waits.
_LOG_PER_LOOK = 1 << 20
_READ = 1 << 16
_LEAVE_S = 1.0
# What may lie in a pipe whose writers are dead.
_LEFT_IN_PIPE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a child may take; the wall clock and resident memory of it and all below it are enforced from outside.

    While it waits for another child's measurement the clock stands. `working_s` and `measuring_s` are what
    `sandbox.turns.Turns` says.
    """

    runtime_s: float
    memory_bytes: int
    threads: int = 1
    working_s: float = 10.0
    measuring_s: float = 900.0
    file_bytes: int = 8 << 30
    open_files: int = 512


@dataclass(frozen=True)
class Outcome:
    """How a child ended: `done` with a value, `refused` with a problem, or without either."""

    kind: Kind
    value: Mapping[str, Any] | None = None
    problem: Mapping[str, Any] | None = None
    # The signal (negative) or exit code of a crash, and the end of what was printed: for our log, not for users.
    exit_code: int | None = None
    log: str = ""


@dataclass(frozen=True)
class Setting:
    """What a child is told at birth, and what once it is seen to be confined well enough."""

    setup: Mapping[str, Any]
    order: bytes
    workspace: Path
    isolation: Level = "rlimits"
    devices: tuple[str, ...] = ()
    room: Room | None = None
    tenant: str = ""


class Child:
    """A running child. Its own thread watches it; `start` it from a thread that outlives it, or the kernel kills it."""

    def __init__(
        self,
        process: Process,
        control: int,
        events: int,
        limits: Limits,
        setting: Setting,
    ) -> None:
        # Of the keeper: all that the child is lies below it.
        self.pid = process.pid
        self._process = process
        self._control = control
        self._limits = limits
        self._setting = setting
        self._to_say = bytearray()
        self._confinement: Confinement | None = None
        self._end = time.monotonic() + limits.runtime_s
        self._turns = Turns(
            setting.room, setting.tenant, limits.working_s, limits.measuring_s, self._hear, self._tell_of_it
        )
        self._lines, self._rate = messages.Lines(), messages.Rate()
        self._told: SimpleQueue[tuple[dict[str, Any], int]] = SimpleQueue()
        # One thread counts what comes, another what is taken.
        self._came = self._taken = 0
        self._garbled: str | None = None
        self._stop: Kind | None = None
        self._result: dict[str, Any] | None = None
        self._outcome = Outcome("unwatched")
        self._log, self._log_left = b"", _LOG_PER_LOOK
        self._cpu_s = 0.0
        self._watcher = threading.Thread(target=self._watch, args=(events,), name=f"sandbox-{self.pid}", daemon=True)
        self._watcher.start()

    def events(self) -> list[dict[str, Any]]:
        """Give what the child told since the last call. It is not to be trusted."""
        told = []
        while True:
            try:
                event, size = self._told.get_nowait()
                self._taken += size
                told.append(event)
            except Empty:
                return told

    @property
    def confinement(self) -> Confinement | None:
        """How strongly it is confined, as its parent has seen; None until it has locked itself down."""
        return self._confinement

    @property
    def cpu_s(self) -> float:
        """Processor time that it and everything below it have used, as of the last look."""
        return self._cpu_s

    @property
    def waited_s(self) -> float:
        """Seconds in which it waited for other children's measurements, as of the last look."""
        return self._turns.waited_s

    def wait(self, seconds: float | None = None) -> Outcome | None:
        """Wait for the end; None if the time is over before."""
        self._watcher.join(seconds)
        return None if self._watcher.is_alive() else self._outcome

    def kill(self) -> Outcome:
        """End the child and everything below it now; gives the outcome, which may be an end of its own that came first."""
        # The watcher does it within a look: it alone knows that the process id still belongs to the child.
        self._stop = self._stop or "killed"
        self._watcher.join()
        return self._outcome

    def _watch(self, events: int) -> None:
        try:
            with level.canary(self._setting.workspace.parent) as canary:
                self._canary = canary
                setup = {**self._setting.setup, "canary": str(canary)}
                self._to_say += json.dumps(setup).encode() + b"\n"
                self._follow(events)
        except BaseException as error:  # noqa: BLE001 - whatever it is: without its watcher nothing limits a child
            full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
            _log.exception("the watcher of child %d died", self.pid)
            self._stop = "disk_full" if full else "unwatched"
        finally:
            self._outcome = self._end_all(events)

    def _follow(self, events: int) -> None:
        """Read what the child says and enforce its limits until it has ended or is to be ended."""
        assert self._process.stdout is not None
        log = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector, _ending(self.pid) as ending:
            selector.register(events, selectors.EVENT_READ, self._take_events)
            selector.register(log, selectors.EVENT_READ, self._take_log)
            os.set_blocking(self._control, False)
            if ending is not None:
                selector.register(ending, selectors.EVENT_READ)
            next_look = time.monotonic()
            while self._stop is None and not self._has_ended():
                self._say()
                pause = next_look - time.monotonic()
                for key, _ in selector.select(max(0.0, min(pause, _WAITING_LOOK_S) if self._turns.waits else pause)):
                    if key.data is not None:
                        self._read(selector, key)
                if self._turns.waits and self._stop is None and not self._turns.look(self.pid):
                    self._stop = "measuring_limit"
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + _LOOK_S
                    if self._log_left <= 0:
                        selector.register(log, selectors.EVENT_READ, self._take_log)
                    self._log_left = _LOG_PER_LOOK
                    self._enforce()

    def _say(self) -> None:
        """Say what the child is to hear, as far as it listens."""
        with suppress(BlockingIOError, BrokenPipeError):
            while self._to_say:
                del self._to_say[: os.write(self._control, self._to_say)]

    def _read(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        part = os.read(key.fd, _READ)
        if part:
            key.data(part)
        if not part or (key.data == self._take_log and self._log_left <= 0):
            selector.unregister(key.fd)

    def _end_all(self, events: int) -> Outcome:
        """End the child and all below it, read what is left in the pipes, and say what came of it."""
        try:
            return self._ended(events)
        finally:
            self._turns.end()

    def _ended(self, events: int) -> Outcome:
        # The kernel keeps the count until the process is waited for.
        with suppress(Exception):
            self._count()
        with suppress(Exception):
            processes.sweep(self.pid)
            self._wait_for_keeper()
            processes.kill(self.pid)
        self._process.kill()
        exit_code = self._process.wait()
        assert self._process.stdout is not None
        with suppress(GarbledError):
            _drain(self._process.stdout.fileno(), self._take_log)
            _drain(events, self._take_events)
        os.close(events)
        os.close(self._control)
        self._process.stdout.close()
        return self._make_outcome(exit_code)

    def _wait_for_keeper(self) -> None:
        """Let it take leave of what is below it: nobody else may be there to do that."""
        end = time.monotonic() + _LEAVE_S
        while not self._has_ended() and time.monotonic() < end:
            time.sleep(_LEAVE_S / 200)

    def _has_ended(self) -> bool:
        # Without reaping: until then nobody else can get the process id.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _count(self) -> None:
        # What is below it and has ended may have taken its count along.
        self._cpu_s = max(self._cpu_s, processes.cpu_seconds(self.pid))

    def _enforce(self) -> None:
        self._count()
        if self._stop is None and not self._turns.look(self.pid):
            self._stop = "measuring_limit"
        if self._stop is None and time.monotonic() > self._end + self._turns.waited_s:
            self._stop = "runtime_limit"
        if self._stop is None and processes.resident_bytes(self.pid) > self._limits.memory_bytes:
            self._stop = "memory_limit"

    def _take_log(self, part: bytes) -> None:
        self._log = (self._log + part)[-_LOG_LIMIT:]
        self._log_left -= len(part)

    def _take_events(self, part: bytes) -> None:
        try:
            for line in self._lines.feed(part):
                self._take_line(line)
        except GarbledError as error:
            self._garbled = self._garbled or str(error)
            self._stop = self._stop or "garbled"

    def _take_line(self, line: bytes) -> None:
        self._rate.take()
        if self._result is not None:
            raise GarbledError("a word after the result")
        told = messages.read(line)
        if self._confinement is None:
            self._look_at_walls(told)
            return
        match told.get("type"):
            case "result":
                self._result = told
            case "turn" | "leave":
                self._turns.hear(told)
            case "waiting_for_quiet" | "quiet":
                raise GarbledError("what only its parent knows")
            case _:
                self._told.put((told, len(line)))
                self._came += len(line)
                if self._told.qsize() > messages.UNREAD_LIMIT or self._came - self._taken > messages.UNREAD_BYTES:
                    raise GarbledError("more than anybody can read")

    def _look_at_walls(self, told: Mapping[str, Any]) -> None:
        """See how the child is confined, by its first word, and tell it what to do if that is enough."""
        worker, tried = level.only_child(self.pid), told.get("tried")
        if told.get("type") != "locked_down" or not isinstance(tried, dict):
            raise GarbledError("the first word is another")
        self._confinement = level.NONE_SEEN if worker is None else level.seen(worker, tried, self._setting.devices)
        self._canary.unlink(missing_ok=True)
        if not self._confinement.reaches(self._setting.isolation):
            self._stop = self._stop or "unconfined"
        elif self._stop is None:
            self._to_say += self._setting.order

    def _hear(self, said: dict[str, Any]) -> None:
        """Have the child hear something."""
        self._to_say += json.dumps(said).encode() + b"\n"

    def _tell_of_it(self, event: dict[str, Any]) -> None:
        """Tell something of the child that it does not say itself."""
        self._told.put((event, 0))

    def _make_outcome(self, exit_code: int) -> Outcome:
        log = _printable(self._log) + (f"\n[garbled: {self._garbled}]" if self._garbled else "")
        if self._stop is not None:
            return Outcome(self._stop, exit_code=exit_code, log=log)
        result = self._result
        if result is None:
            return Outcome("crashed", exit_code=exit_code, log=log)
        if result.get("ok") is True and isinstance(result.get("value"), dict):
            return Outcome("done", value=result["value"], exit_code=exit_code, log=log)
        if isinstance(result.get("problem"), dict):
            return Outcome("refused", problem=result["problem"], exit_code=exit_code, log=log)
        return Outcome("garbled", exit_code=exit_code, log=log)


@contextmanager
def _ending(pid: int) -> Iterator[int | None]:
    """Give a descriptor that tells at once when the process ends, where the system has such."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _drain(descriptor: int, take: Callable[[bytes], None]) -> None:
    """Read what lies in a pipe now: whoever still holds its other end is not waited for."""
    os.set_blocking(descriptor, False)
    left = _LEFT_IN_PIPE
    with suppress(BlockingIOError):
        while left > 0 and (part := os.read(descriptor, _READ)):
            take(part)
            left -= len(part)


def _printable(text: bytes) -> str:
    """Give what was printed without what a terminal or a log's reader would obey."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for sign in text.decode(errors="replace")
    )
