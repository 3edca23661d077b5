"""Units are made, queued, spawned, continued and ended here, and nowhere else; `unit_kinds` says what differs by kind.

A unit that waits says for what: for its children, for the job that makes its network, or for its turn among the units that
its job may have in flight. The transaction in which the last child ends queues the parent again.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session, aliased

import engine
from models import (
    ROW_BYTES,
    Dataset,
    Job,
    JobStatus,
    Model,
    ModelState,
    Trial,
    Unit,
    UnitStatus,
    is_final,
    new_id,
    sources,
    text_bytes,
)
from services import artifacts, cache, compatibility, db, outcomes, searches, trials
from services.claims import MOST_CHILDREN, Asked, Child, Claim, Input, Limits, Result, StepBack
from services.errors import AnswerInvalidError, ConflictError, RejectedError
from services.outcomes import End
from services.problems import (
    CANCELLED,
    DEPENDENCY_FAILED,
    JOB_CPU_LIMIT,
    JOB_DEADLINE,
    JOB_ENDED,
    Problem,
)
from services.routing import INSPECT_QUEUE, run_queue
from services.storage import Store
from services.transitions import advance, advance_unit, record
from services.unit_kinds import KINDS, children

WaitsFor = Literal["children", "job", "turn"]
_OPEN = tuple(status for status in UnitStatus if not is_final(status))
_IN_FLIGHT = (UnitStatus.QUEUED, UnitStatus.RUNNING)


def make(
    session: Session,
    kind: str,
    *,
    tenant_id: str,
    queue: str,
    limits: Limits,
    payload: dict[str, Any] | None = None,
    model_id: str | None = None,
    dataset_id: str | None = None,
    job: Job | None = None,
    waits_for: WaitsFor | None = None,
    **more: Any,
) -> Unit:
    """Add a unit, queued unless it waits for something."""
    moment = db.now(session)
    unit = Unit(
        id=new_id("unt"),
        tenant_id=tenant_id,
        kind=kind,
        queue=queue,
        status=UnitStatus.WAITING,
        waits_for=waits_for,
        priority=KINDS[kind].priority if job is None else job.priority,
        job_id=None if job is None else job.id,
        model_id=model_id,
        dataset_id=dataset_id,
        payload=payload or {},
        max_pending_s=limits.pending_s,
        max_runtime_s=limits.runtime_s,
        max_memory_mb=limits.memory_mb,
        attempt=0,
        crashes=0,
        losses=0,
        crashed_steps=[],
        spent_s=0.0,
        cpu_s=0.0,
        sends=0,
        created_at=moment,
        **more,
    )
    session.add(unit)
    if job is not None:
        job.add_bytes(ROW_BYTES + text_bytes(unit.payload))
    session.flush()
    if waits_for is None:
        if job is not None:
            record(session, job, "queued", unit=unit)
        to_queue(session, unit)
    return unit


def make_for_job(session: Session, job: Job, spec: "engine.Spec", *, waits: bool) -> None:
    """Make the units of an accepted job; with `waits` they wait for the job that makes its network.

    A profile has one for each provider, and where there are several one that puts their results together. A search has its
    coordinator.
    """
    waits_for: WaitsFor | None = "job" if waits else None
    if isinstance(spec, engine.Search):
        job.max_runtime_s, _ = spec.allowed
        _of_job(session, job, "search", searches.queue_of(session, spec), spec, waits_for=waits_for)
        _note_wait(session, job, waits=waits)
        return
    by_provider: dict[str, list[int]] = {}
    for index, target in enumerate(engine.targets_of(spec)):
        by_provider.setdefault(target.provider, []).append(index)
    if len(by_provider) == 1:
        [provider] = by_provider
        _of_job(session, job, "run", run_queue(provider, trains=engine.trains(spec)), spec, waits_for=waits_for)
    else:
        parent = _of_job(session, job, "merge", INSPECT_QUEUE, spec, waits_for="children")
        parts = [Child(kind="part", payload={"targets": indices}) for indices in by_provider.values()]
        spawn(session, job, parent, parts, waits_for=waits_for)
    _note_wait(session, job, waits=waits)


def _note_wait(session: Session, job: Job, *, waits: bool) -> None:
    if waits:
        job.progress = {"message": f"waits for the model {job.model_id}"}
        record(session, job, "waiting", {"model": job.model_id})


def _of_job(
    session: Session, job: Job, kind: str, queue: str, spec: "engine.Spec", *, waits_for: WaitsFor | None
) -> Unit:
    return make(
        session,
        kind,
        tenant_id=job.tenant_id,
        queue=queue,
        limits=Limits.of(spec),
        model_id=job.model_id,
        dataset_id=job.dataset_id,
        job=job,
        waits_for=waits_for,
    )


def spawn(
    session: Session, job: Job, parent: Unit, asked: Sequence[Child], *, waits_for: WaitsFor | None = None
) -> None:
    """Make a parent's children: as many are queued as the job may have in flight, the others wait for their turn.

    Raises AnswerInvalidError, and makes none, where one of them cannot be.
    """
    planned = [(child, _plan(job, child)) for child in asked]
    hold(session, job.id)
    room, before = _room(session, job), len(children(session, parent))
    for index, (child, plan) in enumerate(planned):
        turn: WaitsFor | None = None if index < room else "turn"
        unit = make(
            session,
            child.kind,
            tenant_id=job.tenant_id,
            queue=plan.queue,
            limits=plan.limits,
            payload=plan.payload,
            model_id=job.model_id,
            dataset_id=job.dataset_id,
            job=job,
            waits_for=waits_for or turn,
            parent_id=parent.id,
            position=before + index,
            target_class=child.target_class or parent.target_class,
        )
        KINDS[child.kind].spawned(session, job, unit)


def _plan(job: Job, child: Child) -> Asked:
    kind = KINDS.get(child.kind)
    if kind is None or kind.asked is None:
        raise AnswerInvalidError(f"no unit may ask for a child of kind {child.kind}")
    try:
        return kind.asked(job, child.payload)
    except ValueError as error:
        # Pydantic's are of this kind too.
        raise AnswerInvalidError(f"a child of kind {child.kind}: {error}") from error


def hold(session: Session, job_id: str) -> None:
    """Have a job's units to ourselves: nobody cancels them while others are added. Comes before any lock of a row."""
    db.lock(session, f"units of {job_id}")


