"""Bring every weight to where passes look for it."""

import onnx_ir as ir
from onnx_ir.passes import common

from engine.graph.unshare import bypass_identities

# Smaller constants are axes, shapes and epsilons.
_SMALLEST_WEIGHTS = 16


def lift_weights(model: ir.Model) -> None:
    """Turn weights that some exporters keep in Constant nodes into initializers, and read them past Identity nodes."""
    common.LiftConstantsToInitializersPass(size_limit=_SMALLEST_WEIGHTS)(model)
    bypass_identities(model)
