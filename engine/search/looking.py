"""Candidates that are cut and refitted, not trained: each pass by itself, uniform cuts, and what the solver finds around them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from engine.goal import Precision
from engine.search import solver
from engine.search.ledger import Ledger, in_float
from engine.search.library import VariantLibrary
from engine.search.prediction import Prediction
from engine.search.task import Caps, Task, key_of
from engine.search.terms import Term
from engine.search.values import Point, Predicted, Proposal, Stage

# Rounds of the solver, each around what the rounds before have measured.
SOLVER_ROUNDS = 3
_SHARES = (0.75, 0.5, 0.375)
# Precisions that are tried by themselves at once, and the rank of a trial that breaks a limit.
_SINGLES, _FAILS = 2, 2
# Loss after the refit that a round aims at, as a multiple of what is allowed. Training wins back most of what is a few times
# too much, so that it is spent on those; without it a candidate has to be inside as it is.
_AIMS_TO_TRAIN = {1: (2.0, 5.0), 2: (3.5, 8.0), 3: (1.2, 2.7)}
_AIMS_AS_IT_IS = {1: (0.9, 0.5), 2: (0.7, 1.1), 3: (0.8, 0.95)}
# Candidates of one round differ in so many groups, blocks or layers at least.
_DISTANCE = 2
# The solver is asked in the precisions that cost least, and to differ from the latest candidates: each more takes it longer.
_PRECISIONS, _REMEMBERED = 2, 16
# Precisions whose layers compute with integers, so that some are faster in float.
_WITH_FLOATS = frozenset[Precision](("static", "dynamic"))
# Below these, damage and loss are noise and tell nothing of how one follows from the other.
_LEAST_DAMAGE, _LEAST_STRAIN = 1e-6, 0.05


@dataclass(frozen=True)
class StrainLaw:
    """How the loss after the refit follows from predicted damage: a power, fitted to trials."""

    slope: float
    offset: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Self | None:
        """Fit (damage, strain); with few trials the power stays near 1. None without any."""
        usable = [(d, s) for d, s in pairs if math.isfinite(d) and d > _LEAST_DAMAGE and s > _LEAST_STRAIN]
        if not usable:
            return None
        x, y = np.log(np.array(usable)).T
        centred = x - x.mean()
        slope = float((centred @ (y - y.mean()) + 1.0) / (centred @ centred + 1.0))
        slope = min(max(slope, 0.3), 2.0)
        return cls(slope, float(y.mean() - slope * x.mean()))

    def damage_at(self, strain: float) -> float:
        """Give the damage that leads to a strain."""
        return math.exp((math.log(strain) - self.offset) / self.slope)

    def strain_at(self, damage: float) -> float:
        """Give the strain that a damage leads to."""
        return math.exp(self.offset + self.slope * math.log(max(damage, _LEAST_DAMAGE)))


class Looking:
    """Proposes from what the rounds before one have told."""

    def __init__(self, task: Task, library: VariantLibrary, prediction: Prediction, ledger: Ledger) -> None:
        self._task, self._library, self._prediction, self._ledger = task, library, prediction, ledger
        self._caps = Caps.of(task, ledger)
        able = library.precisions()
        self.precisions: tuple[Precision, ...] = tuple(
            sorted(
                (each for each in task.architecture.precisions if each == "float32" or each in able),
                key=lambda each: self.cost(Point(precision=each)),
            )
        )

    def cost(self, point: Point) -> float:
        """Give what the goal minimises of a point, as predicted."""
        found = self._prediction.predict(point)
        match self._task.spec.goal.minimise:
            case "latency":
                return found.latency_ratio
            case "macs":
                return float(found.macs)
            # Memory follows the weights as far as it can be predicted.
            case "size" | "memory":
                return float(found.size_bytes)

    def predicted(self, point: Point) -> Predicted:
        """Give what is expected of a point."""
        return self._prediction.predict(point)

    def stored_best(self, architecture: Point, count: int = 1) -> tuple[Point, ...]:
        """Give an architecture in the precisions that cost least and keep the limits on other costs, the best first.

        Each precision once: with all layers in it, with those in float that are cheaper so, or as a trial had it, whichever costs least.
        """
        measured = self._measured(architecture)

        def price(point: Point) -> tuple[bool, float]:
            known = measured.get(key_of(point))
            cost = self.cost(point) if known is None else known[1]
            return self._caps.beyond(self._prediction.predict(point)) > 0, cost

        best = []
        for precision in self.precisions:
            whole = self._normal(architecture.model_copy(update={"precision": precision}))
            tried = [point for point, _ in measured.values() if point.precision == precision]
            best.append(min([whole, self._with_floats(whole), *tried], key=price))
        return tuple(sorted(best, key=price)[:count])

    def _measured(self, architecture: Point) -> dict[str, tuple[Point, float]]:
        """Give what trials of an architecture without other options cost, by their points."""
        wanted = key_of(in_float(architecture))
        return {
            key_of(each.point): (each.point, each.cost)
            for each in self._ledger.judged
            if not each.point.options and key_of(each.architecture) == wanted
        }

    def _with_floats(self, whole: Point) -> Point:
        """Give a point with those layers in float that take less time so, their conversions counted; files never shrink by it."""
        if self._task.spec.goal.minimise != "latency" or whole.precision not in _WITH_FLOATS:
            return whole
        floats = [
            term.layer
            for term in self._prediction.alive(whole)
            if term.layer is not None and term.layer not in whole.ranks and self._cheaper_in_float(term, whole)
        ]
        return self._normal(whole.model_copy(update={"in_float": tuple(floats)}))

    def _cheaper_in_float(self, term: Term, point: Point) -> bool:
        as_float, as_integer = (
            self._prediction.cost(term, point.precision, point.widths, in_float=each).latency_ratio
            for each in (True, False)
        )
        return as_float < as_integer

    def singles(self) -> Iterator[Proposal]:
        """Yield the precisions that cost least by themselves: no result may cost more than the best single pass."""
        goal = self._task.spec.goal
        if goal.minimise == "memory" or any(gate.metric == "peak_memory" for gate in goal.subject_to):
            yield self._proposal(Point(), "single", 0, "The network as it is, whose memory others are compared with.")
        for precision in self._worth_alone()[:_SINGLES]:
            why = "One pass by itself: what is more has to beat it."
            yield self._proposal(Point(precision=precision), "single", 0, why)

    def more_singles(self, number: int) -> Iterator[Proposal]:
        """Yield the other precisions where none of the first holds every limit."""
        if all(each.found.rank == _FAILS for each in self._ledger.of_stage("single") if each.point != Point()):
            for precision in self._worth_alone()[_SINGLES:]:
                why = "One pass by itself: those that cost less do not hold every limit."
                yield self._proposal(Point(precision=precision), "single", number, why)

    def _worth_alone(self) -> list[Precision]:
        """Give the precisions that cost less than the network as it is, the least cost first."""
        whole = self.cost(Point())
        return [each for each in self.precisions if each != "float32" and self.cost(Point(precision=each)) < whole]

    def opening(self) -> list[Proposal]:
        """Give uniform cuts, the solver's at the same predicted damage, and cuts in depth."""
        found = []
        for share in _SHARES:
            for point in self.stored_best(self._task.architecture.uniform(share)):
                why = f"Uniform: every group keeps about {share:.0%}."
                found.append(self._proposal(point, "round", 0, why))
                same = self._solved(self._prediction.predict(point).damage, [each.point for each in found])
                if same is not None:
                    why = f"The solver's best at the predicted damage of {share:.0%} everywhere."
                    found.append(self._proposal(same, "round", 0, why))
        for share, kept in ((0.5, 0.75), (0.34, 0.625), (0.5, 1.0)):
            dropped = self._least_harmful(share)
            if dropped:
                for point in self.stored_best(self._task.architecture.uniform(kept, dropped=dropped)):
                    why = f"In depth: {len(dropped)} blocks less, and {kept:.0%} of every group."
                    found.append(self._proposal(point, "round", 0, why))
        return found

    def around(self, number: int, *, trains: bool) -> list[Proposal]:
        """Give the solver's candidates of a round, at losses that the rounds before make look right."""
        law, found = self.law(), list[Proposal]()
        tried = [each.proposal.point for each in self._ledger.told]
        for aim in (_AIMS_TO_TRAIN if trains else _AIMS_AS_IT_IS)[number]:
            damage = self._uniform_damage() * aim if law is None else law.damage_at(aim)
            point = self._solved(damage, [*tried, *(each.point for each in found)])
            if point is not None:
                expected = (
                    f"{aim:g} times the loss that is allowed" if trains else f"{aim:.0%} of the loss that is allowed"
                )
                why = f"The solver's best where {expected} is expected after the refit."
                found.append(self._proposal(point, "round", number, why))
        return found

    def limits(self, *, trains: bool) -> solver.Limits:
        """Give what candidates of the study should hold: the costs' limits, and a damage that is allowed or can be won back."""
        law = self.law()
        return solver.Limits(
            max_damage=None if law is None else law.damage_at(max(_AIMS_TO_TRAIN[SOLVER_ROUNDS]) if trains else 1.0),
            max_latency_ratio=self._caps.latency_ratio,
            max_bytes=self._caps.size_bytes,
        )

    def law(self) -> StrainLaw | None:
        """Give how loss followed from damage so far."""
        looked = self._ledger.of_stage("round", "study")
        return StrainLaw.of([(self._prediction.predict(each.point).damage, each.found.strain) for each in looked])

    def solved_for(self, strain: float, different_from: Sequence[Point]) -> Point | None:
        """Give the solver's best architecture at a loss after the refit; None where nothing tells the damage, or there is none."""
        law = self.law()
        point = None if law is None else self._solved(law.damage_at(strain), different_from)
        return None if point is None else in_float(point)

    def _uniform_damage(self) -> float:
        found = self._prediction.predict(self._task.architecture.uniform(0.75)).damage
        return found if math.isfinite(found) else 1.0

    def _solved(self, damage: float, different_from: Sequence[Point]) -> Point | None:
        if not math.isfinite(damage) or damage <= 0:
            return None
        for distance in (_DISTANCE, 1):
            point = solver.solve(
                self._task.architecture,
                self._library,
                self._prediction,
                minimise=self._task.spec.goal.minimise,
                max_damage=damage,
                max_latency_ratio=self._caps.latency_ratio,
                max_bytes=self._caps.size_bytes,
                precisions=self.precisions[:_PRECISIONS],
                different_from=different_from[-_REMEMBERED:],
                distance=distance,
            )
            if point is not None:
                return self._normal(point)
        return None

    def _least_harmful(self, share: float) -> tuple[str, ...]:
        """Name this share of the blocks, those whose loss is measured to be least."""
        blocks = self._task.architecture.blocks
        harm = {name: self._library.block_damage(name) for name in blocks}
        able = sorted((name for name in blocks if math.isfinite(harm[name])), key=lambda name: harm[name])
        chosen = set(able[: math.floor(share * len(blocks))])
        return tuple(name for name in blocks if name in chosen)

    def _normal(self, point: Point) -> Point:
        return self._task.architecture.normalise(point)

    def _proposal(self, point: Point, stage: Stage, number: int, why: str) -> Proposal:
        own = self._normal(point)
        return Proposal(
            point=own,
            stage=stage,
            round=number,
            because=why,
            predicted=self._prediction.predict(own),
        )


def new_ones(proposals: Sequence[Proposal], tried: Sequence[Point]) -> list[Proposal]:
    """Leave out points that were tried, all but the first of equal ones, and the network as it is, but where it is measured by itself."""
    seen, kept = {key_of(point) for point in tried}, list[Proposal]()
    for each in proposals:
        if key_of(each.point) not in seen and (each.point != Point() or each.stage == "single"):
            seen.add(key_of(each.point))
            kept.append(each)
    return kept
