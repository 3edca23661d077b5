"""Units as workers see them: claim, renew, progress, finish, fail. Whoever does not hold the token changes nothing."""

import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import func, or_, select, true, update
from sqlalchemy.orm import Session

import engine
from models import Dataset, Job, JobStatus, Model, ModelState, Unit, UnitStatus, sources
from services import analyses, artifacts, cache, db, jobs, profiles
from services.problems import CANCELLED, PROCESS_CRASHED, RUNTIME_LIMIT, WORKER_LOST, Problem
from services.routing import is_run_queue
from services.storage import Store
from services.transitions import advance, advance_unit, record
from settings import Settings

_TEXT_LIMIT = 500
_ARCHIVE = f"model/{artifacts.MODEL_ARCHIVE}"
# Whoever loses a unit to another worker looks for the next one.
_TRIES = 5
# Longest pause after a loss that may happen again at once (a full disk, a database away).
_BACKOFF_MAX_S = 60.0
Kind = Literal["inspect_model", "inspect_dataset", "prunability", "run", "merge"]
_EVENTS = frozenset({"started", "step_started", "progress", "step_finished", "measuring", "finished"})


@dataclass(frozen=True)
class Input:
    """A stored file that a unit reads, and its path in the workspace."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Claim:
    """A unit that the caller holds until the lease ends, and all that it needs to work."""

    unit_id: str
    tenant_id: str
    kind: Kind
    token: str
    attempt: int
    job_id: str | None
    spec: dict[str, Any] | None
    # What is declared of the data in a folder of the workspace.
    declarations: Mapping[str, dict[str, Any]]
    inputs: tuple[Input, ...]
    crashed_steps: frozenset[int]
    runtime_s: float
    memory_mb: int
    # Processor time of earlier attempts.
    cpu_s: float = 0.0
    # Of a profile, the targets that this unit measures.
    targets: tuple[int, ...] = ()
    # Of a profile whose targets have ended: their reports, and the targets that have none, with the reason.
    reports: tuple[dict[str, Any], ...] = ()
    failures: tuple[dict[str, Any], ...] = ()

    @property
    def is_archive(self) -> bool:
        """Whether what is to be inspected is a network's archive."""
        return self.kind == "inspect_model" and any(item.path == _ARCHIVE for item in self.inputs)


@dataclass(frozen=True)
class RunResult:
    """What a job's process left, validated and stored in `incoming/`; a profile makes no network."""

    report: "engine.AnyReport"
    inspection: "engine.Inspection | None"
    model_files: tuple[artifacts.NewFile, ...]
    report_files: tuple[artifacts.NewFile, ...]


def claim(
    session: Session, unit_id: str, *, worker_id: str, lease_s: float, queues: Collection[str] | None = None
) -> Claim | None:
    """Take a queued unit by one conditional update, or give None where it is not there to be taken.

    With `queues`, only a unit in one of them: a message may have gone astray to a worker that lacks the unit's target.
    """
    moment = db.now(session)
    taken = session.scalars(
        update(Unit)
        .where(
            Unit.id == unit_id,
            Unit.status.in_(sources(UnitStatus.RUNNING)),
            or_(Unit.not_before.is_(None), Unit.not_before <= moment),
            true() if queues is None else Unit.queue.in_(queues),
        )
        .values(
            status=UnitStatus.RUNNING,
            attempt=Unit.attempt + 1,
            token=secrets.token_hex(16),
            worker_id=worker_id,
            lease_until=moment + timedelta(seconds=lease_s),
            renewed_at=moment,
            started_at=moment,
            current_step=None,
            not_before=None,
        )
        .returning(Unit)
    ).one_or_none()
    if taken is None:
        return None
    job = _job(session, taken)
    if job is not None:
        job.isolation = None
        if job.in_status is JobStatus.RUNNING:
            # Another unit of it runs already.
            record(session, job, JobStatus.RUNNING, {"attempt": taken.attempt}, taken)
        else:
            advance(session, job, JobStatus.RUNNING, attempt=taken.attempt)
    return _claim(session, taken, job)


