"""Jobs as clients see them: submit, look, list, cancel, report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy import and_, bindparam, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, defer, joinedload, selectinload

import engine
from models import (
    FIRST_OUTPUT,
    ArtifactFile,
    Dataset,
    DatasetState,
    Event,
    Job,
    JobLabel,
    JobOutput,
    JobStatus,
    Model,
    ModelState,
    is_final,
    new_id,
)
from services import (
    artifacts,
    cache,
    ceilings,
    compatibility,
    db,
    idempotency,
    quotas,
    report_figures,
    searches,
    units,
    workers,
)
from services.cache import Mode
from services.errors import ConflictError, FieldError, InvalidError, NotFoundError, RejectedError
from services.job_inputs import JobInputs
from services.storage import Store
from services.transitions import advance, record
from settings import Settings

Named = TypeVar("Named", Model, Dataset)

_ROUTE = "POST /v1/jobs"
_RETRY_ROUTE = "POST /v1/jobs/{id}:retry"
# Built once: every poll asks it.
_GET = (
    select(Job)
    .options(joinedload(Job.outputs))
    .where(Job.tenant_id == bindparam("tenant_id"), Job.id == bindparam("job_id"))
)


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    model_id: str
    dataset_id: str | None
    spec: "engine.Spec"
    labels: Mapping[str, str]
    priority: int = 0
    cache: Mode = "use"
    retry_of: str | None = None
    # What a profile compares with.
    baseline_id: str | None = None
    # A second dataset that the quality in the report is judged on.
    judge_id: str | None = None
    # What a compression starts from, and what that learns from, where these are other networks than the model.
    student_id: str | None = None
    teacher_id: str | None = None


@dataclass(frozen=True)
class Plan:
    """What would come of a request: its inputs, what is to be said of them, and the earlier result that answers it."""

    inputs: JobInputs
    # As it will be done: of a recipe by name less what cannot be.
    spec: "engine.Spec"
    warnings: list[str]
    gate_samples: "list[engine.GateSamples]"
    cache_key: str | None
    answer: cache.Answer | None

    def estimate(self) -> "engine.Estimate | None":
        """Say what the work will take; None where nobody knows, or an earlier result answers."""
        if self.answer is not None:
            return None
        return compatibility.estimate(self.inputs, self.spec)

    @property
    def waits(self) -> bool:
        """Whether the network is still to be made by another job."""
        return self.inputs.model.in_state is ModelState.PENDING


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
    settings: Settings | None = None,
    store: Store | None = None,
) -> Submission:
    """Accept a job: its row, its first unit and its output's row, in one transaction.

    The network may be one that another job is still to make: the job waits for it. Raises InvalidError for names that are
    not the tenant's, ConflictError while an upload is being checked, RejectedError for what network, data and spec cannot
    do together, QuotaError.
    """
    route = _ROUTE if request.retry_of is None else _RETRY_ROUTE
    if idempotency_key is not None:
        body = {
            "model": request.model_id,
            "dataset": request.dataset_id,
            "spec": request.spec.model_dump(mode="json"),
            "labels": dict(request.labels),
            "priority": request.priority,
            "cache": request.cache,
            "retry_of": request.retry_of,
            "baseline": request.baseline_id,
        }
        later = {"judge": request.judge_id, "student": request.student_id, "teacher": request.teacher_id}
        body |= {name: value for name, value in later.items() if value is not None}
        earlier = idempotency.begin(session, tenant_id, route, idempotency_key, idempotency.digest(body))
        if earlier is not None:
            return Submission(get(session, tenant_id, earlier), replayed=True)
    if settings is not None:
        quotas.check_jobs(session, tenant_id, settings)
    planned = plan(session, tenant_id, request, use=True, store=store, settings=settings)
    if settings is not None and planned.answer is None:
        quotas.check_cpu(session, tenant_id, settings)
        quotas.check_bytes(session, tenant_id, 1, settings)
    job = _insert(session, request, planned, key_id=key_id, store=store)
    if idempotency_key is not None:
        idempotency.answer(session, tenant_id, route, idempotency_key, job.id)
    return Submission(job, replayed=False)


def retry(
    session: Session,
    tenant_id: str,
    job_id: str,
    *,
    key_id: str | None = None,
    idempotency_key: str | None = None,
    settings: Settings | None = None,
    store: Store | None = None,
) -> Submission:
    """Ask again for what a failed or cancelled job was to do; raises ConflictError for any other job."""
    job = get(session, tenant_id, job_id)
    if job.in_status not in {JobStatus.FAILED, JobStatus.CANCELLED}:
        raise ConflictError(
            f"The job is {job.status}; only a failed or cancelled one is tried again.", code="not_failed"
        )
    request = Request(
        job.model_id,
        job.dataset_id,
        engine.read_spec(job.spec),
        job.labels,
        priority=job.priority,
        cache="refuse" if job.cache == "refused" else "use",
        retry_of=job.id,
        baseline_id=job.baseline_id,
        judge_id=job.judge_id,
        student_id=job.student_id,
        teacher_id=job.teacher_id,
    )
    return submit(
        session, tenant_id, request, key_id=key_id, idempotency_key=idempotency_key, settings=settings, store=store
    )


def plan(
    session: Session,
    tenant_id: str,
    request: Request,
    *,
    use: bool = False,
    store: Store | None = None,
    settings: Settings | None = None,
) -> Plan:
    """Say what would come of the request, or refuse it as `submit` does: a dry run.

    With `use`, network and data stay as they are until the transaction ends. With the `store` an earlier result answers
    other gates too, where it decides them.
    """
    if settings is not None:
        request = replace(request, spec=ceilings.held(request.spec, settings))
    inputs = _inputs(session, tenant_id, request, use=use)
    for target in engine.targets_of(request.spec):
        workers.check_target(session, target.provider)
    spec = request.spec
    if engine.recipe_name(spec) is not None:
        spec = compatibility.adapted(inputs, spec, trains=workers.trains(session, spec))
    workers.check_training(session, spec)
    searches.check_budget(spec)
    warnings = compatibility.check(inputs, spec)
    name = cache.key(inputs, spec)
    answer = None
    if name is not None and request.cache == "use":
        answer = cache.find(session, tenant_id, name, spec, store)
    return Plan(inputs, spec, warnings, compatibility.gate_samples(inputs, spec), name, answer)


def get(session: Session, tenant_id: str, job_id: str) -> Job:
    """Give the tenant's job; raises NotFoundError."""
    found = session.scalars(_GET, {"tenant_id": tenant_id, "job_id": job_id}).unique().one_or_none()
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
    whole: bool = False,
) -> list[Job]:
    """Give the tenant's jobs, the newest first, those before an id.

    Unless they are wanted `whole`, specs, steps and warnings are not read: of hundreds they are megabytes.
    """
    left_out = () if whole else (defer(Job.spec), defer(Job.steps), defer(Job.warnings))
    asked = select(Job).options(selectinload(Job.outputs), *left_out).where(Job.tenant_id == tenant_id).limit(limit)
    # The newest first, by whichever index finds the fewest rows.
    order: InstrumentedAttribute[str] = Job.id
    for name, value in (labels or {}).items():
        label = aliased(JobLabel)
        is_it = (label.tenant_id == tenant_id, label.name == name, label.value == value)
        asked = asked.join(label, and_(label.job_id == Job.id, *is_it))
        order = label.job_id
    if status is not None:
        asked = asked.where(Job.status == status)
    if before is not None:
        asked = asked.where(order < before)
    return list(session.scalars(asked.order_by(order.desc())))


def cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel at once what is queued, have stopped what runs; harmless on what is being cancelled.

    Raises NotFoundError, and ConflictError where the job has ended otherwise.
    """
    get(session, tenant_id, job_id)
    return units.cancel_job(session, job_id)


def events(session: Session, tenant_id: str, job_id: str, *, after: int = 0, limit: int = 500) -> list[Event]:
    """Give what happened to the tenant's job after an event's id, in order; raises NotFoundError."""
    get(session, tenant_id, job_id)
    return _events(session, job_id, after, limit)


def _events(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    asked = select(Event).where(Event.subject_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    return list(session.scalars(asked))


def news(session: Session, tenant_id: str, job_id: str, *, after: int, limit: int = 500) -> tuple[Job, list[Event]]:
    """Give the job and what happened to it after an event, at least up to that state; raises NotFoundError."""
    return get(session, tenant_id, job_id), _events(session, job_id, after, limit)


def report(session: Session, tenant_id: str, job_id: str) -> dict[str, ArtifactFile]:
    """Give the files of the job's report by name (`report.<format>`, in the formats of the version that wrote it).

    Raises:
        ConflictError: the job has not ended, or it ended without a report.
        NotFoundError: no such job.
    """
    job = get(session, tenant_id, job_id)
    if job.report_digest is None:
        if not is_final(job.in_status):
            raise ConflictError(f"The job is {job.status}; its report comes with its end.", code="report_pending")
        raise ConflictError(f"The job is {job.status} and has no report.", code="no_report")
    return {file.path: file for file in artifacts.get_artifact(session, tenant_id, job.report_digest).files}


def heading(session: Session, tenant_id: str, job_id: str, *, link: str | None = None) -> "engine.Heading":
    """Say what a job's report is of; raises NotFoundError."""
    job = get(session, tenant_id, job_id)
    model = session.get_one(Model, job.model_id)
    return engine.Heading(model.name, job.id, job.finished_at, job.labels.get("commit"), link)


