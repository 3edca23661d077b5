"""A profile in several units, one for each provider: what each leaves, and when the job goes on, ends or fails."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import Job, JobStatus, Unit, UnitStatus, is_final
from services import db
from services.problems import Problem
from services.transitions import advance, advance_unit, record


def is_part(unit: Unit) -> bool:
    """Tell whether another unit puts this one's result together with those of others."""
    return unit.parent_id is not None


def targets(unit: Unit) -> tuple[int, ...]:
    """Give the indices of the targets that a part measures."""
    return tuple(int(index) for index in unit.payload["targets"])


def finish_part(session: Session, job: Job, unit: Unit, report: Mapping[str, Any]) -> Problem | None:
    """Keep a part's report until all have ended; gives the problem where the job cannot go on."""
    unit.payload = {**unit.payload, "report": report}
    told = {step["index"]: step for step in steps(report)}
    job.steps = [told.get(step["index"], step) for step in job.steps]
    advance_unit(session, unit, UnitStatus.SUCCEEDED)
    record(session, job, "targets_measured", {"targets": list(targets(unit))}, unit)
    return _go_on(session, job, unit)


def fail_part(session: Session, job: Job, unit: Unit, problem: Problem) -> Problem | None:
    """Note that some targets have no result; gives the problem where the job cannot go on without them."""
    chosen, why = set(targets(unit)), {"status": "failed", "reason": problem["message"]}
    job.steps = [{**step, **why} if step["index"] in chosen else step for step in job.steps]
    unit.problem = problem
    advance_unit(session, unit, UnitStatus.FAILED)
    record(session, job, "targets_failed", {"targets": sorted(chosen), "code": problem["code"]}, unit)
    return _go_on(session, job, unit)


def parts(session: Session, parent: Unit) -> list[Unit]:
    """Give the units whose results a unit puts together, in the order of their targets."""
    found = session.scalars(select(Unit).where(Unit.parent_id == parent.id).execution_options(populate_existing=True))
    return sorted(found, key=lambda unit: min(targets(unit)))


def forget_reports(session: Session, parent: Unit) -> None:
    """Drop what the parts have left: it is in the job's report now."""
    for unit in parts(session, parent):
        unit.payload = {"targets": list(targets(unit))}


def lock_parent(session: Session, unit: Unit) -> None:
    """Lock the unit that waits for this one: units are locked before their job everywhere."""
    if unit.parent_id is not None:
        session.scalars(select(Unit.id).where(Unit.id == unit.parent_id).with_for_update()).one()


def others_run(session: Session, unit: Unit) -> bool:
    """Tell whether another unit of the same job runs."""
    asked = select(Unit.id).where(Unit.job_id == unit.job_id, Unit.status == UnitStatus.RUNNING, Unit.id != unit.id)
    return session.scalars(asked.limit(1)).first() is not None


def rest(session: Session, job: Job, unit: Unit, **data: Any) -> None:
    """Have the job's status say whether any unit of it runs now that this one does not."""
    job.progress = None
    if job.in_status is not JobStatus.RUNNING or others_run(session, unit):
        record(session, job, str(data["because"]), data, unit)
    else:
        advance(session, job, JobStatus.QUEUED, **data)


def _go_on(session: Session, job: Job, unit: Unit) -> Problem | None:
    session.flush()
    parent = session.get_one(Unit, unit.parent_id, populate_existing=True)
    every = parts(session, parent)
    if any(not is_final(part.in_status) for part in every):
        rest(session, job, unit, because="target_ended")
        return None
    if not any(part.in_status is UnitStatus.SUCCEEDED for part in every):
        advance_unit(session, parent, UnitStatus.CANCELLED)
        return next(part.problem for part in every if part.problem is not None)
    _queue(session, parent)
    rest(session, job, unit, because="targets_ended")
    return None


def _queue(session: Session, parent: Unit) -> None:
    moment = db.now(session)
    advance_unit(session, parent, UnitStatus.QUEUED)
    parent.queued_at = parent.sent_at = moment
    parent.pending_until = moment + timedelta(seconds=parent.max_pending_s)
    db.enqueue(session, parent.queue, parent.id)


def steps(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the targets of a report as a job's steps."""
    return [_step(target) for target in report["targets"]]


def _step(profile: Mapping[str, Any]) -> dict[str, Any]:
    measured, refusal = profile["measured"], profile["refusal"]
    return {
        "index": profile["index"],
        "type": profile["target"]["provider"],
        "status": "refused" if measured is None else "measured",
        "seconds": profile["seconds"],
        "reason": None if refusal is None else refusal["reason"],
        "latency": None if measured is None else _latency(measured),
    }


def _latency(measured: Mapping[str, Any]) -> dict[str, Any]:
    latency = measured["latency"]
    found = {name: latency[name] for name in ("p50_ms", "p95_ms", "p99_ms", "samples")}
    return {**found, "stable": measured["stable"]}


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Give the figures of a report that lists of jobs show."""
    return {"text": report["summary"], "targets": steps(report), "gates": gates(report["verdict"]["gates"])}


def gates(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give judged gates as lists of jobs show them."""
    return [
        {**result["gate"], **{name: result[name] for name in ("target", "measured", "bound", "outcome", "reason")}}
        for result in results
    ]
