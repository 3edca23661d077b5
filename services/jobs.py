"""Jobs as clients see them: submit, look, list, cancel, report."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

import engine
from models import (
    ArtifactFile,
    Dataset,
    DatasetState,
    Event,
    Job,
    JobStatus,
    Model,
    ModelState,
    Unit,
    UnitStatus,
    is_final,
    new_id,
    sources,
)
from services import artifacts, db, idempotency, workers
from services.errors import ConflictError, FieldError, InvalidError, NotFoundError, RejectedError
from services.history import advance, record
from services.problems import CANCELLED, JOB_ENDED

WORK_QUEUE = "work"
_ROUTE = "POST /v1/jobs"
# Built once: every poll asks it.
_GET = select(Job).where(Job.tenant_id == bindparam("tenant_id"), Job.id == bindparam("job_id"))


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    model_id: str
    dataset_id: str | None
    spec: "engine.Compress"
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Submission:
    """The job, and whether an earlier request with the same Idempotency-Key had made it."""

    job: Job
    replayed: bool


def submit(
    session: Session,
    tenant_id: str,
    request: Request,
    *,
    key_id: str | None = None,
    idempotency_key: str | None = None,
) -> Submission:
    """Accept a job: its row, its first unit and its output's row, in one transaction.

    Raises InvalidError for names that are not the tenant's, ConflictError while an upload is being checked, RejectedError
    for what network, data and spec cannot do together.
    """
    if idempotency_key is not None:
        body = {
            "model": request.model_id,
            "dataset": request.dataset_id,
            "spec": request.spec.model_dump(mode="json"),
            "labels": dict(request.labels),
        }
        earlier = idempotency.begin(session, tenant_id, _ROUTE, idempotency_key, idempotency.digest(body))
        if earlier is not None:
            return Submission(get(session, tenant_id, earlier), replayed=True)
    model, dataset, warnings = check(session, tenant_id, request)
    job = _insert(session, request, model, dataset, warnings=warnings, key_id=key_id)
    if idempotency_key is not None:
        idempotency.answer(session, tenant_id, _ROUTE, idempotency_key, job.id)
    return Submission(job, replayed=False)


def check(session: Session, tenant_id: str, request: Request) -> tuple[Model, Dataset | None, list[str]]:
    """Give the job's inputs and warnings, or refuse as `submit` does: a dry run."""
    model, dataset = _inputs(session, tenant_id, request)
    workers.check_target(session, request.spec.target.provider)
    try:
        warnings = engine.check_fit(
            engine.Inspection.model_validate(model.inspection),
            engine.DatasetInspection.model_validate(dataset.inspection) if dataset else None,
            request.spec,
        )
    except engine.EngineError as error:
        raise RejectedError(error.message, code=error.code, hint=error.hint, problem=error.problem()) from None
    return model, dataset, warnings


def get(session: Session, tenant_id: str, job_id: str) -> Job:
    """Give the tenant's job; raises NotFoundError."""
    found = session.scalars(_GET, {"tenant_id": tenant_id, "job_id": job_id}).one_or_none()
    if found is None:
        raise NotFoundError("There is no such job.")
    return found


def list_jobs(
    session: Session,
    tenant_id: str,
    *,
    status: JobStatus | None = None,
    labels: Mapping[str, str] | None = None,
    limit: int = 50,
    before: str | None = None,
) -> list[Job]:
    """Give the tenant's jobs, the newest first, those before an id."""
    asked = select(Job).where(Job.tenant_id == tenant_id).order_by(Job.id.desc()).limit(limit)
    if status is not None:
        asked = asked.where(Job.status == status)
    for name, value in (labels or {}).items():
        asked = asked.where(Job.labels[name].as_string() == value)
    if before is not None:
        asked = asked.where(Job.id < before)
    return list(session.scalars(asked))


def cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel at once what is queued, have stopped what runs; harmless on what is being cancelled.

    Raises NotFoundError, and ConflictError where the job has ended otherwise.
    """
    get(session, tenant_id, job_id)
    # Units before the job, as everywhere: two transactions that lock in two orders could wait for each other.
    session.execute(
        update(Unit)
        .where(Unit.job_id == job_id, Unit.status.in_((UnitStatus.QUEUED, UnitStatus.WAITING)))
        .values(status=UnitStatus.CANCELLED, finished_at=db.now(session), problem=CANCELLED)
    )
    running = session.scalars(
        select(Unit.id).where(Unit.job_id == job_id, Unit.status == UnitStatus.RUNNING).with_for_update()
    ).first()
    job = session.scalars(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    ).one()
    if job.in_status in {JobStatus.CANCELLING, JobStatus.CANCELLED}:
        return job
    if is_final(job.in_status):
        raise ConflictError(f"The job has already {job.status}.", code="already_final")
    if running is not None:
        advance(session, job, JobStatus.CANCELLING)
    else:
        job.problem = CANCELLED
        advance(session, job, JobStatus.CANCELLED)
        give_up_output(session, job)
    return job


def give_up_output(session: Session, job: Job) -> None:
    """Say of the network that a job was to make that it will not come."""
    output = session.get_one(Model, job.output_model_id)
    if output.in_state in sources(ModelState.REJECTED):
        output.problem = JOB_ENDED
        advance(session, output, ModelState.REJECTED)


def events(session: Session, tenant_id: str, job_id: str, *, after: int = 0, limit: int = 500) -> list[Event]:
    """Give what happened to the tenant's job after an event's id, in order; raises NotFoundError."""
    get(session, tenant_id, job_id)
    asked = select(Event).where(Event.subject_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    return list(session.scalars(asked))


def report(session: Session, tenant_id: str, job_id: str) -> dict[str, ArtifactFile]:
    """Give the files of the job's report by name (`report.json`, `report.md`); raises NotFoundError before there is one."""
    job = get(session, tenant_id, job_id)
    if job.report_digest is None:
        raise NotFoundError(f"The job is {job.status} and has no report.", code="no_report")
    return {file.path: file for file in artifacts.get_artifact(session, tenant_id, job.report_digest).files}


def _inputs(session: Session, tenant_id: str, request: Request) -> tuple[Model, Dataset | None]:
    missing = []
    model = dataset = None
    try:
        model = artifacts.get_model(session, tenant_id, request.model_id)
    except NotFoundError as error:
        missing.append(FieldError("/model", error.message))
    try:
        dataset = artifacts.get_dataset(session, tenant_id, request.dataset_id) if request.dataset_id else None
    except NotFoundError as error:
        missing.append(FieldError("/dataset", error.message))
    if model is None or missing:
        raise InvalidError("The job names what does not exist.", tuple(missing), code="unknown_reference")
    _must_be_ready("model", model.in_state, model.problem)
    if dataset is not None:
        _must_be_ready("dataset", dataset.in_state, dataset.problem)
    return model, dataset


def _must_be_ready(what: str, state: ModelState | DatasetState, problem: dict[str, object] | None) -> None:
    if state in {ModelState.REJECTED, DatasetState.REJECTED}:
        raise RejectedError(f"The {what} was rejected.", code=f"{what}_rejected", problem=problem)
    if state not in {ModelState.READY, DatasetState.READY}:
        raise ConflictError(f"The {what} is {state}; it has to be ready first.", code=f"{what}_not_ready")


def _insert(
    session: Session,
    request: Request,
    model: Model,
    dataset: Dataset | None,
    *,
    warnings: list[str],
    key_id: str | None,
) -> Job:
    moment = db.now(session)
    job_id = new_id("job")
    output = Model(
        id=new_id("mdl"),
        tenant_id=model.tenant_id,
        name=f"{model.name} ({request.spec.kind})",
        tags=[],
        state=ModelState.PENDING,
        parent_id=model.id,
        job_id=job_id,
        created_at=moment,
        updated_at=moment,
    )
    job = Job(
        id=job_id,
        tenant_id=model.tenant_id,
        kind=request.spec.kind,
        status=JobStatus.QUEUED,
        version=1,
        spec=request.spec.model_dump(mode="json"),
        labels=dict(request.labels),
        model_id=model.id,
        dataset_id=dataset.id if dataset else None,
        output_model_id=output.id,
        key_id=key_id,
        warnings=warnings,
        steps=[
            {"index": index, "type": item.type, "status": "waiting"}
            for index, item in enumerate(request.spec.recipe.passes)
        ],
        verdict="none",
        created_at=moment,
        updated_at=moment,
    )
    limits = request.spec.limits
    unit = Unit(
        id=new_id("unt"),
        tenant_id=job.tenant_id,
        kind="run",
        queue=WORK_QUEUE,
        status=UnitStatus.QUEUED,
        job_id=job.id,
        model_id=model.id,
        dataset_id=job.dataset_id,
        payload={},
        max_pending_s=limits.max_pending_s,
        max_runtime_s=limits.max_runtime_s,
        max_memory_mb=limits.max_memory_mb,
        crashed_steps=[],
        created_at=moment,
        queued_at=moment,
        pending_until=moment + timedelta(seconds=limits.max_pending_s),
        sent_at=moment,
    )
    for row in (output, job, unit):
        session.add(row)
        session.flush()
    record(session, job, "queued", unit=unit)
    db.enqueue(session, unit.queue, unit.id)
    return job
