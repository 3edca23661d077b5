"""What people look at over many rows at once: how many jobs there are, whose turn it is, what a label's jobs came to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, or_, select, tuple_
from sqlalchemy.orm import Session, aliased, selectinload

import engine
from models import AliasMove, Dataset, Job, JobLabel, JobStatus, Model, Unit, UnitStatus, is_final
from services import db, workers
from services.routing import TRAIN, provider_of

_ACTIVE = tuple(status for status in JobStatus if not is_final(status))
# Units that ended last in a queue: what they took is what the next ones are expected to take.
_RECENT = 20
_MOST_LABELS = 200
# As far as a job gets that takes longer than was expected.
_NEARLY_ALL = 0.99


@dataclass(frozen=True)
class Place:
    """Where a queued job stands among all that the same workers take."""

    # Units that run, or whose turn comes first.
    ahead: int
    # In how many it may begin, by what the last ones took; None: nobody knows.
    seconds: float | None
    # How many units the workers that are there take at a time; 0: nobody is there to take it.
    slots: int


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
    """Give the place of each of a tenant's jobs that is queued, by its id: turns go as `services.queue.claim_next` gives them."""
    queued = [job for job in jobs if job.in_status is JobStatus.QUEUED]
    if not queued:
        return {}
    found: dict[str, Place] = {}
    known: dict[str, _Line] = {}
    for turn in _turns(session, queued):
        line = known.get(turn.line) or known.setdefault(turn.line, _line(session, turn.line))
        place = line.place(turn.tenant_id, turn.number, _slots(session, turn))
        # Of a job with several units the first one to begin counts.
        found[turn.job_id] = min(found.get(turn.job_id, place), place, key=lambda each: each.ahead)
    return found


# Units that train wait in a queue of their own for workers that take others too.
_LINE = func.replace(Unit.queue, TRAIN, "").label("line")
_ORDER = (Unit.priority.desc(), Unit.queued_at, func.coalesce(Unit.position, 0), Unit.id)
# So many jobs at most are counted one by one.
_FEW = 4


def _queues(line: str) -> tuple[str, str]:
    return line, line + TRAIN


def _turns(session: Session, queued: Sequence[Job]) -> Sequence[Row[Any]]:
    """Give the units of these jobs that wait in a queue, each with the number of its tenant's turn in it, from 1."""
    # To number all that wait takes a sort of them, to count those before one a look at each: of a few that is less work.
    number = _counted() if len(queued) <= _FEW else func.row_number().over(partition_by=_LINE, order_by=_ORDER)
    waiting = select(Unit.job_id, Unit.tenant_id, Unit.target_class, _LINE, number.label("number")).where(
        Unit.status == UnitStatus.QUEUED, Unit.tenant_id == queued[0].tenant_id
    )
    ids = [job.id for job in queued]
    if len(queued) <= _FEW:
        return session.execute(waiting.where(Unit.job_id.in_(ids))).all()
    numbered = waiting.subquery()
    return session.execute(select(numbered).where(numbered.c.job_id.in_(ids))).all()


def _counted() -> ColumnElement[int]:
    """Give the number of a unit's turn as a count of its tenant's that are not after it in the same line."""
    other = aliased(Unit)
    own = (Unit.queued_at, func.coalesce(Unit.position, 0), Unit.id)
    theirs = (other.queued_at, func.coalesce(other.position, 0), other.id)
    first = or_(other.priority > Unit.priority, and_(other.priority == Unit.priority, tuple_(*theirs) <= tuple_(*own)))
    line = func.replace(Unit.queue, TRAIN, "")
    return (
        select(func.count())
        .where(other.status == UnitStatus.QUEUED, other.tenant_id == Unit.tenant_id, first)
        .where(or_(other.queue == line, other.queue == line + TRAIN))
        .correlate(Unit)
        .scalar_subquery()
    )


@dataclass(frozen=True)
class _Line:
    """What is in the queues of one provider's workers."""

    # Of each unit that runs, the seconds that it may still take.
    running: Sequence[float | None]
    waiting: Mapping[str, int]
    # What one takes usually.
    takes: float | None

    def place(self, tenant_id: str, turn: int, slots: int) -> Place:
        """Give the place of a tenant's n-th unit: turns go round, so of others' no more come first."""
        others = sum(min(number, turn) for tenant, number in self.waiting.items() if tenant != tenant_id)
        waiting = turn - 1 + others
        ahead = len(self.running) + waiting
        if not slots:
            return Place(ahead, None, slots)
        if ahead < slots:
            return Place(ahead, 0.0, slots)
        parts = [*self.running, *[self.takes] * waiting]
        known = [part for part in parts if part is not None]
        return Place(ahead, sum(known) / slots if len(known) == len(parts) else None, slots)


def _line(session: Session, name: str) -> _Line:
    takes = _usual_seconds(session, name)
    moment = db.now(session)
    running = select(Unit, Job).outerjoin(Job, Job.id == Unit.job_id)
    running = running.where(Unit.queue.in_(_queues(name)), Unit.status == UnitStatus.RUNNING)
    waiting = select(Unit.tenant_id, func.count().label("number")).where(Unit.queue.in_(_queues(name)))
    waiting = waiting.where(Unit.status == UnitStatus.QUEUED).group_by(Unit.tenant_id)
    return _Line(
        [_rest(session, unit, job, moment, takes) for unit, job in session.execute(running)],
        {row.tenant_id: row.number for row in session.execute(waiting)},
        takes,
    )


def _rest(session: Session, unit: Unit, job: Job | None, moment: datetime, takes: float | None) -> float | None:
    """Give the seconds that a running unit may still take: of a whole job by how far it is, of others by what they take usually."""
    if unit.kind == "run" and job is not None and (left := seconds_left(session, job)) is not None:
        return left
    if takes is None or unit.started_at is None:
        return None
    return max(0.0, takes - (moment - unit.started_at).total_seconds())


def _slots(session: Session, turn: Row[Any]) -> int:
    return workers.slots(session, provider_of(turn.line) or "cpu", turn.target_class)


def _usual_seconds(session: Session, line: str) -> float | None:
    took = []
    for name in _queues(line):
        ended = (
            select(Unit.started_at, Unit.finished_at)
            .where(Unit.queue == name, Unit.status == UnitStatus.SUCCEEDED, Unit.started_at.is_not(None))
            .order_by(Unit.queued_at.desc())
            .limit(_RECENT)
        )
        took += [(end - start).total_seconds() for start, end in session.execute(ended) if start and end]
    return sum(took) / len(took) if took else None


def seconds_left(session: Session, job: Job) -> float | None:
    """Give in how many seconds a running job may end: by what it foresaw when it began, or by what a search may take; else None."""
    found = _expected_seconds(job)
    return None if found is None else max(0.0, found - _passed(session, job))


def share_done(session: Session, job: Job) -> float | None:
    """Give how much of what a running job is expected to take has passed, at most nearly all; None where nothing is expected."""
    found = _expected_seconds(job)
    return None if not found else min(_NEARLY_ALL, max(0.0, _passed(session, job) / found))


def _expected_seconds(job: Job) -> float | None:
    if job.in_status is not JobStatus.RUNNING or job.started_at is None:
        return None
    if job.kind != "search":
        expected = (job.progress or {}).get("expected_s")
        return None if expected is None else float(expected)
    spec = engine.read_spec(job.spec)
    assert isinstance(spec, engine.Search)
    return engine.settled(spec.budget, spec.goal.effort)[0]


def _passed(session: Session, job: Job) -> float:
    assert job.started_at is not None
    return (db.now(session) - job.started_at).total_seconds() - job.paused_s


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
