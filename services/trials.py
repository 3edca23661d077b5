"""Trials: the candidates of a search, each a point of the space with its unit and what came of it."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

import engine
from models import Job, Trial, TrialState, Unit, is_final
from services import artifacts, db
from services.claims import Candidate, Result
from services.errors import ConflictError, NotFoundError
from services.problems import Problem
from services.storage import Store
from services.transitions import advance_trial, record


def propose(session: Session, job: Job, unit: Unit, proposal: dict[str, Any]) -> Trial:
    """Note a candidate that a new unit is to try; whoever proposes holds the job's units (`units.spawn`)."""
    last = session.scalar(select(func.max(Trial.number)).where(Trial.job_id == job.id))
    trial = Trial(
        job_id=job.id,
        number=(last or 0) + 1,
        tenant_id=job.tenant_id,
        point=proposal["point"],
        proposal=proposal,
        state=TrialState.QUEUED,
        unit_id=unit.id,
        created_at=db.now(session),
    )
    session.add(trial)
    session.flush()
    told = {name: proposal.get(name) for name in ("level", "because", "predicted")}
    record(session, job, "trial_queued", {"number": trial.number, **told}, unit)
    return trial


def of_unit(session: Session, unit: Unit) -> Trial:
    """Give the trial that a unit is for."""
    return session.scalars(
        select(Trial).where(Trial.unit_id == unit.id).execution_options(populate_existing=True)
    ).one()


def succeed(session: Session, job: Job, unit: Unit, result: Result) -> None:
    """Keep what was measured, and the candidate."""
    candidate = result.answer.value
    assert isinstance(candidate, Candidate)
    trial = of_unit(session, unit)
    trial.values = candidate.values.model_dump(mode="json")
    trial.recipe = None if candidate.recipe is None else list(candidate.recipe)
    trial.inspection = None if result.answer.inspection is None else result.answer.inspection.model_dump(mode="json")
    trial.artifact_digest = artifacts.store_files(session, trial.tenant_id, "model", result.model_files).digest
    advance_trial(session, trial, TrialState.SUCCEEDED)
    latency = candidate.values.latency
    told = {
        "size_bytes": candidate.values.size_bytes,
        "latency_ratio": None if latency is None else latency.value,
        "latency_low": None if latency is None else latency.interval.low,
        "latency_high": None if latency is None else latency.interval.high,
        "quality": [
            {name: one[name] for name in ("metric", "output", "original", "compressed", "difference")}
            for one in trial.values["quality"]
        ],
    }
    record(session, job, "trial_ended", {"number": trial.number, "state": trial.state, **told}, unit)


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


def list_trials(
    session: Session, tenant_id: str, job_id: str, *, after: int = 0, limit: int | None = None
) -> list[Trial]:
    """Give the tenant's trials of a job after a number, in the order in which they were proposed."""
    asked = select(Trial).where(Trial.tenant_id == tenant_id, Trial.job_id == job_id, Trial.number > after)
    return list(session.scalars(asked.order_by(Trial.number).limit(limit)))


def get(session: Session, tenant_id: str, job_id: str, number: int) -> Trial:
    """Give one of the tenant's trials; raises NotFoundError."""
    found = session.get(Trial, (job_id, number))
    if found is None or found.tenant_id != tenant_id:
        raise NotFoundError("There is no such trial.")
    return found


def front(session: Session, job: Job) -> list[Trial]:
    """Give the trials of a search that no other beats in what it minimises and in quality, the least of that first."""
    spec = engine.read_spec(job.spec)
    assert isinstance(spec, engine.Search)
    made = list_trials(session, job.tenant_id, job.id)
    found = {trial.number: trial for trial in made if trial.in_state is TrialState.SUCCEEDED}
    ended = [engine.Told.model_validate(told(trial)) for trial in found.values()]
    return [found[number] for number in engine.front_of(ended, spec.goal.minimise)]


def drop(session: Session, store: Store, trial: Trial) -> None:
    """Give up a candidate's network; what was measured of it stays. Raises ConflictError while it is being tried."""
    if not is_final(trial.in_state):
        raise ConflictError(f"The trial {trial.number} is {trial.state}; its candidate cannot be dropped.")
    digest, trial.artifact_digest = trial.artifact_digest, None
    session.flush()
    if digest is not None:
        artifacts.discard(session, store, trial.tenant_id, digest)


def told(trial: Trial) -> dict[str, Any]:
    """Give a trial as the unit that proposed it is told of it (`engine.Told`)."""
    return {
        "number": trial.number,
        "proposal": trial.proposal,
        "state": trial.state,
        "values": trial.values,
        "problem": trial.problem,
        "seconds": seconds(trial),
    }


def seconds(trial: Trial) -> float:
    """Give how long a trial that has ended took, from its first attempt on."""
    if trial.started_at is None or trial.finished_at is None:
        return 0.0
    return (trial.finished_at - trial.started_at).total_seconds()


def progress(session: Session, job: Job) -> dict[str, Any] | None:
    """Say how far a job's trials are; None where it has none yet."""
    counted = select(Trial.state, func.count()).where(Trial.job_id == job.id).group_by(Trial.state)
    states = {TrialState(state): number for state, number in session.execute(counted)}
    if not states:
        return None
    ended = sum(number for state, number in states.items() if is_final(state))
    running = states.get(TrialState.RUNNING, 0)
    now = f", {running} being tried" if running else ""
    return {"message": f"{ended} candidate{'s' * (ended != 1)} tried{now}"}


def started(session: Session, unit: Unit) -> None:
    """Note that a unit's trial is being tried."""
    trial = of_unit(session, unit)
    trial.started_at = trial.started_at or db.now(session)
    advance_trial(session, trial, TrialState.RUNNING)
    job = session.get_one(Job, unit.job_id)
    job.progress = progress(session, job)
    record(session, job, "trial_started", {"number": trial.number}, unit)


def requeued(session: Session, unit: Unit) -> None:
    """Note that a unit's trial waits for another attempt."""
    advance_trial(session, of_unit(session, unit), TrialState.QUEUED)
