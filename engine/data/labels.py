"""What labels are like, told from all of them: class numbers, one-hot rows, several classes at once, shares, or values.

What they mean beside a network is decided where its outputs are known (`engine/measure/label_reading.py`): the same zeros and
ones are the classes of two tags per row there, or a one-hot row here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UNLABELLED = -1
# PyTorch's mark of a position that does not count.
TORCH_IGNORED = -100
# The mark of a place that belongs to no class, in masks of bytes.
VOID = 255
# Metrics of class numbers; those of the others are values.
CLASS_METRICS = frozenset({"top1", "top5", "f1", "iou", "perplexity", "edit_distance"})
# Metrics by which one-hot rows of one sample can be judged.
_ROW_METRICS = frozenset({"top1", "top5", "f1", "perplexity"})
_CHUNK_NUMBERS = 1 << 20
_CLOSE = 1e-3


@dataclass(frozen=True)
class Rows:
    """What the numbers along one axis of the labels add up to."""

    axis: int
    # Each row holds a single 1 among zeros; or, with `blank`, nothing but zeros, or nothing but -1. `marked`: some hold the 1.
    one_hot: bool = True
    blank: bool = False
    marked: bool = False
    # Each row is shares of classes that add up to one; with `majority` one class has more than half of each.
    shares: bool = True
    majority: bool = True

    def joined(self, other: "Rows") -> "Rows":
        """Give what holds for both."""
        return Rows(
            self.axis,
            self.one_hot and other.one_hot,
            self.blank or other.blank,
            self.marked or other.marked,
            self.shares and other.shares,
            self.majority and other.majority,
        )


@dataclass(frozen=True)
class LabelFacts:
    """What holds for all labels of a dataset.

    `ndim` counts the samples' axis. `high` is the largest number but for 255 in labels of bytes, which `void` tells of;
    `least` is the smallest that is not negative.
    """

    ndim: int
    whole: bool = True
    binary: bool = True
    low: float = 0.0
    high: float = 0.0
    least: float = 0.0
    void: bool = False
    # The first number that is not whole, as it stands.
    broken: str | None = None
    rows: tuple[Rows, ...] = ()

    def one_hot(self, axis: int) -> Rows | None:
        """Give what is known of an axis along which every row is one-hot."""
        return next((rows for rows in self.rows if rows.axis == axis and rows.one_hot and rows.marked), None)

    def shares(self, axis: int) -> Rows | None:
        """Give what is known of an axis along which every row is shares of classes."""
        return next((rows for rows in self.rows if rows.axis == axis and rows.shares), None)


def look_at(label: Array) -> LabelFacts:
    """Look at all labels once, some at a time."""
    found: LabelFacts | None = None
    for some in _chunks(label):
        facts = _facts(some)
        found = facts if found is None else _joined(found, facts)
    return found or LabelFacts(label.ndim)


def usual_metric(label: Array, facts: LabelFacts) -> str | None:
    """Give the metric of labels that nobody declared one for: top1 where they can only be classes, one for each sample."""
    if label.size == len(label):
        return "top1" if label.dtype.kind in "iu" else None
    rows = facts.one_hot(1) if label.ndim == 2 else None
    return "top1" if rows is not None and not rows.blank else None


def class_numbers(label: Array, metric: str | None) -> Array | None:
    """Give the class of each sample, where a sample has one: a whole number, or a one-hot row."""
    if metric is not None and metric not in CLASS_METRICS:
        return None
    if label.size == len(label):
        flat = np.asarray(label).reshape(-1)
        if flat.dtype.kind in "iu":
            return flat
        return flat.astype(np.int64) if metric is not None and look_at(flat).whole else None
    if label.ndim == 2 and metric in _ROW_METRICS:
        rows = look_at(label).one_hot(1)
        return None if rows is None or rows.blank else np.argmax(label, axis=1).astype(np.int64)
    return None


def is_labelled(label: Array, metric: str | None = None) -> npt.NDArray[np.bool_]:
    """Say which labels are labels: among class numbers -1 means none, also where a table has made floats of them."""
    single = label.size == len(label)
    if single and (label.dtype.kind == "i" or (label.dtype.kind == "f" and metric in CLASS_METRICS)):
        return np.asarray(label.reshape(-1) != UNLABELLED)
    return np.ones(len(label), dtype=np.bool_)


def _chunks(label: Array) -> Iterator[Array]:
    step = max(1, _CHUNK_NUMBERS // max(1, label.size // max(1, len(label))))
    for start in range(0, len(label), step):
        yield np.asarray(label[start : start + step])


def _facts(label: Array) -> LabelFacts:
    if not label.size:
        return LabelFacts(label.ndim)
    numbers = label.astype(np.float64)
    not_whole = numbers != np.floor(numbers)
    bytes_ = label.dtype == np.uint8
    void = bytes_ & bool((label == VOID).any())
    others = numbers[numbers != VOID] if void else numbers
    axes = sorted({1, label.ndim - 1}) if label.ndim >= 2 else []
    return LabelFacts(
        ndim=label.ndim,
        whole=not bool(not_whole.any()),
        binary=bool(((numbers == 0) | (numbers == 1)).all()),
        low=float(numbers.min()),
        high=float(others.max(initial=-1.0)),
        least=float(numbers[numbers >= 0].min(initial=np.inf)),
        void=void,
        broken=str(label[not_whole][0]) if not_whole.any() else None,
        rows=tuple(_rows(numbers, axis) for axis in axes if label.shape[axis] >= 2),
    )


def _rows(numbers: npt.NDArray[np.float64], axis: int) -> Rows:
    sums, largest, least = numbers.sum(axis=axis), numbers.max(axis=axis), numbers.min(axis=axis)
    nothing = ((largest == 0) & (least == 0)) | ((largest == UNLABELLED) & (least == UNLABELLED))
    single = (sums == 1) & (largest == 1) & (least == 0) & ((numbers == 0) | (numbers == 1)).all(axis=axis)
    adds_up = (least >= 0) & (np.abs(sums - 1) < _CLOSE)
    return Rows(
        axis,
        one_hot=bool((single | nothing).all()),
        blank=bool(nothing.any()),
        marked=bool(single.any()),
        shares=bool(adds_up.all()),
        majority=bool((largest > 0.5).all()),
    )


def _joined(one: LabelFacts, other: LabelFacts) -> LabelFacts:
    return LabelFacts(
        one.ndim,
        one.whole and other.whole,
        one.binary and other.binary,
        min(one.low, other.low),
        max(one.high, other.high),
        min(one.least, other.least),
        one.void or other.void,
        one.broken or other.broken,
        tuple(left.joined(right) for left, right in zip(one.rows, other.rows, strict=True)),
    )
