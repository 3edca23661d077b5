"""The study of a search: what is worth a real trial next, by the strategy that was asked for, from the trials that were told.

Every strategy first plays on the prediction, which costs nothing, and is corrected by what real trials gave. Of all that it thought
of, and of fine moves around the best that is known, the points are tried that are expected to add most to the front. Nothing is
stored: the same trials in the same order and the same seed give the same proposals.

So that noise of a clock does not decide what comes next, trials are told with the latency that the library predicts, and with the
damage that was really measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from engine.contract import Context
from engine.goal import Goal, Minimised, Strategy
from engine.search import reinforce, samplers
from engine.search.architecture import Architecture
from engine.search.damage import damage_of
from engine.search.encoding import Encoding
from engine.search.front import NEAR, hypervolume, pareto
from engine.search.knobs import Values
from engine.search.prediction import Prediction
from engine.search.samplers import Rated
from engine.search.solver import Limits
from engine.search.values import Point, Predicted, Proposal, Told

# Points that a strategy thinks of before it proposes some.
_THOUGHTS: dict[str, int] = {"tpe": 40, "nsga2": 192, "random": 0, "reinforce": 200}
# Points of the front around which fine moves are looked at, and moves of each.
_AROUND, _MOVES = 6, 12
# Every so many proposals one is just what the strategy asks for: predictions may be wrong in a way that only trials show.
_UNSCREENED = 5
# Costs worse than the original's by this share add nothing to a front.
_WORST_COST = 1.1
# Damage where no trial says how much is much.
_USUAL_DAMAGE = 0.05
_SPOKEN = {
    "tpe": "Tree-structured Parzen estimator",
    "nsga2": "NSGA-II",
    "random": "Random",
    "reinforce": "Policy gradient",
    "gradient": "Differentiable widths",
}


@dataclass(frozen=True)
class Network:
    """The network itself, simplified as its architecture was read, and the job's context: what `gradient` needs."""

    model: Any
    context: Context = field(repr=False)


def propose(
    architecture: Architecture,
    prediction: Prediction,
    told: Sequence[Told],
    *,
    strategy: Strategy,
    seed: int,
    count: int,
    goal: Goal,
    limits: Limits | None = None,
    network: Network | None = None,
) -> list[Proposal]:
    """Give up to so many proposals of points that were not tried, the most promising first; fewer where nothing else is left.

    Args:
        architecture: Whose points these are.
        prediction: Of the variant library; its corrections are made anew, without measured times.
        told: Trials that have ended, of whatever origin: the solver's points warm the study up.
        strategy: `auto` is TPE.
        seed: Of everything that is drawn.
        count: How many.
        goal: What there is to be least of.
        limits: What proposals are expected to hold; where missing, the goal's limits on time and size as ratios or bytes.
        network: What `gradient` takes its slopes from.

    Raises:
        TargetUnavailableError: `gradient`, and PyTorch is missing.
        ModelUnsupportedError: `gradient`, and the network cannot be differentiated.

    """
    study = _Study(architecture, prediction, told, goal, limits or limits_of(goal, prediction))
    if strategy == "gradient":
        return study.gradient(seed, count, network)
    return study.sampled("tpe" if strategy == "auto" else strategy, seed, count)


def limits_of(goal: Goal, prediction: Prediction) -> Limits:
    """Give the limits of a goal that a prediction can be held against without a trial: ratios of time, and bytes."""
    whole = prediction.library.structure.file_bytes
    gates = [gate for gate in goal.subject_to if gate.level == "error"]
    ratios = [gate.value for gate in gates if gate.metric.startswith("latency_") and gate.rule == "max_ratio"]
    sizes = [gate.value * (whole if gate.rule == "max_ratio" else 1) for gate in gates if gate.metric == "size_bytes"]
    return Limits(max_latency_ratio=min(ratios, default=None), max_bytes=min(sizes, default=None))


@dataclass(frozen=True)
class _Thought:
    """A point with what is expected of it: its place in the plane of the front, and by how much it breaks limits."""

    point: Point
    predicted: Predicted
    place: tuple[float, float]
    broken: float