def to_queue(session: Session, unit: Unit, *, not_before: datetime | None = None) -> None:
    """Queue a locked unit, whatever it was; its message is sent with the commit, or by the reconciler when it is due.

    One of a paused job waits for its turn instead.
    """
    if unit.job_id is not None and session.get_one(Job, unit.job_id).paused_at is not None:
        set_aside(session, unit)
        return
    moment = db.now(session)
    advance_unit(session, unit, UnitStatus.QUEUED)
    unit.waits_for = unit.token = unit.lease_until = unit.worker_id = unit.started_at = None
    unit.queued_at, unit.not_before, unit.sends = moment, not_before, 0
    unit.pending_until = moment + timedelta(seconds=unit.max_pending_s)
    unit.sent_at = moment if not_before is None else None
    if not_before is None:
        db.enqueue(session, unit.queue, unit.id)


def set_aside(session: Session, unit: Unit) -> None:
    """Have a locked unit of a paused job wait for its turn, whatever it was."""
    if unit.in_status is not UnitStatus.WAITING:
        advance_unit(session, unit, UnitStatus.WAITING)
    unit.waits_for = "turn"
    unit.token = unit.lease_until = unit.worker_id = unit.started_at = None
    unit.queued_at = unit.not_before = unit.pending_until = unit.sent_at = None


def claim_of(session: Session, unit: Unit, job: Job | None) -> Claim:
    """Give a unit that was just taken to whoever has taken it."""
    kind = KINDS[unit.kind]
    subjects: dict[str, Model | Dataset | None] = {
        "model": session.get(Model, unit.model_id) if unit.model_id else None,
        "data": session.get(Dataset, unit.dataset_id) if unit.dataset_id else None,
        "baseline": session.get(Model, job.baseline_id) if job and job.baseline_id else None,
        "student": session.get(Model, job.student_id) if job and job.student_id else None,
        "teacher": session.get(Model, job.teacher_id) if job and job.teacher_id else None,
        "judge": session.get(Dataset, job.judge_id) if job and job.judge_id else None,
    }
    read = {place: row for place in kind.reads if (row := subjects[place]) is not None}
    inputs = tuple(
        Input(f"{place}/{file.path}", file.sha256, file.size)
        for place, row in read.items()
        if row.artifact_digest is not None
        for file in artifacts.get_artifact(session, unit.tenant_id, row.artifact_digest).files
    )
    inputs += tuple(
        Input(f"{place}/{file.path}", file.sha256, file.size)
        for place, trial in kind.reads_trials(session, unit).items()
        if trial.artifact_digest is not None
        for file in artifacts.get_artifact(session, unit.tenant_id, trial.artifact_digest).files
    )
    assert unit.token is not None
    return Claim(
        unit_id=unit.id,
        tenant_id=unit.tenant_id,
        kind=unit.kind,
        token=unit.token,
        attempt=unit.attempt,
        job_id=unit.job_id,
        order=kind.order(session, unit, job, inputs),
        inputs=inputs,
        declarations={place: row.declared for place, row in read.items() if isinstance(row, Dataset)},
        runtime_s=_runtime_s(session, unit, job),
        memory_mb=unit.max_memory_mb,
        largest_file=kind.largest_file,
        cpu_s=unit.cpu_s,
    )


