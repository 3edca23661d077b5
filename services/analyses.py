"""What of stored networks could be pruned: worked out by a worker once somebody asks, and once for the same bytes."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import Model, ModelState, Prunability, Unit, UnitStatus
from services import artifacts, cache, db, quotas, units
from services.errors import ConflictError, RejectedError
from services.problems import Problem
from services.routing import INSPECT_QUEUE
from services.unit_kinds import PRUNABILITY
from settings import Settings

_KIND = "prunability"


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
    db.lock(session, f"{_KIND} {tenant_id} {model.artifact_digest}")
    found = _find(session, model)
    if found is not None:
        return found
    quotas.check_cpu(session, tenant_id, settings)
    unit = units.make(
        session,
        _KIND,
        tenant_id=tenant_id,
        queue=INSPECT_QUEUE,
        limits=PRUNABILITY,
        model_id=model.id,
        payload={"digest": model.artifact_digest},
    )
    row = session.get(Prunability, (tenant_id, model.artifact_digest))
    if row is None:
        row = Prunability(tenant_id=tenant_id, digest=model.artifact_digest)
        session.add(row)
    row.version, row.unit_id, row.result, row.problem = cache.version(), unit.id, None, None
    session.flush()
    return _analysis(row, unit.in_status)


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
