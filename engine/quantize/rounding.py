"""Rounds a layer's int8 weights so that its outputs change least (GPTQ), on a given grid and under the pairs' limit."""

import numpy as np
import numpy.typing as npt

from engine.quantize.integer_types import INT8_MAX, WeightRule
from engine.solve.gptq import damped, root_factor
from engine.solve.pairs import PAIR_LIMIT

_BLOCK = 128
_TOP = {"int8": INT8_MAX, "pairs": INT8_MAX, "int7": 64, "uint8": INT8_MAX}

Floats = npt.NDArray[np.floating]


def round_with(
    weights: Floats, xtx: Floats, scale: npt.NDArray[np.float32], rule: WeightRule, *, damping: float = 0.01
) -> npt.NDArray[np.int8]:
    """Give codes for weights (outputs, inputs) with one scale per output; inputs are in the kernel's order.

    Each input is rounded in turn and its error made good by those still free, as in `engine.solve.gptq`. Under the rule
    `pairs`, the second of two paired weights is kept where the two cannot overflow together; what that costs is made good too.
    """
    outputs, inputs = weights.shape
    top = _TOP[rule]
    root = root_factor(damped(xtx, damping))
    # By column: what each input takes over from the errors of those before it.
    shares = root / np.diag(root)
    given = np.array(weights.T, np.float64, order="C")
    moved = given.copy()
    steps = scale.astype(np.float64)
    codes = np.zeros((inputs, outputs), np.int8)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.empty((stop - start, outputs))
        for row in range(start, stop):
            moved[row] += shares[start:row, row] @ errors[: row - start]
            code = np.clip(np.rint(moved[row] / steps), -top, top)
            if rule == "pairs" and row % 2:
                first = codes[row - 1].astype(np.float64)
                code = np.clip(code, -PAIR_LIMIT - np.minimum(first, 0), PAIR_LIMIT - np.maximum(first, 0))
            codes[row] = code
            errors[row - start] = given[row] - code * steps
        moved[stop:] += shares[start:stop, stop:].T @ errors
    return np.ascontiguousarray(codes.T)
