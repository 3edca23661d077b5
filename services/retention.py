"""What lives for how long: rules that one process at a time applies, and that never remove what something names."""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Select, String, cast, delete, exists, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from models import (
    Audit,
    Base,
    Chore,
    Event,
    Idempotency,
    Job,
    JobLabel,
    JobOutput,
    JobStatus,
    LibraryPiece,
    Model,
    Trial,
    Unit,
    UnitStatus,
    Upload,
    WebhookDelivery,
    Worker,
    is_final,
)
from services import artifacts, db, resumable_uploads, workers
from services.errors import NotFoundError
from services.storage import FoundUpload, Store
from settings import Settings

_log = logging.getLogger(__name__)
_EVERY = timedelta(hours=1)
# Looking at everything that a store has costs more.
_SWEEP_EVERY = timedelta(hours=24)
_AT_ONCE = 100
_EVENTS_AT_ONCE = 5000
# So long a process that has other things to do goes on with one rule; the rest waits for its next round.
_TURN_S = 5.0
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_FOR_EVER = datetime(9999, 1, 1, tzinfo=UTC)
_FINAL_JOBS = tuple(status for status in JobStatus if is_final(status))
_OPEN_UNITS = tuple(status for status in UnitStatus if not is_final(status))


@dataclass(frozen=True)
class Place:
    """Where rules are applied: the service's database and store, and the data folder of this machine."""

    database: db.Database
    store: Store
    data_dir: Path

    @property
    def incoming(self) -> Path:
        """Where uploads lie until they are complete, whatever the store."""
        return self.data_dir / "store" / "incoming"

    @property
    def workspaces(self) -> Path:
        """Where units are worked on."""
        return self.data_dir / "work"


@dataclass(frozen=True)
class Rule:
    """A kind of thing, how long it lives, and how some of what is older are counted and removed."""

    name: str
    # In seconds; 0 for ever.
    age_s: Callable[[Settings], float]
    count: Callable[[Place, datetime], int]
    # Removes at most some, and tells whether there may be more.
    remove: Callable[[Place, datetime], tuple[int, bool]]
    every: timedelta = _EVERY
    # On the disk of one machine: every process looks there.
    is_local: bool = False


def apply_due(place: Place, settings: Settings) -> bool:
    """Apply the rules whose time has come and that no other process applies; True where some of it is left to do."""
    left = False
    for rule in _in_force(settings):
        if rule.is_local or _claimed(place.database, rule):
            removed, more = _apply(place, rule, settings, seconds=_TURN_S)
            _note(place.database, rule, removed, is_due=more)
            left = left or more
    return left


def apply(place: Place, settings: Settings) -> dict[str, int]:
    """Apply all rules to the end, due or not; gives what was removed, by kind."""
    found = {}
    for rule in _in_force(settings):
        found[rule.name], _ = _apply(place, rule, settings, seconds=float("inf"))
        _note(place.database, rule, found[rule.name], is_due=False)
    return found


def count(place: Place, settings: Settings) -> dict[str, int]:
    """Give what would be removed now, by kind: what becomes free only by that is not counted."""
    return {rule.name: rule.count(place, _before(place, rule, settings)) for rule in _in_force(settings)}


def expiring(session: Session, job_ids: Collection[str], settings: Settings) -> dict[str, datetime]:
    """Say when finished jobs and what they made are removed, those left out that live for ever or that something names."""
    if not settings.keep_jobs_days or not job_ids:
        return {}
    # Whatever their age: what is too young today goes some day.
    unnamed = _jobs(_FOR_EVER).order_by(None).where(Job.id.in_(job_ids))
    ended = session.execute(select(Job.id, Job.finished_at).where(Job.id.in_(unnamed))).all()
    return {job_id: at + timedelta(days=settings.keep_jobs_days) for job_id, at in ended if at is not None}


def _in_force(settings: Settings) -> list[Rule]:
    return [rule for rule in RULES if rule.age_s(settings) > 0]