class _Study:
    def __init__(
        self, architecture: Architecture, prediction: Prediction, told: Sequence[Told], goal: Goal, limits: Limits
    ) -> None:
        self._architecture, self._limits = architecture, limits
        self._minimise: Minimised = goal.minimise
        self._told = [each for each in told if each.state != "cancelled"]
        self._prediction = Prediction.of(architecture, prediction.library, [_untimed(each) for each in told])
        self._encoding = Encoding(architecture, prediction.library)
        self._whole = self._cost(self._prediction.predict(Point()))
        self._tried = {_key(architecture.normalise(each.proposal.point)) for each in told}
        self._expected: dict[str, _Thought] = {}
        self._usual = self._usual_damage()
        self._front = self._measured_front()

    # What came of trials, and what is expected

    def _cost(self, predicted: Predicted) -> float:
        match self._minimise:
            case "latency":
                return predicted.latency_ratio
            case "macs":
                return float(predicted.macs)
            # Memory follows the weights as far as it can be predicted.
            case "size" | "memory":
                return float(predicted.size_bytes)

    def _damages(self) -> list[tuple[Told, float]]:
        """Give the refitted trials with their damage; that of trained ones is another matter."""
        return [
            (each, damage)
            for each in self._told
            if each.values is not None
            and each.proposal.level == "refit"
            and (damage := damage_of(each.values.quality)) is not None
            and math.isfinite(damage)
        ]

    def _usual_damage(self) -> float:
        """Give the damage in the middle of the plane: the limit where there is one, else what is usual."""
        if self._limits.max_damage and math.isfinite(self._limits.max_damage):
            return self._limits.max_damage
        found = [damage for _, damage in self._damages() if damage > 0]
        return max(float(np.median(found)), 1e-6) if found else _USUAL_DAMAGE

    def _place(self, cost: float, damage: float) -> tuple[float, float]:
        """Put a point into the plane of the front: cost as a share of the original's, damage between 0 and 1."""
        harm = 1.0 if not math.isfinite(damage) else max(damage, 0.0) / (max(damage, 0.0) + self._usual)
        return cost / max(self._whole, 1e-30), harm

    def _broken(self, predicted: Predicted, damage: float) -> float:
        """Give by how much limits are broken, as a share of the worst one."""
        over = [
            value / max(limit, 1e-30) - 1
            for value, limit in (
                (predicted.latency_ratio, self._limits.max_latency_ratio),
                (predicted.size_bytes, self._limits.max_bytes),
                (predicted.macs, self._limits.max_macs),
                (damage, self._limits.max_damage),
            )
            if limit is not None
        ]
        return max(0.0, *over) if over else 0.0

    def _think(self, point: Point) -> _Thought:
        key = _key(point)
        if key not in self._expected:
            predicted = self._prediction.predict(point)
            place = self._place(self._cost(predicted), predicted.damage)
            self._expected[key] = _Thought(point, predicted, place, self._broken(predicted, predicted.damage))
        return self._expected[key]

    def _rate(self, values: Values) -> Rated:
        thought = self._think(self._encoding.point(values))
        return Rated(values, thought.place, (thought.broken,))

    def _rated(self) -> list[Rated]:
        """Give what was told as the samplers see it, failed trials included."""
        damages = {each.number: damage for each, damage in self._damages()}
        found = []
        for each in self._told:
            values = self._encoding.values(each.proposal.point)
            if each.number in damages:
                predicted = self._think(self._architecture.normalise(each.proposal.point)).predicted
                damage = damages[each.number]
                place = self._place(self._cost(predicted), damage)
                found.append(Rated(values, place, (self._broken(predicted, damage),)))
            elif each.state == "failed":
                found.append(Rated(values, None))
        return found

    def _measured_front(self) -> list[tuple[Point, tuple[float, float]]]:
        places = {}
        for each, damage in self._damages():
            predicted = self._think(self._architecture.normalise(each.proposal.point)).predicted
            places[each.number] = self._place(self._cost(predicted), damage)
        points = {each.number: each.proposal.point for each in self._told}
        return [(points[number], places[number]) for number in pareto(places)]

    # Strategies

    def sampled(self, strategy: str, seed: int, count: int) -> list[Proposal]:
        """Propose what a sampler thought of; random points as they were drawn."""
        if not self._encoding.knobs or count < 1:
            return []
        rated = self._rated()
        random = np.random.default_rng(np.random.SeedSequence((seed, len(self._told))))
        thoughts = self._ask(strategy, rated, seed, _THOUGHTS[strategy] or 4 * count)
        own = [self._encoding.point(values) for values in thoughts]
        own += [self._encoding.point(self._encoding.random(random)) for _ in range(4 * count)]
        if strategy == "random":
            return [self._proposal(strategy, self._think(point), "drawn evenly") for point in self._new(own)[:count]]
        pool = self._new([*own, *self._around_front(random)])
        return self._screened(strategy, pool, self._new(own), count)

    def _ask(self, strategy: str, rated: Sequence[Rated], seed: int, thoughts: int) -> list[Values]:
        knobs = self._encoding.knobs
        if strategy == "reinforce":
            return reinforce.ask(knobs, rated, seed=seed, count=thoughts, rate=self._rate)
        rate = None if strategy == "random" else self._rate
        sampler: samplers.SamplerName = "tpe" if strategy == "tpe" else "nsga2" if strategy == "nsga2" else "random"
        return samplers.ask(knobs, rated, sampler, seed=seed, count=thoughts, rate=rate)

    def _around_front(self, random: np.random.Generator) -> list[Point]:
        """Give fine moves around points of the front: single groups, layers and blocks that no knob turns alone."""
        front = [point for point, _ in self._front]
        chosen = [front[int(place)] for place in np.linspace(0, len(front) - 1, min(_AROUND, len(front)))]
        return [move for point in chosen for move in self._architecture.neighbours(point, random, _MOVES)]

    def gradient(self, seed: int, count: int, network: Network | None) -> list[Proposal]:
        """Propose points along the front that slopes through the network lead to."""
        if network is None:
            raise ValueError("the strategy `gradient` needs the network and its context")
        # Loaded late: it needs PyTorch.
        gradient: Any = import_module("engine.search.gradient")
        found: list[_Thought] = []
        work = gradient.Relaxation(self._architecture, self._prediction, network.model, network.context, seed=seed)
        first = sum(each.proposal.because.startswith(_SPOKEN["gradient"]) for each in self._told)
        for place in range(first, first + 3 * count):
            point = work.solve(gradient.trade(place), self._minimise)
            if not self._is_new(point, found):
                continue
            found.append(self._think(point))
            if len(found) == count:
                break
        return [
            self._proposal("gradient", each, "where the slopes of damage and cost are in balance") for each in found
        ]

    # What is worth a trial

    def _new(self, points: Sequence[Point]) -> list[Point]:
        return list({_key(point): point for point in points if _key(point) not in self._tried}.values())

    def _is_new(self, point: Point, found: Sequence[_Thought]) -> bool:
        return _key(point) not in self._tried and all(each.point != point for each in found)

    def _screened(self, strategy: str, pool: Sequence[Point], own: Sequence[Point], count: int) -> list[Proposal]:
        """Choose of all thoughts those that are expected to add most, one after the other."""
        thoughts = [self._think(point) for point in pool]
        front = [place for _, place in self._front]
        found: list[Proposal] = []
        while thoughts and len(found) < count:
            slot = len(self._told) + len(found)
            unscreened = next((self._think(point) for point in own), None)
            if slot % _UNSCREENED == _UNSCREENED - 1 and unscreened in thoughts:
                assert unscreened is not None
                best, why = unscreened, "to see whether the prediction is right"
            else:
                best, why = self._most_promising(thoughts, front, cheapest=slot % 2 == 1)
            thoughts.remove(best)
            own = [point for point in own if point != best.point]
            front.append(best.place)
            found.append(self._proposal(strategy, best, why))
        return found

    def _most_promising(
        self, thoughts: Sequence[_Thought], front: Sequence[tuple[float, float]], *, cheapest: bool
    ) -> tuple[_Thought, str]:
        inside = [each for each in thoughts if each.broken <= 0]
        if cheapest and inside and self._limits.max_damage is not None:
            best = min(inside, key=lambda each: (each.place, _key(each.point)))
            if all(best.place[0] < cost for cost, harm in front if harm <= best.place[1]):
                return best, "the least that is expected inside the limits"
        gain = _Gain(front)
        near = [each for each in thoughts if each.broken <= NEAR] or list(thoughts)
        best = max(
            near, key=lambda each: (gain.of(each.place), -each.broken, -gain.behind(each.place), _key(each.point))
        )
        return best, "expected to add most to the front"

    def _proposal(self, strategy: str, thought: _Thought, why: str) -> Proposal:
        return Proposal(point=thought.point, because=f"{_SPOKEN[strategy]}: {why}.", predicted=thought.predicted)


class _Gain:
    """What a point would add to a front."""

    def __init__(self, front: Sequence[tuple[float, float]]) -> None:
        self._front = [front[place] for place in pareto(dict(enumerate(front)))]
        self._reference = (_WORST_COST, 1.0)
        self._volume = hypervolume(self._front, self._reference)

    def of(self, place: tuple[float, float]) -> float:
        """Give the area that it adds, rounded, so that the last bits do not decide."""
        return round(hypervolume([*self._front, place], self._reference) - self._volume, 12)

    def behind(self, place: tuple[float, float]) -> float:
        """Give how far it is behind the front: by so much less of everything it would be on it."""
        return max((min(p - f for p, f in zip(place, each, strict=True)) for each in self._front), default=0.0)


def _untimed(told: Told) -> Told:
    if told.values is None or told.values.latency is None:
        return told
    return told.model_copy(update={"values": told.values.model_copy(update={"latency": None})})


def _key(point: Point) -> str:
    return point.model_dump_json()