def _runtime_s(session: Session, unit: Unit, job: Job | None) -> float:
    left = unit.max_runtime_s - unit.spent_s
    if job is not None and job.deadline is not None and unit.parent_id is not None:
        # Whoever waits for the children makes the best of what there is; they end with the job's time.
        left = min(left, (job.deadline - db.now(session)).total_seconds())
    return max(1.0, left)


def step_back(end: End, asked: StepBack) -> None:
    """Have a locked, running unit wait for the children that it asks for, or go on at once with a network that it needs.

    Raises AnswerInvalidError, and changes nothing.
    """
    session, unit, job = end.session, end.unit, end.whole_job
    KINDS[unit.kind].may_ask(session, job, asked)
    spawn(session, job, unit, asked.spawn)
    unit.continuation = asked.state if asked.needs is None else {**asked.state, "needs": asked.needs}
    # It has got somewhere: what went wrong before is not counted against what comes.
    unit.crashes = unit.losses = 0
    unit.crashed_steps, unit.current_step = [], None
    if asked.needs is None:
        advance_unit(session, unit, UnitStatus.WAITING)
        unit.waits_for = "children"
        unit.token = unit.lease_until = unit.worker_id = None
    else:
        to_queue(session, unit)
    for number in asked.drop:
        trial = session.get(Trial, (job.id, number))
        if trial is not None and is_final(trial.in_state):
            trials.drop(session, end.store, trial)
    if asked.needs is None:
        rest(session, job, unit, because="waits_for_children", children=len(asked.spawn))
    else:
        rest(session, job, unit, because="goes_on", trial=asked.needs)


def finish(end: End, result: Result) -> None:
    """End a locked, running unit with its result: a job with the last of its units."""
    session, unit, job = end.session, end.unit, end.job
    if job is not None and job.in_status is JobStatus.CANCELLING:
        cancel(session, unit, job)
        return
    problem = outcomes.over_quota(end, result) or KINDS[unit.kind].keep(end, result)
    if problem is not None:
        fail(end, problem)
        return
    advance_unit(session, unit, UnitStatus.SUCCEEDED)
    if unit.parent_id is not None:
        _child_ended(end)
    elif job is not None:
        advance(session, job, JobStatus.SUCCEEDED, verdict=job.verdict, attempt=unit.attempt)
        for model_id in job.named_outputs.values():
            release(session, session.get_one(Model, model_id))


def fail(end: End, problem: Problem) -> None:
    """End a locked unit, and what it was for, without a result."""
    session, unit, job = end.session, end.unit, end.job
    if job is not None and job.in_status is JobStatus.CANCELLING:
        cancel(session, unit, job)
        return
    unit.problem = problem
    KINDS[unit.kind].fail(end, problem)
    advance_unit(session, unit, UnitStatus.FAILED)
    if unit.parent_id is not None:
        _child_ended(end)
    elif job is not None:
        _fail_job(session, job, problem, attempt=unit.attempt)


def cancel(session: Session, unit: Unit, job: Job) -> None:
    """End a locked unit of a job that is being cancelled: the job ends with the last of its processes."""
    _cancel_unit(session, unit)
    session.flush()
    if others_run(session, unit):
        return
    job.problem = CANCELLED
    advance(session, job, JobStatus.CANCELLED)
    give_up_outputs(session, job)


def cancel_job(session: Session, job_id: str) -> Job:
    """Cancel at once what is queued or waits, have stopped what runs; harmless on what is being cancelled.

    Raises ConflictError where the job has ended otherwise.
    """
    hold(session, job_id)
    # Units before the job, as everywhere: two transactions that lock in two orders could wait for each other.
    units = list(session.scalars(in_order(select(Unit).where(Unit.job_id == job_id, Unit.status.in_(_OPEN)))))
    job = session.scalars(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    ).one()
    for unit in units:
        if unit.in_status is not UnitStatus.RUNNING:
            _cancel_unit(session, unit)
    if job.in_status in {JobStatus.CANCELLING, JobStatus.CANCELLED}:
        return job
    if is_final(job.in_status):
        raise ConflictError(f"The job has already ended: it is {job.status}.", code="already_final")
    if any(unit.in_status is UnitStatus.RUNNING for unit in units):
        advance(session, job, JobStatus.CANCELLING)
    else:
        job.problem = CANCELLED
        advance(session, job, JobStatus.CANCELLED)
        give_up_outputs(session, job)
    return job


