"""Bring every weight to where passes look for it."""

from collections.abc import Sequence
from math import prod

import onnx_ir as ir
from onnx_ir.passes import common

from engine.graph.unshare import bypass_identities

# Fewer numbers are no weights that a report has to account for.
SMALLEST_NAMED = 1024
# Smaller constants are axes, shapes and epsilons.
_SMALLEST_WEIGHTS = 16


def lift_weights(model: ir.Model) -> None:
    """Turn weights that some exporters keep in Constant nodes into initializers, and read them past Identity nodes."""
    common.LiftConstantsToInitializersPass(size_limit=_SMALLEST_WEIGHTS)(model)
    bypass_identities(model)


def counts_as_weights(shape: Sequence[int]) -> bool:
    """Say whether a constant of this shape is a weight, and no bias, table of a normalisation or list of sizes."""
    return prod(shape) >= SMALLEST_NAMED and sum(size > 1 for size in shape) > 1
