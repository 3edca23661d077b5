"""Starts a child for one order and watches over it: its events, its memory, its time, its end."""

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from sandbox import processes

Verb = Literal[
    "inspect_model",
    "inspect_archive",
    "inspect_dataset",
    "prunability",
    "run",
    "merge",
    "search",
    "variants",
    "trial",
    "targets",
    "training",
]
Kind = Literal["done", "refused", "crashed", "memory_limit", "runtime_limit", "killed", "garbled"]
# How often the resident memory is looked at.
_LOOK_S = 0.1
_LINE_LIMIT = 16 << 20
_UNREAD_LIMIT = 10_000
_LOG_LIMIT = 64 << 10
_READ = 1 << 16
# Isolated: what lies in the workspace is never imported.
_CHILD = ("-I", "-m", "sandbox.child")
# These name devices and libraries that a GPU provider needs; everything else of our environment stays here.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")


@dataclass(frozen=True)
class Order:
    """What a child is to do, in which folder; the folder has a `tmp` folder in it.

    `lock` is a file that all children of a host lock: together while they work, alone while they measure.
    """

    verb: Verb
    workspace: Path
    payload: Mapping[str, Any] = field(default_factory=dict)
    lock: Path | None = None


@dataclass(frozen=True)
class Limits:
    """What a child may take; the wall clock and resident memory of it and all below it are enforced from outside.

    While it waits for another child's measurement the clock stands, but for no longer than `waiting_s` in all.
    """

    runtime_s: float
    memory_bytes: int
    threads: int = 1
    waiting_s: float = 0.0
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


