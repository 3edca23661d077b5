"""Trials: the candidates of a search, each a point of the space with its unit and what came of it."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

import engine
from models import Job, Trial, TrialState, Unit, is_final
from services import artifacts, db, report_figures
from services.claims import Result
from services.errors import ConflictError, NotFoundError
from services.problems import Problem
from services.storage import Store
from services.transitions import advance_trial, record


def propose(session: Session, job: Job, unit: Unit, point: dict[str, Any]) -> Trial:
    """Note a candidate that a new unit is to try; whoever proposes holds the job's units (`units.spawn`)."""
    last = session.scalar(select(func.max(Trial.number)).where(Trial.job_id == job.id))
    trial = Trial(
        job_id=job.id,
        number=0 if last is None else last + 1,
        tenant_id=job.tenant_id,
        point=point,
        state=TrialState.QUEUED,
        unit_id=unit.id,
        created_at=db.now(session),
    )
    session.add(trial)
    session.flush()
    return trial


def of_unit(session: Session, unit: Unit) -> Trial:
    """Give the trial that a unit is for."""
    return session.scalars(
        select(Trial).where(Trial.unit_id == unit.id).execution_options(populate_existing=True)
    ).one()


def succeed(session: Session, job: Job, unit: Unit, result: Result) -> None:
    """Keep what was measured, and the candidate with its report."""
    report = result.answer.value
    assert isinstance(report, engine.Report)
    trial = of_unit(session, unit)
    told = report.model_dump(mode="json")
    trial.values = {**report_figures.of_compression(told), "verdict": report.verdict.outcome}
    trial.inspection = None if result.answer.inspection is None else result.answer.inspection.model_dump(mode="json")
    trial.artifact_digest = artifacts.store_files(session, trial.tenant_id, "model", result.model_files).digest
    trial.report_digest = artifacts.store_files(session, trial.tenant_id, "report", result.report_files).digest
    advance_trial(session, trial, TrialState.SUCCEEDED)
    record(session, job, "trial_ended", {"number": trial.number, "state": trial.state}, unit)


def fail(session: Session, job: Job, unit: Unit, problem: Problem) -> None:
    """Keep why a candidate could not be tried: to a search that is a result."""
    trial = of_unit(session, unit)
    trial.problem = problem
    advance_trial(session, trial, TrialState.FAILED)
    told = {"number": trial.number, "state": trial.state, "code": problem["code"]}
    record(session, job, "trial_ended", told, unit)


def cancel(session: Session, unit: Unit) -> None:
    """Say that a candidate is not tried any more, unless that has ended already."""
    trial = of_unit(session, unit)
    if not is_final(trial.in_state):
        advance_trial(session, trial, TrialState.CANCELLED)


def list_trials(session: Session, tenant_id: str, job_id: str) -> list[Trial]:
    """Give the tenant's trials of a job in the order in which they were proposed."""
    asked = select(Trial).where(Trial.tenant_id == tenant_id, Trial.job_id == job_id).order_by(Trial.number)
    return list(session.scalars(asked))


def get(session: Session, tenant_id: str, job_id: str, number: int) -> Trial:
    """Give one of the tenant's trials; raises NotFoundError."""
    found = session.get(Trial, (job_id, number))
    if found is None or found.tenant_id != tenant_id:
        raise NotFoundError("There is no such trial.")
    return found


def drop(session: Session, store: Store, trial: Trial) -> None:
    """Give up a candidate's network; what was measured of it stays. Raises ConflictError while it is being tried."""
    if not is_final(trial.in_state):
        raise ConflictError(f"The trial {trial.number} is {trial.state}; its candidate cannot be dropped.")
    digest, trial.artifact_digest = trial.artifact_digest, None
    session.flush()
    if digest is not None:
        artifacts.discard(session, store, trial.tenant_id, digest)


def told(trial: Trial) -> dict[str, Any]:
    """Give a trial as the unit that proposed it is told of it."""
    return {
        "number": trial.number,
        "point": trial.point,
        "state": trial.state,
        "values": trial.values,
        "problem": trial.problem,
    }


def started(session: Session, unit: Unit) -> None:
    """Note that a unit's trial is being tried."""
    trial = of_unit(session, unit)
    trial.started_at = trial.started_at or db.now(session)
    advance_trial(session, trial, TrialState.RUNNING)


def requeued(session: Session, unit: Unit) -> None:
    """Note that a unit's trial waits for another attempt."""
    advance_trial(session, of_unit(session, unit), TrialState.QUEUED)
