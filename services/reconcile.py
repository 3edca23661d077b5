"""Repairs what got lost: leases that nobody renews, messages that nobody received, waits that took too long."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import Select, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from models import Job, JobStatus, Unit, UnitStatus, is_final
from services import attempts, db, model_versions, retention, units, workers
from services.errors import ServiceError
from services.problems import PENDING_LIMIT, no_worker_for
from services.routing import is_train_queue, provider_of
from services.storage import Store, open_store
from settings import Settings

_log = logging.getLogger(__name__)
_AT_ONCE = 100
_LOCK = "reconcile"
# How often it is looked whether a rule of retention is due.
_RETENTION_S = 600.0
# A resent message doubles the wait for the next one, so that a long queue is not filled with copies.
_MAX_DOUBLINGS = 5

Waiting = Callable[[str], int | None]


def once(database: db.Database, store: Store, settings: Settings, waiting: Waiting) -> None:
    """Do one round, in short transactions, each by one process at a time; where nothing is lost it only reads.

    `waiting` gives the number of messages in a queue, None where the broker does not answer.
    """
    with database.reading() as session:
        moment = db.now(session)
        expired = session.scalars(_expired(moment, settings).limit(1)).first() is not None
        overdue = session.scalars(_overdue(moment).limit(1)).first() is not None
        queued = _queued(session)
        overspent = list(session.execute(units.overspent(moment).limit(_AT_ONCE)))
        unturned = list(session.scalars(units.unturned().limit(_AT_ONCE)))
    if expired:
        _locked(database, lambda session: _expire_leases(session, store, settings))
    if overdue:
        _locked(database, lambda session: _fail_overdue(session, store))
    for job_id, late in overspent:
        _locked(database, partial(units.end_overspent, store=store, job_id=job_id, late=late))
    for waiting_id in unturned:
        _locked(database, partial(units.give_turns, job_id=str(waiting_id)))
    # As many messages as queued units: the workers are busy, nothing is lost.
    short = [name for name, count in queued.items() if (messages := waiting(name)) is not None and messages < count]
    if short:
        _locked(database, lambda session: _resend(session, short, settings))


def sweep_workspaces(database: db.Database, root: Path) -> None:
    """Remove the workspaces on this machine of units that are final or gone, and what it keeps for such jobs."""
    names = sorted(path.name for path in (*root.glob("unt_*"), *root.glob("job_*")))
    if not names:
        return
    with database.reading() as session:
        units_there = session.execute(select(Unit.id, Unit.status).where(Unit.id.in_(names)))
        kept = {unit_id for unit_id, status in units_there if not is_final(UnitStatus(status))}
        jobs_there = session.execute(select(Job.id, Job.status).where(Job.id.in_(names)))
        kept |= {job_id for job_id, status in jobs_there if not is_final(JobStatus(status))}
    for name in names:
        if name not in kept:
            shutil.rmtree(root / name, ignore_errors=True)


class Reconciler:
    """A thread that does a round every few seconds, until it is stopped."""

    def __init__(
        self, database: db.Database, settings: Settings, waiting: Waiting, workspaces: Path | None = None
    ) -> None:
        self._database = database
        self._settings = settings
        self._store = open_store(settings)
        self._place = retention.Place(database, self._store, settings.data_dir)
        self._waiting = waiting
        self._workspaces = workspaces
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Start the rounds."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round that is on."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        look_at = time.monotonic()
        while not self._stopped.is_set():
            try:
                once(self._database, self._store, self._settings, self._waiting)
                if self._workspaces is not None:
                    sweep_workspaces(self._database, self._workspaces)
                if time.monotonic() >= look_at:
                    model_versions.number_the_rest(self._database)
                    left = retention.apply_due(self._place, self._settings)
                    look_at = time.monotonic() + (0.0 if left else _RETENTION_S)
            except (SQLAlchemyError, ServiceError, OSError) as error:
                # The database or the disk is away: the next round repairs what this one could not.
                _log.warning("reconcile: %s: %s", type(error).__name__, error)
            self._stopped.wait(self._settings.reconcile_s)


def _locked(database: db.Database, step: Callable[[Session], None]) -> None:
    with database.transaction() as session:
        if db.try_lock(session, _LOCK):
            step(session)


def _expired(moment: datetime, settings: Settings) -> Select[Unit]:
    # Renewed later than now: the clock was put back, and the lease would last until it has come so far again.
    to_come = moment + timedelta(seconds=settings.lease_s)
    return select(Unit).where(
        Unit.status == UnitStatus.RUNNING, or_(Unit.lease_until < moment, Unit.renewed_at > to_come)
    )


def _overdue(moment: datetime) -> Select[Unit]:
    return select(Unit).where(Unit.status == UnitStatus.QUEUED, Unit.pending_until < moment)


def _expire_leases(session: Session, store: Store, settings: Settings) -> None:
    lost = _expired(db.now(session), settings).limit(_AT_ONCE).with_for_update(skip_locked=True)
    for unit in session.scalars(lost).all():
        _log.warning("unit %s: attempt %d gave no sign of life", unit.id, unit.attempt)
        attempts.expire_lease(session, store, unit, settings)


def _fail_overdue(session: Session, store: Store) -> None:
    overdue = _overdue(db.now(session)).limit(_AT_ONCE).with_for_update(skip_locked=True)
    for unit in session.scalars(overdue).all():
        provider = provider_of(unit.queue)
        missing = provider is not None and not workers.has_live(session, unit.queue, unit.target_class)
        absent = no_worker_for(unit.target_class or str(provider), trains=is_train_queue(unit.queue))
        attempts.give_up_waiting(session, store, unit, absent if missing else PENDING_LIMIT)


def _queued(session: Session) -> dict[str, int]:
    counted = select(Unit.queue, func.count()).where(Unit.status == UnitStatus.QUEUED).group_by(Unit.queue)
    return {row[0]: row[1] for row in session.execute(counted)}


def _resend(session: Session, names: list[str], settings: Settings) -> None:
    moment = db.now(session)
    asked_before = moment - timedelta(seconds=settings.resend_s)
    queued = (
        select(Unit)
        .where(
            Unit.status == UnitStatus.QUEUED,
            Unit.queue.in_(names),
            # Or by a clock that was put back since.
            or_(Unit.sent_at.is_(None), Unit.sent_at <= asked_before, Unit.sent_at > moment),
        )
        .order_by(func.coalesce(Unit.sent_at, Unit.queued_at))
        .limit(_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    for unit in session.scalars(queued).all():
        if _due(unit, moment, settings) <= moment:
            unit.sent_at = moment
            unit.sends += 1
            db.enqueue(session, unit.queue, unit.id)


def _due(unit: Unit, moment: datetime, settings: Settings) -> datetime:
    pause = settings.resend_s * 2 ** min(unit.sends, _MAX_DOUBLINGS)
    if unit.sent_at is None:
        due = unit.not_before or unit.queued_at
        assert due is not None
    else:
        due = unit.sent_at + timedelta(seconds=pause)
    # Nothing waits longer: the clock was put back since.
    return moment if due > moment + timedelta(seconds=max(pause, attempts.BACKOFF_MAX_S)) else due
