"""How good a network's answers are: on labels where there are any, else beside the original's own answers."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.measure.intervals import tango, wilson

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """One network's result. `change` is against the original on the same samples, in the metric's own unit."""

    metric: str
    value: float
    change: float
    low: float
    high: float
    also: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return asdict(self)


def top1(answers: Array, original: Array, label: Array) -> Score:
    """Share of samples whose class is right, with the interval of the paired change. Answers are class numbers."""
    agreement = float((answers == original).mean())
    return _right_and_wrong("top1", answers == label, original == label, {"agreement": agreement})


def lines(answers: Array, original: Array, truth: Array) -> Score:
    """Share of lines read like the original reads them; also the share read without any error. Answers are texts."""
    right = float((answers == truth).mean()) - float((original == truth).mean())
    return agreement(answers, original, "lines read alike", {"lines without error, change": right})


def agreement(answers: Array, original: Array, metric: str, also: dict[str, float] | None = None) -> Score:
    """Share of samples decided as the original decides them."""
    same = answers == original
    interval = wilson(float(same.sum()), len(same))
    value = float(same.mean())
    return Score(metric, value, value - 1, interval.low - 1, interval.high - 1, also or {})


def mask_iou(answers: Array, original: Array, truth: Array) -> Score:
    """Overlap of the masks with the original's, over all pages; also the change of the overlap with the true masks."""
    value = _iou(answers, original)
    pages = np.array([_iou(ours, theirs) for ours, theirs in zip(answers, original, strict=True)])
    half = 1.96 * float(pages.std(ddof=1)) / len(pages) ** 0.5
    moved = _iou(answers, truth) - _iou(original, truth)
    return Score("mask IoU", value, value - 1, value - 1 - half, value - 1 + half, {"IoU with truth, change": moved})


def _right_and_wrong(metric: str, after: Bools, before: Bools, also: dict[str, float]) -> Score:
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    interval = tango(gained, lost, len(after))
    return Score(metric, float(after.mean()), (gained - lost) / len(after), interval.low, interval.high, also)


def _iou(one: Array, other: Array) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
