"""A worker's sign of life: that it is there, and what a process of it can run."""

import logging
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

import sandbox
from services import workers
from services.db import Database

_log = logging.getLogger(__name__)
_EVERY_S = 10.0
_TARGETS_RUNTIME_S = 60.0
_TARGETS_MEMORY = 2 << 30


@dataclass(frozen=True)
class Identity:
    """Which worker this is: the parent of the pool processes."""

    id: str
    pid: int
    queues: tuple[str, ...]
    concurrency: int


class Presence:
    """A thread that finds out, once, what this worker can run, and tells that it lives, every few seconds."""

    def __init__(self, database: Database, worker: Identity, workspaces: Path) -> None:
        self._database = database
        self._worker = worker
        self._workspaces = workspaces
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, *, leave: bool) -> None:
        """End, and with `leave` tell that the worker is gone."""
        self._stopped.set()
        self._thread.join(timeout=5)
        if leave:
            self._tell_left()

    def _run(self) -> None:
        # First without: a live worker is live while it finds out.
        self._tell([], "unknown")
        targets, isolation = self._find_targets()
        while not self._stopped.is_set():
            self._tell(targets, isolation)
            self._stopped.wait(_EVERY_S)

    def _find_targets(self) -> tuple[list[dict[str, Any]], str]:
        """Ask a child: this process must never load a runtime. This thread outlives it, else the kernel would kill it."""
        with tempfile.TemporaryDirectory(dir=self._workspaces, prefix=".targets-") as folder:
            (Path(folder) / "tmp").mkdir()
            limits = sandbox.Limits(runtime_s=_TARGETS_RUNTIME_S, memory_bytes=_TARGETS_MEMORY, threads=4)
            child = sandbox.start(sandbox.Order("targets", Path(folder)), limits=limits)
            while (outcome := child.wait(0.5)) is None:
                if self._stopped.is_set():
                    outcome = child.kill()
                    break
            isolation = next((str(told.get("level")) for told in child.events() if told["type"] == "confined"), "none")
        if outcome.kind != "done" or outcome.value is None:
            _log.warning("targets not found: %s %s\n%s", outcome.kind, outcome.exit_code, outcome.log)
            return [], isolation
        return list(outcome.value["targets"]), isolation

    def _tell(self, targets: list[dict[str, Any]], isolation: str) -> None:
        try:
            with self._database.transaction() as session:
                workers.heartbeat(
                    session,
                    self._worker.id,
                    host=socket.gethostname(),
                    pid=self._worker.pid,
                    queues=list(self._worker.queues),
                    concurrency=self._worker.concurrency,
                    targets=targets,
                    isolation=isolation,
                )
        except SQLAlchemyError as error:
            _log.warning("heartbeat: %s", type(error).__name__)

    def _tell_left(self) -> None:
        try:
            with self._database.transaction() as session:
                workers.leave(session, self._worker.id)
        except SQLAlchemyError as error:
            _log.warning("leaving: %s", type(error).__name__)
