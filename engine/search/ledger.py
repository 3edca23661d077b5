"""The trials that a search was told of, as it reads them: what each costs, what it lost, what it was made from, which is best."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from engine.gate import FIDELITY_METRICS, Gate
from engine.goal import Goal
from engine.report.values import Interval, Quality, Ratio
from engine.search.feasibility import Feasibility, Original, cost, feasibility
from engine.search.values import Point, Told, TrialValues

# Costs that differ by less than this are the same.
_SAME = 1.01


@dataclass(frozen=True)
class Judged:
    """A trial that succeeded, held against the goal."""

    told: Told
    values: TrialValues
    found: Feasibility
    # What the goal minimises of it.
    cost: float
    # Seconds of distillation in all, with those of the trials that it goes on from.
    trained_s: float

    @property
    def number(self) -> int:
        """Its number."""
        return self.told.number

    @property
    def point(self) -> Point:
        """Its point."""
        return self.told.proposal.point

    @property
    def architecture(self) -> Point:
        """Its point without the precision."""
        return in_float(self.point)

    @property
    def order(self) -> tuple[int, float, float]:
        """What a better trial has less of: first what it breaks, then its cost; one that fails is the worse the more it misses."""
        fails = self.found.rank == 2
        return (self.found.rank, self.found.missing if fails else self.cost, self.cost)


def in_float(point: Point) -> Point:
    """Give the architecture alone: the same in 32-bit floats."""
    return point.model_copy(update={"precision": "float32", "in_float": ()})


@dataclass(frozen=True)
class Ledger:
    """All that was told, in its order."""

    goal: Goal
    original: Original
    told: tuple[Told, ...]
    judged: tuple[Judged, ...] = field(default=())

    @classmethod
    def of(cls, goal: Goal, original: Original, told: Sequence[Told]) -> Self:
        """Hold every trial against the goal."""
        by_number = {each.number: each for each in told}
        judged = []
        for each in sorted(told, key=lambda one: one.number):
            if each.state != "succeeded" or each.values is None:
                continue
            price = cost(each.values, goal.minimise)
            judged.append(
                Judged(
                    each,
                    each.values,
                    feasibility(each.values, goal, original, told),
                    # Where it cannot be measured here, the next best thing to go by.
                    float(each.values.size_bytes) if price is None else price,
                    trained_s(by_number, each),
                )
            )
        return cls(goal, original, tuple(sorted(told, key=lambda one: one.number)), tuple(judged))

    @cached_property
    def by_number(self) -> Mapping[int, Judged]:
        """Those that succeeded."""
        return {each.number: each for each in self.judged}

    def best(self) -> Judged | None:
        """Give the trial with the least cost among those that hold every limit, else the one that comes nearest.

        Of such as cost the same but for the noise of a measurement, the one that loses least.
        """
        first = min(self.judged, key=lambda each: each.order, default=None)
        if first is None or first.found.rank == 2:
            return first
        alike = [
            each for each in self.judged if each.found.rank == first.found.rank and each.cost <= _SAME * first.cost
        ]
        return min(alike, key=lambda each: (each.found.strain, each.cost, each.number))

    def of_stage(self, *stages: str) -> Iterator[Judged]:
        """Yield the trials of some stages."""
        return (each for each in self.judged if each.told.proposal.stage in stages)

    def original_judged(self) -> Feasibility:
        """Hold the network as it was given against the goal: it is what it is like, nothing is lost, and every ratio is 1."""
        one = Ratio(value=1.0, interval=Interval(low=1.0, high=1.0))
        timed = next((each.values for each in self.judged if each.values.latency is not None), None)
        p50 = p99 = None
        if timed is not None and timed.latency is not None:
            p50 = None if timed.p50_ms is None else timed.p50_ms / timed.latency.value
            p99 = None if timed.p99_ms is None or timed.p99 is None else timed.p99_ms / timed.p99.value
        values = TrialValues(
            size_bytes=self.original.size_bytes,
            macs=self.original.macs,
            parameters=self.original.parameters,
            latency=None if timed is None else one,
            p99=None if p99 is None else one,
            p50_ms=p50,
            p99_ms=p99,
            quality=self._original_quality(),
            seconds=0.0,
        )
        # What no trial measures of it would leave it in doubt, and what is slower but surely near enough would be better.
        asked = tuple(gate for gate in self.goal.subject_to if not _beside_original(gate))
        return feasibility(values, self.goal.model_copy(update={"subject_to": asked}), self.original, self.told)

    def _original_quality(self) -> tuple[Quality, ...]:
        """Give the metrics of labels as the original has them, which every trial was measured beside."""
        measured = next((each.values.quality for each in self.judged if each.values.quality), ())
        return tuple(_of_original(each, each.original) for each in measured if each.original is not None)

    def original_cost(self) -> float | None:
        """Give what the goal minimises of the network as it was given; None where only a trial could measure it."""
        match self.goal.minimise:
            case "latency":
                return 1.0
            case "size":
                return float(self.original.size_bytes)
            case "macs":
                return float(self.original.macs)
            case "memory":
                return None


def trained_s(by_number: Mapping[int, Told], trial: Told) -> float:
    """Give the seconds of distillation that are in a trial's network, with those that it inherited."""
    total, seen, at = 0.0, set[int](), trial
    while at.number not in seen:
        seen.add(at.number)
        total += at.proposal.train_s
        parent = at.proposal.inherits
        if parent is None or parent not in by_number:
            break
        at = by_number[parent]
    return total


def _beside_original(gate: Gate) -> bool:
    """Say whether a limit is on how far a network is from the original."""
    return gate.rule == "max_drop" or gate.metric in FIDELITY_METRICS


def _of_original(measured: Quality, value: float) -> Quality:
    """Give what was measured of a trial as it would be of the original: as uncertain, and without a difference."""
    around = measured.compressed_interval
    if around is not None:
        moved = value - measured.compressed
        around = around.model_copy(update={"low": around.low + moved, "high": around.high + moved})
    still = Interval(low=0.0, high=0.0)
    return measured.model_copy(
        update={"compressed": value, "difference": 0.0, "interval": still, "compressed_interval": around}
    )