def _before(place: Place, rule: Rule, settings: Settings) -> datetime:
    with place.database.reading() as session:
        return db.now(session) - timedelta(seconds=rule.age_s(settings))


def _apply(place: Place, rule: Rule, settings: Settings, *, seconds: float) -> tuple[int, bool]:
    before, end = _before(place, rule, settings), time.monotonic() + seconds
    removed, more = rule.remove(place, before)
    while more and time.monotonic() < end:
        some, more = rule.remove(place, before)
        removed += some
    if removed:
        _log.info("retention: removed %d %s from before %s", removed, rule.name, before.isoformat(timespec="seconds"))
    return removed, more


def _claimed(database: db.Database, rule: Rule) -> bool:
    with database.transaction() as session:
        _ensure(session, rule)
        asked = select(Chore).where(Chore.name == rule.name).with_for_update(skip_locked=True)
        row, moment = session.scalars(asked).one_or_none(), db.now(session)
        if row is None or row.done_at > moment - rule.every:
            return False
        # Now, so that nobody else begins; should this process die, the next hour's does it.
        row.done_at = moment
        return True


def _note(database: db.Database, rule: Rule, removed: int, *, is_due: bool) -> None:
    if not removed and rule.is_local:
        return
    with database.transaction() as session:
        _ensure(session, rule)
        done_at = _NEVER if is_due else db.now(session)
        session.execute(
            update(Chore).where(Chore.name == rule.name).values(removed=Chore.removed + removed, done_at=done_at)
        )


def _ensure(session: Session, rule: Rule) -> None:
    insert = postgresql.insert if db.is_postgres(session) else sqlite.insert
    session.execute(insert(Chore).values(name=rule.name, done_at=_NEVER, removed=0).on_conflict_do_nothing())


def _jobs(before: datetime) -> Select[str]:
    output, other = aliased(Model), aliased(Job)
    made = output.job_id == Job.id
    names_it = (
        exists().where(made, or_(output.alias.is_not(None), cast(output.tags, String) != "[]")),
        *(exists().where(made, column == output.id) for column in _naming()),
        exists().where(made, Unit.model_id == output.id, Unit.status.in_(_OPEN_UNITS)),
        exists().where(other.cached_from == Job.id),
        exists().where(other.retry_of == Job.id),
    )
    return (
        select(Job.id)
        .where(Job.status.in_(_FINAL_JOBS), Job.finished_at < before)
        .where(*(~condition for condition in names_it))
        .order_by(Job.id)
    )


def _naming() -> Iterator[ColumnElement[Any]]:
    """Give every column that names a network, but those of what goes with it: its job, that one's units and trials."""
    tables = (JobOutput.__table__, Unit.__table__, Trial.__table__)
    ours = {Job.__table__.c.output_model_id, *(table.c.model_id for table in tables)}
    for table in Base.metadata.sorted_tables:
        again = table.alias()
        for column in table.c:
            if column not in ours and any(key.target_fullname == "model.id" for key in column.foreign_keys):
                yield again.c[column.name]


def _count_jobs(place: Place, before: datetime) -> int:
    with place.database.reading() as session:
        return session.scalar(select(func.count()).select_from(_jobs(before).subquery())) or 0


def _remove_jobs(place: Place, before: datetime) -> tuple[int, bool]:
    # The last first: what a chain's end named is free after it.
    with place.database.reading() as session:
        some = list(session.scalars(_jobs(before).order_by(None).order_by(Job.id.desc()).limit(_AT_ONCE)))
    removed = 0
    for job_id in some:
        with place.database.transaction() as session:
            removed += _remove_job(session, place.store, job_id, before)
    return removed, removed > 0


