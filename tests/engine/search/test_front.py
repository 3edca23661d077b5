"""The front held against its definition, the volume against counting cells, and what comes nearest to a goal."""

import math

import numpy as np
import pytest

from engine.report.values import Interval, Quality, Ratio
from engine.search import front
from engine.search.front import Shortfall
from engine.search.values import Point, Proposal, Told, TrialValues


def trial(number, latency, drop, *, state="succeeded", size=1000, memory=None):
    interval = Interval(low=0, high=1)
    quality = Quality(
        metric="top1",
        original=0.9,
        compressed=0.9 - drop,
        difference=-drop,
        interval=interval,
        standard_error=0.0,
        samples=100,
    )
    values = TrialValues(
        size_bytes=size,
        macs=10,
        parameters=5,
        latency=None if latency is None else Ratio(value=latency, interval=interval),
        peak_memory=memory,
        quality=(quality,),
        seconds=1,
    )
    proposal = Proposal(point=Point(), because="a test")
    return Told(number=number, proposal=proposal, state=state, values=values if state == "succeeded" else None)


def test_the_front_is_what_nobody_dominates():
    random = np.random.default_rng(0)
    for dimensions in (2, 3):
        points = {number: tuple(random.integers(0, 6, dimensions)) for number in range(40)}
        unbeaten = {
            point
            for point in points.values()
            if not any(
                all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points.values()
            )
        }
        found = front.pareto(points)
        assert {points[number] for number in found} == unbeaten
        assert len(found) == len(unbeaten), "of equal points one stays"
        assert all(points[number] not in {points[n] for n in range(number)} for number in found), "and it is the first"
    assert front.pareto({1: (math.inf, 0), 2: (1, math.nan)}) == ()


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_hypervolume_is_that_of_the_cells_that_are_dominated(dimensions):
    random = np.random.default_rng(dimensions)
    side = 5
    cells = np.stack(np.meshgrid(*[np.arange(side)] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    for count in (1, 3, 9):
        points = random.integers(0, side + 2, (count, dimensions))
        counted = sum(any((point <= cell).all() for point in points) for cell in cells)
        assert front.hypervolume(points.tolist(), [side] * dimensions) == counted
    assert front.hypervolume([], [1.0] * dimensions) == 0
    with pytest.raises(ValueError, match="coordinates"):
        front.hypervolume([[0.0] * (dimensions + 1)], [1.0] * dimensions)


def test_trials_are_measured_by_what_the_goal_minimises_and_what_they_lost():
    told = [
        trial(0, 0.5, 0.01, size=400, memory=7),
        trial(1, None, 0.02, size=300),
        trial(2, 0.1, 0.0, state="failed"),
        trial(3, 0.4, 0.03, size=500, memory=9),
    ]
    assert front.measured(told, "latency") == {0: (0.5, pytest.approx(0.01)), 3: (0.4, pytest.approx(0.03))}
    assert front.measured(told, "size") == {
        0: (400, pytest.approx(0.01)),
        1: (300, pytest.approx(0.02)),
        3: (500, pytest.approx(0.03)),
    }
    assert set(front.measured(told, "memory")) == {0, 3}
    assert {cost for cost, _ in front.measured(told, "macs").values()} == {10.0}
    assert front.front_of(told, "latency") == (3, 0)


def test_the_nearest_trials_and_what_stands_in_the_way():
    shortfalls = {
        0: [Shortfall("size", 0.0), Shortfall("drop", 0.5)],
        1: [Shortfall("size", 0.2), Shortfall("drop", 0.1)],
        2: [Shortfall("size", 0.2), Shortfall("drop", 0.0)],
        3: [Shortfall("size", math.inf), Shortfall("drop", 0.0)],
    }
    near = front.nearest(shortfalls)
    assert [each.number for each in near] == [2, 1, 0]
    assert near[1].broken == (Shortfall("size", 0.2), Shortfall("drop", 0.1))
    by_limit = {each.limit: each for each in front.hindrances(shortfalls)}
    assert (by_limit["size"].number, by_limit["size"].missing) == (0, 0.0)
    assert by_limit["size"].against == (Shortfall("drop", 0.5),)
    assert (by_limit["drop"].number, by_limit["drop"].against) == (2, (Shortfall("size", 0.2),))
    assert front.hindrances({0: [Shortfall("size", 0.0)]}) == ()
    assert front.nearest({0: [Shortfall("size", 0.0)]})[0].broken == ()
