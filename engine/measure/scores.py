"""Two networks' scores on the same samples, paired, with intervals that hold when they hardly differ."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import exp, sqrt
from typing import Any

import numpy as np

from engine.errors import DatasetInvalidError
from engine.measure import metrics
from engine.measure.intervals import (
    Floats,
    all_or_nothing,
    around,
    error_of_pulls,
    mean_interval,
    not_narrower,
    tango,
    wilson,
)
from engine.measure.metrics import Array, Ints, Output
from engine.report.values import Quality

# Metrics of a sample that lie between 0 and 1: unseen changes have a known largest size.
_BOUNDED = frozenset({"top1", "top5", "iou", "edit_distance"})
# Beside the numbers of columns: the class is not there.
_NO_CLASS = -2


class Task(ABC):
    """Collects what one network makes of a labelled metric."""

    def __init__(self, metric: str) -> None:
        self.metric = metric

    @abstractmethod
    def add(self, output: Array, label: Array, how: Output) -> None:
        """Take a batch; raises DatasetInvalidError where the labels do not fit the output."""

    @abstractmethod
    def beside(self, original: Any) -> Quality:
        """Compare with what the original made of the same samples, paired."""

    def all_beside(self, original: Any) -> Iterator[Quality]:
        """Give the metric, and what is measured with it."""
        yield self.beside(original)


class Mean(Task):
    """A metric that is a mean over samples."""

    def __init__(self, metric: str) -> None:
        super().__init__(metric)
        self._batches: list[Floats] = []

    def add(self, output: Array, label: Array, how: Output) -> None:
        """Score a batch."""
        self._batches.append(metrics.MEAN_METRICS[self.metric](output, label, how))

    @property
    def scores(self) -> Floats:
        """One per sample."""
        return np.concatenate(self._batches)

    def beside(self, original: "Mean") -> Quality:
        """Compare right and wrong by Tango's interval, other scores by the mean of the differences."""
        before, after = original.scores, self.scores
        if self.metric in {"top1", "top5"} and all_or_nothing(before) and all_or_nothing(after):
            return self._paired_proportions(before, after)
        difference = after - before
        interval, error = mean_interval(difference)
        if self.metric in _BOUNDED:
            interval = not_narrower(interval, difference)
        return Quality(
            metric=self.metric,
            original=float(before.mean()),
            compressed=float(after.mean()),
            difference=float(difference.mean()),
            interval=interval,
            standard_error=error,
            samples=len(after),
            compressed_interval=mean_interval(after)[0],
        )

    def _paired_proportions(self, before: Floats, after: Floats) -> Quality:
        count, gained, lost = len(after), int((after > before).sum()), int((after < before).sum())
        return Quality(
            metric=self.metric,
            original=float(before.mean()),
            compressed=float(after.mean()),
            difference=(gained - lost) / count,
            interval=tango(gained, lost, count),
            standard_error=sqrt(gained + lost - (gained - lost) ** 2 / count) / count,
            samples=count,
            compressed_interval=wilson(float(after.sum()), count),
            discordant=gained + lost,
        )


class F1(Task):
    """Macro F1: the mean over the classes that occur, of a metric of counts.

    Where a sample may have several classes at once, each column's yes is a class, and its no is none.
    """

    def __init__(self, metric: str = "f1") -> None:
        super().__init__(metric)
        self.decided: list[Ints] = []
        self._wanted: list[Ints] = []
        self._owner: list[Ints] = []
        self._samples = 0
        # What stands for no class.
        self._none: int | None = None

    def add(self, output: Array, label: Array, how: Output) -> None:
        """Keep the decisions and labels that count."""
        decided = metrics.decisions(output, how)
        if decided.size != label.size:
            raise DatasetInvalidError(f"f1 needs one label per decision: {label.shape} does not fit {decided.shape}")
        wanted = label.astype(np.int64).reshape(decided.shape)
        if how.several:
            self._none = _NO_CLASS
            decided, wanted = _columns(decided), _columns(wanted)
        rows = np.arange(self._samples, self._samples + len(wanted)).reshape(-1, *[1] * (wanted.ndim - 1))
        counted = wanted != -1
        self.decided.append(decided[counted])
        self._wanted.append(wanted[counted])
        self._owner.append(np.broadcast_to(rows, wanted.shape)[counted])
        self._samples += len(wanted)

    def beside(self, original: "F1") -> Quality:
        """Compare to first order: each sample's pull on one score less its pull on the other."""
        wanted, owner = np.concatenate(self._wanted), np.concatenate(self._owner)
        before_decided, after_decided = np.concatenate(original.decided), np.concatenate(self.decided)
        before, before_pull = _macro_f1(before_decided, wanted, owner, self._samples, self._none)
        after, after_pull = _macro_f1(after_decided, wanted, owner, self._samples, self._none)
        pull = after_pull - before_pull
        # As if one more sample had changed: none that did so far does not mean that none will.
        unseen = max(float(np.abs(pull).max(initial=0.0)), 1 / self._samples)
        error = sqrt(float((pull**2).sum()) + unseen**2)
        return Quality(
            metric=self.metric,
            original=before,
            compressed=after,
            difference=after - before,
            interval=around(after - before, error, self._samples),
            standard_error=error,
            samples=self._samples,
            compressed_interval=around(after, sqrt(float((after_pull**2).sum())), self._samples),
        )


