"""How a search plans its time: what is left, what a trial takes, how much goes into looking and how much into training."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from engine.search.values import Level, Stage, Told

# Shares of the time before the report. Where nothing is trained, the rest is for quantizing the best with more care.
_LIBRARY_UNTIL, _LOOKING_UNTIL, _SHORT_UNTIL = 0.22, 0.36, 0.56
_LOOKING_ALONE_UNTIL = 0.85
# A trial before any was timed, and how much longer one may take than those before.
_FIRST_TRIAL_S, _SLOWER = 6.0, 1.3
# Quantizing with care takes so much longer than the usual trial, until one has shown it.
_CAREFUL = 3.0
# Training is surrounded by this many times what surrounds a refit, until a trial has shown it.
_AROUND_TRAINING = 1.5
# A short distillation, as a share of the time and in seconds at least and at most.
_SHORT_SHARE, _SHORT_LEAST_S, _SHORT_MOST_S = 0.05, 3.0, 90.0
# A report times the result for this long at most, and evaluates both networks again; a search leaves that time to it.
REPORT_S = 14.0


@dataclass(frozen=True)
class Clock:
    """When a turn is taken.

    Args:
        elapsed_s: since the search began, without pauses.
        workers: that take trials at the same time.
        allowed_s: that the whole search may take, with its report.
        trains: whether anything can be distilled.
        trial_s: what one trial will take, where that is known before any was made.
        report_s: what the final report takes.
    """

    elapsed_s: float
    workers: int
    allowed_s: float
    trains: bool
    trial_s: float = _FIRST_TRIAL_S
    report_s: float = REPORT_S

    @property
    def until_s(self) -> float:
        """When trials have to be over; of a tiny budget at least half is for trials."""
        return max(self.allowed_s - self.report_s, 0.5 * self.allowed_s)

    @property
    def left_s(self) -> float:
        """What is left for trials."""
        return self.until_s - self.elapsed_s

    @property
    def measures_variants(self) -> bool:
        """Whether the library may go on."""
        return self.elapsed_s < _LIBRARY_UNTIL * self.until_s

    @property
    def looking_s(self) -> float:
        """What is left for candidates that are refitted only."""
        return (_LOOKING_UNTIL if self.trains else _LOOKING_ALONE_UNTIL) * self.until_s - self.elapsed_s

    @property
    def short_s(self) -> float:
        """What is left for short distillations."""
        return _SHORT_UNTIL * self.until_s - self.elapsed_s

    @property
    def short_train_s(self) -> float:
        """How long a short distillation trains; it follows from the budget alone, so that a seed says which candidates come."""
        return round(min(max(_SHORT_SHARE * self.until_s, _SHORT_LEAST_S), _SHORT_MOST_S), 1)

    def around_s(self, told: Sequence[Told], level: Level) -> float:
        """Give what a trial of a level takes beside its training, by those that were made."""
        taken = [
            max(each.seconds - each.proposal.train_s, 0.1)
            for each in told
            if each.state == "succeeded" and each.proposal.level == level
        ]
        if not taken:
            taken = [max(each.seconds - each.proposal.train_s, 0.1) for each in told if each.state == "succeeded"]
        return _SLOWER * median(taken) if taken else self.trial_s

    def around_training_s(self, told: Sequence[Told], stage: Stage) -> float:
        """Give what a trial of a stage that trains takes beside its training, by those that trained: more than a refit alone."""
        trained = [each for each in told if each.state == "succeeded" and each.proposal.train_s > 0]
        same = [each for each in trained if each.proposal.stage == stage] or trained
        if not same:
            return _AROUND_TRAINING * self.around_s(told, "refit")
        return _SLOWER * median([max(each.seconds - each.proposal.train_s, 0.1) for each in same])

    def careful_s(self, told: Sequence[Told]) -> float:
        """Give what it takes to store a trained network in a precision with the care that a result gets."""
        taken = [
            each.seconds
            for each in told
            if each.state == "succeeded" and each.proposal.stage == "stored" and each.proposal.level == "full"
        ]
        return _SLOWER * median(taken) if taken else _CAREFUL * self.around_s(told, "refit")

    def fit(self, seconds: float, each_s: float) -> int:
        """Give how many trials of so many seconds fit into a time, by all workers."""
        return max(0, int(seconds // max(each_s, 0.05))) * max(1, self.workers)
