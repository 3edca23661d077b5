"""What a search is about: the spec, the network's space, and what was given; and the limits that a solver can be told."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.search.feasibility import Original
from engine.search.ledger import Ledger
from engine.search.values import Point, Predicted, Told
from engine.spec import Search

if TYPE_CHECKING:
    from engine.search.architecture import Architecture
    from engine.search.study import Network

# Measured ratios are told to the prediction in steps of this: noise below it must not change which candidates come next.
_STEP = 1.02


@dataclass(frozen=True)
class Task:
    """A search over one network."""

    spec: Search
    architecture: "Architecture"
    original: Original
    # For what takes gradients; made when it is asked for.
    network: "Callable[[], Network] | None" = None


@dataclass(frozen=True)
class Caps:
    """Limits on costs; None: no limit."""

    latency_ratio: float | None = None
    size_bytes: int | None = None

    @classmethod
    def of(cls, task: Task, ledger: Ledger) -> "Caps":
        """Read them off the goal's gates; one in milliseconds is known once a trial has timed the original."""
        ratios, sizes = [], []
        p50 = next(
            (
                each.values.p50_ms / each.values.latency.value
                for each in ledger.judged
                if each.values.latency is not None and each.values.p50_ms is not None
            ),
            None,
        )
        for gate in task.spec.gates:
            if gate.metric.startswith("latency_") and gate.rule == "max_ratio":
                ratios.append(gate.value)
            elif gate.metric.startswith("latency_") and gate.rule == "max" and p50 is not None:
                ratios.append(gate.value / p50)
            elif gate.metric == "size_bytes" and gate.rule == "max":
                sizes.append(int(gate.value))
            elif gate.metric == "size_bytes" and gate.rule == "max_ratio":
                sizes.append(int(gate.value * task.original.size_bytes))
        return cls(min(ratios, default=None), min(sizes, default=None))

    def beyond(self, predicted: Predicted) -> float:
        """Give how far a point is expected outside, as a share of the limit that it breaks most; 0 inside."""
        over = 0.0
        if self.latency_ratio is not None:
            over = max(over, predicted.latency_ratio / max(self.latency_ratio, 1e-9) - 1)
        if self.size_bytes is not None:
            over = max(over, predicted.size_bytes / max(self.size_bytes, 1) - 1)
        return over


def steady(told: Sequence[Told]) -> tuple[Told, ...]:
    """Give trials with their measured ratios in steps, so that the noise of a measurement moves no prediction."""
    return tuple(_stepped(each) for each in told)


def key_of(point: Point) -> str:
    """Name a point: equal ones have the same name."""
    return point.model_dump_json()


def _stepped(told: Told) -> Told:
    values = told.values
    if values is None or values.latency is None:
        return told
    step = round(math.log(max(values.latency.value, 1e-9)) / math.log(_STEP))
    ratio = values.latency.model_copy(update={"value": _STEP**step})
    return told.model_copy(update={"values": values.model_copy(update={"latency": ratio})})
