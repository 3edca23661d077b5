"""Which class each place belongs to: what counts is how far the areas overlap."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from engine.measure import metrics
from engine.measure.intervals import Floats
from engine.measure.kinds import closeness
from engine.measure.kinds.kind import Batch, Comparison, Floor, Kind, Subject, percent
from engine.measure.kinds.vectors import Vectors
from engine.measure.metrics import Array, Ints, Output
from engine.report.values import Quality

_READ_BATCHES = 8


class Mask(Comparison):
    """Compares what is decided at each place: the best class on axis 1 of four axes, else each number by a threshold."""

    def __init__(self, name: str, how: Output) -> None:
        self._name, self._how = name, how
        self._vectors = Vectors()
        self._overlap: list[Floats] = []
        self._agree: list[Floats] = []

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        del valid
        left, right = original[self._name], compressed[self._name]
        if metrics.is_float(left):
            self._vectors.add(left, right)
        decided = [decide(each, self._how) for each in (left, right)]
        one, other = (each.reshape(len(each), -1) for each in decided)
        binary = metrics.is_float(left) and decided[0].size == left.size
        self._agree.append(metrics.agreement(one, other))
        self._overlap.append(
            np.array([_overlap(got, want, binary=binary) for want, got in zip(one, other, strict=True)])
        )

    def qualities(self) -> Iterator[Quality]:
        """Give the overlap, the share of places decided alike, and of scores their size."""
        yield closeness.share("mask_iou", np.concatenate(self._overlap))
        yield closeness.share("top1_agreement", np.concatenate(self._agree))
        yield from self._vectors.qualities()


class Coordinates(Comparison):
    """Compares the places of a mask that are listed, as NonZero does: integers (axes, places) or (places, axes)."""

    def __init__(self, name: str, *, columns: bool) -> None:
        self._name, self._columns = name, columns
        self._overlap: list[float] = []

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        del valid
        for left, right in zip(original[self._name], compressed[self._name], strict=True):
            one, other = (self._places(each) for each in (left, right))
            union = len(one | other)
            self._overlap.append(len(one & other) / union if union else 1.0)

    def _places(self, listed: Array) -> set[tuple[int, ...]]:
        rows = listed.T if self._columns and listed.ndim == 2 else listed
        return {tuple(map(int, np.atleast_1d(row))) for row in rows}

    def qualities(self) -> Iterator[Quality]:
        """Give the overlap."""
        yield closeness.share("mask_iou", np.array(self._overlap))


def decide(values: Array, how: Output) -> Ints:
    """Give the class of each place."""
    if not metrics.is_float(values):
        return values.astype(np.int64)
    if how.one_each or values.ndim != 4 or values.shape[1] == 1:
        return (np.asarray(values, np.float64) > how.threshold).astype(np.int64)
    best: Ints = values.argmax(axis=1).astype(np.int64)
    return best


def _overlap(got: Ints, want: Ints, *, binary: bool) -> float:
    """Give the mean overlap over the classes that either network sees; of a mask of two that of what is not background."""
    classes = np.array([1]) if binary else np.union1d(got, want)
    shares = []
    for which in classes:
        union = int(((got == which) | (want == which)).sum())
        shares.append(int(((got == which) & (want == which)).sum()) / union if union else 1.0)
    return float(np.mean(shares)) if shares else 1.0


def _read(subject: Subject, batches: Iterable[Batch]) -> Callable[[], Comparison]:
    some = [each[subject.name] for each in islice(batches, _READ_BATCHES)]
    if subject.rows_vary:
        listed = some[0][0]
        return lambda: Coordinates(subject.name, columns=listed.ndim == 2 and listed.shape[0] < 5)
    if not metrics.is_float(some[0]):
        return lambda: Mask(subject.name, Output(probabilities=False))
    how = read_mask(subject, some)
    return lambda: Mask(subject.name, how)


def read_mask(subject: Subject, some: Sequence[Array]) -> Output:
    """Tell from some batches of the original's scores whether classes compete for a place, and where the threshold is."""
    if subject.label is not None and some[0].size == subject.label.size:
        return metrics.read_output(some[0], subject.label)
    unit = all(float(each.min()) >= 0 and float(each.max()) <= 1 for each in some if each.size)
    # Several channels that add up to one compete for a place; others are masks of their own.
    competing = some[0].ndim == 4 and some[0].shape[1] > 1 and (not unit or _adds_up(some))
    return Output(probabilities=unit and competing, one_each=not competing, threshold=0.5 if unit else 0.0)


def _adds_up(some: Sequence[Array]) -> bool:
    return all(bool(np.allclose(np.asarray(each, np.float64).sum(axis=1), 1, atol=1e-2)) for each in some)


MASK = Kind(
    metrics=("mask_iou", "top1_agreement", "sqnr_db", "cosine"),
    floors=(
        Floor("mask_iou", 0.9, "the areas overlap by only {value} (intersection over union); {limit} is required",
              form=percent),
    ),
    read=_read,
)  # fmt: skip
