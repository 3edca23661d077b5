"""Scores of classes, or what was decided: what counts is that the decisions stay."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from engine.measure import metrics
from engine.measure.intervals import Floats
from engine.measure.kinds import closeness
from engine.measure.kinds.kind import Batch, Comparison, Floor, Kind, Subject, percent
from engine.measure.kinds.vectors import Vectors
from engine.measure.metrics import Array, Output
from engine.report.values import Quality

# Batches of the original by which it is told what the scores are.
_READ_BATCHES = 8


class Classes(Comparison):
    """Compares decisions, and of scores also their size and the distributions that they stand for."""

    def __init__(self, name: str, how: Output) -> None:
        self._name, self._how = name, how
        self._vectors = Vectors()
        self._agree: list[Floats] = []
        self._kl: list[Floats] = []

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        left, right = original[self._name], compressed[self._name]
        if metrics.is_float(left):
            self._vectors.add(left, right, valid)
        same = metrics.decisions(left, self._how) == metrics.decisions(right, self._how)
        self._agree.append(mean_over_positions(same.astype(np.float64), valid))
        if self.scores_classes(left):
            self._kl.append(mean_over_positions(metrics.divergences(left, right, self._how), valid))

    def scores_classes(self, values: Array) -> bool:
        """Say whether the last axis holds one distribution over classes."""
        return metrics.class_like(values) and not self._how.one_each

    def qualities(self) -> Iterator[Quality]:
        """Give the metrics that make sense for these scores."""
        yield from self._vectors.qualities()
        yield closeness.share("top1_agreement", np.concatenate(self._agree))
        if self._kl:
            yield closeness.mean("kl", np.concatenate(self._kl))


def mean_over_positions(values: Floats, valid: Array | None) -> Floats:
    """Give the mean of each sample over its positions (samples, positions, ...); padded ones do not count."""
    rows = values.reshape(len(values), -1)
    if valid is None or values.ndim < 2 or values.shape[:2] != valid.shape:
        means: Floats = rows.mean(axis=1) if rows.shape[1] else np.ones(len(rows))
        return means
    marks = valid.reshape(*valid.shape, *[1] * (values.ndim - 2)).astype(np.float64)
    counted: Floats = np.broadcast_to(marks, values.shape).reshape(rows.shape)
    shares: Floats = (rows * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    return shares


def read_scores(subject: Subject, batches: Iterable[Batch]) -> Output:
    """Tell from the original's scores whether they are probabilities, and which are decided one by one."""
    found = [each[subject.name] for each in islice(batches, _READ_BATCHES)]
    if subject.label is not None:
        # The labels of the first batch say how its outputs are read.
        return metrics.read_output(found[0], subject.label)
    read = [metrics.read_output(each, None) for each in found]
    threshold = 0.5 if all(each.threshold for each in read) else 0.0
    probabilities = all(each.probabilities for each in read)
    independent = bool(threshold) and not probabilities and metrics.is_float(found[0])
    return Output(probabilities=probabilities, one_each=independent, threshold=threshold)


def _read(subject: Subject, batches: Iterable[Batch]) -> Callable[[], Comparison]:
    how = read_scores(subject, batches)
    return lambda: Classes(subject.name, how)


CLASSES = Kind(
    metrics=("sqnr_db", "cosine", "top1_agreement", "kl"),
    floors=(
        Floor("top1_agreement", 0.98, "only {value} of the decisions stay the same; {limit} have to", form=percent),
    ),
    read=_read,
)
