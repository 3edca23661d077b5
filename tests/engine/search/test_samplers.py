"""Strategies on a landscape of whole numbers whose front is known: they beat random draws, and say the same twice."""

import numpy as np
import pytest

from engine.search import reinforce, samplers
from engine.search.front import hypervolume
from engine.search.knobs import Knob
from engine.search.samplers import Rated

KNOBS = [*(Knob(f"width:{place}", 7) for place in range(8)), *(Knob(f"block:{place}", 2) for place in range(4))]
KNOBS.append(Knob("precision", 4, ordered=False))


class Landscape:
    """Costs and damages of layers that add up and multiply as those of networks do, with a taste for some widths."""

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        self.cost = [random.uniform(0.5, 1.5) * np.linspace(1, 0.2, k.levels) for k in KNOBS[:12]]
        self.cost = [each * random.uniform(0.9, 1.1, len(each)) for each in self.cost]
        self.harm = [0.25 * random.lognormal(0, 1.2) * np.linspace(0, 1, k.levels) ** 2 for k in KNOBS[:12]]
        self.speed, self.noise = np.array([1.0, 0.55, 0.7, 0.9]), np.array([0.0, 0.1, 0.06, 0.02])

    def rate(self, values):
        *structure, precision = values
        cost = sum(each[v] for each, v in zip(self.cost, structure, strict=True)) / sum(each[0] for each in self.cost)
        damage = sum(each[v] for each, v in zip(self.harm, structure, strict=True)) + self.noise[precision]
        return Rated(tuple(values), (float(cost * self.speed[precision]), float(damage / (1 + damage))))


def ask(strategy, told, seed, count, rate=None):
    if strategy == "reinforce":
        return reinforce.ask(KNOBS, told, seed=seed, count=count, rate=rate)[:count]
    return samplers.ask(KNOBS, told, strategy, seed=seed, count=count, rate=rate)


def covered(strategy, landscape, seed, trials, batch):
    told = []
    while len(told) < trials:
        told += [landscape.rate(values) for values in ask(strategy, told, seed, batch)]
    return hypervolume([each.objectives for each in told], (1.1, 1.0))


@pytest.mark.parametrize(
    ("strategy", "trials", "batch"),
    # test_study.py holds it against random points of networks at every run.
    [pytest.param("tpe", 120, 8, marks=pytest.mark.soak), ("nsga2", 240, 24), ("reinforce", 192, 24)],
)
def test_a_strategy_covers_more_than_random_draws(strategy, trials, batch):
    gains = []
    for seed in range(4):
        landscape = Landscape(seed)
        drawn = [landscape.rate(values) for values in ask("random", [], seed, trials)]
        by_chance = hypervolume([each.objectives for each in drawn], (1.1, 1.0))
        gains.append(covered(strategy, landscape, seed, trials, batch) - by_chance)
    assert np.mean(gains) > 0.02, gains
    assert sum(gain > 0 for gain in gains) >= 2, gains


@pytest.mark.parametrize("strategy", ["tpe", "nsga2", "random", "reinforce"])
def test_the_same_trials_and_seed_give_the_same_answer(strategy):
    landscape = Landscape(7)
    random = np.random.default_rng(0)
    told = [landscape.rate(tuple(int(random.integers(knob.levels)) for knob in KNOBS)) for _ in range(24)]
    told.insert(5, Rated(told[0].values, None))
    once = ask(strategy, told, 3, 12)
    assert ask(strategy, told, 3, 12) == once
    assert ask(strategy, told, 4, 12) != once
    assert ask(strategy, told[:9], 3, 12) != once, "with other trials something else is asked"
    for values in once:
        assert all(0 <= value < knob.levels for value, knob in zip(values, KNOBS, strict=True))


@pytest.mark.parametrize("strategy", ["tpe", "nsga2", "reinforce"])
def test_what_breaks_limits_is_asked_for_less(strategy):
    landscape = Landscape(1)

    def limited(values):
        found = landscape.rate(values)
        return Rated(found.values, found.objectives, (found.objectives[0] - 0.45,))

    random = np.random.default_rng(0)
    told = [limited(tuple(int(random.integers(knob.levels)) for knob in KNOBS)) for _ in range(48)]
    drawn = [tuple(int(random.integers(knob.levels)) for knob in KNOBS) for _ in range(200)]
    usual = np.mean([limited(values).violations[0] <= 0 for values in drawn])
    asked = [ask(strategy, told, seed, 16, limited if strategy == "nsga2" else None) for seed in range(2)]
    inside = np.mean([limited(values).violations[0] <= 0 for values in [*asked[0], *asked[1]]])
    assert inside > usual + 0.15, (inside, usual)


def test_a_controller_makes_up_its_mind_and_failures_speak_against_a_choice():
    knobs = [Knob("a", 3, ordered=False), Knob("b", 2)]
    controller = reinforce.Controller(knobs, seed=0)
    before = controller.entropy()
    for _ in range(150):
        for head in range(5):
            values = controller.draw(head)
            failed = values[0] == 2
            controller.learn(Rated(values, None if failed else (0.2 if values[0] else 0.8, 0.5 if values[1] else 0.1)))
    assert controller.entropy() < 0.5 * before
    drawn = [controller.draw(2) for _ in range(50)]
    assert sum(values == (1, 0) for values in drawn) > 40