def claim_next(
    session: Session, unit_id: str, *, worker_id: str, lease_s: float, queues: Collection[str]
) -> Claim | None:
    """Take the unit whose turn it is, given a message that names one: the message only tells of work.

    It is one that waits where the named unit does, or, for a job, in any of the `queues` of jobs that the worker listens to:
    one order holds for all targets that it has. Turns go round among tenants: whose units run least, then who was served
    longest ago. Within a tenant the highest priority comes first, then the oldest.
    """
    name = session.scalar(select(Unit.queue).where(Unit.id == unit_id))
    if name is None or name not in queues:
        return None
    names = sorted(filter(is_run_queue, queues)) if is_run_queue(name) else [name]
    for _ in range(_TRIES):
        best = _next(session, names)
        if best is None:
            return None
        taken = claim(session, best, worker_id=worker_id, lease_s=lease_s, queues=names)
        if taken is not None:
            _message_again(session, name, best)
            return taken
    return None


def _message_again(session: Session, name: str, taken: str) -> None:
    """Have a message again in the queue whose message was spent on a unit of another one, for what is left there."""
    if session.scalar(select(Unit.queue).where(Unit.id == taken)) == name:
        return
    left = select(Unit.id).where(Unit.queue == name, Unit.status.in_(sources(UnitStatus.RUNNING)))
    unit_id = session.scalars(left.order_by(Unit.queued_at).limit(1)).first()
    if unit_id is not None:
        db.enqueue(session, name, unit_id)


def _next(session: Session, names: Sequence[str]) -> str | None:
    moment = db.now(session)
    queued = (
        Unit.queue.in_(names),
        Unit.status.in_(sources(UnitStatus.RUNNING)),
        or_(Unit.not_before.is_(None), Unit.not_before <= moment),
    )
    tenants = list(session.scalars(select(Unit.tenant_id).where(*queued).distinct()))
    if not tenants:
        return None
    tenant = tenants[0] if len(tenants) == 1 else _served_least(session, names, tenants)
    asked = select(Unit.id).where(*queued, Unit.tenant_id == tenant)
    return session.scalars(asked.order_by(Unit.priority.desc(), Unit.queued_at, Unit.id).limit(1)).first()


def _served_least(session: Session, names: Sequence[str], tenants: Sequence[str]) -> str:
    def served(tenant_id: str) -> tuple[int, float, str]:
        own = (Unit.tenant_id == tenant_id, Unit.queue.in_(names))
        running = session.scalar(select(func.count()).select_from(Unit).where(*own, Unit.status == UnitStatus.RUNNING))
        last = session.scalars(
            select(Unit.started_at).where(*own, Unit.started_at.is_not(None)).order_by(Unit.started_at.desc()).limit(1)
        ).first()
        return running or 0, last.timestamp() if last else 0.0, tenant_id

    return min(tenants, key=served)


def look(session: Session, unit_id: str, token: str) -> Literal["held", "cancel", "lost"]:
    """Tell the holder whether it still holds the unit and whether the job is to be cancelled; a cheap read."""
    row = session.execute(
        select(Job.status)
        .select_from(Unit)
        .outerjoin(Job, Job.id == Unit.job_id)
        .where(Unit.id == unit_id, Unit.token == token, Unit.status == UnitStatus.RUNNING)
    ).one_or_none()
    if row is None:
        return "lost"
    return "cancel" if row.status in {JobStatus.CANCELLING, JobStatus.CANCELLED} else "held"


