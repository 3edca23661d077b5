"""The integer program and the descent, held against every choice of small networks."""

from dataclasses import replace

import numpy as np
import pytest

from engine.search.choices import Choice
from engine.search.coordinate_descent import descend, distance
from engine.search.program import Infeasible, Unsolved, optimum
from tests.engine.search.choice_cases import every_choice, tables

QUANTITIES = ("latency", "size", "macs", "memory", "damage")


def counted(made):
    return [(choice, made.total(choice)) for choice in every_choice(made)]


def least(counted, minimise, limits):
    inside = [t for _, t in counted if all(t[each] <= limit * (1 + 1e-9) for each, limit in limits.items())]
    return min((total[minimise] for total in inside), default=None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("minimise", QUANTITIES)
def test_nothing_inside_the_limits_is_better(seed, minimise):
    made = tables(seed, blocks=seed % 3, layers=3 if seed % 2 else 4, variants=1 + seed % 2)
    every = counted(made)
    whole = made.total(made.whole)
    random = np.random.default_rng(seed)
    for share in (0.9, 0.6):
        limits = {
            q: whole[q] * share for q in random.permutation([each for each in QUANTITIES[:4] if each != minimise])[:2]
        }
        if minimise != "damage":
            limits["damage"] = whole["damage"] + float(random.uniform(0.05, 0.6))
        best = least(every, minimise, limits)
        if best is None:
            with pytest.raises(Infeasible):
                optimum(made, minimise, limits)
            continue
        total = made.total(optimum(made, minimise, limits))
        assert all(total[each] <= limit * (1 + 1e-6) for each, limit in limits.items())
        assert total[minimise] == pytest.approx(best, rel=2e-3, abs=1e-6)


def test_what_cannot_be_is_said():
    made = tables(1)
    least_time = min(total["latency"] for _, total in counted(made))
    with pytest.raises(Infeasible):
        optimum(made, "damage", {"latency": least_time * 0.99})
    optimum(made, "damage", {"latency": least_time * 1.001})


def test_where_nothing_is_to_be_chosen_it_is_that_or_nothing():
    made = replace(tables(1, groups=1, blocks=0, layers=0), groups=(), moments=())
    nothing = Choice((), (), ())
    cost = made.total(nothing)["latency"]
    for minimise in QUANTITIES:
        assert optimum(made, minimise, {"latency": cost * 1.001}) == nothing
    with pytest.raises(Infeasible):
        optimum(made, "damage", {"latency": cost * 0.99})
    with pytest.raises(Infeasible):
        optimum(made, "latency", {}, different_from=[nothing])


def test_answers_differ_in_as_many_places_as_asked_and_get_no_better():
    made = tables(2, groups=4, blocks=2, layers=4)
    limits = {"latency": made.total(made.whole)["latency"] * 0.7}
    every = counted(made)
    found: list[Choice] = []
    damages = []
    for _ in range(5):
        choice = optimum(made, "damage", limits, different_from=found, distance=2)
        assert all(distance(made, choice, other) >= 2 for other in found)
        allowed = [
            total["damage"]
            for each, total in every
            if total["latency"] <= limits["latency"] and all(distance(made, each, other) >= 2 for other in found)
        ]
        damages.append(made.total(choice)["damage"])
        assert damages[-1] == pytest.approx(min(allowed), rel=2e-3)
        found.append(choice)
    assert damages == sorted(damages)


def test_of_equal_choices_the_harmless_one_is_taken():
    made = tables(3, variants=2)
    # Nothing limits anything and the whole network damages least.
    total = made.total(optimum(made, "damage", {}))
    assert total["damage"] == pytest.approx(min(t["damage"] for _, t in counted(made)))
    fast = made.total(optimum(made, "latency", {"damage": 0.2}))
    equal = [t for _, t in counted(made) if t["latency"] <= fast["latency"] * (1 + 1e-6) and t["damage"] <= 0.2]
    assert fast["damage"] <= min(t["damage"] for t in equal) + 2e-3


@pytest.mark.parametrize("seed", range(4))
def test_descent_comes_near_to_the_optimum_and_keeps_the_limits(seed):
    made = tables(seed, groups=5, blocks=2, layers=6, widths=4)
    whole = made.total(made.whole)
    limits = {"latency": whole["latency"] * 0.6, "size": whole["size"] * 0.8}
    best, found = optimum(made, "damage", limits), descend(made, "damage", limits)
    assert found is not None
    total = made.total(found)
    assert all(total[each] <= limit * (1 + 1e-6) for each, limit in limits.items())
    assert total["damage"] <= made.total(best)["damage"] * 1.5 + 1e-9
    assert descend(made, "damage", limits) == found
    other = descend(made, "damage", limits, different_from=[found], distance=2)
    assert other is None or distance(made, other, found) >= 2
    assert descend(made, "damage", {"latency": 1e-6}) is None


def test_a_program_that_is_too_large_is_left_to_the_descent():
    with pytest.raises(Unsolved):
        optimum(tables(0, groups=3, blocks=0, layers=40, widths=90, variants=1), "latency", {})


def test_points_and_choices_are_the_same_thing():
    made = tables(4, groups=4, blocks=2, variants=3)
    for choice in list(every_choice(made))[::17]:
        point = made.point(choice)
        again = made.choice(point)
        assert made.point(again) == point
        assert made.total(again) == pytest.approx(made.total(choice))