def _cancel_unit(session: Session, unit: Unit) -> None:
    unit.problem = CANCELLED
    KINDS[unit.kind].cancel(session, unit)
    advance_unit(session, unit, UnitStatus.CANCELLED)


def _child_ended(end: End) -> None:
    """Go on with the parent where this was its last child, else let the next one have its turn."""
    session, unit, job = end.session, end.unit, end.whole_job
    session.flush()
    parent = session.get_one(Unit, unit.parent_id, populate_existing=True)
    every = children(session, parent)
    if any(not is_final(child.in_status) for child in every):
        fill(session, job)
        rest(session, job, unit, because="child_ended")
        return
    has_result = any(child.in_status is UnitStatus.SUCCEEDED for child in every)
    if KINDS[parent.kind].needs_a_child and not has_result:
        advance_unit(session, parent, UnitStatus.CANCELLED)
        reason = next(child.problem for child in every if child.problem is not None)
        _fail_job(session, job, reason, attempt=unit.attempt)
        return
    to_queue(session, parent)
    rest(session, job, unit, because="children_ended")


def fill(session: Session, job: Job) -> None:
    """Queue children that wait for their turn, as far as the job may have units in flight."""
    room = _room(session, job)
    waiting = (Unit.status == UnitStatus.WAITING, Unit.waits_for == "turn", Unit.parent_id.is_not(None))
    asked = select(Unit).where(Unit.job_id == job.id, *waiting)
    asked = asked.order_by(Unit.position, Unit.id).limit(room).with_for_update(skip_locked=True)
    # What somebody else holds is being cancelled, or gets its turn from the reconciler.
    for unit in session.scalars(asked.execution_options(populate_existing=True)).all() if room else ():
        to_queue(session, unit)


def _room(session: Session, job: Job) -> int:
    if job.paused_at is not None:
        return 0
    most = searches.most_in_flight(session, job) if job.kind == "search" else job.max_units_in_flight
    if most is None:
        return MOST_CHILDREN
    busy = select(func.count()).where(Unit.job_id == job.id, Unit.parent_id.is_not(None), Unit.status.in_(_IN_FLIGHT))
    session.flush()
    return max(0, most - (session.scalar(busy) or 0))


def rest(session: Session, job: Job, unit: Unit, **data: Any) -> None:
    """Have the job's status say whether any unit of it runs now that this one does not."""
    job.progress = trials.progress(session, job) if job.kind == "search" else None
    if job.in_status is not JobStatus.RUNNING or others_run(session, unit):
        record(session, job, str(data["because"]), data, unit)
    else:
        advance(session, job, JobStatus.QUEUED, **data)


def others_run(session: Session, unit: Unit) -> bool:
    """Tell whether another unit of the same job runs."""
    asked = select(Unit.id).where(Unit.job_id == unit.job_id, Unit.status == UnitStatus.RUNNING, Unit.id != unit.id)
    return session.scalars(asked.limit(1)).first() is not None


def lock_job(session: Session, unit: Unit) -> Job | None:
    """Give the job of a locked unit, locked until the transaction ends, and before it the unit that waits for this one."""
    if unit.job_id is None:
        return None
    if unit.parent_id is not None:
        # Units are locked before their job everywhere.
        session.scalars(select(Unit.id).where(Unit.id == unit.parent_id).with_for_update()).one()
    return session.scalars(select(Job).where(Job.id == unit.job_id).with_for_update()).one()


def in_order(asked: Select[Unit]) -> Select[Unit]:
    """Lock units in the one order that all keep: children before the one that waits for them."""
    ordered = asked.order_by(Unit.parent_id.is_(None), Unit.id)
    return ordered.with_for_update().execution_options(populate_existing=True)


def release(session: Session, output: Model) -> None:
    """Queue the jobs that wait for a network, now that it is ready; those that do not fit it fail."""
    for job_id, waiting in _waiting_for(session, output).items():
        job = _locked(session, job_id)
        try:
            compatibility.settle(session, job, output)
        except RejectedError as error:
            _fail_waiting(session, job, waiting, error.problem or DEPENDENCY_FAILED)
            continue
        job.progress, job.cache_key = None, cache.key_of_job(session, job, output)
        record(session, job, "released", {"model": output.id})
        for unit in waiting:
            if not _has_children(session, unit):
                to_queue(session, unit)


