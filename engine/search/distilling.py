"""Which candidates are worth training, and for how long: those a few times too lossy are what distillation wins back.

Training is most of a search's time, so that it is spent by what trials have shown: a short distillation of some candidates along
the front tells how much is won back, and where on the front the fastest one lies that a full one brings inside the limits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from engine.search.ledger import Judged, Ledger, in_float
from engine.search.looking import Looking
from engine.search.task import key_of
from engine.search.values import Level, Point, Predicted, Proposal, Stage

# Losses after the refit, as multiples of what is allowed, that the first short distillations are spread over.
_FIRST_AIMS = (2.5, 5.0, 1.6, 9.0)
# The same where nothing was distilled for a short while before.
_ONLY_AIMS = (2.5, 1.5, 4.0, 7.0)
# What is left of a loss after a short distillation, and of that after a full one, until trials have shown it.
_LEFT_BY_SHORT, _LEFT_BY_FULL = 0.45, 0.55
# What a precision adds to the loss, as a multiple of what is allowed, until a trial has shown it.
_STORED_STRAIN = 0.25
# A full distillation is aimed at candidates that it is expected to bring this far inside.
_INSIDE = 0.85
# How uncertain that is; what is no cheaper than this needs no training; what holds by less than this may be trained on.
_SPREAD, _CHEAPER, _UNSURE = 0.35, 1.03, 0.4
_FAILS = 2
# Candidates that lose more than this many times what is allowed are not won back.
_HOPELESS = 25.0
# A second precision is tried where it costs no more than this many times what the best one does.
_WORTH_STORING = 1.15
# Another candidate differs from those that were trained by so much of its expected loss, or is no other.
_APART, _APART_AT_FIRST = 1.25, 1.6


@dataclass(frozen=True)
class Prospect:
    """An architecture that may be trained: the least that it lost after the refit, and the least that it costs as stored."""

    point: Point
    strain: float
    cost: float


class Distilling:
    """Proposes training from what was told before it."""

    def __init__(self, looking: Looking, ledger: Ledger) -> None:
        self._looking, self._ledger = looking, ledger

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
        left = self._left_by_short() * self._left_by_full()
        aim = max(_INSIDE - self._stored_strain(), 0.2) / max(left, 1e-3)
        done = {key_of(each.architecture) for each in self._ledger.of_stage("short")}
        trained = [self._refit_strain(each.architecture) for each in self._ledger.of_stage("short")]
        found = list[Proposal]()
        for aimed in (aim, 1.6 * aim, 0.6 * aim, 2.4 * aim)[: max(count, 1)]:
            if any(_near(aimed, other) for other in trained):
                continue
            prospect = self._at(aimed, done)
            if prospect is not None:
                done.add(key_of(prospect.point))
                trained.append(prospect.strain)
                why = f"About {_times(aimed)} after the refit is what training wins back, by the trials before."
                found.append(self._training(prospect, "short", train_s, number, why))
        return found

    def full(self, train_s: float, number: int, count: int) -> list[Proposal]:
        """Give what is distilled with the time that is left: the cheapest that should end inside, and where there is none the nearest."""
        parents = list(self._ledger.of_stage("short"))
        fulls = list(self._ledger.of_stage("full"))
        done, found = set[str](), list[Proposal]()
        if not parents and not fulls:
            for prospect in _spread(self._prospects(), _ONLY_AIMS[:count]):
                why = f"It lost {_times(prospect.strain)} after the refit, and no time is left to try others."
                found.append(self._training(prospect, "full", train_s, number, why))
            return found
        for _ in range(count):
            parent = self._next_full(done)
            if parent is None:
                break
            done.add(key_of(parent.architecture))
            expected = self._expected(parent)
            why = f"After {parent.trained_s:.0f} s it loses {_times(parent.found.strain)}; about {_times(expected)} is expected of more."
            found.append(
                self._going_on(
                    parent,
                    stage="full",
                    level="full",
                    point=parent.architecture,
                    number=number,
                    why=why,
                    train_s=train_s,
                )
            )
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
        return [each for each in of if each.found.strain + self._stored_strain() <= 1.2]

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
                best[key_of(point)] = Prospect(point, each.found.strain, self._cost(point))
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
        return Prospect(point, strain, self._cost(point))

    def _next_full(self, done: set[str]) -> Judged | None:
        """Give what training most likely gains most of: how much cheaper it is than what holds, times the chance that it will hold."""
        ends = [each for each in self._ends() if key_of(each.architecture) not in done]
        held = [each.cost for each in self._ledger.judged if each.found.rank < _FAILS]
        least = min(
            [*held, *([] if held else [max((self._cost(each.architecture) for each in ends), default=1.0) * 2])]
        )
        gains = {each.number: self._gain(each, least) for each in ends}
        worth = [each for each in ends if gains[each.number] > 0]
        if worth:
            return max(worth, key=lambda each: (gains[each.number], -each.number))
        # Nothing is cheaper than what holds: that may still hold more surely.
        unsure = [each for each in ends if _UNSURE < each.found.strain <= 1]
        return min(unsure, key=lambda each: (self._cost(each.architecture), each.number), default=None)

    def _ends(self) -> list[Judged]:
        """Give the latest network of everything that was trained."""
        trained = list(self._ledger.of_stage("short", "full"))
        parents = {each.told.proposal.inherits for each in trained}
        return [each for each in trained if each.number not in parents]

    def _gain(self, end: Judged, least: float) -> float:
        cheaper = math.log(least / max(self._cost(end.architecture), 1e-9))
        if cheaper <= math.log(_CHEAPER):
            return 0.0
        return cheaper / (1 + math.exp((self._expected(end) - _INSIDE) / _SPREAD))

    def _cost(self, architecture: Point) -> float:
        measured = [
            each.cost for each in self._ledger.judged if key_of(each.architecture) == key_of(in_float(architecture))
        ]
        best = self._looking.stored_best(architecture)
        predicted = min((self._looking.cost(each) for each in best), default=math.inf)
        return min([predicted, *measured])

    def _refit_strain(self, architecture: Point) -> float:
        found = [
            each.found.strain
            for each in self._ledger.of_stage("round", "study")
            if key_of(each.architecture) == key_of(architecture)
        ]
        if found:
            return min(found)
        law = self._looking.law()
        return 1.0 if law is None else law.strain_at(self._looking.predicted(architecture).damage)

    def _expected(self, parent: Judged) -> float:
        """Give the loss that is expected after a full distillation and storing; what had one before gains less of another."""
        left = self._left_by_full()
        again = parent.told.proposal.stage == "full"
        return parent.found.strain * (math.sqrt(left) if again else left) + self._stored_strain()

    def _left_by_short(self) -> float:
        ratios = [
            each.found.strain / refit
            for each in self._ledger.of_stage("short")
            if (refit := self._refit_strain(each.architecture)) > 0.2
        ]
        return min(median(ratios), 1.0) if ratios else _LEFT_BY_SHORT

    def _left_by_full(self) -> float:
        known = self._ledger.by_number
        ratios = [
            each.found.strain / known[parent].found.strain
            for each in self._ledger.of_stage("full")
            if (parent := each.told.proposal.inherits) is not None
            and parent in known
            and known[parent].found.strain > 0.2
        ]
        return min(max(median(ratios), 0.2), 1.0) if ratios else _LEFT_BY_FULL

    def _stored_strain(self) -> float:
        """Give what the precision that candidates will most likely be stored in adds to the loss."""
        best = self._looking.stored_best(Point())[0].precision
        if best == "float32":
            return 0.0
        found = [each.found.strain for each in self._ledger.of_stage("single") if each.point.precision == best]
        return min(found[0], 0.6) if found else _STORED_STRAIN

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
