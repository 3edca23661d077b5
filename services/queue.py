"""Units as workers take and watch them: claim, look, renew, progress. Whoever does not hold the token changes nothing."""

import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, case, func, or_, select, true, update
from sqlalchemy.orm import Session

from models import Job, JobStatus, Unit, UnitStatus, sources
from services import db
from services.attempts import BACKOFF_MAX_S, hold_unit
from services.claims import Claim
from services.routing import is_run_queue
from services.transitions import advance, record
from services.unit_kinds import KINDS
from services.units import claim_of, lock_job

_TEXT_LIMIT = 500
# The report has it whole, and it should be the same there.
_WARNING_LIMIT = 4000
_MOST_WARNINGS = 200
# No job is expected to take longer than this.
_LONGEST_S = 1e9
# Whoever loses a unit to another worker looks for the next one.
_TRIES = 5
_EVENTS = frozenset(
    {
        "started", "estimate", "step_started", "progress", "step_finished", "measuring", "warning", "finished",
        # Of a process, not by it: it waits until nobody measures, or nobody works, and goes on.
        "waiting_for_quiet", "quiet",
    }
)  # fmt: skip


def claim(
    session: Session,
    unit_id: str,
    *,
    worker_id: str,
    lease_s: float,
    queues: Collection[str] | None = None,
    classes: Collection[str] = (),
) -> Claim | None:
    """Take a queued unit by one conditional update, or give None where it is not there to be taken.

    With `queues`, only a unit in one of them: a message may have gone astray to a worker that lacks the unit's target.
    `classes` are the target classes that the worker is of.
    """
    moment = db.now(session)
    taken = session.scalars(
        update(Unit)
        .where(
            Unit.id == unit_id,
            Unit.status.in_(sources(UnitStatus.RUNNING)),
            _may_begin(moment),
            _can_do(classes),
            true() if queues is None else Unit.queue.in_(queues),
        )
        .values(
            status=UnitStatus.RUNNING,
            # A process of the version before calls a part so too.
            kind=case(((Unit.kind == "run") & Unit.parent_id.is_not(None), "part"), else_=Unit.kind),
            attempt=Unit.attempt + 1,
            token=secrets.token_hex(16),
            worker_id=worker_id,
            lease_until=moment + timedelta(seconds=lease_s),
            renewed_at=moment,
            started_at=moment,
            current_step=None,
            not_before=None,
        )
        .returning(Unit)
    ).one_or_none()
    if taken is None:
        return None
    job = lock_job(session, taken)
    KINDS[taken.kind].claimed(session, taken, queues, classes)
    if job is not None:
        job.isolation = None
        if job.deadline is None and job.max_runtime_s is not None:
            job.deadline = moment + timedelta(seconds=job.max_runtime_s)
        if job.in_status is JobStatus.RUNNING:
            # Another unit of it runs already.
            record(session, job, JobStatus.RUNNING, {"attempt": taken.attempt}, taken)
        else:
            advance(session, job, JobStatus.RUNNING, attempt=taken.attempt)
    return claim_of(session, taken, job)


def _may_begin(moment: datetime) -> ColumnElement[bool]:
    """Say whether a unit's pause is over, or longer than any is: then the clock was put back meanwhile."""
    longest = moment + timedelta(seconds=BACKOFF_MAX_S)
    return or_(Unit.not_before.is_(None), Unit.not_before <= moment, Unit.not_before > longest)


def _can_do(classes: Collection[str]) -> ColumnElement[bool]:
    # A newer version may know more kinds; its workers do them.
    return Unit.kind.in_(KINDS) & or_(Unit.target_class.is_(None), Unit.target_class.in_(classes))


def claim_next(
    session: Session,
    unit_id: str,
    *,
    worker_id: str,
    lease_s: float,
    queues: Collection[str],
    classes: Collection[str] = (),
) -> Claim | None:
    """Take the unit whose turn it is, given a message that names one: the message only tells of work.

    It is one that waits where the named unit does, or, for a job, in any of the `queues` of jobs that the worker listens to:
    one order holds for all targets that it has. Turns go round among tenants: whose units run least, then who was served
    longest ago. Within a tenant the highest priority comes first, then the oldest.
    """
    name = session.scalar(select(Unit.queue).where(Unit.id == unit_id))
    if name is None or name not in queues:
        return None
    names = sorted(filter(is_run_queue, queues)) if is_run_queue(name) else [name]
    for _ in range(_TRIES):
        best = _next(session, names, classes)
        if best is None:
            return None
        taken = claim(session, best, worker_id=worker_id, lease_s=lease_s, queues=names, classes=classes)
        if taken is not None:
            _message_again(session, name, best)
            return taken
    return None


def _message_again(session: Session, name: str, taken: str) -> None:
    """Have a message again in the queue whose message was spent on a unit of another one, for what is left there."""
    if session.scalar(select(Unit.queue).where(Unit.id == taken)) == name:
        return
    left = select(Unit.id).where(Unit.queue == name, Unit.status.in_(sources(UnitStatus.RUNNING)))
    unit_id = session.scalars(left.order_by(Unit.queued_at).limit(1)).first()
    if unit_id is not None:
        db.enqueue(session, name, unit_id)


def _next(session: Session, names: Sequence[str], classes: Collection[str]) -> str | None:
    moment = db.now(session)
    queued = (
        Unit.queue.in_(names),
        Unit.status.in_(sources(UnitStatus.RUNNING)),
        _may_begin(moment),
        _can_do(classes),
    )
    tenants = list(session.scalars(select(Unit.tenant_id).where(*queued).distinct()))
    if not tenants:
        return None
    tenant = tenants[0] if len(tenants) == 1 else _served_least(session, names, tenants)
    asked = select(Unit.id).where(*queued, Unit.tenant_id == tenant)
    return session.scalars(
        asked.order_by(Unit.priority.desc(), Unit.queued_at, Unit.position, Unit.id).limit(1)
    ).first()


