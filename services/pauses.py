"""A search pauses and goes on: what of it runs ends, nothing more is queued, and the time in between does not count."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import Job, JobStatus, Unit, UnitStatus, is_final
from services import db, jobs, units
from services.errors import ConflictError
from services.transitions import record

_WAITING = (UnitStatus.QUEUED, UnitStatus.WAITING)


def pause(session: Session, tenant_id: str, job_id: str) -> Job:
    """Queue nothing more of a search; what runs of it ends by itself. Harmless on what is paused.

    Raises NotFoundError, and ConflictError where the job is no search or has ended.
    """
    job, waiting = _held(session, tenant_id, job_id)
    if job.paused_at is not None:
        return job
    job.paused_at = db.now(session)
    for unit in waiting:
        if unit.in_status is UnitStatus.QUEUED:
            units.set_aside(session, unit)
    record(session, job, "paused")
    return job


def resume(session: Session, tenant_id: str, job_id: str) -> Job:
    """Go on with a paused search; raises NotFoundError, and ConflictError where the job is not paused."""
    job, waiting = _held(session, tenant_id, job_id)
    if job.paused_at is None:
        raise ConflictError("The job is not paused.", code="not_paused")
    away = db.now(session) - job.paused_at
    job.paused_at = None
    if job.started_at is not None:
        job.paused_s += away.total_seconds()
    if job.deadline is not None:
        job.deadline += away
    record(session, job, "resumed", {"paused_s": away.total_seconds()})
    for unit in waiting:
        if unit.parent_id is None and unit.waits_for == "turn":
            units.to_queue(session, unit)
    units.fill(session, job)
    return job


def _held(session: Session, tenant_id: str, job_id: str) -> tuple[Job, list[Unit]]:
    """Give a search that goes on, and its units that wait, all locked in the order that everybody keeps."""
    jobs.get(session, tenant_id, job_id)
    units.hold(session, job_id)
    waiting = list(
        session.scalars(units.in_order(select(Unit).where(Unit.job_id == job_id, Unit.status.in_(_WAITING))))
    )
    asked = select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    job = session.scalars(asked).one()
    if job.kind != "search":
        raise ConflictError(f"Only a search pauses and goes on; this is a job of kind {job.kind}.", code="not_a_search")
    if is_final(job.in_status):
        raise ConflictError(f"The job has already ended: it is {job.status}.", code="already_final")
    if job.in_status is JobStatus.CANCELLING:
        raise ConflictError("The job is being cancelled.", code="already_cancelled")
    return job, waiting
