"""A worker's sign of life: that it is there, what it can run, and that it is going."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from services import workers
from services.db import Database
from worker.proof import Proof

_log = logging.getLogger(__name__)
_EVERY_S = 10.0
_LOOK_S = 0.5


@dataclass(frozen=True)
class Identity:
    """Which worker this is, the parent of the pool processes, and what it has proven."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    concurrency: int
    proof: Proof


def tell(database: Database, worker: Identity, *, draining: bool = False) -> None:
    """Give a sign of life; a database that is away hears of the next one."""
    try:
        with database.transaction() as session:
            workers.heartbeat(
                session,
                worker.id,
                host=worker.host,
                pid=worker.pid,
                queues=worker.queues,
                concurrency=worker.concurrency,
                targets=worker.proof.targets,
                unavailable=worker.proof.unavailable,
                isolation=worker.proof.isolation,
                cores=worker.proof.cores,
                draining=draining,
            )
    except SQLAlchemyError as error:
        _log.warning("heartbeat: %s", type(error).__name__)


class Presence:
    """A thread that gives signs of life every few seconds, and at once when the worker is told to stop."""

    def __init__(self, database: Database, worker: Identity, draining: Callable[[], bool]) -> None:
        self._database = database
        self._worker = worker
        self._draining = draining
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, *, leave: bool) -> None:
        """End, and with `leave` tell that this process of the worker is gone."""
        self._stopped.set()
        self._thread.join(timeout=5)
        if leave:
            self._leave()

    def _run(self) -> None:
        while not self._stopped.is_set():
            draining = self._draining()
            tell(self._database, self._worker, draining=draining)
            left = _EVERY_S
            while left > 0 and self._draining() == draining and not self._stopped.wait(_LOOK_S):
                left -= _LOOK_S

    def _leave(self) -> None:
        try:
            with self._database.transaction() as session:
                workers.leave(session, self._worker.id)
        except SQLAlchemyError as error:
            _log.warning("leaving: %s", type(error).__name__)
