"""The one task, and what a pool process keeps between tasks."""

import logging
import mmap
from pathlib import Path
from typing import Any

from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down

import sandbox
from services.db import Database
from services.publisher import BrokerPublisher
from services.reconcile import Reconciler
from services.routing import target_classes
from services.storage import open_store
from settings import Settings, get_settings
from settings.private_folder import private_folder
from worker.app import app
from worker.attempt import Attempts
from worker.presence import Identity, Presence

_log = logging.getLogger(__name__)
# One byte that the worker's parent and its pool processes share: the parent was told to stop.
_draining = mmap.mmap(-1, 1)
_WORKSPACES = "work"


class Place:
    """What one pool process works with. Nothing of it is made before the fork: threads and connections do not survive one."""

    def __init__(self, settings: Settings, worker: Identity) -> None:
        publisher = BrokerPublisher(settings)
        folder = workspaces(settings)
        self.database = Database.from_settings(settings, publisher)
        self._fork_server = sandbox.ForkServer()
        self.attempts = Attempts(
            self.database,
            # Longer than a client would wait, shorter than a lease.
            open_store(settings, patience_s=min(15.0, settings.lease_s / 2)),
            settings,
            folder,
            worker_id=worker.id,
            queues=frozenset(worker.queues),
            classes=frozenset(target_classes(worker.proof.targets)),
            draining=is_draining,
            fork_server=self._fork_server,
        )
        self.reconciler = Reconciler(self.database, settings, publisher.waiting, folder)
        self.presence = Presence(self.database, worker, is_draining)

    def open(self) -> None:
        """Begin to look after the rows and to give signs of life."""
        self.reconciler.start()
        self.presence.start()

    def close(self) -> None:
        """End both."""
        self.presence.stop(leave=is_draining())
        self.reconciler.stop()
        self.database.dispose()
        self._fork_server.close()


_here: list[Place] = []
_worker: list[Identity] = []


def enter(worker: Identity) -> None:
    """Say which worker this process and the pool processes forked from it are."""
    _worker[:] = [worker]


def workspaces(settings: Settings) -> Path:
    """Give the folder in which units are worked on."""
    return private_folder(private_folder(settings.data_dir.resolve()) / _WORKSPACES)


def is_draining() -> bool:
    """Tell whether this worker was told to stop."""
    return _draining[0] != 0


@app.task(name="worker.run_unit", Request="worker.request:Request")  # type: ignore[untyped-decorator] # Celery ships no types
def run_unit(unit_id: str) -> None:
    """Work on the unit if it is there to be taken. Messages may come twice, late or for what is done."""
    _here[0].attempts.run(unit_id)


@worker_process_init.connect  # type: ignore[untyped-decorator] # Celery ships no types
def _opened(**_: Any) -> None:
    place = Place(get_settings(), _worker[0])
    _here[:] = [place]
    place.open()


@worker_process_shutdown.connect  # type: ignore[untyped-decorator] # Celery ships no types
def _closed(**_: Any) -> None:
    while _here:
        _here.pop().close()


@worker_shutting_down.connect  # type: ignore[untyped-decorator] # Celery ships no types
def _told_to_stop(**_: Any) -> None:
    _draining[0] = 1