def _columns(marks: Ints) -> Ints:
    """Give the number of its column to each yes; what is not labelled (-1) stays that."""
    return np.where(marks == 1, np.arange(marks.shape[1]), np.where(marks == 0, _NO_CLASS, marks))


def _macro_f1(decided: Ints, wanted: Ints, owner: Ints, samples: int, none: int | None = None) -> tuple[float, Floats]:
    """Give macro F1, and how much each sample pulls on it (the first-order influence; their squares add up to the variance)."""
    classes, codes = np.unique(np.concatenate([wanted, decided]), return_inverse=True)
    truth, guess = codes[: len(wanted)], codes[len(wanted) :]
    right = truth == guess
    true_positive = np.bincount(truth[right], minlength=len(classes))
    either = np.bincount(truth, minlength=len(classes)) + np.bincount(guess, minlength=len(classes))
    score = 2 * true_positive / either
    # A share of the mean for each class that is one.
    counts = (classes != none).astype(np.float64)
    counts /= max(counts.sum(), 1)
    pull = np.where(
        right,
        2 * counts[truth] * (1 - score[truth]) / either[truth],
        -counts[truth] * score[truth] / either[truth] - counts[guess] * score[guess] / either[guess],
    )
    pulls = np.bincount(owner, weights=pull, minlength=samples).astype(np.float64)
    return float((counts * score).sum()), pulls


class Perplexity(Task):
    """exp of the mean loss per token."""

    def __init__(self, metric: str = "perplexity") -> None:
        super().__init__(metric)
        self._losses: list[Floats] = []
        self._tokens: list[Floats] = []

    def add(self, output: Array, label: Array, how: Output) -> None:
        """Keep each sample's loss and number of tokens."""
        losses, tokens = metrics.token_losses(output, label, how)
        self._losses.append(losses)
        self._tokens.append(tokens)

    def nats(self) -> tuple[float, Floats]:
        """Give the mean loss per token, and how much each sample pulls on it."""
        losses, tokens = np.concatenate(self._losses), np.concatenate(self._tokens)
        total = float(tokens.sum())
        if not total:
            raise DatasetInvalidError("perplexity needs at least one label that is not -1")
        mean = float(losses.sum()) / total
        return mean, (losses - mean * tokens) / total

    def pull(self) -> tuple[float, Floats]:
        """Give the perplexity, and how much each sample pulls on it."""
        mean, pulls = self.nats()
        found = exp(min(mean, 700.0))
        return found, found * pulls

    def all_beside(self, original: "Perplexity") -> Iterator[Quality]:
        """Give the loss per token too: it adds up, and a difference of it is the same share of any perplexity."""
        yield self.beside(original)
        yield self._compared("nats_per_token", original.nats(), self.nats())

    def beside(self, original: "Perplexity") -> Quality:
        """Compare to first order, as for F1."""
        return self._compared(self.metric, original.pull(), self.pull())

    @staticmethod
    def _compared(metric: str, original: tuple[float, Floats], compressed: tuple[float, Floats]) -> Quality:
        (before, before_pull), (after, after_pull) = original, compressed
        samples = len(after_pull)
        error = error_of_pulls(after_pull - before_pull)
        return Quality(
            metric=metric,
            original=before,
            compressed=after,
            difference=after - before,
            interval=around(after - before, error, samples),
            standard_error=error,
            samples=samples,
            compressed_interval=around(after, error_of_pulls(after_pull), samples),
        )


def new_task(metric: str | None) -> Task | None:
    """Give an empty collector for a metric, if there is one."""
    if metric is None:
        return None
    if metric == "f1":
        return F1()
    return Perplexity() if metric == "perplexity" else Mean(metric)
