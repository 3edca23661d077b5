"""What speaks against a baseline being what its owner takes it for: chance, labels of another numbering, outputs that stay alike.

A job compares networks with their original. Where the original itself gets nothing right on the data, every comparison is about
noise, so this is said before any work is done, with the mistake that the numbers point to.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import log

import numpy as np
import numpy.typing as npt

from engine.measure import metrics
from engine.measure.intervals import Floats, wilson
from engine.measure.metrics import Array, Ints, Output

# Fewer samples tell nothing.
_FEWEST = 20
# How much better another reading has to be: far more than a baseline of an odd quality can gain by chance.
_FAR_BETTER = 0.3
_MOST_PER_RUN = 1 << 14
_CONSTANT = 1e-6
# A share of the variance, or of ln(classes), that at least has to be explained.
_LEAST_EXPLAINED = 0.02
_READS_NOTHING = 0.9
_CORRELATED = 0.9
_MOST_CLASSES = 2048

Said = Iterable[tuple[Array, Array | None]]


@dataclass(frozen=True)
class Doubt:
    """What speaks against a baseline; `inputs`: it may be for how the inputs were prepared."""

    said: str
    inputs: bool = False


@dataclass
class Seen:
    """What the original says of some samples: decisions and labels position by position, or values."""

    metric: str | None
    how: Output
    # Whether the output decides for classes, also where no labels say so.
    classifies: bool = True
    samples: int = 0
    classes: int = 0
    constant: bool = True
    decided: list[Ints] = field(default_factory=list)
    wanted: list[Ints] = field(default_factory=list)
    values: list[tuple[Floats, Floats]] = field(default_factory=list)
    # Mean loss as labelled, and with labels one position earlier and later; with the number of labels.
    losses: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 2)))
    # Edit distance as labelled, and with every class one higher and one lower.
    distances: list[Floats] = field(default_factory=list)
    _first: Array | None = None

    def add(self, output: Array, label: Array | None) -> None:
        """Take in a run."""
        self.samples += len(output)
        self._compare(output)
        if self.metric in {"mse", "mae"}:
            if label is not None:
                flat = [np.asarray(each, np.float64).reshape(len(output), -1) for each in (output, label)]
                self.values.append((flat[0], flat[1]))
            return
        if self.metric == "edit_distance" and label is not None:
            numbers = label.astype(np.int64)
            shifted = [np.where(numbers >= 0, numbers + by, numbers) for by in (0, 1, -1)]
            self.distances.append(np.stack([metrics.edit_distance(output, each, self.how) for each in shifted]))
            return
        if label is None and not self.classifies:
            return
        if metrics.is_float(output) and not self.how.one_each and output.ndim >= 2:
            self.classes = output.shape[metrics.class_axis(output)]
        decided = metrics.decisions(output, self.how)
        step = max(1, decided.size // _MOST_PER_RUN)
        self.decided.append(decided.reshape(-1)[::step])
        if label is not None and label.size == decided.size:
            self.wanted.append(label.reshape(-1)[::step].astype(np.int64))
        if self.metric == "perplexity" and label is not None:
            self._lose(output, label)

    def _compare(self, output: Array) -> None:
        if not self.constant or not metrics.is_float(output) or not output.size:
            self.constant = False
            return
        first = output[:1] if self._first is None else self._first
        self._first = first
        if first.shape[1:] != output.shape[1:]:
            self.constant = False
            return
        moved = np.abs(metrics.finite_rows(output) - metrics.finite_rows(first)).max()
        self.constant = bool(moved <= _CONSTANT * max(float(np.abs(metrics.finite_rows(first)).max()), 1e-30))

    def _lose(self, output: Array, label: Array) -> None:
        for row, by in enumerate((0, -1, 1)):
            moved = np.full_like(label, -1)
            if by == 0:
                moved = label
            elif label.ndim > 1 and by < 0:
                moved[:, :-1] = label[:, 1:]
            elif label.ndim > 1:
                moved[:, 1:] = label[:, :-1]
            lost, counted = metrics.token_losses(output, moved, self.how)
            self.losses[row] += (lost.sum(), counted.sum())


def look_at_baseline(said: Said, metric: str | None, how: Output, *, classifies: bool = True) -> Seen:
    """Take in what the original says of the samples to choose by, run by run, with the labels as the metric takes them."""
    seen = Seen(metric, how, classifies)
    for output, label in said:
        seen.add(output, label)
    return seen


def right_share(seen: Seen) -> float | None:
    """Give the share of labelled positions that are decided right; None without labels of classes."""
    if not seen.wanted:
        return None
    decided, wanted = _counted(seen)
    return float((decided == wanted).mean()) if len(wanted) else None


def is_far_better(other: Seen, seen: Seen) -> bool:
    """Say whether the network gets far more right on other inputs for the same labels."""
    now, then = right_share(seen), right_share(other)
    return now is not None and then is not None and _far_better(then, now, min(seen.samples, other.samples))


def doubts(seen: Seen) -> Iterator[Doubt]:
    """Yield what speaks against the baseline, each in a sentence or two with the likely mistake."""
    if seen.samples < 2:
        return
    if seen.constant and seen.samples >= 4:
        yield Doubt(
            f"The original gives the same for all {seen.samples} samples that were looked at, so nothing can be told from its"
            " quality. The inputs may be on another scale than it was trained on, or all alike.",
            inputs=True,
        )
        return
    if seen.values:
        yield from _of_values(seen)
    elif seen.distances:
        yield from _of_sequences(seen)
    elif seen.wanted:
        of_tokens = list(_of_tokens(seen)) if seen.metric == "perplexity" else []
        yield from of_tokens or _of_classes(seen)
    elif seen.decided:
        decided = np.concatenate(seen.decided)
        if seen.classes >= 3 and seen.samples >= _FEWEST and len(np.unique(decided)) == 1:
            yield Doubt(
                f"The original decides for class {decided[0]} on all {seen.samples} samples that were looked at. The inputs may"
                " be on another scale than it was trained on, or all of one kind.",
                inputs=True,
            )


def _counted(seen: Seen) -> tuple[Ints, Ints]:
    decided, wanted = np.concatenate(seen.decided), np.concatenate(seen.wanted)
    return decided[wanted >= 0], wanted[wanted >= 0]


def _of_classes(seen: Seen) -> Iterator[Doubt]:
    decided, wanted = _counted(seen)
    if len(wanted) < _FEWEST or seen.samples < 2:
        return
    if len(np.unique(wanted)) == 1:
        yield Doubt(
            f"All {len(wanted)} labels that were looked at are class {wanted[0]}: they cannot show whether the network still"
            " tells classes apart. The samples may be sorted by class and cut, or -1 may be meant as a class."
        )
        return
    # Positions of one sample are alike, so that the samples count.
    count = min(seen.samples, len(wanted))
    share = float((decided == wanted).mean())
    if seen.metric != "perplexity":
        other = next(iter(_other_numbering(decided, wanted, count)), None)
        if other is not None:
            yield other
            return
    chance = _chance(decided, wanted)
    if wilson(share * count, count).low > chance or share - chance > 0.5 * (1 - chance):
        return
    if len(np.unique(decided)) == 1:
        yield Doubt(
            f"The original decides for class {decided[0]} on all {count} samples that were looked at, whatever their label. The"
            " inputs may be on another scale than it was trained on.",
            inputs=True,
        )
        return
    yield Doubt(
        f"The original is right on {share:.1%} of the labels that were looked at, which cannot be told from chance ({chance:.1%})."
        " Labels may be of other samples or of another numbering, or the inputs not prepared as in training (scale, order of"
        " channels, axes).",
        inputs=True,
    )


def _chance(decided: Ints, wanted: Ints) -> float:
    """Give the share that would agree if decisions had nothing to do with labels (Cohen, Educ. Psychol. Meas. 20, 1960)."""
    classes, codes = np.unique(np.concatenate([decided, wanted]), return_inverse=True)
    left, right = (np.bincount(each, minlength=len(classes)) / len(wanted) for each in np.split(codes, 2))
    return float((left * right).sum())


def _other_numbering(decided: Ints, wanted: Ints, count: int) -> Iterator[Doubt]:
    share = float((decided == wanted).mean())
    found = np.unique(wanted)
    for by, what in ((1, "subtract 1 from each"), (-1, "add 1 to each")):
        if len(found) > 2 and _far_better(float((decided == wanted - by).mean()), share, count):
            yield Doubt(
                f"The labels seem to be shifted by one: the original is right on {share:.1%} of those that were looked at, and"
                f" would be on {float((decided == wanted - by).mean()):.1%} if you {what}."
            )
    both = np.union1d(found, np.unique(decided))
    if len(both) == 2 and _far_better(1 - share, share, count):
        yield Doubt(
            f"The two classes seem to be swapped: the original is right on {share:.1%} of the labels that were looked at, and"
            f" would be on {1 - share:.1%} the other way round."
        )
        return
    # Found on one half of the samples, judged on the other: with many classes a mapping fits anything.
    if 2 < len(both) <= _MOST_CLASSES and count >= max(2 * _FEWEST, 4 * len(both)):
        codes = np.searchsorted(both, np.stack([decided, wanted]))
        table = np.zeros((len(both), len(both)))
        np.add.at(table, (codes[0, ::2], codes[1, ::2]), 1)
        mapping = table.argmax(axis=1)
        mapped = float((mapping[codes[0, 1::2]] == codes[1, 1::2]).mean())
        if _far_better(mapped, share, count // 2):
            yield Doubt(
                f"The labels seem to number the classes in another order than the network: it is right on {share:.1%} of those"
                f" that were looked at, and would be on {mapped:.1%} if they were renumbered."
            )


def _far_better(other: float, share: float, count: int) -> bool:
    apart = wilson(other * count, count).low > wilson(share * count, count).high
    return apart and other > share + _FAR_BETTER


def _of_tokens(seen: Seen) -> Iterator[Doubt]:
    if (seen.losses[0, 1] < _FEWEST) or seen.classes < 2:
        return
    loss = seen.losses[:, 0] / np.maximum(seen.losses[:, 1], 1)
    for row, what in ((1, "the token at the position itself, not the next one"), (2, "the token after the next one")):
        if seen.losses[row, 1] and loss[row] < 0.7 * loss[0] - _LEAST_EXPLAINED:
            yield Doubt(
                f"The labels seem to be {what}: the loss is {loss[0]:.2f} nats per token as they are and would be"
                f" {loss[row]:.2f} with the labels moved by one position."
            )
            return
    if loss[0] > (1 - _LEAST_EXPLAINED) * log(seen.classes):
        yield Doubt(
            f"The original's loss, {loss[0]:.2f} nats per token, is that of a guess among all {seen.classes} tokens"
            f" ({log(seen.classes):.2f}). The token ids may come from another tokenizer, or the labels not be the next tokens.",
            inputs=True,
        )


def _of_values(seen: Seen) -> Iterator[Doubt]:
    output, label = (np.concatenate(each) for each in zip(*seen.values, strict=True))
    if len(label) < _FEWEST:
        return
    if not label.std(axis=0).any():
        yield Doubt(
            f"All {len(label)} labels that were looked at are equal: they cannot show whether the network still tells samples"
            " apart."
        )
        return
    error, spread = float(((output - label) ** 2).mean()), float(label.var(axis=0).mean())
    if error < (1 - _LEAST_EXPLAINED) * spread:
        return
    left, right = output - output.mean(axis=0), label - label.mean(axis=0)
    together = float((left * right).sum() / max(np.sqrt((left**2).sum() * (right**2).sum()), 1e-300))
    if abs(together) > _CORRELATED:
        slope = float((left * right).sum() / (left**2).sum())
        offset = float(label.mean() - slope * output.mean())
        yield Doubt(
            f"The labels seem to be on another scale than the outputs: they correlate by {together:.2f}, but the mean squared error,"
            f" {error:.4g}, is larger than the labels' own variance, {spread:.4g}. About, label = {slope:.4g} x output +"
            f" {offset:.4g}."
        )
        return
    yield Doubt(
        f"The original's mean squared error, {error:.4g}, is no smaller than that of always giving the mean ({spread:.4g}). Labels"
        " may be of other samples or in another unit, or the inputs not prepared as in training.",
        inputs=True,
    )


def _of_sequences(seen: Seen) -> Iterator[Doubt]:
    distances = np.concatenate(seen.distances, axis=1)
    if distances.shape[1] < _FEWEST // 2:
        return
    mean = distances.mean(axis=1)
    for row, what in ((1, "add 1 to each"), (2, "subtract 1 from each")):
        if mean[row] < mean[0] - _FAR_BETTER:
            yield Doubt(
                f"The labels seem to be shifted by one: the mean edit distance is {mean[0]:.2f}, and would be {mean[row]:.2f} if"
                f" you {what}. Class 0 is the blank."
            )
            return
    if mean[0] > _READS_NOTHING:
        yield Doubt(
            f"The original reads almost nothing right: the mean edit distance is {mean[0]:.2f} of the labels' length. The labels"
            " may be of another alphabet or have the blank elsewhere than at 0, or the inputs not be prepared as in training.",
            inputs=True,
        )