def _remove_job(session: Session, store: Store, job_id: str, before: datetime) -> bool:
    job = session.scalars(select(Job).where(Job.id == job_id).with_for_update(skip_locked=True)).one_or_none()
    if job is None:
        return False
    # Whoever names one of its networks has its row until then, and is seen after.
    made = select(Model).where(Model.job_id == job.id).order_by(Model.id).with_for_update()
    outputs = list(session.scalars(made))
    if session.scalars(_jobs(before).where(Job.id == job_id)).first() is None:
        return False
    output_ids = [output.id for output in outputs]
    subjects = [job.id, *output_ids]
    trials = list(session.scalars(select(Trial).where(Trial.job_id == job.id)))
    for table in (JobLabel, JobOutput, Trial):
        session.execute(delete(table).where(table.job_id == job.id))
    session.execute(delete(Unit).where(Unit.job_id == job.id, Unit.parent_id.is_not(None)))
    session.execute(delete(Unit).where(or_(Unit.job_id == job.id, Unit.model_id.in_(output_ids))))
    session.execute(delete(Event).where(Event.subject_id.in_(subjects)))
    session.execute(delete(Idempotency).where(Idempotency.subject_id.in_(subjects)))
    session.delete(job)
    session.flush()
    digests = [job.report_digest, *(output.artifact_digest for output in outputs)]
    digests += [digest for trial in trials for digest in (trial.artifact_digest, trial.report_digest)]
    session.execute(delete(Model).where(Model.id.in_(output_ids)))
    for digest in dict.fromkeys(digests):
        if digest is not None:
            artifacts.discard(session, store, job.tenant_id, digest)
    return True


def _events(before: datetime) -> Select[int]:
    return select(Event.id).join(Job, Job.id == Event.subject_id).where(Job.finished_at < before)


def _count_events(place: Place, before: datetime) -> int:
    with place.database.reading() as session:
        return session.scalar(select(func.count()).select_from(_events(before).subquery())) or 0


def _remove_events(place: Place, before: datetime) -> tuple[int, bool]:
    some = _events(before).limit(_EVENTS_AT_ONCE).scalar_subquery()
    removed = _rows(place, delete(Event).where(Event.id.in_(some)))
    return removed, removed == _EVENTS_AT_ONCE


def _count_answers(place: Place, before: datetime) -> int:
    with place.database.reading() as session:
        asked = select(func.count()).where(Job.cache_key.is_not(None), Job.finished_at < before)
        return session.scalar(asked) or 0


def _remove_answers(place: Place, before: datetime) -> tuple[int, bool]:
    forgotten = update(Job).where(Job.cache_key.is_not(None), Job.finished_at < before).values(cache_key=None)
    return _rows(place, forgotten), False


def _rows_rule(name: str, age_s: Callable[[Settings], float], table: type[Any], column: Any) -> Rule:
    """Give the rule of a table whose rows nothing names."""

    def remove(place: Place, before: datetime) -> tuple[int, bool]:
        return _rows(place, delete(table).where(column < before)), False

    return Rule(name, age_s, _counting(table, column), remove)


def _counting(table: type[Any], column: Any) -> Callable[[Place, datetime], int]:
    def counted(place: Place, before: datetime) -> int:
        with place.database.reading() as session:
            return session.scalar(select(func.count()).select_from(table).where(column < before)) or 0

    return counted


def _remove_workers(place: Place, before: datetime) -> tuple[int, bool]:
    removed = _rows(place, delete(Worker).where(Worker.seen_at < before))
    with place.database.transaction() as session:
        there = session.scalar(select(func.count()).select_from(Worker)) or 0
        workers.expire(session)
        session.flush()
        return removed + there - (session.scalar(select(func.count()).select_from(Worker)) or 0), False


def _rows(place: Place, statement: Any) -> int:
    with place.database.transaction() as session:
        done = session.execute(statement.execution_options(synchronize_session=False))
        assert isinstance(done, CursorResult)
        return done.rowcount


def _count_bytes(place: Place, before: datetime) -> int:
    return sum(1 for _ in artifacts.strays(place.database, place.store, before=before.timestamp()))


def _remove_bytes(place: Place, before: datetime) -> tuple[int, bool]:
    return artifacts.sweep(place.database, place.store, before=before.timestamp()), False


def _count_uploads(place: Place, before: datetime) -> int:
    found = place.incoming.iterdir() if place.incoming.is_dir() else ()
    return sum(path.lstat().st_mtime < before.timestamp() for path in found)


