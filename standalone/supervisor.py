"""Keeps the service's processes alive and stops them in order."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_BACKOFF_FIRST_S = 0.5
_BACKOFF_LAST_S = 10.0
# A log that grows beyond this is put aside; so many of those are kept.
LOG_BYTES = 32 << 20
LOGS_ASIDE = 3
# A process that lived this long starts again without the backoff of its earlier deaths.
_HEALTHY_S = 30.0


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Service:
    """One supervised process: how to start it, and how long it may take to stop."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    grace_s: float = 10.0
    # The broker outlives a killed supervisor, so that the next one adopts it with its queue.
    outlives_supervisor: bool = False
    before_start: Callable[[], int | None] | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _adopted: int | None = field(default=None, init=False)
    _started: float = field(default=0.0, init=False)
    _backoff: float = field(default=_BACKOFF_FIRST_S, init=False)
    _again_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start the process in a session of its own: Ctrl-C at the terminal reaches only the supervisor."""
        self._adopted = self.before_start() if self.before_start else None
        self._started = time.monotonic()
        if self._adopted is not None:
            return
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.argv),
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=None if self.outlives_supervisor else _die_with_parent,  # noqa: PLW1509 - one thread only
            )

    @property
    def pid(self) -> int | None:
        """The process id, where the process was started or adopted."""
        return self._adopted if self._adopted is not None else (self._process.pid if self._process else None)

    def alive(self) -> bool:
        """Tell whether the process runs."""
        if self._adopted is not None:
            return _exists(self._adopted)
        return self._process is not None and self._process.poll() is None

    def revive(self) -> bool:
        """Start a dead process again, later after each death; True when it was started."""
        now = time.monotonic()
        if self.alive():
            if now - self._started > _HEALTHY_S:
                self._backoff = _BACKOFF_FIRST_S
            self._again_at = 0.0
            return False
        if self._again_at == 0.0:
            self._again_at = now + self._backoff
            self._backoff = min(2 * self._backoff, _BACKOFF_LAST_S)
        if now < self._again_at:
            return False
        self._again_at = 0.0
        self.start()
        return True

    def keep_log_short(self) -> None:
        """Put a long log aside as `.1`, the one before as `.2`.

        The process goes on writing into the same file, which is emptied: what it writes between copy and cut is lost, a moment
        every 32 MiB.
        """
        if not self.log.is_file() or self.log.stat().st_size < LOG_BYTES:
            return
        aside = [self.log.with_name(f"{self.log.name}.{number}") for number in range(1, LOGS_ASIDE + 1)]
        for newer, older in zip(reversed(aside[:-1]), reversed(aside[1:]), strict=True):
            if newer.is_file():
                newer.replace(older)
        shutil.copyfile(self.log, aside[0])
        os.truncate(self.log, 0)

    def stop(self) -> None:
        """Ask the process to end, wait for its grace time, then kill its whole group."""
        pid = self.pid
        if pid is None:
            return
        self._signal(pid, signal.SIGTERM)
        end = time.monotonic() + self.grace_s
        while self.alive() and time.monotonic() < end:
            time.sleep(0.02)
        if self.alive():
            self._signal_group(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    @staticmethod
    def _signal_group(pid: int, number: int) -> None:
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Supervisor:
    """Starts services in order, revives the dead, stops in the opposite order."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._services: list[Service] = []

    def start(self, service: Service) -> None:
        """Start a service and keep it alive from now on."""
        service.start()
        self._services.append(service)

    def pid(self, name: str) -> int | None:
        """Give the process id of a service, None where it does not run."""
        return next((service.pid for service in self._services if service.name == name and service.alive()), None)

    def tend(self) -> None:
        """Start again what died, and keep the logs short; call it a few times a second."""
        for service in self._services:
            service.keep_log_short()
            if service.revive():
                self._say(f"{service.name} had stopped; started again (see {service.log})")

    def stop(self) -> None:
        """Stop everything, the last started first."""
        while self._services:
            self._services.pop().stop()