def _served_least(session: Session, names: Sequence[str], tenants: Sequence[str]) -> str:
    def served(tenant_id: str) -> tuple[int, float, str]:
        own = (Unit.tenant_id == tenant_id, Unit.queue.in_(names))
        running = session.scalar(select(func.count()).select_from(Unit).where(*own, Unit.status == UnitStatus.RUNNING))
        last = session.scalars(
            select(Unit.started_at).where(*own, Unit.started_at.is_not(None)).order_by(Unit.started_at.desc()).limit(1)
        ).first()
        return running or 0, last.timestamp() if last else 0.0, tenant_id

    return min(tenants, key=served)


def look(session: Session, unit_id: str, token: str) -> Literal["held", "cancel", "lost"]:
    """Tell the holder whether it still holds the unit and whether the job is to be cancelled; a cheap read."""
    row = session.execute(
        select(Job.status)
        .select_from(Unit)
        .outerjoin(Job, Job.id == Unit.job_id)
        .where(Unit.id == unit_id, Unit.token == token, Unit.status == UnitStatus.RUNNING)
    ).one_or_none()
    if row is None:
        return "lost"
    return "cancel" if row.status in {JobStatus.CANCELLING, JobStatus.CANCELLED} else "held"


def renew(session: Session, unit_id: str, token: str, *, lease_s: float, cpu_s: float, waited_s: float = 0.0) -> bool:
    """Put the lease's end off and note the processor time of all attempts so far; False where the unit is lost.

    `waited_s` are seconds since the last time in which it waited for others' measurements: they are not of its run time.
    """
    moment = db.now(session)
    renewed = session.execute(
        update(Unit)
        .where(Unit.id == unit_id, Unit.token == token, Unit.status == UnitStatus.RUNNING)
        .values(
            lease_until=moment + timedelta(seconds=lease_s),
            renewed_at=moment,
            cpu_s=cpu_s,
            spent_s=Unit.spent_s - waited_s,
        )
        .returning(Unit.id)
    ).first()
    return renewed is not None


def progress(session: Session, unit_id: str, token: str, events: Sequence[Mapping[str, Any]]) -> bool:
    """Note what the job's process tells of itself; False where the unit is lost.

    The process is not trusted: events of unknown types are dropped and texts are cut.
    """
    unit = hold_unit(session, unit_id, token)
    if unit is None:
        return False
    job = lock_job(session, unit)
    if job is None:
        return True
    for told in events:
        event = _clean(told)
        if event is not None:
            _note(session, job, unit, event)
    return True


def confined(session: Session, unit_id: str, token: str, isolation: str) -> bool:
    """Note how strongly the process that works on the unit is confined; False where the unit is lost."""
    unit = hold_unit(session, unit_id, token)
    if unit is None:
        return False
    job = lock_job(session, unit)
    if job is not None:
        job.isolation = isolation
    return True


def _clean(told: Mapping[str, Any]) -> dict[str, Any] | None:
    kind, step, fraction = told.get("type"), told.get("step"), told.get("fraction")
    if not isinstance(kind, str) or kind not in _EVENTS:
        return None
    event: dict[str, Any] = {"type": kind}
    if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 1 << 16:
        event["step"] = step
    if isinstance(fraction, int | float) and not isinstance(fraction, bool) and not math.isnan(fraction):
        # Cut first: an int may be too large for a float.
        event["fraction"] = float(min(max(fraction, 0), 1))
    expected = told.get("expected_s")
    if isinstance(expected, int | float) and not isinstance(expected, bool) and 0 <= expected < _LONGEST_S:
        event["expected_s"] = float(expected)
    status = told.get("status")
    if isinstance(status, str) and status in {"applied", "refused", "measured"}:
        event["status"] = status
    for name in ("pass", "message", "reason", "what", "verdict"):
        if isinstance(told.get(name), str):
            event[name] = told[name][: _WARNING_LIMIT if kind == "warning" else _TEXT_LIMIT]
    return event


def _note(session: Session, job: Job, unit: Unit, event: dict[str, Any]) -> None:
    kind = event.pop("type")
    step = event.get("step")
    if kind == "step_started":
        unit.current_step = step
    elif kind == "step_finished":
        unit.current_step = None
    if not KINDS[unit.kind].tells_steps:
        return
    if kind in {"estimate", "step_started", "progress", "measuring"}:
        # What the whole is expected to take is told once, and holds until it is told anew.
        known = {name: value for name, value in (job.progress or {}).items() if name == "expected_s"}
        job.progress = {**known, **event}
    if kind in {"waiting_for_quiet", "quiet"}:
        now = {name: value for name, value in (job.progress or {}).items() if name != "waiting_for_quiet"}
        job.progress = {**now, "waiting_for_quiet": True} if kind == "waiting_for_quiet" else now
    if kind == "warning" and "message" in event:
        job.warnings = [*dict.fromkeys([*job.warnings, event["message"]])][:_MOST_WARNINGS]
    if step is not None and step < len(job.steps) and kind in {"step_started", "step_finished"}:
        moment = db.now(session).isoformat()
        changes = (
            {"status": "running", "started_at": moment}
            if kind == "step_started"
            else {"status": event.get("status", "applied"), "finished_at": moment, "reason": event.get("reason")}
        )
        job.steps = [*job.steps[:step], {**job.steps[step], **changes}, *job.steps[step + 1 :]]
    record(session, job, kind, event, unit)
