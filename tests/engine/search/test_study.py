"""Whole studies in a made-up world: what they propose is new, inside limits, the same twice, and better than random points."""

import hashlib
import math

import pytest

from engine.gate import Gate
from engine.goal import Goal
from engine.report.values import Interval, Quality, Ratio
from engine.search import solver, study
from engine.search.damage import damage_of
from engine.search.front import hypervolume
from engine.search.prediction import Prediction
from engine.search.solver import Limits
from engine.search.values import Point, Proposal, Told, TrialValues
from tests.engine.search.made_up_library import architecture_of, library_of
from tests.engine.train.quantized_networks import parsed

GOAL = Goal(minimise="latency")
SAMPLED = ("tpe", "nsga2", "reinforce")


class World:
    """Networks whose damage is that of their variants, more where many come together, and not quite as predicted."""

    def __init__(self, network, seed=0):
        self.model = parsed(network)
        self.architecture = architecture_of(self.model, precisions=("float32", "static", "dynamic"))
        self.library = library_of(self.model, self.architecture, seed=seed)
        self.plain = Prediction.of(self.architecture, self.library, [])

    def told(self, number, proposal, *, state="succeeded", jitter=0.0):
        if state != "succeeded":
            return Told(number=number, proposal=proposal, state=state)
        key = proposal.point.model_dump_json()
        luck = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 1000 / 1000
        predicted = self.plain.predict(proposal.point)
        damage = predicted.damage * (1 + predicted.damage) * math.exp(0.6 * (luck - 0.5))
        around = Interval(low=damage, high=damage)
        kl = Quality(
            metric="kl", original=None, compressed=damage, difference=None, interval=around, standard_error=0, samples=9
        )
        values = TrialValues(
            size_bytes=predicted.size_bytes,
            macs=predicted.macs,
            parameters=1,
            latency=Ratio(value=predicted.latency_ratio * (1 + jitter), interval=around),
            quality=(kl,),
            seconds=1,
        )
        return Told(number=number, proposal=proposal, state="succeeded", values=values)

    def propose(self, told, strategy, *, seed=0, count=6, goal=GOAL, **more):
        prediction = Prediction.of(self.architecture, self.library, told)
        return study.propose(
            self.architecture, prediction, told, strategy=strategy, seed=seed, count=count, goal=goal, **more
        )

    def search(self, strategy, *, seed=0, trials=24, warm=()):
        told = [self.told(number, Proposal(point=point, because="warm")) for number, point in enumerate(warm)]
        while len(told) < trials:
            told += [self.told(len(told) + n, each) for n, each in enumerate(self.propose(told, strategy, seed=seed))]
        return told

    def volume(self, told):
        places = [
            (self.plain.predict(each.proposal.point).latency_ratio, damage / (damage + 0.1))
            for each in told
            if (damage := damage_of(each.values.quality)) is not None
        ]
        return hypervolume(places, (1.1, 1.0))


@pytest.fixture
def world(residual_cnn):
    return World(residual_cnn())


def test_a_study_covers_more_than_random_points(residual_cnn):
    for seed in range(2):
        world = World(residual_cnn(), seed)
        at_random = world.volume(world.search("random", seed=seed))
        for strategy in SAMPLED:
            assert world.volume(world.search(strategy, seed=seed)) > at_random, (strategy, seed)


@pytest.mark.parametrize("strategy", [*SAMPLED, "random", "auto"])
def test_the_same_trials_give_the_same_proposals_whatever_the_clock_said(world, strategy):
    warm = [world.architecture.uniform(share, precision="static") for share in (1.0, 0.75, 0.5)]
    proposals = [Proposal(point=point, because="warm") for point in warm]
    told = [world.told(number, each) for number, each in enumerate(proposals)]
    late = [world.told(number, each, jitter=0.3 * number) for number, each in enumerate(proposals)]
    once = world.propose(told, strategy)
    assert world.propose(told, strategy) == once
    assert world.propose(late, strategy) == once
    assert world.propose(told, strategy, seed=1) != once
    assert len(once) == 6
    points = [each.point for each in once]
    assert len({point.model_dump_json() for point in points}) == len(points)
    assert not any(point in warm for point in points), "what was tried is not tried again"
    for each in once:
        world.architecture.check(each.point)
        assert world.architecture.normalise(each.point) == each.point


@pytest.mark.parametrize("strategy", SAMPLED)
def test_trials_that_failed_are_known_and_not_proposed_again(world, strategy):
    first = world.propose([], strategy)
    failed = [world.told(number, each, state="failed") for number, each in enumerate(first)]
    cancelled = [world.told(len(failed), Proposal(point=world.architecture.smallest, because="x"), state="cancelled")]
    again = world.propose([*failed, *cancelled], strategy)
    assert again
    assert not {each.point.model_dump_json() for each in again} & {each.point.model_dump_json() for each in first}
    assert world.architecture.smallest not in [each.point for each in again]


def test_the_solver_warms_a_study_up(world):
    limits = Limits(max_damage=0.3)
    found = solver.candidates(
        world.architecture,
        world.plain,
        minimise="latency",
        limits=limits,
        precisions=world.architecture.precisions,
        count=6,
    )
    warm = world.search("tpe", warm=[each.point for each in found], trials=12)
    assert world.volume(warm) >= world.volume(warm[: len(found)])
    assert world.volume(warm) > world.volume(world.search("random", trials=12))


@pytest.mark.parametrize("strategy", SAMPLED)
def test_proposals_are_expected_to_be_near_the_limits(world, strategy):
    whole = world.plain.predict(Point()).size_bytes
    goal = Goal(minimise="latency", subject_to=(Gate(metric="size_bytes", rule="max_ratio", value=0.4),))
    assert study.limits_of(goal, world.plain) == Limits(
        max_bytes=pytest.approx(0.4 * world.library.structure.file_bytes)
    )
    told = [world.told(0, Proposal(point=Point(precision="static"), because="warm"))]
    proposals = world.propose(told, strategy, goal=goal)
    screened = [each for each in proposals if "prediction is right" not in each.because]
    assert len(screened) >= 4
    assert all(each.predicted.size_bytes <= 0.4 * 1.11 * whole for each in screened)
    limits = Limits(max_damage=0.1, max_bytes=0.4 * whole)
    cheapest = [
        each
        for each in world.propose(told, strategy, limits=limits, count=8)
        if "least that is expected" in each.because
    ]
    assert all(each.predicted.damage <= 0.1 for each in cheapest)
