"""What people look at over many rows at once: how many jobs there are, whose turn it is, what a label's jobs came to."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, aliased, selectinload

import engine
from models import AliasMove, Dataset, Job, JobLabel, JobStatus, Model, Unit, UnitStatus, is_final
from services import db, workers
from services.routing import provider_of

_ACTIVE = tuple(status for status in JobStatus if not is_final(status))
# Units that ended last in a queue: what they took is what the next ones are expected to take.
_RECENT = 20
_MOST_LABELS = 200
# Of its work a job has done so much before its pace tells when it ends.
_SAYS_SOMETHING = 0.05


@dataclass(frozen=True)
class Place:
    """Where a queued job stands: the units before its own, and in how many seconds it may begin; None: nobody knows."""

    ahead: int
    seconds: float | None


def model_names(session: Session, tenant_id: str, ids: Collection[str | None]) -> dict[str, str]:
    """Give the names of the tenant's networks by id."""
    asked = select(Model.id, Model.name).where(Model.tenant_id == tenant_id, Model.id.in_({*ids} - {None}))
    return {row.id: row.name for row in session.execute(asked)}


def dataset_names(session: Session, tenant_id: str, ids: Collection[str | None]) -> dict[str, str]:
    """Give the names of the tenant's datasets by id."""
    asked = select(Dataset.id, Dataset.name).where(Dataset.tenant_id == tenant_id, Dataset.id.in_({*ids} - {None}))
    return {row.id: row.name for row in session.execute(asked)}


def counts(session: Session, tenant_id: str) -> dict[str, int]:
    """Give the number of the tenant's jobs by status."""
    asked = select(Job.status, func.count().label("number")).where(Job.tenant_id == tenant_id).group_by(Job.status)
    return {row.status: row.number for row in session.execute(asked)}


def stamp(session: Session, tenant_id: str) -> str:
    """Give a text that is another one as soon as one of the tenant's jobs is new, moves on or ends."""
    newest = session.scalar(select(func.max(Job.id)).where(Job.tenant_id == tenant_id))
    active = select(func.count(), func.sum(Job.version)).where(Job.tenant_id == tenant_id, Job.status.in_(_ACTIVE))
    number, versions = session.execute(active).one()
    return f"{newest}.{number}.{versions}"


def places(session: Session, jobs: Sequence[Job]) -> dict[str, Place]:
    """Give the place of each job that is queued, by its id."""
    queued = [job.id for job in jobs if job.in_status is JobStatus.QUEUED]
    if not queued:
        return {}
    mine, other = aliased(Unit), aliased(Unit)
    ahead = (
        select(mine.job_id, mine.queue, mine.target_class, func.count(other.id))
        .outerjoin(
            other,
            (other.queue == mine.queue)
            & (
                (other.status == UnitStatus.RUNNING)
                | (
                    (other.status == UnitStatus.QUEUED)
                    & or_(
                        other.priority > mine.priority,
                        (other.priority == mine.priority) & (other.queued_at < mine.queued_at),
                    )
                )
            ),
        )
        .where(mine.job_id.in_(queued), mine.status == UnitStatus.QUEUED)
        .group_by(mine.job_id, mine.queue, mine.target_class)
    )
    usual: dict[str, float | None] = {}
    found: dict[str, Place] = {}
    for job_id, queue, target_class, number in session.execute(ahead):
        assert job_id is not None
        if queue not in usual:
            usual[queue] = _usual_seconds(session, queue)
        slots = workers.slots(session, provider_of(queue) or "cpu", target_class)
        takes = usual[queue]
        # Rounds of the slots before one of them is free for it.
        seconds = None if not slots or takes is None else number // slots * takes
        found[job_id] = Place(number, seconds)
    return found


def _usual_seconds(session: Session, queue: str) -> float | None:
    ended = (
        select(Unit.started_at, Unit.finished_at)
        .where(Unit.queue == queue, Unit.status == UnitStatus.SUCCEEDED, Unit.started_at.is_not(None))
        .order_by(Unit.queued_at.desc())
        .limit(_RECENT)
    )
    took = [(end - start).total_seconds() for start, end in session.execute(ended) if start and end]
    return sum(took) / len(took) if took else None


def seconds_left(session: Session, job: Job) -> float | None:
    """Give in how many seconds a running job may end: by how far it says to be, or by what a search may take; else None."""
    if job.in_status is not JobStatus.RUNNING or job.started_at is None:
        return None
    passed = (db.now(session) - job.started_at).total_seconds() - job.paused_s
    fraction = (job.progress or {}).get("fraction")
    if isinstance(fraction, int | float) and fraction > _SAYS_SOMETHING:
        return max(0.0, passed * (1 - fraction) / fraction)
    if job.kind != "search":
        return None
    spec = engine.read_spec(job.spec)
    assert isinstance(spec, engine.Search)
    return max(0.0, engine.settled(spec.budget, spec.goal.effort)[0] - passed)


def label_values(session: Session, tenant_id: str) -> dict[str, list[str]]:
    """Give the values of each label that the tenant's jobs have, at most so many in all."""
    asked = (
        select(JobLabel.name, JobLabel.value)
        .where(JobLabel.tenant_id == tenant_id)
        .distinct()
        .order_by(JobLabel.name, JobLabel.value)
        .limit(_MOST_LABELS)
    )
    found: dict[str, list[str]] = {}
    for name, value in session.execute(asked):
        found.setdefault(name, []).append(value)
    return found


def promoted(session: Session, tenant_id: str, alias: str) -> list[Job]:
    """Give the jobs whose networks an alias has named, in the order in which it moved to them."""
    asked = (
        select(Job)
        .options(selectinload(Job.outputs))
        .join(Model, Model.job_id == Job.id)
        .join(AliasMove, AliasMove.model_id == Model.id)
        .where(AliasMove.tenant_id == tenant_id, AliasMove.alias == alias)
        .order_by(AliasMove.id)
    )
    return list(session.scalars(asked))
