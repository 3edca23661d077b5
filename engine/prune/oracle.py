"""The zero-mask oracle: what was cut must equal the network in which the same channels are silenced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Samples
from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.activations import affordable_batch
from engine.graph.agreement import Feed, agreement
from engine.graph.endings import rows_may_swap
from engine.graph.verify import FLOAT_TOLERANCE
from engine.runtime import loading, sessions
from engine.target import Target

# What lossless steps are allowed too.
ROUNDING = FLOAT_TOLERANCE
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

    Both run unoptimised; kernels of another width may still add up in another order, which is what lossless steps are
    allowed too. Where the masked network itself changes by more than that when the runtime optimises it, as much is allowed:
    it is rounding that the network does not damp.
    """
    plain, optimised = (_open(masked, target, optimise=optimise) for optimise in (False, True))
    candidate = _open(pruned, target, optimise=False)
    size = fixed_batch(masked, samples) or affordable_batch(masked, samples, _SAMPLES, target=target)
    feeds = list(islice(samples.batches(size), _BATCHES))
    swapping = cache(lambda: rows_may_swap(masked))
    own, found = _difference(plain, optimised, feeds, swapping), _difference(plain, candidate, feeds, swapping)
    result = Agreement(found, max(ROUNDING, own))
    if not found <= result.tolerance:
        raise VerificationFailedError(
            f"The pruned network differs from the original with silenced channels by {found:.1e} of an output's largest"
            f" value; {result.tolerance:.1e} is rounding.",
            hint="Report the network: the analysis of its channels has a fault.",
        )
    return result


def _open(model: ir.Model, target: Target, *, optimise: bool) -> loading.Session:
    return sessions.session(io.to_bytes(model), sessions.exact_target(target), optimise=optimise)


def _difference(
    reference: loading.Session,
    other: loading.Session,
    feeds: Sequence[Feed],
    swapping: Callable[[], Mapping[str, bool]],
) -> float:
    """Compare floats; decisions (integers) only where a network gives nothing else. Infinity: they cannot be compared."""
    try:
        outputs = agreement(reference, other, feeds, swapping).outputs.values()
    except VerificationFailedError:
        return float("inf")
    return max([each.relative for each in outputs if each.is_float] or [each.relative for each in outputs], default=0.0)
