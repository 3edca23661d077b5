"""The closed set of metrics, each as numbers per sample, so that two networks can be compared sample by sample.

Conventions: an output has the samples on its first axis. Classes are on the last axis of an output with two or three axes
(samples, classes) or (samples, positions, classes), and on axis 1 of one with four (samples, classes, height, width). A label
of -1 at a position means that the position does not count.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import DatasetInvalidError

Array = NDArray[np.generic]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_IGNORED = -1
# What identical outputs give instead of infinity; float32 rounding alone is about 140 dB.
MOST_DB = 200.0
_TINY = 1e-12


@dataclass(frozen=True)
class Output:
    """How to read the main output: decided once, from the original network's values."""

    probabilities: bool  # its classes add up to one
    one_each: bool = False  # one number per label: a mask or a single column, decided by the threshold
    threshold: float = 0.0
    several: bool = False  # each column is a class of its own, and a sample may have several of them or none


def read_output(values: Array, label: Array | None) -> Output:
    """Decide from a batch of the original's output whether it holds probabilities, and where a mask's threshold is."""
    one_each = label is not None and is_float(values) and values.size == label.size
    numbers = np.asarray(values, dtype=np.float64)
    unit = bool(numbers.size) and float(numbers.min()) >= 0 and float(numbers.max()) <= 1
    sums = numbers.sum(axis=class_axis(values)) if class_like(values) else np.zeros(1)
    whole = unit and bool(np.allclose(sums, 1, atol=1e-3))
    return Output(probabilities=whole, one_each=one_each, threshold=0.5 if unit else 0.0)


def class_axis(values: Array) -> int:
    """Give the axis of the classes."""
    return 1 if values.ndim == 4 else values.ndim - 1


def class_like(values: Array) -> bool:
    """Tell whether an output scores classes: floating, two or three axes, at least two classes."""
    return is_float(values) and values.ndim in {2, 3} and values.shape[-1] >= 2


def is_float(values: Array) -> bool:
    """Tell whether an array holds real numbers; bfloat16 and the like are not numpy's own but count."""
    return values.dtype.kind == "f" or (values.dtype.kind == "V" and "float" in values.dtype.name)


# What a network decides


def decisions(output: Array, how: Output) -> Ints:
    """Give the class at each position: an argmax, a threshold where there is one column, or integers as they are."""
    if not is_float(output):
        return output.astype(np.int64)
    if how.one_each or output.ndim == 1 or output.shape[class_axis(output)] == 1:
        return (np.asarray(output, dtype=np.float64) > how.threshold).astype(np.int64)
    decided: Ints = np.argmax(output, axis=class_axis(output)).astype(np.int64)
    return decided


def agreement(left: Ints, right: Ints) -> Floats:
    """Give the share of positions with the same decision, per sample."""
    return _means((left == right).astype(np.float64))


# Task metrics per sample


def right_at_1(output: Array, label: Array, how: Output) -> Floats:
    """Share of positions decided as the label says (0 or 1 where there is one position)."""
    decided, wanted = _aligned(decisions(output, how), label)
    return _mean_where(decided == wanted, wanted != _IGNORED)


def right_at_5(output: Array, label: Array, how: Output) -> Floats:
    """Share of positions where the label is among the five best scores; ties go to the lower class, as argmax has it."""
    del how
    scores = _scores(output, "top5")
    wanted = label.astype(np.int64).reshape(scores.shape[:-1])
    safe = np.maximum(wanted, 0)[..., None]
    _classes_in_range(safe, scores.shape[-1])
    own = np.take_along_axis(scores, safe, axis=-1)
    earlier = np.arange(scores.shape[-1]) < safe
    rank = (scores > own).sum(axis=-1) + ((scores == own) & earlier).sum(axis=-1)
    return _mean_where(rank < 5, wanted != _IGNORED)


def squared_error(output: Array, label: Array, how: Output) -> Floats:
    """Mean of squared differences."""
    del how
    return _means(_difference(output, label) ** 2)


def absolute_error(output: Array, label: Array, how: Output) -> Floats:
    """Mean of absolute differences."""
    del how
    return _means(np.abs(_difference(output, label)))


def intersection_over_union(output: Array, label: Array, how: Output) -> Floats:
    """Mean over the classes that are in the label or in the decision; for a mask (one column) that of the mask."""
    decided, wanted = _aligned(decisions(output, how), label)
    mask = is_float(output) and decided.size == output.size
    flat_decided, flat_wanted = decided.reshape(len(decided), -1), wanted.reshape(len(wanted), -1)
    return np.array(
        [_sample_iou(got, want, mask=mask) for got, want in zip(flat_decided, flat_wanted, strict=True)],
        dtype=np.float64,
    )


def _sample_iou(got: Ints, want: Ints, *, mask: bool) -> float:
    counted = want != _IGNORED
    got, want = got[counted], want[counted]
    classes = np.array([1]) if mask else np.union1d(got, want)
    shares = []
    for which in classes:
        union = int(((got == which) | (want == which)).sum())
        shares.append(int(((got == which) & (want == which)).sum()) / union if union else 1.0)
    return float(np.mean(shares)) if shares else 1.0


def edit_distance(output: Array, label: Array, how: Output) -> Floats:
    """Levenshtein distance between the read sequence and the label, divided by the label's length.

    Scores (samples, steps, classes) are read as CTC has it: best class of each step, repeats merged, class 0 dropped.
    Integers (samples, steps) are taken as they are. Both end where -1 pads them.
    """
    decided = decisions(output, how)
    merge = is_float(output)
    distances = []
    for got, want in zip(decided, label.astype(np.int64), strict=True):
        read = _ctc(got) if merge else [int(token) for token in got if token != _IGNORED]
        truth = [int(token) for token in np.atleast_1d(want) if token != _IGNORED]
        distances.append(levenshtein(read, truth) / max(len(truth), 1))
    return np.array(distances, dtype=np.float64)