def renew(session: Session, unit_id: str, token: str, *, lease_s: float, cpu_s: float) -> bool:
    """Put the lease's end off and note the processor time of all attempts so far; False where the unit is lost."""
    moment = db.now(session)
    renewed = session.execute(
        update(Unit)
        .where(Unit.id == unit_id, Unit.token == token, Unit.status == UnitStatus.RUNNING)
        .values(lease_until=moment + timedelta(seconds=lease_s), renewed_at=moment, cpu_s=cpu_s)
        .returning(Unit.id)
    ).first()
    return renewed is not None


def spent(session: Session, unit_id: str, token: str, *, cpu_s: float) -> bool:
    """Note the processor time of all attempts at a unit that ends; False where it is lost."""
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    unit.cpu_s = cpu_s
    return True


def progress(session: Session, unit_id: str, token: str, events: Sequence[Mapping[str, Any]]) -> bool:
    """Note what the job's process tells of itself; False where the unit is lost.

    The process is not trusted: events of unknown types are dropped and texts are cut.
    """
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    job = _job(session, unit)
    if job is None:
        return True
    for told in events:
        event = _clean(told)
        if event is not None:
            _note(session, job, unit, event)
    return True


def confined(session: Session, unit_id: str, token: str, isolation: str) -> bool:
    """Note how strongly the process that works on the unit is confined; False where the unit is lost."""
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    job = _job(session, unit)
    if job is not None:
        job.isolation = isolation
    return True


def finish_inspection(
    session: Session,
    store: Store,
    unit_id: str,
    token: str,
    inspection: dict[str, Any],
    *,
    files: Sequence[artifacts.NewFile] = (),
) -> bool:
    """Make the inspected upload ready, or reject data that do not fit the network that they were declared for.

    `files` are what was in a network's archive; they take its place. False, and nothing is changed, where the unit is lost.
    """
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    misfit = _misfit(session, unit, inspection)
    if misfit is not None:
        end_failed(session, store, unit, misfit)
        return True
    advance_unit(session, unit, UnitStatus.SUCCEEDED)
    subject = _subject(session, unit)
    if files and isinstance(subject, Model):
        artifacts.unpacked(session, store, subject, files)
    artifacts.accept(session, subject, inspection)
    return True


def finish_analysis(session: Session, unit_id: str, token: str, result: dict[str, Any]) -> bool:
    """Keep what of a network could be pruned; False, and nothing is changed, where the unit is lost."""
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    advance_unit(session, unit, UnitStatus.SUCCEEDED)
    analyses.finish(session, unit, result)
    return True


def finish_run(session: Session, unit_id: str, token: str, result: RunResult) -> bool:
    """Commit a job's result: artifacts, output model, report, verdict and status at once.

    False, and nothing is changed, where the unit is lost. A job that is being cancelled ends cancelled, without a result.
    """
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    job = _job(session, unit)
    assert job is not None
    if job.in_status is JobStatus.CANCELLING:
        _end_cancelled(session, unit, job)
        return True
    told = result.report.model_dump(mode="json")
    if profiles.is_part(unit):
        _end_job(session, job, unit, profiles.finish_part(session, job, unit, told))
        return True
    if unit.kind == jobs.MERGE:
        profiles.forget_reports(session, unit)
    output = _keep_output(session, job, result)
    report = artifacts.store_files(session, unit.tenant_id, "report", result.report_files)
    job.report_digest = report.digest
    job.verdict = result.report.verdict.outcome
    if output is None:
        job.summary, job.steps = profiles.summary(told), profiles.steps(told)
    else:
        job.measured_on = cache.target_class(told["environment"], "cpu_flags")
        job.summary, job.steps = _summary(told), _steps(told)
    job.warnings = [*dict.fromkeys([*job.warnings, *told["warnings"]])]
    advance_unit(session, unit, UnitStatus.SUCCEEDED)
    advance(session, job, JobStatus.SUCCEEDED, verdict=job.verdict, attempt=unit.attempt)
    if output is not None:
        jobs.release(session, output)
    return True


