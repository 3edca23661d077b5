"""The one table of kinds of units: what each is asked, what it may take, how its result is read, and what its end means."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

import engine
from models import Job, Model, Trial, Unit
from services import outcomes, searches, trials
from services.claims import (
    Answer,
    Asked,
    Candidate,
    Claim,
    Input,
    Leaves,
    Limits,
    Order,
    Piece,
    Result,
    StepBack,
    is_archive,
)
from services.errors import AnswerInvalidError
from services.outcomes import End
from services.problems import Problem
from services.routing import run_queue

_INDICES = TypeAdapter(tuple[int, ...])
# What of answers goes into rows, which lists and checks of quotas read: a process that was taken over fills none of them.
_MOST_BYTES: dict[type, int] = {
    engine.Inspection: engine.INSPECTION_BYTES,
    engine.DatasetInspection: engine.INSPECTION_BYTES,
    engine.Prunability: 1 << 20,
    Piece: 4 << 20,
    Candidate: 512 << 10,
    StepBack: 4 << 20,
}


@dataclass(frozen=True)
class Kind:
    """Everything that differs from kind to kind."""

    # What its process is to do.
    order: Callable[[Session, Unit, Job | None, tuple[Input, ...]], Order]
    # What of its process' answer counts; raises AnswerInvalidError or pydantic's ValidationError.
    read: Callable[[Claim, Mapping[str, Any]], Answer]
    # What becomes of a good result; a problem that it gives makes the unit fail after all.
    keep: Callable[[End, Result], Problem | None]
    fail: Callable[[End, Problem], None] = lambda _end, _problem: None
    cancel: Callable[[Session, Unit], None] = lambda _session, _unit: None
    # What a worker's taking it settles: the worker's queues (None: any) and classes come with it.
    claimed: Callable[[Session, Unit, Collection[str] | None, Collection[str]], None] = lambda *_: None
    requeued: Callable[[Session, Unit], None] = lambda _session, _unit: None
    # What a parent may ask it for; raises ValueError. None: no parent may.
    asked: Callable[[Job, Mapping[str, Any]], Asked] | None = None
    spawned: Callable[[Session, Job, Unit], None] = lambda _session, _job, _unit: None
    # Networks of trials that it reads besides, by the folder that they go to.
    reads_trials: Callable[[Session, Unit], Mapping[str, Trial]] = lambda _session, _unit: {}
    # Raises AnswerInvalidError for a step back that cannot be.
    may_ask: Callable[[Session, Job, StepBack], None] = lambda _session, _job, _asked: None
    # The folders of the workspace that its inputs go to.
    reads: tuple[str, ...] = ("model", "baseline", "student", "teacher", "data", "judge")
    # The largest file that its process may write, in largest networks; 0: notes only.
    largest_file: int = 0
    # The higher, the sooner; a job's units have the job's.
    priority: int = 0
    # Whether what its process tells of steps is told of the job's.
    tells_steps: bool = False
    # Whether its process may answer with work for children, and be asked again after the last of them.
    may_step_back: bool = False
    # Whether it can go on only where one of its children has left a result; else the job fails with the first one's reason.
    needs_a_child: bool = False


def children(session: Session, parent: Unit) -> list[Unit]:
    """Give the units that a parent has spawned, in their order."""
    found = select(Unit).where(Unit.parent_id == parent.id).order_by(Unit.position, Unit.id)
    return list(session.scalars(found.execution_options(populate_existing=True)))


def read_answer(claim: Claim, value: Mapping[str, Any]) -> Answer:
    """Read what a unit's process said; raises AnswerInvalidError or ValidationError."""
    kind = KINDS[claim.kind]
    is_step_back = kind.may_step_back and "spawn" in value
    answer = Answer(StepBack.model_validate(value)) if is_step_back else kind.read(claim, value)
    _check_size(answer.value)
    _check_size(answer.inspection)
    return answer


def _check_size(told: object) -> None:
    most = next((most for of, most in _MOST_BYTES.items() if isinstance(told, of)), None)
    if most is None:
        return
    size = len(TypeAdapter(type(told)).dump_json(told))
    if size > most:
        raise AnswerInvalidError(f"{size} bytes of {type(told).__name__}; {most} are the limit")


def _inspect_model(_session: Session, _unit: Unit, _job: Job | None, inputs: tuple[Input, ...]) -> Order:
    return Order("inspect_archive" if is_archive(inputs) else "inspect_model")


def _read_inspection(claim: Claim, value: Mapping[str, Any]) -> Answer:
    leaves: Leaves = "unpacked" if claim.order.verb == "inspect_archive" else "nothing"
    return Answer(engine.Inspection.model_validate(value), leaves)


def _inspect_dataset(_session: Session, _unit: Unit, _job: Job | None, inputs: tuple[Input, ...]) -> Order:
    return Order("inspect_dataset", {"file": PurePosixPath(inputs[0].path).name})


def _run(session: Session, unit: Unit, job: Job | None, _inputs: tuple[Input, ...]) -> Order:
    assert job is not None
    # A part has only some of the job's targets.
    return Order(
        "run",
        {
            "spec": job.spec,
            "targets": sorted(unit.payload.get("targets", ())),
            "crashed_steps": sorted(int(step) for step in unit.crashed_steps),
            "names": {
                role: session.get_one(Model, named).name
                for role, named in (("student", job.student_id), ("teacher", job.teacher_id))
                if named is not None
            },
        },
    )