def give_up_outputs(session: Session, job: Job) -> None:
    """Say of the networks that a job was to make that they will not come; jobs that wait for them fail."""
    for model_id in job.named_outputs.values():
        output = session.get_one(Model, model_id)
        if output.in_state not in sources(ModelState.REJECTED):
            continue
        output.problem = JOB_ENDED
        advance(session, output, ModelState.REJECTED)
        for job_id, waiting in _waiting_for(session, output).items():
            _fail_waiting(session, _locked(session, job_id), waiting, DEPENDENCY_FAILED)


def _waiting_for(session: Session, output: Model) -> dict[str, list[Unit]]:
    """Give the units of the jobs that wait for a network, locked, by the id of their job."""
    # What changed of the network is written before its row is read here: whoever named it meanwhile is seen.
    session.flush()
    asked = select(Unit).where(Unit.model_id == output.id, Unit.status == UnitStatus.WAITING)
    found: dict[str, list[Unit]] = {}
    for unit in session.scalars(in_order(asked)):
        found.setdefault(str(unit.job_id), []).append(unit)
    return found


def _has_children(session: Session, unit: Unit) -> bool:
    return session.scalars(select(Unit.id).where(Unit.parent_id == unit.id).limit(1)).first() is not None


def _fail_waiting(session: Session, job: Job, waiting: Sequence[Unit], problem: Problem) -> None:
    for unit in waiting:
        unit.problem = problem
        advance_unit(session, unit, UnitStatus.FAILED)
    _fail_job(session, job, problem)


def _fail_job(session: Session, job: Job, problem: Problem, **data: Any) -> None:
    job.problem = problem
    advance(session, job, JobStatus.FAILED, code=problem["code"], **data)
    give_up_outputs(session, job)


def _locked(session: Session, job_id: str) -> Job:
    return session.scalars(select(Job).where(Job.id == job_id).with_for_update()).one()


def overspent(moment: datetime) -> Select[str, bool]:
    """Ask for the jobs whose time is over, or whose processor time is used up, while children of theirs still wait."""
    child, any_unit = aliased(Unit), aliased(Unit)
    waiting = or_(child.status == UnitStatus.QUEUED, (child.status == UnitStatus.WAITING) & (child.waits_for == "turn"))
    used = select(func.coalesce(func.sum(any_unit.cpu_s), 0.0)).where(any_unit.job_id == Job.id).scalar_subquery()
    late = func.coalesce(Job.deadline < moment, False)
    return select(Job.id, late).where(
        Job.status.in_((JobStatus.QUEUED, JobStatus.RUNNING)),
        Job.paused_at.is_(None),
        or_(Job.deadline < moment, used >= Job.max_cpu_s),
        select(child.id).where(child.job_id == Job.id, child.parent_id.is_not(None), waiting).exists(),
    )


def end_overspent(session: Session, store: Store, job_id: str, *, late: bool) -> None:
    """End the children that a job cannot afford any more; its parent goes on with what there is when the last has ended."""
    hold(session, job_id)
    asked = select(Unit).where(
        Unit.job_id == job_id,
        Unit.parent_id.is_not(None),
        or_(Unit.status == UnitStatus.QUEUED, (Unit.status == UnitStatus.WAITING) & (Unit.waits_for == "turn")),
    )
    waiting = list(session.scalars(in_order(asked)))
    # Those whose turn had not come first, or the end of each would give another one its turn.
    for unit in sorted(waiting, key=lambda unit: unit.in_status is UnitStatus.QUEUED):
        fail(End(session, store, unit, lock_job(session, unit)), JOB_DEADLINE if late else JOB_CPU_LIMIT)


def unturned() -> Select[str | None]:
    """Ask for the jobs with children that wait for their turn: somebody may have missed to give it to them."""
    waiting = (Unit.status == UnitStatus.WAITING, Unit.waits_for == "turn")
    return select(Unit.job_id).join(Job, Job.id == Unit.job_id).where(*waiting, Job.paused_at.is_(None)).distinct()


def give_turns(session: Session, job_id: str) -> None:
    """Queue children that wait for their turn, where a job has room for them."""
    hold(session, job_id)
    job = _locked(session, job_id)
    if not is_final(job.in_status) and job.in_status is not JobStatus.CANCELLING:
        fill(session, job)
