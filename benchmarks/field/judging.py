"""How close a network's answers are to the original's, in one number that is better when it is larger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# More than float32 itself holds says nothing.
_MOST_DB = 120.0


@dataclass(frozen=True)
class Judge:
    """A metric of two lists of answers, one for each sample; differences up to `margin` are none."""

    name: str
    unit: str
    margin: float
    score: Callable[[Sequence[Array], Sequence[Array]], float]


def _sqnr(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    noise = sum(float(np.square(one.astype(np.float64) - other).sum()) for one, other in zip(ours, theirs, strict=True))
    signal = sum(float(np.square(other.astype(np.float64)).sum()) for other in theirs)
    return min(_MOST_DB, 10 * float(np.log10(signal / noise))) if noise else _MOST_DB


def _error(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    errors = [np.abs(one.astype(np.float64) - other).mean() for one, other in zip(ours, theirs, strict=True)]
    return -float(np.mean(errors))


def _classes(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    return _share([one.argmax(-1) for one in ours], [other.argmax(-1) for other in theirs])


def _read(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    return _share([_greedy(one) for one in ours], [_greedy(other) for other in theirs])


def _greedy(steps: Array) -> Array:
    """Give the classes that a line reads as: the best of each step, repeats merged, class 0 is the blank."""
    best = steps.reshape(-1, steps.shape[-1]).argmax(-1)
    kept = best[np.diff(best, prepend=-1) != 0]
    return kept[kept != 0]


def _share(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    same = [one.shape == other.shape and bool((one == other).all()) for one, other in zip(ours, theirs, strict=True)]
    return 100 * float(np.mean(same))


def _overlap(ours: Sequence[Array], theirs: Sequence[Array], threshold: float) -> float:
    pairs = [(one > threshold, other > threshold) for one, other in zip(ours, theirs, strict=True)]
    union = sum(int((one | other).sum()) for one, other in pairs)
    return 100 * sum(int((one & other).sum()) for one, other in pairs) / union if union else 100.0


def mask_at(threshold: float) -> Judge:
    """Overlap of what is above a threshold, over all samples, in percent."""
    return Judge(f"IoU above {threshold}", "%", 1.0, partial(_overlap, threshold=threshold))


SQNR = Judge("signal to noise", "dB", 0.5, _sqnr)
ERROR = Judge("mean absolute error, negative", "", 0.01, _error)
CLASSES = Judge("same class", "%", 1.0, _classes)
READ = Judge("read alike", "%", 2.0, _read)