def _remove_uploads(place: Place, before: datetime) -> tuple[int, bool]:
    return place.store.clean_incoming(older_than_s=time.time() - before.timestamp()), False


def _count_expired(place: Place, before: datetime) -> int:
    return _counting(Upload, Upload.touched_at)(place, before)


def _remove_expired(place: Place, before: datetime) -> tuple[int, bool]:
    with place.database.reading() as session:
        some = resumable_uploads.expired(session, before, _AT_ONCE)
    for tenant_id, upload_id in some:
        with suppress(NotFoundError), place.database.transaction() as session:
            resumable_uploads.end(session, place.store, tenant_id, upload_id)
    return len(some), len(some) == _AT_ONCE


def _stray_parts(place: Place, before: datetime) -> Iterator[FoundUpload]:
    for found in place.store.uploads():
        if found.modified_at < before.timestamp():
            with place.database.reading() as session:
                if not resumable_uploads.is_known(session, found.upload_id):
                    yield found


def _count_parts(place: Place, before: datetime) -> int:
    return sum(1 for _ in _stray_parts(place, before))


def _remove_parts(place: Place, before: datetime) -> tuple[int, bool]:
    # An id is given once: nobody begins an upload again whose row is gone.
    found = list(_stray_parts(place, before))
    for one in found:
        place.store.remove_upload_parts(one.tenant_id, one.upload_id)
    return len(found), False


def _old_folders(place: Place, before: datetime) -> list[Path]:
    # Of units they are removed as soon as the unit ends; these are of workers that died while they looked at their targets.
    return [path for path in place.workspaces.glob(".targets-*") if path.lstat().st_mtime < before.timestamp()]


def _count_folders(place: Place, before: datetime) -> int:
    return len(_old_folders(place, before))


def _remove_folders(place: Place, before: datetime) -> tuple[int, bool]:
    found = _old_folders(place, before)
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return len(found), False


_DAY, _HOUR = 86400.0, 3600.0

RULES: tuple[Rule, ...] = (
    Rule("jobs", lambda settings: settings.keep_jobs_days * _DAY, _count_jobs, _remove_jobs),
    Rule("events", lambda settings: settings.keep_events_days * _DAY, _count_events, _remove_events),
    Rule("answers", lambda settings: settings.keep_cache_days * _DAY, _count_answers, _remove_answers),
    _rows_rule("library_pieces", lambda settings: settings.keep_cache_days * _DAY, LibraryPiece, LibraryPiece.used_at),
    _rows_rule(
        "idempotency_keys",
        lambda settings: settings.keep_idempotency_hours * _HOUR,
        Idempotency,
        Idempotency.created_at,
    ),
    _rows_rule(
        "webhook_deliveries",
        lambda settings: settings.keep_deliveries_days * _DAY,
        WebhookDelivery,
        WebhookDelivery.created_at,
    ),
    _rows_rule("audit", lambda settings: settings.audit_days * _DAY, Audit, Audit.created_at),
    Rule(
        "workers",
        lambda settings: settings.keep_workers_days * _DAY,
        _counting(Worker, Worker.seen_at),
        _remove_workers,
    ),
    Rule("stray_bytes", lambda settings: settings.keep_stray_hours * _HOUR, _count_bytes, _remove_bytes, _SWEEP_EVERY),
    Rule("expired_uploads", lambda settings: settings.upload_expires_hours * _HOUR, _count_expired, _remove_expired),
    Rule("stray_parts", lambda settings: settings.keep_stray_hours * _HOUR, _count_parts, _remove_parts, _SWEEP_EVERY),
    Rule(
        "uploads",
        lambda settings: settings.keep_stray_hours * _HOUR,
        _count_uploads,
        _remove_uploads,
        is_local=True,
    ),
    Rule(
        "workspaces",
        lambda settings: settings.keep_stray_hours * _HOUR,
        _count_folders,
        _remove_folders,
        is_local=True,
    ),
)
