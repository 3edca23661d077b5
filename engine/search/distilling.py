"""Which candidates are worth training, and for how long: those a few times too lossy are what distillation wins back.

Training is most of a search's time, so that it is spent by what trials have shown: a short distillation of some candidates along
the front tells how much is won back, and where on the front the fastest one lies that a full one brings inside the limits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.search.ledger import Judged, Ledger
from engine.search.looking import Looking
from engine.search.task import key_of
from engine.search.values import Level, Point, Predicted, Proposal, Stage
from engine.search.won_back import WonBack

# Losses after the refit, as multiples of what is allowed, that the first short distillations are spread over.
_FIRST_AIMS = (2.5, 5.0, 1.6, 9.0)
# The same where nothing was distilled for a short while before.
_ONLY_AIMS = (2.5, 1.5, 4.0, 7.0)
# What holds by less than this may be trained on.
_UNSURE = 0.4
# What is gained is the logarithm of how much cheaper it is, times the chance that it holds: less is not worth a full distillation.
_LEAST_GAIN = 0.01
# Candidates that lose more than this many times what is allowed are not won back.
_HOPELESS = 25.0
# A second precision is tried where it costs no more than this many times what the best one does.
_WORTH_STORING = 1.15
# Another candidate differs from those that were trained by so much of its expected loss, or is no other.
_APART, _APART_AT_FIRST = 1.25, 1.6
# Around the loss that a full distillation of a new candidate should win back: which ones the solver is asked for.
_FRESH_AIMS = (1.0, 1.6, 2.4)


_Of = TypeVar("_Of")


@dataclass(frozen=True)
class Prospect:
    """An architecture that may be trained: the least that it lost after the refit, and the least that it costs as stored."""

    point: Point
    strain: float
    cost: float


@dataclass(frozen=True)
class _Chance(Generic[_Of]):
    """What may be trained in full, what is likely gained by it, and why in words."""

    of: _Of
    gain: float
    why: str


class Distilling:
    """Proposes training from what was told before it."""

    def __init__(self, looking: Looking, ledger: Ledger) -> None:
        self._looking, self._ledger, self._won = looking, ledger, WonBack(looking, ledger)

    def shorts(self, count: int, train_s: float, number: int) -> list[Proposal]:
        """Give the first candidates for a short distillation, spread over losses: seen ones, and where there are none the solver's."""
        done, found = set[str](), list[Proposal]()
        for aim in _FIRST_AIMS[: max(count, 1)]:
            prospect = self._at(aim, done, within=_APART_AT_FIRST)
            if prospect is not None:
                done.add(key_of(prospect.point))
                why = f"About {_times(prospect.strain)} is lost after the refit: worth a try."
                found.append(self._training(prospect, "short", train_s, number, why))
        return found

    def more_shorts(self, count: int, train_s: float, number: int) -> list[Proposal]:
        """Give candidates where, by what was won back so far, a full distillation should end just inside."""
        aim = self._won.aim()
        done = {key_of(each.architecture) for each in self._ledger.of_stage("short")}
        trained = [self._won.refit_strain(each.architecture) for each in self._ledger.of_stage("short")]
        found = list[Proposal]()
        for aimed in (aim, 1.6 * aim, 0.6 * aim, 2.4 * aim)[: max(count, 1)]:
            if any(_near(aimed, other) for other in trained):
                continue
            prospect = self._at(aimed, done)
            if prospect is not None and self._won.is_cheaper(prospect.cost):
                done.add(key_of(prospect.point))
                trained.append(prospect.strain)
                why = f"About {_times(aimed)} after the refit is what training wins back, by the trials before."
                found.append(self._training(prospect, "short", train_s, number, why))
        return found

    def full(self, train_s: float, number: int, count: int, *, fresh_s: float = 0.0) -> list[Proposal]:
        """Give what is distilled with the time that is left: the cheapest that should end inside, and where there is none the nearest.

        What was distilled for a short while goes on; a candidate that was not takes its place where more is to be gained of it.

        Args:
            train_s: seconds of what goes on.
            number: of the round.
            count: how many.
            fresh_s: seconds of a candidate that nothing was trained of, whose cut is to be made first; 0: too few to begin with one.
        """
        parents = list(self._ledger.of_stage("short"))
        fulls = list(self._ledger.of_stage("full"))
        done, found = set[str](), list[Proposal]()
        if not parents and not fulls:
            for prospect in _spread(self._prospects(), _ONLY_AIMS[:count]):
                why = f"It lost {_times(prospect.strain)} after the refit, and no time is left to try others."
                found.append(self._training(prospect, "full", train_s, number, why))
            return found
        for _ in range(count):
            end, fresh = self._next_full(done), self._next_fresh(done, fresh_s)
            if fresh is not None and (end is None or fresh.gain > end.gain):
                found.append(self._training(fresh.of, "full", fresh_s, number, fresh.why))
                done.add(key_of(fresh.of.point))
            elif end is not None:
                found.append(
                    self._going_on(
                        end.of,
                        stage="full",
                        level="full",
                        point=end.of.architecture,
                        number=number,
                        why=end.why,
                        train_s=train_s,
                    )
                )
                done.add(key_of(end.of.architecture))
        return found

    def stored(self, of: Sequence[Judged], level: Level, number: int, count: int) -> list[Proposal]:
        """Give trained networks in the precisions that cost least."""
        found = list[Proposal]()
        for each in of:
            points = self._looking.stored_best(each.architecture, count)
            most = _WORTH_STORING * self._looking.cost(points[0])
            for point in points:
                if point.precision != "float32" and self._looking.cost(point) <= most:
                    why = f"What trial {each.number} has learnt, in another precision."
                    found.append(
                        self._going_on(
                            each, stage="stored", level=level, point=point, number=number, why=why, train_s=0.0
                        )
                    )
        return found

    def promising(self, of: Sequence[Judged]) -> list[Judged]:
        """Give those that will most likely hold the limits on quality in another precision too."""
        return [each for each in of if each.found.strain + self._won.stored_strain() <= 1.2]

    # What is known of trials

    def _prospects(self) -> list[Prospect]:
        """Give the architectures that were looked at and are not beaten by others in cost and loss, the cheapest first."""
        best: dict[str, Prospect] = {}
        for each in self._ledger.of_stage("round", "study"):
            point = each.architecture
            if not (point.dropped or point.widths or point.ranks):
                continue
            known = best.get(key_of(point))
            # A precision of its own costs loss that training the network in floats does not see.
            if known is None or each.found.strain < known.strain:
                best[key_of(point)] = Prospect(point, each.found.strain, self._won.cost(point))
        order = sorted(best.values(), key=lambda each: (each.cost, each.strain))
        front, least = list[Prospect](), math.inf
        for prospect in order:
            if prospect.strain < least:
                least = prospect.strain
                front.append(prospect)
        return [each for each in front if each.strain <= _HOPELESS] or front[-1:]

    def _at(self, strain: float, done: set[str], *, within: float = _APART) -> Prospect | None:
        """Give a prospect near a loss after the refit: one that was looked at, else a new one of the solver."""
        known = [each for each in self._prospects() if key_of(each.point) not in done]
        near = min(known, key=lambda each: abs(math.log(max(each.strain, 1e-3) / strain)), default=None)
        if near is not None and _near(near.strain, strain, within):
            return near
        tried = [each.proposal.point for each in self._ledger.told]
        point = self._looking.solved_for(min(strain, _HOPELESS), tried)
        if point is None or key_of(point) in done:
            return near
        return Prospect(point, strain, self._won.cost(point))

    def _next_full(self, done: set[str]) -> "_Chance[Judged] | None":
        """Give what going on training most likely gains most of: how much cheaper it is than what holds, and how likely that holds."""
        ends = [each for each in self._won.ends() if key_of(each.architecture) not in done]
        chances = [
            _Chance(
                each,
                self._won.gain(self._won.cost(each.architecture), self._won.expected(each)),
                f"After {each.trained_s:.0f} s it loses {_times(each.found.strain)}; "
                f"about {_times(self._won.expected(each))} is expected of more.",
            )
            for each in ends
        ]
        # Where nothing holds yet, what comes nearest is worth the time, however unlikely it is to hold.
        worth = [each for each in chances if each.gain > (0.0 if self._won.nothing_holds else _LEAST_GAIN)]
        if worth:
            return max(worth, key=lambda each: (each.gain, -each.of.number))
        # Nothing is cheaper than what holds: that may still hold more surely.
        unsure = [each for each in chances if _UNSURE < each.of.found.strain <= 1]
        return min(unsure, key=lambda each: (self._won.cost(each.of.architecture), each.of.number), default=None)

    def _next_fresh(self, done: set[str], train_s: float) -> "_Chance[Prospect] | None":
        """Give the candidate that was not trained yet of which most is gained by training it for so long; the solver may name a new one."""
        if train_s <= 0:
            return None
        trained = {key_of(each.architecture) for each in self._ledger.judged if each.trained_s > 0} | done
        tried = [each.proposal.point for each in self._ledger.told]
        found = [each for each in self._prospects() if key_of(each.point) not in trained]
        for factor in _FRESH_AIMS:
            strain = min(factor * self._won.aim(), _HOPELESS)
            point = self._looking.solved_for(strain, tried)
            if point is not None and key_of(point) not in trained:
                found.append(Prospect(point, strain, self._won.cost(point)))
        left = self._won.left_of_fresh(train_s)
        chances = [
            _Chance(
                each,
                self._won.gain(each.cost, each.strain * left + self._won.stored_strain()),
                f"About {_times(each.strain)} after the refit is what training wins back, by the trials before.",
            )
            for each in found
        ]
        worth = [each for each in chances if each.gain > _LEAST_GAIN]
        return max(worth, key=lambda each: (each.gain, key_of(each.of.point)), default=None)

    # Proposals

    def _training(self, prospect: Prospect, stage: Stage, train_s: float, number: int, why: str) -> Proposal:
        return Proposal(
            point=prospect.point,
            level="short",
            train_s=train_s,
            stage=stage,
            round=number,
            inherits=self._float_parent(prospect.point),
            because=why,
            predicted=self._predicted(prospect.point),
        )

    def _going_on(
        self, parent: Judged, *, stage: Stage, level: Level, point: Point, number: int, why: str, train_s: float
    ) -> Proposal:
        return Proposal(
            point=point,
            level=level,
            train_s=train_s,
            stage=stage,
            round=number,
            inherits=parent.number,
            because=why,
            predicted=self._predicted(point),
        )

    def _predicted(self, point: Point) -> Predicted:
        return self._looking.predicted(point)

    def _float_parent(self, architecture: Point) -> int | None:
        """Name the trial that refitted the architecture in floats, where there is one: its network can be trained."""
        return next(
            (
                each.number
                for each in self._ledger.of_stage("round", "study")
                if key_of(each.point) == key_of(architecture)
            ),
            None,
        )


def _spread(prospects: Sequence[Prospect], aims: Sequence[float]) -> list[Prospect]:
    """Give for each aim the prospect nearest to it that no earlier aim took; of those that lose enough to need training first."""
    left, found = list(prospects), list[Prospect]()
    for aim in aims:
        if not left:
            break
        taken = min(left, key=lambda each: abs(math.log(max(each.strain, 1e-2) / aim)))
        left.remove(taken)
        found.append(taken)
    return found


def _near(one: float, other: float, within: float = _APART) -> bool:
    return abs(math.log(max(one, 1e-3) / max(other, 1e-3))) < math.log(within)


def _times(strain: float) -> str:
    return f"{strain:.1f} times what is allowed"
