"""What there is to choose from of a search, and points of it made real by a job of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

import engine
from models import Job, Model, ModelState, Trial, TrialState, is_final, new_id
from services import db, jobs, model_versions, trials
from services.errors import ConflictError, NotFoundError
from services.transitions import record
from settings import Settings

# A stored candidate is finished: what is left is to verify it, and to measure it on the samples that judge.
_AS_IT_IS = ({"type": "simplify"},)


@dataclass(frozen=True)
class Front:
    """The trials of a search that no other beats, the least of what it minimises first."""

    job: Job
    minimise: str
    trials: list[Trial]
    # The trial that made the result, and whether that is decided.
    chosen: int | None
    is_final: bool


@dataclass(frozen=True)
class Pick:
    """What a client asks for of a point; gates that are left out are the goal's limits."""

    number: int
    gates: "Sequence[engine.Gate] | None" = None
    labels: Mapping[str, str] | None = None
    priority: int = 0


def front(session: Session, tenant_id: str, job_id: str) -> Front:
    """Give the front of a tenant's search as it is now; raises NotFoundError, and ConflictError for other kinds of job."""
    job = jobs.get(session, tenant_id, job_id)
    source = searched(session, job)
    told = (job.summary or {}).get("search") or {}
    spec = _spec(source)
    return Front(
        job, spec.goal.minimise, trials.front(session, source), told.get("chosen"), is_final=is_final(job.in_status)
    )


def searched(session: Session, job: Job) -> Job:
    """Give the job whose trials a search has: where an earlier result answered, that one's."""
    if job.kind != "search":
        raise ConflictError(f"Only a search has trials; this is a job of kind {job.kind}.", code="not_a_search")
    return job if job.cached_from is None else session.get_one(Job, job.cached_from)


def pick(
    session: Session,
    tenant_id: str,
    job_id: str,
    asked: Pick,
    *,
    key_id: str | None = None,
    idempotency_key: str | None = None,
    settings: Settings | None = None,
) -> jobs.Submission:
    """Accept a compression that makes a point of a front real, and measures it on the samples that judge; nothing is searched.

    It starts from the candidate's network where that is stored, else it follows the point's recipe. Raises NotFoundError for
    what is no point of the front, ConflictError where there is neither network nor recipe, and as `jobs.submit` does.
    """
    job = jobs.get(session, tenant_id, job_id)
    source = searched(session, job)
    spec, trial = _spec(source), trials.get(session, tenant_id, source.id, asked.number)
    if trial.in_state is not TrialState.SUCCEEDED:
        raise ConflictError(
            f"Trial {trial.number} is {trial.state}; only one that succeeded can be picked.", code="no_point"
        )
    if trial.number not in {point.number for point in trials.front(session, source)}:
        raise NotFoundError(f"Trial {trial.number} is no point of the front: another one is better in everything.")
    student = _network(session, source, trial)
    recipe = _AS_IT_IS if student is not None else trial.recipe
    if recipe is None:
        raise ConflictError(
            f"The network of trial {trial.number} is not stored, and its recipe comes with the search's end.",
            code="point_pending",
        )
    request = jobs.Request(
        source.model_id,
        source.dataset_id,
        _compression(spec, recipe, asked.gates, as_it_is=student is not None),
        asked.labels if asked.labels is not None else job.labels,
        priority=asked.priority,
        judge_id=source.judge_id,
        student_id=None if student is None else student.id,
    )
    return jobs.submit(session, tenant_id, request, key_id=key_id, idempotency_key=idempotency_key, settings=settings)


def _compression(
    spec: "engine.Search",
    recipe: Sequence[Mapping[str, Any]],
    gates: "Sequence[engine.Gate] | None",
    *,
    as_it_is: bool,
) -> "engine.Spec":
    told = spec.model_dump(mode="json", include={"target", "outputs", "limits", "tune"})
    limits = spec.goal.subject_to if gates is None else gates
    written = [gate.model_dump(mode="json") for gate in limits]
    # The point was measured as a whole: no step of it is to be left out for what it gains alone.
    whole = {"passes": list(recipe), **({} if as_it_is else {"exact": True})}
    made = {"kind": "compress", "recipe": whole, "gates": written, "student_as_it_is": as_it_is}
    return engine.read_spec({**told, **made})


def _network(session: Session, job: Job, trial: Trial) -> Model | None:
    """Give a candidate's network under a name of its own, made when it is first picked; None where it is not stored."""
    db.lock(session, f"trial {trial.job_id} {trial.number}")
    session.refresh(trial, with_for_update=True)
    if trial.artifact_digest is None:
        return None
    named = None if trial.model_id is None else session.get(Model, trial.model_id)
    if named is not None and named.in_state is ModelState.READY:
        return named
    moment = db.now(session)
    searched_over = session.scalars(select(Model.name).where(Model.id == job.model_id)).one()
    network = Model(
        id=new_id("mdl"),
        tenant_id=job.tenant_id,
        name=f"{searched_over} (trial {trial.number})"[:200],
        tags=[],
        state=ModelState.READY,
        parent_id=job.model_id,
        job_id=job.id,
        artifact_digest=trial.artifact_digest,
        inspection=trial.inspection,
        created_at=moment,
        updated_at=moment,
    )
    session.add(network)
    session.flush()
    trial.model_id = network.id
    model_versions.number(session, network)
    record(session, network, "ready", {"trial": trial.number})
    return network


def _spec(job: Job) -> "engine.Search":
    spec = engine.read_spec(job.spec)
    assert isinstance(spec, engine.Search)
    return spec