def _keep_output(session: Session, job: Job, result: RunResult) -> Model | None:
    if job.output_model_id is None or result.inspection is None:
        return None
    output = session.get_one(Model, job.output_model_id)
    output.artifact_digest = artifacts.store_files(session, job.tenant_id, "model", result.model_files).digest
    output.inspection = result.inspection.model_dump(mode="json")
    advance(session, output, ModelState.READY)
    return output


def fail(session: Session, store: Store, unit_id: str, token: str, problem: Problem) -> bool:
    """End a unit for good with a reason; False where it is lost."""
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    end_failed(session, store, unit, problem)
    return True


def cancelled(session: Session, unit_id: str, token: str) -> bool:
    """Say that the process of a job that is being cancelled is dead; False where the unit is lost."""
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    job = _job(session, unit)
    assert job is not None
    _end_cancelled(session, unit, job)
    return True


def crashed(session: Session, store: Store, unit_id: str, token: str, settings: Settings) -> bool:
    """Count a crash of the unit's own process: it is tried again without the step that crashed, or fails.

    False where the unit is lost.
    """
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    unit.crashes += 1
    step = unit.current_step
    if step is not None:
        unit.crashed_steps = sorted({*unit.crashed_steps, step})
    _spend(unit, db.now(session))
    if unit.crashes > settings.max_crashes:
        end_failed(session, store, unit, PROCESS_CRASHED if step is None else {**PROCESS_CRASHED, "step": step})
    else:
        queue_again(session, store, unit, "attempt_crashed", {"step": step})
    return True


def give_back(session: Session, store: Store, unit_id: str, token: str, settings: Settings, *, counted: bool) -> bool:
    """Return a unit that this worker cannot go on with: at once when it drains, later where a loss is `counted`.

    False where the unit is lost.
    """
    unit = _held(session, unit_id, token)
    if unit is None:
        return False
    moment = db.now(session)
    _spend(unit, moment)
    if counted:
        pause = min(2.0**unit.losses, _BACKOFF_MAX_S)
        lose(session, store, unit, settings, not_before=moment + timedelta(seconds=pause))
    else:
        queue_again(session, store, unit, "attempt_returned", {})
    return True


def lose(session: Session, store: Store, unit: Unit, settings: Settings, *, not_before: datetime | None = None) -> None:
    """Count a loss of the infrastructure under a locked unit: it is queued again, or fails after too many."""
    unit.losses += 1
    if unit.losses > settings.max_losses:
        end_failed(session, store, unit, WORKER_LOST)
    else:
        queue_again(session, store, unit, "attempt_lost", {"losses": unit.losses}, not_before=not_before)


def expire_lease(session: Session, store: Store, unit: Unit, settings: Settings) -> None:
    """Take a locked unit from a holder that gave no sign of life."""
    # Time after the last sign of life was not the job's.
    _spend(unit, unit.renewed_at or db.now(session))
    lose(session, store, unit, settings)


def queue_again(
    session: Session,
    store: Store,
    unit: Unit,
    event: str,
    data: dict[str, Any],
    *,
    not_before: datetime | None = None,
) -> None:
    """Queue a locked, running unit again, unless its job is being cancelled or its time is spent."""
    job = _job(session, unit)
    if job is not None and job.in_status is JobStatus.CANCELLING:
        _end_cancelled(session, unit, job)
        return
    if unit.spent_s >= unit.max_runtime_s:
        end_failed(session, store, unit, RUNTIME_LIMIT)
        return
    attempt = unit.attempt
    advance_unit(session, unit, UnitStatus.QUEUED)
    moment = db.now(session)
    unit.token = unit.lease_until = unit.worker_id = unit.started_at = None
    unit.queued_at, unit.not_before, unit.sends = moment, not_before, 0
    unit.pending_until = moment + timedelta(seconds=unit.max_pending_s)
    unit.sent_at = moment if not_before is None else None
    if job is not None:
        profiles.rest(session, job, unit, because=event, attempt=attempt, **data)
    if not_before is None:
        db.enqueue(session, unit.queue, unit.id)


