"""Recipes by name as they stand here and now: what each would be for a network, and what it would take."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

import engine
from services import artifacts, compatibility, workers
from services.errors import ConflictError, RejectedError
from services.job_inputs import JobInputs


@dataclass(frozen=True)
class Offer:
    """A recipe, the passes that it would do without, and its estimate; or why it could not be done at all."""

    described: dict[str, Any]
    left_out: list[dict[str, Any]]
    estimate: "engine.Estimate | None" = None
    problem: RejectedError | None = None


def offers(
    session: Session, tenant_id: str, *, model_id: str | None, dataset_id: str | None, target: dict[str, Any]
) -> list[Offer]:
    """Give every recipe for a target, and where a network is named what of it could be done and in what time.

    Raises NotFoundError for names that are not the tenant's, ConflictError for a network that is not ready.
    """
    model = artifacts.get_model(session, tenant_id, model_id) if model_id else None
    dataset = artifacts.get_dataset(session, tenant_id, dataset_id) if dataset_id else None
    if model is not None and model.inspection is None:
        raise ConflictError(f"The model is {model.state}; it has to be ready first.", code="model_not_ready")
    inputs = None if model is None else JobInputs(model, dataset=dataset)
    return [_offer(session, described, inputs, target) for described in engine.list_recipes()]


def _offer(session: Session, described: dict[str, Any], inputs: JobInputs | None, target: dict[str, Any]) -> Offer:
    spec = engine.read_spec({"recipe": described["name"], "target": target})
    trains = workers.trains(session, spec)
    inspection = inputs.inspection() if inputs is not None else None
    try:
        # Without data a job would be refused; here it is asked what it would take with some.
        adapted = engine.adapt_recipe(spec, inspection, has_data=True, trains=trains)
    except engine.EngineError as error:
        refused = RejectedError(error.message, code=error.code, hint=error.hint, problem=error.problem())
        return Offer(described, [], problem=refused)
    assert isinstance(adapted, engine.Compress)
    left_out = [each.model_dump(mode="json") for each in adapted.recipe.left_out]
    return Offer(described, left_out, compatibility.estimate(inputs, adapted) if inputs is not None else None)
