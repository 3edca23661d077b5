"""The zero-mask oracle: what was cut must equal the network in which the same channels are silenced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Samples
from engine.errors import VerificationFailedError
from engine.graph import io
from engine.runtime import loading, sessions
from engine.target import Target

# Rounding of sums in float32.
TOLERANCE = 1e-5
_BATCHES = 2
_SAMPLES = 4


@dataclass(frozen=True)
class Agreement:
    """The largest difference as a share of an output's largest value, and what was allowed."""

    difference: float
    tolerance: float

    def worse(self, other: "Agreement") -> "Agreement":
        """Give the one that is closer to its limit."""
        return max(self, other, key=lambda each: each.difference / each.tolerance)


def compare(masked: ir.Model, pruned: ir.Model, samples: Samples, target: Target) -> Agreement:
    """Compare all outputs on real samples; raises VerificationFailedError where they differ.

    Both run unoptimised, so that kernels add up in the same order. Where the masked network itself changes by more than
    the tolerance when the runtime optimises it, that much is allowed: it is rounding that the network does not damp.
    """
    plain, optimised = (_open(masked, target, optimise=optimise) for optimise in (False, True))
    candidate = _open(pruned, target, optimise=False)
    own = found = 0.0
    size = fixed_batch(masked, samples) or _SAMPLES
    for number, feed in enumerate(samples.batches(size)):
        if number == _BATCHES:
            break
        expected = plain.run(feed)
        own = max(own, _difference(optimised.run(feed), expected))
        found = max(found, _difference(candidate.run(feed), expected))
    agreement = Agreement(found, max(TOLERANCE, own))
    if not found <= agreement.tolerance:
        raise VerificationFailedError(
            f"The pruned network differs from the original with silenced channels by {found:.1e} of an output's largest"
            f" value; {agreement.tolerance:.1e} is rounding.",
            hint="Report the network: the analysis of its channels has a fault.",
        )
    return agreement


def _open(model: ir.Model, target: Target, *, optimise: bool) -> loading.Session:
    return sessions.session(io.to_bytes(model), target, optimise=optimise)


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Compare floats; decisions (integers) only where a network gives nothing else."""
    floats = [name for name, array in expected.items() if np.asarray(array).dtype.kind == "f"]
    names: Sequence[str] = floats or list(expected)
    largest = 0.0
    for name in names:
        left, right = np.asarray(found[name], np.float64), np.asarray(expected[name], np.float64)
        if left.shape != right.shape:
            return float("inf")
        if not left.size:
            continue
        finite = np.isfinite(right)
        if (np.isfinite(left) != finite).any():
            return float("inf")
        scale = float(np.abs(right[finite]).max(initial=0.0))
        largest = max(largest, float(np.abs(left[finite] - right[finite]).max(initial=0.0)) / max(scale, 1e-12))
    return largest