def _merge(session: Session, unit: Unit, job: Job | None, _inputs: tuple[Input, ...]) -> Order:
    assert job is not None
    parts = children(session, unit)
    reports = [part.result["report"] for part in parts if part.result is not None]
    failures = [{**part.problem, "targets": part.payload["targets"]} for part in parts if part.problem is not None]
    return Order("merge", {"spec": job.spec, "reports": reports, "failures": failures, "targets": []})


def _read_report(claim: Claim, value: Mapping[str, Any]) -> Answer:
    """Read a report that is about what was asked for, and what the network is that comes with it."""
    spec, report = engine.read_spec(claim.order.payload["spec"]), engine.read_report(value.get("report"))
    if report.kind != spec.kind:
        raise AnswerInvalidError(f"a report of kind {report.kind} for a job of kind {spec.kind}")
    if isinstance(report, engine.ProfileReport):
        asked = claim.order.payload["targets"] or range(len(engine.targets_of(spec)))
        if [target.index for target in report.targets] != sorted(asked):
            raise AnswerInvalidError("the report is about other targets than the job")
        return Answer(report, "reports")
    return Answer(report, "network", engine.Inspection.model_validate(value.get("inspection")))


def _keep_merged(end: End, result: Result) -> None:
    outcomes.keep_report(end, result)
    # What the parts have left is in the job's report now.
    for part in children(end.session, end.unit):
        part.result = None


def _asked_part(job: Job, payload: Mapping[str, Any]) -> Asked:
    """Measure some of a profile's targets, all of one provider."""
    spec = engine.read_spec(job.spec)
    targets, indices = engine.targets_of(spec), _INDICES.validate_python(payload.get("targets"))
    if not indices or not set(indices) <= set(range(len(targets))):
        raise ValueError(f"the job has no targets {list(indices)}")
    providers = {targets[index].provider for index in indices}
    if len(providers) != 1:
        raise ValueError(f"one unit cannot measure on {', '.join(sorted(providers))}")
    return Asked(run_queue(providers.pop()), Limits.of(spec), {"targets": list(indices)})


INSPECTION = Limits(pending_s=3600.0, runtime_s=30.0, memory_mb=2048)
# An archive of gigabytes is unpacked first.
UNPACKING = Limits(pending_s=3600.0, runtime_s=300.0, memory_mb=2048)
PRUNABILITY = Limits(3600.0, outcomes.PRUNABILITY_RUNTIME_S, outcomes.PRUNABILITY_MEMORY_MB)

KINDS: dict[str, Kind] = {
    "inspect_model": Kind(
        order=_inspect_model,
        read=_read_inspection,
        keep=outcomes.accept_upload,
        fail=outcomes.reject_upload,
        reads=("model",),
        largest_file=1,
    ),
    "inspect_dataset": Kind(
        order=_inspect_dataset,
        read=lambda _claim, value: Answer(engine.DatasetInspection.model_validate(value)),
        keep=outcomes.accept_upload,
        fail=outcomes.reject_upload,
        reads=("data",),
    ),
    "prunability": Kind(
        order=lambda *_: Order("prunability"),
        read=lambda _claim, value: Answer(engine.Prunability.model_validate(value)),
        keep=outcomes.keep_prunability,
        fail=outcomes.fail_prunability,
        reads=("model",),
        # It shares the queue of inspections, and an upload's answer comes first.
        priority=-1,
    ),
    # A whole job.
    "run": Kind(order=_run, read=_read_report, keep=outcomes.keep_report, largest_file=2, tells_steps=True),
    # Some targets of a profile, for the unit that puts all of them together.
    "part": Kind(
        order=_run,
        read=_read_report,
        keep=outcomes.keep_part,
        fail=outcomes.fail_part,
        asked=_asked_part,
        largest_file=2,
        tells_steps=True,
    ),
    "merge": Kind(order=_merge, read=_read_report, keep=_keep_merged, reads=(), needs_a_child=True),
    # The coordinator of a search.
    "search": Kind(
        order=searches.order_turn,
        read=searches.read_turn,
        keep=searches.keep_report,
        fail=searches.fail_turn,
        claimed=searches.settle_class,
        reads_trials=searches.network_for_turn,
        may_ask=searches.check_turn,
        largest_file=2,
        may_step_back=True,
    ),
    # A part of the library of a network's variants.
    "variants": Kind(
        order=searches.order_variants,
        read=searches.read_piece,
        keep=searches.keep_piece,
        asked=searches.asked_variants,
        reads=("model", "data"),
        largest_file=2,
    ),
    # A candidate of a search: it sees no sample that judges.
    "trial": Kind(
        order=searches.order_trial,
        read=searches.read_candidate,
        keep=outcomes.keep_trial,
        fail=outcomes.fail_trial,
        cancel=trials.cancel,
        claimed=lambda session, unit, *_: trials.started(session, unit),
        requeued=trials.requeued,
        asked=searches.asked_trial,
        spawned=searches.propose,
        reads=("model", "data"),
        reads_trials=searches.network_for_trial,
        largest_file=2,
    ),
}
