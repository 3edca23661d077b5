"""What is left of a named recipe where a network or the workers cannot do all of it; recipes of one's own are never changed."""

from engine.contract import Pass
from engine.errors import SpecInvalidError
from engine.inspection import Inspection
from engine.spec import Compress, LeftOut, Spec
from engine.train.training_support import TRAINING_HINT


def adapt_recipe(spec: Spec, inspection: Inspection | None, *, has_data: bool, trains: bool) -> Spec:
    """Leave out of a recipe by name what cannot be done, each with the reason.

    Args:
        spec: any; one whose recipe has no name is given back as it is.
        inspection: of the network that the recipe works on; None while it is still to be made.
        has_data: whether the job names a dataset.
        trains: whether the job finds a worker with PyTorch.

    Raises:
        SpecInvalidError: there are no data, or nothing that changes what the network computes is left.
    """
    if not isinstance(spec, Compress) or spec.recipe.name is None:
        return spec
    recipe = spec.recipe
    if not has_data:
        raise SpecInvalidError(
            f"The recipe `{recipe.name}` needs data, but the job names no dataset.",
            hint="Some hundred samples without labels are enough; labels make the verdict one of accuracy.",
        )
    kept: list[Pass] = []
    left_out = list(recipe.left_out)
    for step in recipe.passes:
        reason = _why_not(step, spec, inspection, trains=trains)
        if reason is None:
            kept.append(step)
        else:
            left_out.append(LeftOut(type=step.type, reason=reason))
    if all(step.lossless for step in kept):
        told = "; ".join(f"{each.type}: {each.reason}" for each in left_out)
        raise SpecInvalidError(f"Nothing of the recipe `{recipe.name}` can be done that gains: {told}.")
    adapted = recipe.model_copy(update={"passes": tuple(kept), "left_out": tuple(left_out)})
    return spec.model_copy(update={"recipe": adapted})


def _why_not(step: Pass, spec: Compress, inspection: Inspection | None, *, trains: bool) -> str | None:
    if step.trains and not trains:
        return f"no worker for `{spec.target.provider}` has PyTorch. {TRAINING_HINT}"
    refusal = None if inspection is None else step.requires(inspection)
    return None if refusal is None else refusal.reason.rstrip(".")
