"""How labels are read beside an output: as class numbers, one-hot rows, several classes at once, or values.

It is decided once, from all labels of a dataset and what the output is like, so that every batch is read in the same way. What
cannot be read without a guess is refused with what is wrong and what to write instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.labels import CLASS_METRICS, TORCH_IGNORED, UNLABELLED, VOID, LabelFacts, Rows
from engine.errors import DatasetInvalidError
from engine.measure import metrics
from engine.measure.metrics import Array

_WRITE_NUMBERS = "Write the number of the class as a whole number (0, 1, 2, ...), -1 where there is none."
_SEVERAL = "Declare the metric f1: of labels that may have several classes at once it is the mean F1 of the classes."


@dataclass(frozen=True)
class LabelReading:
    """The way to read labels as the metrics take them.

    `axis`: where one-hot rows, or shares of classes, lie; the class is the largest number there. `several`: each column is a
    class of its own, which is there (1) or not. `void`: 255 does not count. `told`: what the labels were taken for, in words.
    """

    axis: int | None = None
    several: bool = False
    void: bool = False
    values: bool = False
    told: str | None = None

    def __call__(self, label: Array, output: Array) -> Array:
        """Give the labels of a batch: whole numbers, -1 where there is none; values as they are."""
        if self.values:
            return label
        if self.axis is not None:
            nothing = label.max(axis=self.axis) <= 0
            label = np.where(nothing, UNLABELLED, np.argmax(label, axis=self.axis))
        numbers = np.asarray(label).astype(np.int64)
        numbers[numbers == TORCH_IGNORED] = UNLABELLED
        if self.void:
            numbers[numbers == VOID] = UNLABELLED
        return _without_filling(numbers, output)


def read_labels(facts: LabelFacts, label: Array, output: Array, metric: str) -> LabelReading:
    """Decide how labels are read beside an output, from the facts of all of them and one batch of both.

    Raises:
        DatasetInvalidError: the labels do not fit the output, or cannot be read without a guess.
    """
    if metric not in CLASS_METRICS:
        _refuse_other_order(label.shape, output.shape, "output")
        return LabelReading(values=True)
    if metric == "edit_distance":
        return _sequences(facts, label)
    axis = metrics.class_axis(output) if metrics.is_float(output) and output.ndim >= 2 else None
    classes = output.shape[axis] if axis is not None else 1
    positions = output.shape if axis is None or classes < 2 else (*output.shape[:axis], *output.shape[axis + 1 :])
    found = _numbers(facts, label, output, positions, classes=classes, metric=metric)
    if found is None and classes > 1:
        found = _rows(facts, label, positions, classes) or _one_each(facts, label, output, metric)
    if found is None:
        found = _rows(facts, label, positions, None) if axis is None else None
    if found is None:
        raise DatasetInvalidError(
            f"The labels of a batch have the shape {label.shape}, the network's output {output.shape}: they do not fit",
            hint=f"For {metric} the output asks for labels of the shape {_written(positions)}. {_WRITE_NUMBERS}",
        )
    return found


def _numbers(
    facts: LabelFacts, label: Array, output: Array, positions: tuple[int, ...], *, classes: int, metric: str
) -> LabelReading | None:
    """Read one number for each position."""
    if not _same(_without_filling(label, output).shape, positions):
        return None
    _refuse_broken(facts, metric)
    void = _leaves_out(facts, output)
    decides_two = metrics.is_float(output) and classes < 2
    if facts.low < UNLABELLED and facts.low != TORCH_IGNORED:
        raise DatasetInvalidError(f"A label names class {facts.low:.0f}", hint=_WRITE_NUMBERS)
    limit = 2 if decides_two else classes if metrics.is_float(output) else None
    high = facts.high if void or not facts.void else max(facts.high, VOID)
    if limit is not None and high >= limit:
        raise _out_of_range(facts, int(high), limit, decides_two=decides_two)
    return LabelReading(void=void, told="as whole numbers" if label.dtype.kind == "f" else None)


def _leaves_out(facts: LabelFacts, output: Array) -> bool:
    """Say whether 255 marks places of masks that do not count: not where it is all there is but 0."""
    return facts.void and output.ndim > 2 and facts.high >= 1


def _rows(facts: LabelFacts, label: Array, positions: tuple[int, ...], classes: int | None) -> LabelReading | None:
    """Read the class of each row that is one-hot, or shares of classes."""
    for rows in facts.rows:
        axis = rows.axis
        rest = (*label.shape[:axis], *label.shape[axis + 1 :])
        if not _same(rest, positions) or (classes is not None and label.shape[axis] != classes):
            continue
        if facts.one_hot(axis) is not None:
            _refuse_blank(rows, label)
            return LabelReading(axis=axis, told="as one-hot rows")
        if facts.shares(axis) is not None:
            if not rows.majority:
                raise DatasetInvalidError(
                    "The labels are shares of classes, and in some no class has more than half: they name no class",
                    hint=_WRITE_NUMBERS,
                )
            return LabelReading(axis=axis, told="as shares of classes, of which the largest counts")
    return None


def _refuse_blank(rows: Rows, label: Array) -> None:
    # Positions without a class are filled up with zeros; a sample without one may as well be one of no class at all.
    if rows.blank and label.ndim == 2:
        raise DatasetInvalidError(
            "The labels are one-hot rows, but some hold no 1", hint=f"{_WRITE_NUMBERS} {_SEVERAL}"
        )


def _one_each(facts: LabelFacts, label: Array, output: Array, metric: str) -> LabelReading | None:
    """Read a yes or no for each number of the output: masks, and several classes at once."""
    if not _same(label.shape, output.shape):
        return None
    _refuse_broken(facts, metric)
    void = _leaves_out(facts, output)
    if not facts.binary and not (facts.high <= 1 and (void or facts.low in {UNLABELLED, TORCH_IGNORED})):
        raise DatasetInvalidError(
            f"There is a label for each number of the output, but they are not yes (1) or no (0): they go from"
            f" {facts.low:.0f} to {VOID if facts.void else facts.high:.0f}",
            hint=_WRITE_NUMBERS,
        )
    if output.ndim != 2:
        return LabelReading(void=void, told="as a yes or no for each number")
    if metric in {"f1", "iou"}:
        return LabelReading(several=metric == "f1", told="as several classes at once")
    raise DatasetInvalidError(
        f"The labels are zeros and ones for each of {output.shape[1]} classes, not one 1 per row: samples may have several"
        f" classes at once, of which {metric} says nothing",
        hint=_SEVERAL,
    )


def _sequences(facts: LabelFacts, label: Array) -> LabelReading:
    rows = facts.one_hot(2) if label.ndim == 3 else None
    if rows is not None:
        return LabelReading(axis=2, told="as one-hot rows")
    if label.ndim > 2:
        raise DatasetInvalidError(
            f"edit_distance takes a sequence of class numbers for each sample, the labels of a batch are {label.shape}",
            hint=_WRITE_NUMBERS,
        )
    _refuse_broken(facts, "edit_distance")
    return LabelReading(told="as whole numbers" if label.dtype.kind == "f" else None)


def _refuse_broken(facts: LabelFacts, metric: str) -> None:
    if not facts.whole:
        raise DatasetInvalidError(
            f"{metric} takes class numbers, but a label is {facts.broken}",
            hint=f"{_WRITE_NUMBERS} Where the labels are values, declare the metric mse or mae.",
        )


def _out_of_range(facts: LabelFacts, high: int, classes: int, *, decides_two: bool) -> DatasetInvalidError:
    if decides_two:
        said = f"A label names class {high}, but the output is one number that says yes (1) or no (0)"
        return DatasetInvalidError(said, hint=_WRITE_NUMBERS)
    said = f"A label names class {high}, the network has {classes} classes: 0 to {classes - 1}"
    if high == classes and facts.least >= 1:
        return DatasetInvalidError(said, hint="The labels seem to count from 1: subtract 1 from each.")
    return DatasetInvalidError(said, hint="Write -1 where a label does not count.")


def _without_filling(label: Array, output: Array) -> Array:
    """Cut off what fills labels of positions up to the longest sample of all: -1, where the output has no position."""
    if label.ndim < 2 or output.ndim < 2 or label.shape[1] <= output.shape[1]:
        return label
    surplus = label[:, output.shape[1] :]
    return label[:, : output.shape[1]] if bool(((surplus == UNLABELLED) | (surplus == TORCH_IGNORED)).all()) else label


def _refuse_other_order(label: Sequence[int], output: Sequence[int], what: str) -> None:
    if not _same(tuple(label), tuple(output)):
        raise DatasetInvalidError(
            f"The labels of a batch have the shape {tuple(label)}, the network's {what} {tuple(output)}: they do not fit"
        )


def _same(label: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Say whether labels lie as the other does: axes of size 1 do not matter, and neighbouring axes may be one."""
    left, right = (tuple(size for size in shape[1:] if size != 1) for shape in (label, other))
    if label[:1] != other[:1] or int(np.prod(left)) != int(np.prod(right)):
        return False
    return left == right or len(left) != len(right)


def _written(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['samples', *map(str, shape[1:])])})"
