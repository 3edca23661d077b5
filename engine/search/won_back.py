"""What distillation wins back of a loss by the trials that were made, and what is gained where it does."""

import math
from statistics import median

from engine.search.ledger import Judged, Ledger, in_float
from engine.search.looking import Looking
from engine.search.task import key_of
from engine.search.values import Point

# What is left of a loss after a short distillation, and of that after a full one, until trials have shown it.
_LEFT_BY_SHORT, _LEFT_BY_FULL = 0.45, 0.55
# What a precision adds to the loss, as a multiple of what is allowed, until a trial has shown it.
_STORED_STRAIN = 0.25
# A full distillation is aimed at candidates that it is expected to bring this far inside, until trials have shown how far is sure.
_INSIDE = 0.85
# How uncertain that is, and what is no cheaper than this needs no training.
_SPREAD, _CHEAPER = 0.35, 1.03
_HOLDS, _MAY, _FAILS = 0, 1, 2


class WonBack:
    """Reads trials as a law of training: what it leaves of a loss, what is surely inside, what a network gains by being there."""

    def __init__(self, looking: Looking, ledger: Ledger) -> None:
        self._looking, self._ledger = looking, ledger

    @property
    def nothing_holds(self) -> bool:
        """Whether no trial is inside every limit."""
        return all(each.found.rank == _FAILS for each in self._ledger.judged)

    def _least(self) -> float:
        """Give the cost that has to be beaten: the least of what surely holds, else of what may; where nothing does, twice the most."""
        for worst in (_HOLDS, _MAY):
            held = [each.cost for each in self._ledger.judged if each.found.rank <= worst]
            if held:
                return min(held)
        return 2 * max((self.cost(each.architecture) for each in self.ends()), default=1.0)

    def _inside(self) -> float:
        """Give the most loss that surely holds: between the most of the trials that do and the least of those whose samples leave it open."""
        unsure = [each.found.strain for each in self._ledger.judged if each.found.hold_of_quality == "may"]
        if not unsure:
            return _INSIDE
        holding = (each.found.strain for each in self._ledger.judged if each.found.hold_of_quality == "holds")
        sure = max((each for each in holding if each < min(unsure)), default=0.0)
        return min(_INSIDE, (max(sure, 0.0) + min(unsure)) / 2)

    def aim(self) -> float:
        """Give the loss after the refit that a short and a full distillation should bring just inside, by what was won back so far."""
        left = self._left_by_short() * self._left_by_full()
        return max(self._inside() - self.stored_strain(), 0.2) / max(left, 1e-3)

    def gain(self, cost: float, expected: float) -> float:
        """Give what a network of this cost and expected loss gains: how much cheaper it is than what holds, as a logarithm, times the chance that it will hold."""
        if not self.is_cheaper(cost):
            return 0.0
        return math.log(self._least() / max(cost, 1e-9)) / (1 + math.exp((expected - self._inside()) / _SPREAD))

    def is_cheaper(self, cost: float) -> bool:
        """Say whether a network of this cost would be worth having beside what holds."""
        return _CHEAPER * max(cost, 1e-9) < self._least()

    def expected(self, parent: Judged) -> float:
        """Give the loss that is expected after a full distillation and storing; what had one before gains less of another."""
        left = self._left_by_full()
        again = parent.told.proposal.stage == "full"
        return parent.found.strain * (math.sqrt(left) if again else left) + self.stored_strain()

    def left_of_fresh(self, train_s: float) -> float:
        """Give what is left of a loss after training for so long from the refit on, by what others won back in their time."""
        usual = [each.trained_s for each in self._ledger.of_stage("full")]
        shorts = [each.trained_s for each in self._ledger.of_stage("short")]
        whole = median(usual) if usual else median(shorts) + train_s if shorts else train_s
        return float((self._left_by_short() * self._left_by_full()) ** min(1.0, train_s / whole))

    def ends(self) -> list[Judged]:
        """Give the latest network of everything that was trained."""
        trained = list(self._ledger.of_stage("short", "full"))
        parents = {each.told.proposal.inherits for each in trained}
        return [each for each in trained if each.number not in parents]

    def cost(self, architecture: Point) -> float:
        """Give what an architecture costs as it is best stored: measured, or predicted where that is less."""
        measured = [
            each.cost for each in self._ledger.judged if key_of(each.architecture) == key_of(in_float(architecture))
        ]
        best = self._looking.stored_best(architecture)
        predicted = min((self._looking.cost(each) for each in best), default=math.inf)
        return min([predicted, *measured])

    def refit_strain(self, architecture: Point) -> float:
        """Give what an architecture loses after the refit, as a multiple of what is allowed: measured, else by the law of those that were."""
        found = [
            each.found.strain
            for each in self._ledger.of_stage("round", "study")
            if key_of(each.architecture) == key_of(architecture)
        ]
        if found:
            return min(found)
        law = self._looking.law()
        return 1.0 if law is None else law.strain_at(self._looking.predicted(architecture).damage)

    def stored_strain(self) -> float:
        """Give what the precision that candidates will most likely be stored in adds to the loss."""
        best = self._looking.stored_best(Point())[0].precision
        if best == "float32":
            return 0.0
        found = [each.found.strain for each in self._ledger.of_stage("single") if each.point.precision == best]
        return min(found[0], 0.6) if found else _STORED_STRAIN

    def _left_by_short(self) -> float:
        ratios = [
            each.found.strain / refit
            for each in self._ledger.of_stage("short")
            if (refit := self.refit_strain(each.architecture)) > 0.2
        ]
        return min(median(ratios), 1.0) if ratios else _LEFT_BY_SHORT

    def _left_by_full(self) -> float:
        known = self._ledger.by_number
        begun = any(self._ledger.of_stage("short"))
        ratios = [
            each.found.strain / known[parent].found.strain
            for each in self._ledger.of_stage("full")
            if (parent := each.told.proposal.inherits) is not None
            and parent in known
            and known[parent].found.strain > 0.2
            # What went on from a refit won back what a short distillation does too.
            and (known[parent].trained_s > 0 or not begun)
        ]
        return min(max(median(ratios), 0.2), 1.0) if ratios else _LEFT_BY_FULL
