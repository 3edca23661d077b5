"""The one gate that changes states, and the events that tell of it."""

from typing import Any

from sqlalchemy.orm import Session

from models import (
    EVENT_BYTES,
    Dataset,
    DatasetState,
    Event,
    Job,
    JobStatus,
    Model,
    ModelState,
    Trial,
    TrialState,
    Unit,
    UnitStatus,
    following,
    is_final,
    text_bytes,
)
from services import db, model_versions
from services.errors import ConflictError
from services.webhooks import deliveries

Subject = Job | Model | Dataset


def advance(session: Session, subject: Subject, state: JobStatus | ModelState | DatasetState, **data: Any) -> None:
    """Change the state of what clients see, record it and announce it; raises ConflictError where the table forbids it."""
    before = subject.in_status if isinstance(subject, Job) else subject.in_state
    if state not in following(before):
        raise ConflictError(f"{subject.id} is {before} and cannot become {state}.")
    moment = db.now(session)
    if isinstance(subject, Job):
        subject.status = state
        if state is JobStatus.RUNNING and subject.started_at is None:
            subject.started_at = moment
        if is_final(state):
            subject.finished_at = moment
            subject.progress = None
    else:
        subject.state = state
        if isinstance(subject, Model) and state is ModelState.READY:
            model_versions.number(session, subject)
    record(session, subject, state, data)
    deliveries.announce(session, subject, state)


def advance_unit(session: Session, unit: Unit, status: UnitStatus) -> None:
    """Change a unit's status; raises ConflictError where the table of states forbids it."""
    if status not in following(unit.in_status):
        raise ConflictError(f"{unit.id} is {unit.status} and cannot become {status}.")
    unit.status = status
    if is_final(status):
        unit.finished_at = db.now(session)
        unit.token = None
        unit.lease_until = None


def advance_trial(session: Session, trial: Trial, state: TrialState) -> None:
    """Change a trial's state; raises ConflictError where the table of states forbids it."""
    if state not in following(trial.in_state):
        raise ConflictError(f"trial {trial.number} of {trial.job_id} is {trial.state} and cannot become {state}.")
    trial.state = state
    if is_final(state):
        trial.finished_at = db.now(session)


def record(
    session: Session, subject: Subject, kind: str, data: dict[str, Any] | None = None, unit: Unit | None = None
) -> None:
    """Append an event of the subject and give the subject a new version."""
    moment = db.now(session)
    subject.updated_at = moment
    subject.add_bytes(EVENT_BYTES + text_bytes(data or {}))
    if isinstance(subject, Job):
        subject.version += 1
        # The row is locked before the event gets its number, so that one job's events are numbered in order of commit.
        session.flush()
    session.add(
        Event(
            tenant_id=subject.tenant_id,
            subject_id=subject.id,
            unit_id=unit.id if unit else None,
            attempt=unit.attempt if unit else None,
            type=str(kind),
            data=data or {},
            created_at=moment,
        )
    )
