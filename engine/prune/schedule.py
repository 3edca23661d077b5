"""How much to prune: a given share, or as much as a requirement allows, found by bisection."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import onnx_ir as ir

from engine.contract import Context
from engine.graph import io
from engine.measure.acceptance import quality_drop
from engine.report.pruning_details import TriedSparsity
from engine.report.values import Refusal

DEFAULT_SPARSITY = 0.25
LARGEST_SPARSITY = 0.9
# Each halves the range that is left: sparsity is known to about 3 points.
_STEPS = 5


@dataclass(frozen=True)
class Amount:
    """How much is asked for: a share, or what it must come to, and then `sparsity` is the most that is tried."""

    sparsity: float | None = None
    max_drop: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None


class Candidate(Protocol):
    """A pruned network and whatever its maker knows of it."""

    @property
    def model(self) -> ir.Model:
        """The network."""
        ...


Made_co = TypeVar("Made_co", bound=Candidate, covariant=True)


class Source(Protocol[Made_co]):
    """Makes pruned copies of a network."""

    model: ir.Model

    def prune(self, sparsity: float) -> Made_co:
        """Give a repaired copy."""
        ...

    def sketch(self, sparsity: float) -> ir.Model:
        """Give a copy that is good for its size and speed only."""
        ...


Tried = list[TriedSparsity]


def meet(source: Source[Made_co], amount: Amount, context: Context) -> tuple[Made_co, Tried] | Refusal:
    """Give the candidate that meets what is asked for, and what was tried on the way."""
    tried: Tried = []
    if amount.max_drop is None and amount.size_ratio is None and amount.latency_ratio is None:
        return source.prune(DEFAULT_SPARSITY if amount.sparsity is None else amount.sparsity), tried
    most = LARGEST_SPARSITY if amount.sparsity is None else amount.sparsity
    wanted = _for_costs(source, amount, context, most, tried)
    if isinstance(wanted, Refusal):
        return wanted
    if amount.max_drop is None:
        return source.prune(wanted), tried
    return _for_quality(source, context, amount.max_drop, (wanted, most), tried)


def _for_quality(
    source: Source[Made_co], context: Context, limit: float, between: tuple[float, float], tried: Tried
) -> tuple[Made_co, Tried] | Refusal:
    """Prune as much as quality allows or, where size or speed want a certain share, that one if quality allows it."""

    def allowed(sparsity: float) -> bool:
        drop = quality_drop(context.evaluate(source.prune(sparsity).model))
        tried.append(TriedSparsity(sparsity=round(sparsity, 4), drop=None if drop is None else round(drop, 5)))
        context.progress(min(0.75, 0.1 * len(tried)), f"tried {sparsity:.0%}")
        return drop is not None and drop <= limit

    wanted, most = between
    if wanted > 0:
        found = wanted if allowed(wanted) else None
        reason = (
            f"The size or speed asked for takes a sparsity of {wanted:.0%}, which costs more quality than {limit:g}."
        )
    else:
        found = bisect(allowed, most, largest=True)
        reason = f"Even little pruning costs more quality than {limit:g}."
    if found is None:
        return Refusal(code="too_lossy", reason=reason, hint="Allow a larger drop, or ask for less.")
    return source.prune(found), tried


def _for_costs(
    source: Source[Candidate], amount: Amount, context: Context, most: float, tried: Tried
) -> float | Refusal:
    """Give the least sparsity that meets the limits on size and latency; 0 without such limits."""
    least = 0.0
    weights = io.weight_bytes(source.model)
    for limit, name, cost in (
        (amount.size_ratio, "size", lambda model: io.weight_bytes(model) / max(1, weights)),
        (amount.latency_ratio, "latency", lambda model: context.race([source.model, model])[1]),
    ):
        if limit is None:
            continue
        found = bisect(_within(source, cost, limit, name, tried), most, largest=False)
        if found is None:
            return Refusal(
                code="not_applicable",
                reason=f"Not even a sparsity of {most:.0%} brings the {name} down to {limit:.2f} of the original's.",
                hint="Allow more kinds of channels, or ask for less.",
            )
        least = max(least, found)
    return least


def _within(
    source: Source[Candidate], cost: Callable[[ir.Model], float], limit: float, name: str, tried: Tried
) -> Callable[[float], bool]:
    def holds(sparsity: float) -> bool:
        ratio = cost(source.sketch(sparsity))
        found = round(ratio, 4)
        tried.append(
            TriedSparsity(
                sparsity=round(sparsity, 4),
                size=found if name == "size" else None,
                latency=found if name == "latency" else None,
            )
        )
        return ratio <= limit

    return holds


def bisect(holds: Callable[[float], bool], most: float, *, largest: bool) -> float | None:
    """Give the largest sparsity up to `most` for which `holds`, or the least; None if there is none."""
    if holds(most) == largest:
        return most if largest else None
    low, high = 0.0, most
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if holds(middle) == largest:
            low = middle
        else:
            high = middle
    found = low if largest else high
    return found if found > 0 else None