class Child:
    """A running child. Its own thread watches it; `start` it from a thread that outlives it, or the kernel kills it."""

    def __init__(self, process: subprocess.Popen[bytes], control: int, events: int, limits: Limits) -> None:
        self.pid = process.pid
        self._process = process
        self._control = control
        self._limits = limits
        self._end = time.monotonic() + limits.runtime_s
        self._waiting_since: float | None = None
        self._waiting_left = limits.waiting_s
        self._told: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._stop: Kind | None = None
        self._result: dict[str, Any] | None = None
        self._outcome: Outcome | None = None
        self._log = b""
        self._partial = b""
        self._cpu_s = 0.0
        self._watcher = threading.Thread(target=self._watch, args=(events,), name=f"sandbox-{self.pid}", daemon=True)
        self._watcher.start()

    def events(self) -> list[dict[str, Any]]:
        """Give what the child told since the last call. It is not to be trusted."""
        told = []
        while True:
            try:
                told.append(self._told.get_nowait())
            except Empty:
                return told

    @property
    def cpu_s(self) -> float:
        """Processor time that it and everything below it have used, as of the last look."""
        return self._cpu_s

    def wait(self, seconds: float | None = None) -> Outcome | None:
        """Wait for the end; None if the time is over before."""
        self._watcher.join(seconds)
        return self._outcome

    def kill(self) -> Outcome:
        """End the child and everything below it now; gives the outcome, which may be an end of its own that came first."""
        # The watcher does it within a look: it alone knows that the process id still belongs to the child.
        self._stop = self._stop or "killed"
        self._watcher.join()
        assert self._outcome is not None
        return self._outcome

    def _watch(self, events: int) -> None:
        assert self._process.stdout is not None
        log = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ, self._take_events)
            selector.register(log, selectors.EVENT_READ, self._take_log)
            next_look = time.monotonic()
            # Also after the child's end until its pipes are empty; something below it may hold them open for ever.
            while selector.get_map():
                for key, _ in selector.select(max(0.0, next_look - time.monotonic())):
                    part = os.read(key.fd, _READ)
                    if part:
                        key.data(part)
                    else:
                        selector.unregister(key.fd)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + _LOOK_S
                    if self._has_ended():
                        self._drain(selector)
                        break
                    self._enforce()
        exit_code = self._ended()
        os.close(events)
        os.close(self._control)
        self._process.stdout.close()
        self._outcome = self._make_outcome(exit_code)

    def _drain(self, selector: selectors.BaseSelector) -> None:
        while ready := selector.select(0):
            for key, _ in ready:
                part = os.read(key.fd, _READ)
                if part:
                    key.data(part)
                else:
                    selector.unregister(key.fd)
            if not selector.get_map():
                return

    def _has_ended(self) -> bool:
        # Without reaping: until then nobody else can get the process id.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _ended(self) -> int:
        """Wait for the process, which has closed its pipes or ended, and end what it left behind."""
        while not self._has_ended():
            self._enforce()
            time.sleep(0.005 if self._result is not None else _LOOK_S)
        # The kernel keeps the count until the process is waited for.
        self._count()
        processes.kill(self.pid)
        return self._process.wait()

    def _count(self) -> None:
        # What is below it and has ended may have taken its count along.
        self._cpu_s = max(self._cpu_s, processes.cpu_seconds(self.pid))

    def _enforce(self) -> None:
        self._count()
        if self._stop is None and time.monotonic() > self._end + min(self._waited(), self._waiting_left):
            self._stop = "runtime_limit"
        if self._stop is None and processes.resident_bytes(self.pid) > self._limits.memory_bytes:
            self._stop = "memory_limit"
        if self._stop is not None:
            processes.kill(self.pid)

    def _waited(self) -> float:
        return 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since

    def _take_log(self, part: bytes) -> None:
        self._log = (self._log + part)[-_LOG_LIMIT:]

    def _take_events(self, part: bytes) -> None:
        *lines, self._partial = (self._partial + part).split(b"\n")
        for line in lines:
            self._take_line(line)
        if len(self._partial) > _LINE_LIMIT:
            self._partial = b""
            self._stop = self._stop or "garbled"

    def _take_line(self, line: bytes) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict) or self._result is not None:
            self._stop = self._stop or "garbled"
        elif told.get("type") == "result":
            self._result = told
        elif told.get("type") == "waiting":
            self._waiting_since = self._waiting_since or time.monotonic()
        elif told.get("type") == "working":
            waited = min(self._waited(), self._waiting_left)
            self._waiting_since = None
            self._end += waited
            self._waiting_left -= waited
        else:
            self._told.put(told)
            if self._told.qsize() > _UNREAD_LIMIT:
                self._stop = self._stop or "garbled"

    def _make_outcome(self, exit_code: int) -> Outcome:
        log = self._log.decode(errors="replace")
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


def start(order: Order, *, limits: Limits) -> Child:
    """Start a child for an order: own session, minimal environment, no descriptors but its control, events and log."""
    control_read, control_write = os.pipe()
    events_read, events_write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, *_CHILD, str(control_read), str(events_write), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=order.workspace,
            env=_environment(order.workspace),
            pass_fds=(control_read, events_write),
            start_new_session=True,
        )
    except OSError:
        os.close(control_write)
        os.close(events_read)
        raise
    finally:
        os.close(control_read)
        os.close(events_write)
    _send(control_write, order, limits)
    return Child(process, control_write, events_read, limits)


def _send(control: int, order: Order, limits: Limits) -> None:
    message = {
        "verb": order.verb,
        "workspace": str(order.workspace),
        "payload": dict(order.payload),
        "lock": str(order.lock) if order.lock is not None else None,
        "runtime_s": limits.runtime_s,
        "limits": {
            "cpu_s": int(limits.runtime_s * limits.threads) + 1,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "open_files": limits.open_files,
        },
    }
    left = memoryview(json.dumps(message).encode() + b"\n")
    try:
        while left:
            left = left[os.write(control, left) :]
    except BrokenPipeError:
        # The child died at birth; its outcome will say so.
        return


def _environment(workspace: Path) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **passed,
        "HOME": str(workspace),
        "TMPDIR": str(workspace / "tmp"),
        "LANG": "C.UTF-8",
        "ORT_DISABLE_TELEMETRY": "1",
    }