def _ctc(steps: Ints) -> list[int]:
    kept = np.ones(len(steps), dtype=np.bool_)
    kept[1:] = steps[1:] != steps[:-1]
    return [int(token) for token in steps[kept] if token != 0]


def levenshtein(left: Sequence[int] | Ints, right: Sequence[int] | Ints) -> int:
    """Give how many numbers have to be put in, taken out or changed to make one list of the other (Levenshtein, 1966)."""
    target = np.asarray(right, dtype=np.int64)
    steps = np.arange(len(target) + 1)
    previous = steps
    for row, number in enumerate(left, 1):
        kept = np.minimum(previous[1:] + 1, previous[:-1] + (target != number))
        # What is put in costs one each: the least of all earlier columns, and the way from there.
        previous = np.minimum.accumulate(np.concatenate([[row], kept]) - steps) + steps
    return int(previous[-1])


def token_losses(output: Array, label: Array, how: Output) -> tuple[Floats, Floats]:
    """Give the summed negative log-likelihood of the labels per sample, and the number of labels that it sums."""
    logs = _log_probabilities(_scores(output, "perplexity"), how)
    wanted = label.astype(np.int64).reshape(logs.shape[:-1])
    counted = wanted != _IGNORED
    safe = np.maximum(wanted, 0)[..., None]
    _classes_in_range(safe, logs.shape[-1])
    losses = -np.take_along_axis(logs, safe, axis=-1)[..., 0]
    rows = len(losses)
    summed = np.where(counted, losses, 0.0).reshape(rows, -1).sum(axis=1)
    return summed, counted.reshape(rows, -1).sum(axis=1).astype(np.float64)


PerSample = Callable[[Array, Array, Output], Floats]

# The metrics that are a mean over samples. f1 and perplexity are not: quality.py makes them of counts and sums.
MEAN_METRICS: Mapping[str, PerSample] = {
    "top1": right_at_1,
    "top5": right_at_5,
    "mse": squared_error,
    "mae": absolute_error,
    "iou": intersection_over_union,
    "edit_distance": edit_distance,
}


# Fidelity per sample


def energies(original: Array, compressed: Array) -> tuple[Floats, Floats]:
    """Give the energy of the original's output and that of the difference, per sample."""
    left, right = finite_rows(original), finite_rows(compressed)
    return (left**2).sum(axis=1), ((left - right) ** 2).sum(axis=1)


def cosines(original: Array, compressed: Array) -> Floats:
    """Give the cosine between the two outputs per sample; two zeros agree, zero and something do not."""
    left, right = finite_rows(original), finite_rows(compressed)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    found = (left * right).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    return np.where(both_zero, 1.0, np.clip(found, -1.0, 1.0))


def divergences(original: Array, compressed: Array, how: Output) -> Floats:
    """Give KL(original || compressed) of the class distributions in nats, mean over positions, per sample."""
    left, right = _log_probabilities(_scorable(original), how), _log_probabilities(_scorable(compressed), how)
    found = np.maximum((np.exp(left) * (left - right)).sum(axis=-1), 0.0)
    return _means(found)


# Shared by the above


def _rows(values: Array) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(len(values), -1)


def finite_rows(values: Array) -> Floats:
    """Leave infinities out: those of two outputs are in the same places, else the candidate was refused."""
    rows: Floats = np.nan_to_num(_rows(values), posinf=0.0, neginf=0.0)
    return rows


def _scorable(values: Array) -> Floats:
    """Give scores with infinities that arithmetic survives: a class masked by -inf has no probability."""
    scores: Floats = np.nan_to_num(np.asarray(values, dtype=np.float64), posinf=1e30, neginf=-1e30)
    return scores


def _means(values: Floats) -> Floats:
    """Give the mean over all but the first axis."""
    means: Floats = values.reshape(len(values), -1).mean(axis=1)
    return means


def _scores(output: Array, metric: str) -> Floats:
    if not is_float(output) or output.ndim not in {2, 3} or output.shape[-1] < 2:
        raise DatasetInvalidError(
            f"{metric} needs an output with a score per class, this network's main output has none"
        )
    return _scorable(output)


def _log_probabilities(values: Floats, how: Output) -> Floats:
    if how.probabilities:
        safe = np.maximum(values, _TINY)
        logs: Floats = np.log(safe / safe.sum(axis=-1, keepdims=True))
        return logs
    shifted: Floats = values - values.max(axis=-1, keepdims=True)
    scores: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return scores


def _aligned(decided: Ints, label: Array) -> tuple[Ints, Ints]:
    if decided.size != label.size:
        raise DatasetInvalidError(
            f"The labels of a batch have the shape {label.shape}, the network's decisions {decided.shape}: they do not fit"
        )
    return decided, label.astype(np.int64).reshape(decided.shape)


def _difference(output: Array, label: Array) -> Floats:
    if output.size != label.size:
        raise DatasetInvalidError(
            f"The labels of a batch have the shape {label.shape}, the network's output {output.shape}: they do not fit"
        )
    return _rows(output) - _rows(label)


def _classes_in_range(wanted: Ints, classes: int) -> None:
    if wanted.size and int(wanted.max()) >= classes:
        raise DatasetInvalidError(f"A label names class {int(wanted.max())}, the network has {classes} classes")


def _mean_where(right: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Floats:
    rows = len(right)
    hits = (right & counted).reshape(rows, -1).sum(axis=1)
    shares: Floats = hits / np.maximum(counted.reshape(rows, -1).sum(axis=1), 1)
    return shares
