"""Numbers that mean themselves: what counts is how far they are off, beside their size and beside how they vary."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from engine.graph import row_sets
from engine.measure.intervals import Floats
from engine.measure.kinds import closeness
from engine.measure.kinds.kind import SQNR_FLOOR, Batch, Comparison, Floor, Kind, Subject, percent
from engine.measure.kinds.vectors import Vectors
from engine.measure.metrics import Array
from engine.report.values import Quality

# Outputs with at most so many numbers per sample are looked at number by number: each may have a unit of its own.
_MOST_COLUMNS = 64
# Below this share of its energy the variation of a number is rounding.
_CONSTANT = 1e-9


class Values(Comparison):
    """Compares numbers by noise, and by how much of their variation over the samples is left.

    `centre`: each number's mean over the samples, in the shape of one sample; None where samples differ in shape.
    `varies`: which columns do, of an output of few numbers; None for an output that is taken as a whole.
    """

    def __init__(self, name: str, centre: Floats | None, varies: Array | None) -> None:
        self._name, self._centre, self._varies = name, centre, varies
        self._vectors = Vectors()
        self._variation: list[Floats] = []
        self._noise: list[Floats] = []

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        left, right = original[self._name], compressed[self._name]
        self._vectors.add(left, right, valid)
        if self._centre is None:
            return
        one, other = (np.nan_to_num(np.asarray(each, np.float64), posinf=0, neginf=0) for each in (left, right))
        variation, noise = (np.square(each).reshape(len(one), -1) for each in (one - self._centre, one - other))
        whole = self._varies is None
        self._variation.append(variation.sum(axis=1, keepdims=True) if whole else variation[:, self._varies])
        self._noise.append(noise.sum(axis=1, keepdims=True) if whole else noise[:, self._varies])

    def qualities(self) -> Iterator[Quality]:
        """Give sqnr_db, r2 of the number that keeps least of its variation, and cosine."""
        sqnr, cosine = self._vectors.qualities()
        yield sqnr
        if self._variation and self._variation[0].shape[1]:
            variation, noise = np.concatenate(self._variation), np.concatenate(self._noise)
            worst = int(np.argmax(noise.sum(axis=0) / variation.sum(axis=0)))
            yield closeness.r2(variation[:, worst], noise[:, worst])
        yield cosine


class RowSets(Comparison):
    """Compares outputs whose rows the data decide, as sets: noise is how far a row is from the other set's nearest one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._signal: list[float] = []
        self._noise: list[float] = []

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        del valid
        for left, right in zip(original[self._name], compressed[self._name], strict=True):
            one, other = row_sets.paired_rows(left, right, self._name)
            there, back = row_sets.distances(one, other)
            self._signal.append(float(np.square(one).sum()))
            self._noise.append(max(float(np.square(there).sum()), float(np.square(back).sum())))

    def qualities(self) -> Iterator[Quality]:
        """Give sqnr_db."""
        yield closeness.sqnr(np.array(self._signal), np.array(self._noise))


def _read(subject: Subject, batches: Iterable[Batch]) -> Callable[[], Comparison]:
    if subject.rows_vary:
        return lambda: RowSets(subject.name)
    centre, varies = _variation(subject.name, batches)
    return lambda: Values(subject.name, centre, varies)


def _variation(name: str, batches: Iterable[Batch]) -> tuple[Floats | None, Array | None]:
    """Give the mean of each number over the samples, and which of few numbers vary at all."""
    total: Floats = np.zeros(())
    squares: Floats = np.zeros(())
    count = 0
    for batch in batches:
        values = np.nan_to_num(np.asarray(batch[name], np.float64), posinf=0, neginf=0)
        if count and values.shape[1:] != total.shape:
            return None, None
        total = total + values.sum(axis=0)
        squares = squares + np.square(values).sum(axis=0)
        count += len(values)
    centre = total / max(count, 1)
    spread = np.maximum(squares / max(count, 1) - np.square(centre), 0)
    if centre.size > _MOST_COLUMNS:
        return (centre, None) if spread.sum() > _CONSTANT * squares.sum() / count else (None, None)
    return centre, np.flatnonzero(spread.ravel() > _CONSTANT * squares.ravel() / max(count, 1))


VALUES = Kind(
    metrics=("sqnr_db", "r2", "cosine"),
    floors=(
        SQNR_FLOOR,
        Floor("r2", 0.9, "it keeps only {value} of how its numbers vary over the samples (r2, of the number that keeps"
              " least); {limit} is required", form=percent),
    ),
    read=_read,
)  # fmt: skip