def end_failed(session: Session, store: Store, unit: Unit, problem: Problem) -> None:
    """End a locked unit and what it was for."""
    job = _job(session, unit)
    if job is not None and job.in_status is JobStatus.CANCELLING:
        _end_cancelled(session, unit, job)
        return
    if job is not None and profiles.is_part(unit):
        _end_job(session, job, unit, profiles.fail_part(session, job, unit, problem))
        return
    unit.problem = problem
    advance_unit(session, unit, UnitStatus.FAILED)
    if unit.kind == analyses.KIND:
        analyses.fail(session, unit, problem)
        return
    if job is None:
        artifacts.reject(session, store, _subject(session, unit), problem)
        return
    _end_job(session, job, unit, problem)


def _end_job(session: Session, job: Job, unit: Unit, problem: Problem | None) -> None:
    """Fail the job, where there is a problem that it cannot go on with."""
    if problem is None:
        return
    job.problem = problem
    advance(session, job, JobStatus.FAILED, code=problem["code"], attempt=unit.attempt)
    jobs.give_up_output(session, job)


def _end_cancelled(session: Session, unit: Unit, job: Job) -> None:
    unit.problem = CANCELLED
    advance_unit(session, unit, UnitStatus.CANCELLED)
    session.flush()
    if profiles.others_run(session, unit):
        # The job is cancelled when the last of its processes is dead.
        return
    job.problem = CANCELLED
    advance(session, job, JobStatus.CANCELLED)
    jobs.give_up_output(session, job)


