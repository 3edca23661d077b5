"""What of stored networks could be pruned: worked out by a worker once somebody asks, and once for the same bytes."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import Model, ModelState, Prunability, Unit, UnitStatus, new_id
from services import artifacts, cache, db, quotas
from services.errors import ConflictError, RejectedError
from services.problems import Problem, problem
from services.routing import INSPECT_QUEUE
from settings import Settings

KIND = "prunability"
RUNTIME_S = 300.0
MEMORY_MB = 4096
_PENDING_S = 3600.0
# It shares the queue of inspections, and an upload's answer comes first.
_PRIORITY = -1
_LIMITS = {
    "runtime_limit": problem(
        "runtime_limit", f"The network's analysis did not end within {RUNTIME_S:.0f} s.", blame="user"
    ),
    "memory_limit": problem(
        "memory_limit", f"The network's analysis needs more than {MEMORY_MB} MiB of memory.", blame="user"
    ),
    "process_crashed": problem("process_crashed", "The network's analysis crashed each time.", blame="service"),
}


@dataclass(frozen=True)
class Analysis:
    """How far it is: the unit's status, and the result or the reason why there is none."""

    unit_id: str
    status: UnitStatus
    version: str
    digest: str
    result: dict[str, Any] | None
    problem: Problem | None


def find(session: Session, tenant_id: str, model_id: str) -> Analysis | None:
    """Give the analysis of a network, None where it has to be started: there is none, or what ended it has passed.

    Raises NotFoundError, ConflictError where the network is not ready, RejectedError where it was rejected.
    """
    return _find(session, artifacts.get_model(session, tenant_id, model_id))


def start(session: Session, tenant_id: str, model_id: str, settings: Settings) -> Analysis:
    """Have the network analysed, unless somebody else had so just before; raises as `find` does, and QuotaError."""
    model = artifacts.use_model(session, tenant_id, model_id)
    db.lock(session, f"{KIND} {tenant_id} {model.artifact_digest}")
    found = _find(session, model)
    if found is not None:
        return found
    quotas.check_cpu(session, tenant_id, settings)
    unit = _queue(session, model)
    row = session.get(Prunability, (tenant_id, model.artifact_digest))
    if row is None:
        row = Prunability(tenant_id=tenant_id, digest=model.artifact_digest)
        session.add(row)
    row.version, row.unit_id, row.result, row.problem = cache.version(), unit.id, None, None
    session.flush()
    return _analysis(row, unit.in_status)


def finish(session: Session, unit: Unit, result: dict[str, Any]) -> None:
    """Keep what a locked unit has found."""
    row = _row(session, unit)
    if row is not None:
        row.result = result


def fail(session: Session, unit: Unit, reason: Problem) -> None:
    """Keep why a locked unit has found nothing."""
    row = _row(session, unit)
    if row is not None:
        row.problem = _LIMITS.get(reason["code"], reason)


def _find(session: Session, model: Model) -> Analysis | None:
    if model.in_state is ModelState.REJECTED:
        raise RejectedError("The model was rejected.", code="model_rejected", problem=model.problem)
    if model.in_state is not ModelState.READY:
        raise ConflictError(f"The model is {model.state}; it has to be ready first.", code="model_not_ready")
    found = session.execute(
        select(Prunability, Unit.status)
        .join(Unit, Unit.id == Prunability.unit_id)
        .where(
            Prunability.tenant_id == model.tenant_id,
            Prunability.digest == model.artifact_digest,
            Prunability.version == cache.version(),
        )
        .execution_options(populate_existing=True)
    ).one_or_none()
    if found is None or (found[0].problem or {}).get("retryable"):
        return None
    return _analysis(found[0], UnitStatus(found[1]))


def _analysis(row: Prunability, status: UnitStatus) -> Analysis:
    return Analysis(row.unit_id, status, row.version, row.digest, row.result, row.problem)


def _row(session: Session, unit: Unit) -> Prunability | None:
    """Give the row that waits for the unit: none where the network was deleted, or another one was asked since."""
    asked = select(Prunability).where(Prunability.tenant_id == unit.tenant_id, Prunability.unit_id == unit.id)
    return session.scalars(asked.where(Prunability.digest == unit.payload["digest"])).one_or_none()


def _queue(session: Session, model: Model) -> Unit:
    moment = db.now(session)
    unit = Unit(
        id=new_id("unt"),
        tenant_id=model.tenant_id,
        kind=KIND,
        queue=INSPECT_QUEUE,
        status=UnitStatus.QUEUED,
        priority=_PRIORITY,
        model_id=model.id,
        payload={"digest": model.artifact_digest},
        max_pending_s=_PENDING_S,
        max_runtime_s=RUNTIME_S,
        max_memory_mb=MEMORY_MB,
        crashed_steps=[],
        created_at=moment,
        queued_at=moment,
        pending_until=moment + timedelta(seconds=_PENDING_S),
        sent_at=moment,
    )
    session.add(unit)
    session.flush()
    db.enqueue(session, unit.queue, unit.id)
    return unit
