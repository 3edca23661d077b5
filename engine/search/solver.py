"""The solver of a search: the best point that a variant library promises under limits, beside the uniform one, and others.

The library adds up, networks do not quite. So limits are handed to the program in the library's terms, corrected by how far the
prediction of its last answer was from them, until the answer holds them by the prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.goal import Minimised, Precision
from engine.search.architecture import Architecture
from engine.search.choices import Choice, Quantity, Tables
from engine.search.coordinate_descent import descend
from engine.search.library import VariantLibrary
from engine.search.prediction import Prediction
from engine.search.program import Infeasible, Unsolved, optimum
from engine.search.tabulation import is_possible, point_of, tables
from engine.search.values import Point, Predicted

_ROUNDS = 4
# Limits that change by less than this between rounds are the same.
_SETTLED = 0.005
_TOLERANCE = 1e-6
# Where an answer is just outside of a limit though nothing is left to correct: so much less is asked for.
_TIGHTER = 0.99

Objective = Minimised | Literal["damage"]


@dataclass(frozen=True)
class Limits:
    """Most of each quantity that a point may have; None: as much as it likes."""

    max_damage: float | None = None
    max_latency_ratio: float | None = None
    max_bytes: float | None = None
    max_memory: float | None = None
    max_macs: float | None = None

    def by_quantity(self) -> dict[Quantity, float]:
        """Give those that are set."""
        named: dict[Quantity, float | None] = {
            "damage": self.max_damage,
            "latency": self.max_latency_ratio,
            "size": self.max_bytes,
            "memory": self.max_memory,
            "macs": self.max_macs,
        }
        return {quantity: limit for quantity, limit in named.items() if limit is not None}


@dataclass(frozen=True)
class Candidate:
    """A point inside the limits, as far as it can be predicted, and where it is from."""

    point: Point
    predicted: Predicted
    # `uniform`: the same share of everything, which is hard to beat where little has to go.
    origin: Literal["solver", "uniform"]
    # What there was to be least of.
    value: float


@dataclass(frozen=True)
class Bound:
    """A limit that stands in the way, and how little of it can be had."""

    limit: Quantity
    asked: float
    # With all other limits held; None: these cannot be held together either.
    nearest: float | None
    # With no other limit.
    alone: float

    @property
    def words(self) -> str:
        """Say it in a sentence."""
        said = f"At most {_told(self.limit, self.asked)} cannot be had"
        if self.alone > self.asked * (1 + _TOLERANCE):
            return f"{said}: the least that any variant has is {_told(self.limit, self.alone)}."
        if self.nearest is None:
            return f"{said} beside the other limits, which exclude each other already."
        return f"{said} beside the other limits: with them it is {_told(self.limit, self.nearest)} at least."


_UNITS: Mapping[Quantity, str] = {
    "latency": "of the original's time",
    "size": "bytes",
    "memory": "bytes of memory",
    "macs": "multiply-accumulates",
    "damage": "damage",
}


def _told(limit: Quantity, value: float) -> str:
    number = f"{value:.3g}" if limit in {"latency", "damage"} else f"{value:,.0f}"
    return f"{number} {_UNITS[limit]}"


def solve(
    architecture: Architecture,
    library: VariantLibrary,
    prediction: Prediction,
    *,
    minimise: Objective,
    max_damage: float | None = None,
    max_latency_ratio: float | None = None,
    max_bytes: float | None = None,
    max_memory: float | None = None,
    precisions: Sequence[Precision],
    different_from: Sequence[Point] = (),
    distance: int = 1,
) -> Point | None:
    """Give the point with the least of something inside the limits by the prediction; None where there is none.

    Args:
        architecture: Whose points these are.
        library: What each variant costs.
        prediction: What composed networks cost, from the same library; limits hold by it.
        minimise: What there is to be least of.
        max_damage: Most damage, in the library's unit.
        max_latency_ratio: Most time of a run, as a share of the original's.
        max_bytes: Most bytes of the stored network.
        max_memory: Most bytes of weights and activations.
        precisions: Those that the point may be in.
        different_from: Points of which it differs in as many groups, blocks and layers as `distance` says, where it is in
            their precision.
        distance: That many.

    """
    limits = Limits(max_damage, max_latency_ratio, max_bytes, max_memory)
    assert prediction.library is library
    found = Solver(architecture, prediction, minimise, limits, precisions).best(different_from, distance)
    return None if found is None else found.point


def candidates(
    architecture: Architecture,
    prediction: Prediction,
    *,
    minimise: Objective,
    limits: Limits,
    precisions: Sequence[Precision],
    count: int,
    distance: int = 2,
    different_from: Sequence[Point] = (),
) -> tuple[Candidate, ...]:
    """Give so many of the best points inside the limits that differ in `distance` places at least, and the best uniform one.

    The uniform one comes last, unless the solver has found it too: rankings turn over when networks are refitted and trained.
    """
    solver = Solver(architecture, prediction, minimise, limits, precisions)
    found: list[Candidate] = []
    while len(found) < count:
        other = solver.best([*different_from, *(each.point for each in found)], distance)
        if other is None:
            break
        found.append(other)
    found.sort(key=lambda each: (each.value, each.predicted.damage))
    uniform = solver.uniform()
    if uniform is not None and uniform.point not in [*different_from, *(each.point for each in found)]:
        found.append(uniform)
    return tuple(found)


def bounds(
    architecture: Architecture,
    prediction: Prediction,
    *,
    limits: Limits,
    precisions: Sequence[Precision],
) -> tuple[Bound, ...]:
    """Say which limits cannot be held together, and for each how little can be had; empty where all can be held."""
    asked = limits.by_quantity()

    def least(quantity: Quantity, held: Mapping[Quantity, float]) -> float | None:
        solver = Solver(architecture, prediction, quantity, held, precisions)
        found = solver.best((), 1)
        return None if found is None else found.value

    found = []
    for quantity, limit in asked.items():
        nearest = least(quantity, {other: value for other, value in asked.items() if other != quantity})
        if nearest is not None and nearest <= limit * (1 + _TOLERANCE):
            return ()
        alone = least(quantity, {})
        if alone is not None:
            found.append(Bound(quantity, limit, nearest, alone))
    return tuple(found)


class Solver:
    """One goal on one library. Answers for each precision are kept until what they have to differ from changes."""

    def __init__(
        self,
        architecture: Architecture,
        prediction: Prediction,
        minimise: Objective,
        limits: Limits | Mapping[Quantity, float],
        precisions: Sequence[Precision],
    ) -> None:
        self._architecture, self._library, self._prediction = architecture, prediction.library, prediction
        self._minimise: Quantity = minimise
        self._limits = limits.by_quantity() if isinstance(limits, Limits) else dict(limits)
        self._precisions = [each for each in dict.fromkeys(precisions) if is_possible(self._library, each)]
        self._kept: dict[tuple[Precision, tuple[str, ...], int], Candidate | None] = {}

    def best(self, different_from: Sequence[Point], distance: int) -> Candidate | None:
        """Give the best candidate of all precisions; of equal ones that with the least damage."""
        found = [self._best_in(precision, different_from, distance) for precision in self._precisions]
        inside = [each for each in found if each is not None]
        return min(inside, key=lambda each: (each.value, each.predicted.damage), default=None)

    def uniform(self) -> Candidate | None:
        """Give the best of the points with the same share of everything."""
        found = [
            self._candidate(made, choice, "uniform")
            for precision in self._precisions
            for made in [tables(self._architecture, self._library, precision)]
            for choice in made.uniforms()
        ]
        inside = [each for each, breaks in found if not breaks]
        return min(inside, key=lambda each: (each.value, each.predicted.damage), default=None)

    def _best_in(self, precision: Precision, different_from: Sequence[Point], distance: int) -> Candidate | None:
        others = [point for point in different_from if point.precision == precision]
        key = (precision, tuple(point.model_dump_json() for point in others), distance)
        if key not in self._kept:
            self._kept[key] = self._corrected(precision, others, distance)
        return self._kept[key]

    def _corrected(self, precision: Precision, others: Sequence[Point], distance: int) -> Candidate | None:
        made = tables(self._architecture, self._library, precision)
        apart = [made.choice(point) for point in others]
        asked, tighter = dict(self._limits), 1.0
        best: Candidate | None = None
        for _ in range(_ROUNDS):
            choice = self._answer(made, asked, apart, distance)
            if choice is None:
                break
            candidate, breaks = self._candidate(made, choice, "solver")
            if not breaks and (best is None or candidate.value < best.value):
                best = candidate
            corrected = self._in_terms_of(made, choice, candidate)
            if all(abs(corrected[each] - asked[each]) <= _SETTLED * abs(asked[each]) for each in asked):
                if not breaks:
                    break
                tighter *= _TIGHTER
            asked = {quantity: limit * tighter for quantity, limit in corrected.items()}
        return best

    def _answer(
        self, made: Tables, limits: Mapping[Quantity, float], apart: Sequence[Choice], distance: int
    ) -> Choice | None:
        try:
            return optimum(made, self._minimise, limits, different_from=apart, distance=distance)
        except Infeasible:
            return None
        except Unsolved:
            return descend(made, self._minimise, limits, different_from=apart, distance=distance)

    def _in_terms_of(self, made: Tables, choice: Choice, candidate: Candidate) -> dict[Quantity, float]:
        """Give the limits in the terms of the tables: what these say of a choice that is predicted to be at the limit."""
        said, expected = made.total(choice), self._quantities(made, candidate.point, candidate.predicted)
        return {
            quantity: limit * said[quantity] / expected[quantity]
            if min(said[quantity], expected[quantity]) > 0
            else limit
            for quantity, limit in self._limits.items()
        }

    def _candidate(self, made: Tables, choice: Choice, origin: Literal["solver", "uniform"]) -> tuple[Candidate, bool]:
        """Give the candidate of a choice, and whether it breaks a limit by the prediction."""
        point = point_of(self._architecture, made, choice)
        predicted = self._prediction.predict(point)
        expected = self._quantities(made, point, predicted)
        breaks = any(expected[quantity] > limit + _TOLERANCE * abs(limit) for quantity, limit in self._limits.items())
        return Candidate(point, predicted, origin, expected[self._minimise]), breaks

    def _quantities(self, made: Tables, point: Point, predicted: Predicted) -> dict[Quantity, float]:
        tabled = made.total(made.choice(point))
        return {
            "latency": predicted.latency_ratio,
            "size": float(predicted.size_bytes),
            "macs": float(predicted.macs),
            "damage": predicted.damage,
            # Activations are as the tables say; what they know of weights is exact.
            "memory": tabled["memory"],
        }