def _held(session: Session, unit_id: str, token: str) -> Unit | None:
    """Give the unit, locked until the transaction ends, if the token is still the holder's."""
    return session.scalars(
        select(Unit)
        .where(Unit.id == unit_id, Unit.token == token, Unit.status == UnitStatus.RUNNING)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()


def _job(session: Session, unit: Unit) -> Job | None:
    """Give the unit's job, locked until the transaction ends, and before it the unit that waits for this one."""
    if unit.job_id is None:
        return None
    profiles.lock_parent(session, unit)
    return session.scalars(select(Job).where(Job.id == unit.job_id).with_for_update()).one()


def _subject(session: Session, unit: Unit) -> Model | Dataset:
    if unit.model_id is not None:
        return session.get_one(Model, unit.model_id)
    return session.get_one(Dataset, unit.dataset_id)


def _misfit(session: Session, unit: Unit, inspection: dict[str, Any]) -> Problem | None:
    model = session.get(Model, unit.payload["fits"]) if "fits" in unit.payload else None
    if model is None:
        return None
    try:
        engine.check_arrays(
            engine.Inspection.model_validate(model.inspection), engine.DatasetInspection.model_validate(inspection)
        )
    except engine.EngineError as error:
        return error.problem()
    return None


def _spend(unit: Unit, until: datetime) -> None:
    if unit.started_at is not None:
        unit.spent_s += max(0.0, (until - unit.started_at).total_seconds())


def _claim(session: Session, unit: Unit, job: Job | None) -> Claim:
    model = session.get(Model, unit.model_id) if unit.model_id else None
    dataset = session.get(Dataset, unit.dataset_id) if unit.dataset_id else None
    judge = session.get(Dataset, job.judge_id) if job and job.judge_id else None
    inputs = []
    baseline = session.get(Model, job.baseline_id) if job and job.baseline_id else None
    parts = profiles.parts(session, unit) if unit.kind == jobs.MERGE else []
    for place, subject in (("model", model), ("baseline", baseline), ("data", dataset), ("judge", judge)):
        if subject is not None and subject.artifact_digest is not None and not parts:
            stored = artifacts.get_artifact(session, unit.tenant_id, subject.artifact_digest)
            inputs += [Input(f"{place}/{file.path}", file.sha256, file.size) for file in stored.files]
    assert unit.token is not None
    return Claim(
        unit_id=unit.id,
        tenant_id=unit.tenant_id,
        kind=_kind(unit.kind),
        token=unit.token,
        attempt=unit.attempt,
        job_id=unit.job_id,
        spec=job.spec if job else None,
        declarations={name: row.declared for name, row in (("data", dataset), ("judge", judge)) if row is not None},
        inputs=tuple(inputs),
        crashed_steps=frozenset(int(step) for step in unit.crashed_steps),
        runtime_s=max(1.0, unit.max_runtime_s - unit.spent_s),
        memory_mb=unit.max_memory_mb,
        cpu_s=unit.cpu_s,
        targets=profiles.targets(unit) if profiles.is_part(unit) else (),
        reports=tuple(part.payload["report"] for part in parts if part.problem is None),
        failures=tuple({**part.problem, "targets": profiles.targets(part)} for part in parts if part.problem),
    )


def _kind(kind: str) -> Kind:
    match kind:
        case "inspect_model" | "inspect_dataset" | "prunability" | "run" | "merge":
            return kind
        case _:
            raise ValueError(f"no such kind of unit: {kind}")


def _clean(told: Mapping[str, Any]) -> dict[str, Any] | None:
    kind, step, fraction = told.get("type"), told.get("step"), told.get("fraction")
    if not isinstance(kind, str) or kind not in _EVENTS:
        return None
    event: dict[str, Any] = {"type": kind}
    if isinstance(step, int) and 0 <= step < 1 << 16:
        event["step"] = step
    if isinstance(fraction, int | float) and math.isfinite(fraction):
        event["fraction"] = min(max(float(fraction), 0.0), 1.0)
    if told.get("status") in ("applied", "refused", "measured"):
        event["status"] = told["status"]
    for name in ("pass", "message", "reason", "what", "verdict"):
        if isinstance(told.get(name), str):
            event[name] = told[name][:_TEXT_LIMIT]
    return event


def _note(session: Session, job: Job, unit: Unit, event: dict[str, Any]) -> None:
    kind = event.pop("type")
    step = event.get("step")
    if kind == "step_started":
        unit.current_step = step
    elif kind == "step_finished":
        unit.current_step = None
    if kind in {"step_started", "progress", "measuring"}:
        job.progress = event
    if step is not None and step < len(job.steps) and kind in {"step_started", "step_finished"}:
        moment = db.now(session).isoformat()
        changes = (
            {"status": "running", "started_at": moment}
            if kind == "step_started"
            else {"status": event.get("status", "applied"), "finished_at": moment, "reason": event.get("reason")}
        )
        job.steps = [*job.steps[:step], {**job.steps[step], **changes}, *job.steps[step + 1 :]]
    record(session, job, kind, event, unit)


def _steps(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "index": step["index"],
            "type": step["type"],
            "status": step["status"],
            "seconds": step["seconds"],
            "reason": (step["refusal"] or {}).get("reason"),
            "change": (step["change"] or {}).get("summary"),
            "size": step["size"],
            "quality": [
                {name: quality[name] for name in ("metric", "original", "compressed", "difference")}
                for quality in step["quality"]
            ],
            "latency_ratio": _latency_ratio(step["latency"]),
        }
        for step in report["steps"]
    ]


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "text": report["summary"],
        "unchanged": report["unchanged"],
        "size": report["size"],
        "quality": report["quality"],
        "latency_ratio": _latency_ratio(report["latency"]),
        "gates": profiles.gates(report["verdict"]["gates"]),
    }


def _latency_ratio(latency: dict[str, Any] | None) -> dict[str, Any] | None:
    """Give the ratio of the medians, the steadiest of the statistics."""
    if latency is None:
        return None
    return {**latency["ratios"]["p50"], "statistic": "p50", "stable": latency["stable"]}
