"""What operators watch: how much waits and for how long, how long work takes, what fails and whose fault it was."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import ColumnElement, func, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from models import Blob, Chore, Job, JobStatus, Unit, UnitStatus, WebhookDelivery
from services import db, workers

# Run times are told of so many jobs that ended last.
RECENT_JOBS = 1000
_QUANTILES = (0.5, 0.9, 0.99)
_OPEN = (UnitStatus.WAITING, UnitStatus.QUEUED, UnitStatus.RUNNING)


@dataclass
class Family:
    """A metric: its samples by labels."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


def collect(session: Session, tenant_id: str | None = None) -> list[Family]:
    """Measure everything, for all tenants together; or what one tenant's own work and bytes tell."""
    own = [*_units(session, tenant_id), *_jobs(session, tenant_id), *_times(session, tenant_id)]
    own.append(_deliveries(session, tenant_id))
    if tenant_id is not None:
        return [*own, _stored(session, tenant_id)]
    return [*own, _workers(session), _stored(session, None), *_retention(session)]


def _of(column: InstrumentedAttribute[str], tenant_id: str | None) -> ColumnElement[bool]:
    return true() if tenant_id is None else column == tenant_id


def _units(session: Session, tenant_id: str | None) -> Iterator[Family]:
    mine = _of(Unit.tenant_id, tenant_id)
    counted = Family("onnxpress_units", "gauge", "Units of work that are not final, by queue and status.")
    asked = (
        select(Unit.queue, Unit.status, func.count())
        .where(Unit.status.in_(_OPEN), mine)
        .group_by(Unit.queue, Unit.status)
    )
    counted.samples = [({"queue": name, "status": status}, count) for name, status, count in session.execute(asked)]
    yield counted
    oldest = Family("onnxpress_queue_age_seconds", "gauge", "How long the oldest queued unit has waited.")
    moment = db.now(session)
    # One row by the index on (status, queue, queued_at) each.
    for name in session.scalars(select(Unit.queue).where(Unit.status == UnitStatus.QUEUED, mine).distinct()):
        queued = select(Unit.queued_at).where(Unit.status == UnitStatus.QUEUED, Unit.queue == name, mine)
        since = session.scalars(queued.order_by(Unit.queued_at).limit(1)).first()
        if since is not None:
            oldest.samples.append(({"queue": name}, max(0.0, (moment - since).total_seconds())))
    yield oldest


def _jobs(session: Session, tenant_id: str | None) -> Iterator[Family]:
    mine = _of(Job.tenant_id, tenant_id)
    jobs = Family("onnxpress_jobs", "gauge", "Jobs by status.")
    jobs.samples = [
        ({"status": status}, count)
        for status, count in session.execute(select(Job.status, func.count()).where(mine).group_by(Job.status))
    ]
    yield jobs
    failures = Family("onnxpress_job_failures_total", "counter", "Failed jobs by the reason's code and class.")
    code, blame = Job.problem["code"].as_string(), Job.problem["class"].as_string()
    asked = select(code, blame, func.count()).where(Job.status == JobStatus.FAILED, mine).group_by(code, blame)
    failures.samples = [({"code": one, "class": other}, count) for one, other, count in session.execute(asked)]
    yield failures


def _times(session: Session, tenant_id: str | None) -> Iterator[Family]:
    asked = (
        select(Job.created_at, Job.started_at, Job.finished_at)
        .where(Job.status == JobStatus.SUCCEEDED, Job.cached_from.is_(None), _of(Job.tenant_id, tenant_id))
        .order_by(Job.id.desc())
        .limit(RECENT_JOBS)
    )
    rows = [row for row in session.execute(asked) if row.started_at and row.finished_at]
    run = Family("onnxpress_job_run_seconds", "gauge", f"Run time of the {RECENT_JOBS} jobs that succeeded last.")
    run.samples = _quantiles([(row.finished_at - row.started_at).total_seconds() for row in rows])
    wait = Family("onnxpress_job_wait_seconds", "gauge", "How long the same jobs waited before they started.")
    wait.samples = _quantiles([(row.started_at - row.created_at).total_seconds() for row in rows])
    yield run
    yield wait


def _quantiles(values: Sequence[float]) -> list[tuple[dict[str, str], float]]:
    ordered = sorted(values)
    if not ordered:
        return []
    return [({"quantile": str(q)}, ordered[min(int(q * len(ordered)), len(ordered) - 1)]) for q in _QUANTILES]


def _workers(session: Session) -> Family:
    family = Family("onnxpress_workers", "gauge", "Live workers' processes by queue.")
    slots: dict[str, int] = {}
    for worker in workers.live(session):
        for name in worker.queues:
            slots[name] = slots.get(name, 0) + worker.concurrency
    family.samples = [({"queue": name}, count) for name, count in sorted(slots.items())]
    return family


def _deliveries(session: Session, tenant_id: str | None) -> Family:
    family = Family("onnxpress_webhook_deliveries", "gauge", "What was and will be sent to webhooks, by status.")
    asked = select(WebhookDelivery.status, func.count()).where(_of(WebhookDelivery.tenant_id, tenant_id))
    rows = session.execute(asked.group_by(WebhookDelivery.status))
    family.samples = [({"status": status}, count) for status, count in rows]
    return family


def _stored(session: Session, tenant_id: str | None) -> Family:
    size = session.scalar(select(func.coalesce(func.sum(Blob.size), 0)).where(_of(Blob.tenant_id, tenant_id))) or 0
    return Family("onnxpress_stored_bytes", "gauge", "Bytes of all blobs.", [({}, int(size))])


def _retention(session: Session) -> Iterator[Family]:
    chores = session.scalars(select(Chore).order_by(Chore.name)).all()
    removed = Family("onnxpress_removed_total", "counter", "Things that retention has removed, by kind.")
    removed.samples = [({"kind": chore.name}, chore.removed) for chore in chores]
    yield removed
    done = Family("onnxpress_retention_timestamp_seconds", "gauge", "When retention last came to each kind.")
    done.samples = [({"kind": chore.name}, chore.done_at.timestamp()) for chore in chores]
    yield done