def _inputs(session: Session, tenant_id: str, request: Request, *, use: bool) -> JobInputs:
    missing: list[FieldError] = []

    def named(what: str, found_id: str | None, find: Callable[[Session, str, str], Named]) -> Named | None:
        try:
            return find(session, tenant_id, found_id) if found_id else None
        except NotFoundError as error:
            missing.append(FieldError(f"/{what}", error.message))
            return None

    find_model = artifacts.use_model if use else artifacts.get_model
    find_dataset = artifacts.use_dataset if use else artifacts.get_dataset
    model = named("model", request.model_id, find_model)
    networks = {
        what: named(what, found_id, find_model)
        for what, found_id in (
            ("baseline", request.baseline_id),
            ("student", request.student_id),
            ("teacher", request.teacher_id),
        )
    }
    dataset = named("dataset", request.dataset_id, find_dataset)
    judge = named("judge", request.judge_id, find_dataset)
    if model is None or missing:
        raise InvalidError("The job names what does not exist.", tuple(missing), code="unknown_reference")
    if model.in_state is not ModelState.PENDING:
        _must_be_ready("model", model)
    others: dict[str, Model | Dataset | None] = {**networks, "dataset": dataset, "judge": judge}
    for what, row in others.items():
        if row is not None:
            _must_be_ready(what, row)
    return JobInputs(model, **networks, dataset=dataset, judge=judge)


def _must_be_ready(what: str, row: Model | Dataset) -> None:
    if row.in_state in {ModelState.REJECTED, DatasetState.REJECTED}:
        raise RejectedError(f"The {what} was rejected.", code=f"{what}_rejected", problem=row.problem)
    if row.in_state not in {ModelState.READY, DatasetState.READY}:
        raise ConflictError(f"The {what} is {row.state}; it has to be ready first.", code=f"{what}_not_ready")


def _insert(
    session: Session, request: Request, planned: Plan, *, key_id: str | None, store: Store | None = None
) -> Job:
    moment = db.now(session)
    inputs, spec = planned.inputs, planned.spec
    model = inputs.model
    job = Job(
        id=new_id("job"),
        tenant_id=model.tenant_id,
        kind=spec.kind,
        status=JobStatus.QUEUED,
        version=1,
        spec=spec.model_dump(mode="json"),
        labels=dict(request.labels),
        model_id=model.id,
        baseline_id=_id(inputs.baseline),
        student_id=_id(inputs.student),
        teacher_id=_id(inputs.teacher),
        dataset_id=_id(inputs.dataset),
        judge_id=_id(inputs.judge),
        output_model_id=new_id("mdl") if engine.makes_network(spec) else None,
        key_id=key_id,
        priority=request.priority,
        cache="refused" if request.cache == "refuse" else "miss",
        cache_key=planned.cache_key,
        retry_of=request.retry_of,
        warnings=planned.warnings,
        steps=report_figures.waiting(engine.steps_of(spec)),
        verdict="none",
        created_at=moment,
        updated_at=moment,
    )
    output = _add_output(session, job, inputs.student or model) if job.output_model_id is not None else None
    if output is not None:
        job.outputs = [JobOutput(position=0, name=FIRST_OUTPUT, model_id=output.id)]
    session.add(job)
    session.flush()
    session.add_all(
        JobLabel(tenant_id=job.tenant_id, name=name, value=value, job_id=job.id) for name, value in job.labels.items()
    )
    if planned.answer is not None and output is not None:
        _answer(session, job, output, planned.answer, store)
    else:
        units.make_for_job(session, job, spec, waits=planned.waits)
    return job


def _id(row: Model | Dataset | None) -> str | None:
    return None if row is None else row.id


def _add_output(session: Session, job: Job, model: Model) -> Model:
    output = Model(
        id=job.output_model_id,
        tenant_id=job.tenant_id,
        name=f"{model.name} ({job.kind})"[:200],
        tags=[],
        state=ModelState.PENDING,
        parent_id=model.id,
        job_id=job.id,
        created_at=job.created_at,
        updated_at=job.created_at,
    )
    session.add(output)
    session.flush()
    return output


def _answer(session: Session, job: Job, output: Model, answer: cache.Answer, store: Store | None) -> None:
    """Give a job an earlier one's result: the same bytes under an id of its own, judged by its own gates."""
    earlier, result = answer.job, answer.model
    job.cache, job.cached_from = "hit", earlier.id
    job.report_digest, job.verdict, job.summary, job.steps = (
        earlier.report_digest,
        earlier.verdict,
        earlier.summary,
        earlier.steps,
    )
    if answer.report is not None and store is not None:
        job.report_digest = _store_report(session, store, job.tenant_id, answer.report)
        job.verdict = answer.report.verdict.outcome
        job.summary = report_figures.of_compression(answer.report.model_dump(mode="json"))
    job.isolation, job.measured_on = earlier.isolation, earlier.measured_on
    job.warnings = [*dict.fromkeys([*job.warnings, *earlier.warnings])]
    job.started_at = job.created_at
    output.artifact_digest, output.inspection = result.artifact_digest, result.inspection
    record(session, job, "queued")
    advance(session, output, ModelState.READY)
    advance(session, job, JobStatus.SUCCEEDED, verdict=job.verdict, cached_from=earlier.id)


def _store_report(session: Session, store: Store, tenant_id: str, report: "engine.Report") -> str:
    """Store a report in every format; gives its digest."""
    files: list[artifacts.NewFile] = []
    for path, content in engine.report_files(report).items():
        writer = store.writer(tenant_id, limit=len(content))
        writer.write(content)
        writer.finish()
        files.append(artifacts.NewFile(path, writer))
    return artifacts.store_files(session, tenant_id, "report", files).digest
