"""How an attempt at a unit ends: with a result, a step back, a failure, a crash, or given back. Whoever lost the token ends nothing."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import JobStatus, Unit, UnitStatus
from services import db, units
from services.claims import Result, StepBack
from services.errors import AnswerInvalidError
from services.outcomes import End
from services.problems import OUTPUT_INVALID, PROCESS_CRASHED, RUNTIME_LIMIT, WORKER_LOST, Problem
from services.storage import Store
from services.unit_kinds import KINDS
from settings import Settings

# Longest pause after a loss that may happen again at once (a full disk, a database away).
BACKOFF_MAX_S = 60.0


def finish(
    session: Session, store: Store, unit_id: str, token: str, result: Result, *, settings: Settings | None = None
) -> bool:
    """Commit all that a unit's result means, or have it wait for the children that it asks for.

    With `settings` the tenant's quota holds for its files: what is over it fails. False, and nothing is changed, where the unit is lost. A unit of a job that is being cancelled ends cancelled.
    """
    if isinstance(result.answer.value, StepBack):
        _hold_job(session, unit_id)
    end = _held(session, store, unit_id, token)
    if end is None:
        return False
    if not isinstance(result.answer.value, StepBack):
        units.finish(replace(end, settings=settings), result)
    elif end.whole_job.in_status is JobStatus.CANCELLING:
        units.cancel(session, end.unit, end.whole_job)
    else:
        _spend(end.unit, db.now(session))
        try:
            units.step_back(end, result.answer.value)
        except AnswerInvalidError:
            units.fail(end, OUTPUT_INVALID)
    return True


def fail(session: Session, store: Store, unit_id: str, token: str, problem: Problem) -> bool:
    """End a unit for good with a reason; False where it is lost."""
    end = _held(session, store, unit_id, token)
    if end is None:
        return False
    units.fail(end, problem)
    return True


def cancelled(session: Session, unit_id: str, token: str) -> bool:
    """Say that the process of a job that is being cancelled is dead; False where the unit is lost."""
    unit = hold_unit(session, unit_id, token)
    job = None if unit is None else units.lock_job(session, unit)
    if unit is None or job is None:
        return False
    units.cancel(session, unit, job)
    return True


def crashed(session: Session, store: Store, unit_id: str, token: str, settings: Settings) -> bool:
    """Count a crash of the unit's own process: it is tried again without the step that crashed, or fails.

    False where the unit is lost.
    """
    end = _held(session, store, unit_id, token)
    if end is None:
        return False
    unit = end.unit
    unit.crashes += 1
    step = unit.current_step
    if step is not None:
        unit.crashed_steps = sorted({*unit.crashed_steps, step})
    _spend(unit, db.now(session))
    if unit.crashes > settings.max_crashes:
        units.fail(end, PROCESS_CRASHED if step is None else {**PROCESS_CRASHED, "step": step})
    else:
        _again(end, "attempt_crashed", {"step": step})
    return True


def give_back(session: Session, store: Store, unit_id: str, token: str, settings: Settings, *, counted: bool) -> bool:
    """Return a unit that this worker cannot go on with: at once when it drains, later where a loss is `counted`.

    False where the unit is lost.
    """
    end = _held(session, store, unit_id, token)
    if end is None:
        return False
    moment = db.now(session)
    _spend(end.unit, moment)
    if counted:
        pause = min(2.0**end.unit.losses, BACKOFF_MAX_S)
        _lose(end, settings, not_before=moment + timedelta(seconds=pause))
    else:
        _again(end, "attempt_returned", {})
    return True


def expire_lease(session: Session, store: Store, unit: Unit, settings: Settings) -> None:
    """Take a locked unit from a holder that gave no sign of life."""
    # Time after the last sign of life was not the job's.
    _spend(unit, unit.renewed_at or db.now(session))
    _lose(End(session, store, unit, units.lock_job(session, unit)), settings)


def give_up_waiting(session: Session, store: Store, unit: Unit, problem: Problem) -> None:
    """End a locked unit that nobody has taken in time."""
    units.fail(End(session, store, unit, units.lock_job(session, unit)), problem)


def spent(session: Session, unit_id: str, token: str, *, cpu_s: float, waited_s: float = 0.0) -> bool:
    """Note the processor time of all attempts at a unit that ends, and its latest waiting; False where it is lost."""
    unit = hold_unit(session, unit_id, token)
    if unit is None:
        return False
    unit.cpu_s = cpu_s
    # The attempt's whole time is added at its end.
    unit.spent_s -= waited_s
    return True


def hold_unit(session: Session, unit_id: str, token: str) -> Unit | None:
    """Give the unit, locked until the transaction ends, if the token is still the holder's."""
    return session.scalars(
        select(Unit)
        .where(Unit.id == unit_id, Unit.token == token, Unit.status == UnitStatus.RUNNING)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()


def _hold_job(session: Session, unit_id: str) -> None:
    job_id = session.scalar(select(Unit.job_id).where(Unit.id == unit_id))
    if job_id is not None:
        units.hold(session, job_id)


def _held(session: Session, store: Store, unit_id: str, token: str) -> End | None:
    unit = hold_unit(session, unit_id, token)
    return None if unit is None else End(session, store, unit, units.lock_job(session, unit))


def _lose(end: End, settings: Settings, *, not_before: datetime | None = None) -> None:
    """Count a loss of the infrastructure under a unit: it is queued again, or fails after too many."""
    end.unit.losses += 1
    if end.unit.losses > settings.max_losses:
        units.fail(end, WORKER_LOST)
    else:
        _again(end, "attempt_lost", {"losses": end.unit.losses}, not_before=not_before)


def _again(end: End, event: str, data: dict[str, Any], *, not_before: datetime | None = None) -> None:
    """Queue a running unit again, unless its job is being cancelled or its time is spent."""
    unit, job = end.unit, end.job
    if job is not None and job.in_status is JobStatus.CANCELLING:
        units.cancel(end.session, unit, job)
        return
    if unit.spent_s >= unit.max_runtime_s:
        units.fail(end, RUNTIME_LIMIT)
        return
    units.to_queue(end.session, unit, not_before=not_before)
    KINDS[unit.kind].requeued(end.session, unit)
    if job is not None:
        units.rest(end.session, job, unit, because=event, attempt=unit.attempt, **data)


def _spend(unit: Unit, until: datetime) -> None:
    if unit.started_at is not None:
        unit.spent_s += max(0.0, (until - unit.started_at).total_seconds())
