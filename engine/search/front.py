"""The Pareto front of trials: which nobody beats in all, how much of the plane they cover, and what comes nearest to a goal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.goal import Minimised
from engine.measure.acceptance import quality_drop
from engine.search.feasibility import cost
from engine.search.values import Told, TrialValues

# A search may look so much further than its limits for points that come near to a goal that cannot be met.
NEAR = 0.1


@dataclass(frozen=True)
class Shortfall:
    """How far a trial is from a limit: 0 where it is held, 0.25 where a quarter of the limit is missing; infinite: not measured."""

    limit: str
    missing: float


@dataclass(frozen=True)
class Nearest:
    """A trial that comes near to a goal, and the limits that it breaks with what is missing to each, the worst first."""

    number: int
    broken: tuple[Shortfall, ...]

    @property
    def missing(self) -> float:
        """What is missing to the limit that it breaks most."""
        return self.broken[0].missing if self.broken else 0.0


@dataclass(frozen=True)
class Hindrance:
    """What stands in the way of a limit: how near trials came to it alone, and what the nearest one broke instead."""

    limit: str
    # Of the trial that comes nearest to this limit, whatever else it breaks; 0: it can be held by itself.
    missing: float
    number: int
    # Limits that this trial breaks beside it, the worst first.
    against: tuple[Shortfall, ...]


def loss(values: TrialValues) -> float | None:
    """Give what a trial lost of quality on the samples to choose by; infinite where an output is broken; None: not measured."""
    return quality_drop(values.quality)


def measured(told: Iterable[Told], minimise: Minimised) -> dict[int, tuple[float, float]]:
    """Give (cost, loss) by the number of the trial, of those that succeeded; without data every loss is 0."""
    found = {}
    for trial in told:
        if trial.state != "succeeded" or trial.values is None:
            continue
        price, lost = cost(trial.values, minimise), loss(trial.values)
        if price is not None:
            found[trial.number] = (price, 0.0 if lost is None else lost)
    return found


def pareto(points: Mapping[int, Sequence[float]]) -> tuple[int, ...]:
    """Name the points that no other beats: at most as much in every coordinate, and less in one. Of equal ones the first stays.

    In the order of the first coordinate, then of the others, then of the name. Points that are not finite are left out.
    """
    order = sorted((tuple(point), name) for name, point in points.items() if all(map(math.isfinite, point)))
    kept: list[tuple[tuple[float, ...], int]] = []
    for point, name in order:
        if not any(_covers(other, point) for other, _ in kept):
            kept.append((point, name))
    return tuple(name for _, name in kept)


def front_of(told: Iterable[Told], minimise: Minimised) -> tuple[int, ...]:
    """Name the trials that no other beats in what a goal minimises and in quality, the least of it first."""
    return pareto(measured(told, minimise))


def _covers(point: Sequence[float], other: Sequence[float]) -> bool:
    return all(left <= right for left, right in zip(point, other, strict=True))


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """Give the volume between points and the reference that points dominate, exactly; all coordinates are minimised.

    Points that are not below the reference in every coordinate add nothing. The last coordinate is swept, and the rest
    is a problem of one dimension less, so that n points take n log n in two dimensions and n^2 log n in three
    (Beume et al. 2009, https://doi.org/10.1109/TEVC.2009.2015575, for what is faster).

    Raises:
        ValueError: a point has not as many coordinates as the reference.
    """
    found = [tuple(point) for point in points]
    if any(len(point) != len(reference) for point in found):
        raise ValueError(f"points need {len(reference)} coordinates as the reference has")
    return _volume([point for point in found if all(p < r for p, r in zip(point, reference, strict=True))], reference)


def _volume(points: list[tuple[float, ...]], reference: Sequence[float]) -> float:
    if not points:
        return 0.0
    if len(reference) == 1:
        return float(reference[0]) - min(point[0] for point in points)
    if len(reference) == 2:
        return _area(points, reference)
    points = sorted(points, key=lambda point: point[-1])
    total = 0.0
    for place, point in enumerate(points):
        above = points[place + 1][-1] if place + 1 < len(points) else reference[-1]
        if above > point[-1]:
            total += (above - point[-1]) * _volume([each[:-1] for each in points[: place + 1]], reference[:-1])
    return total


def _area(points: Sequence[tuple[float, ...]], reference: Sequence[float]) -> float:
    total, lowest = 0.0, float(reference[1])
    for first, second in sorted(points):
        if second < lowest:
            total += (reference[0] - first) * (lowest - second)
            lowest = second
    return total


def nearest(shortfalls: Mapping[int, Sequence[Shortfall]], count: int = 3) -> tuple[Nearest, ...]:
    """Give the trials that come nearest to a goal: by what is missing to the limit that they break most, then in all.

    Args:
        shortfalls: By trial, how far it is from every limit.
        count: How many are given at most.

    """
    found = [
        Nearest(number, tuple(sorted(_broken(limits), key=lambda each: -each.missing)))
        for number, limits in shortfalls.items()
    ]
    found.sort(key=lambda each: (each.missing, sum(limit.missing for limit in each.broken), each.number))
    return tuple(found[:count])


def hindrances(shortfalls: Mapping[int, Sequence[Shortfall]]) -> tuple[Hindrance, ...]:
    """Say for each limit that not every trial holds, how near trials come to it alone, and at the expense of which others."""
    names = list(dict.fromkeys(limit.limit for limits in shortfalls.values() for limit in limits))
    found = []
    for name in names:
        by_trial = {
            number: next((limit.missing for limit in limits if limit.limit == name), math.inf)
            for number, limits in shortfalls.items()
        }
        if not any(by_trial.values()):
            continue
        others = {number: _broken(limits, but=name) for number, limits in shortfalls.items()}
        number = min(by_trial, key=lambda each: (by_trial[each], _worst(others[each]), each))
        against = tuple(sorted(others[number], key=lambda each: -each.missing))
        found.append(Hindrance(name, by_trial[number], number, against))
    return tuple(found)


def _broken(limits: Sequence[Shortfall], but: str | None = None) -> list[Shortfall]:
    return [limit for limit in limits if limit.missing > 0 and limit.limit != but]


def _worst(limits: Sequence[Shortfall]) -> float:
    return max((limit.missing for limit in limits), default=0.0)
