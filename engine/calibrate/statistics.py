"""What can be recorded of a tensor. Each statistic takes batches as they come and keeps a constant amount of memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.calibrate.moments import SecondMoment

# Attention masks hold -3.4e38 where a position is hidden. Such sentinels are no activations and would make ranges useless.
SENTINEL = 1e30


class Statistic(Protocol):
    """A statistic of one tensor over all samples; its result must not depend on how samples were batched."""

    def update(self, batch: npt.NDArray[Any]) -> None:
        """Take in one batch of the tensor."""
        ...

    def result(self) -> Any:
        """Give the statistic over all batches so far."""
        ...


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of a tensor, sentinels and what is not finite left out."""

    low: float
    high: float


class MinMax:
    """The range of a tensor; [0, 0] if it never held a number."""

    def __init__(self) -> None:
        self._low = np.inf
        self._high = -np.inf

    def update(self, batch: npt.NDArray[Any]) -> None:
        """Widen the range by one batch."""
        if batch.size == 0:
            return
        low, high = float(batch.min()), float(batch.max())
        if not (low > -SENTINEL and high < SENTINEL):  # also true for NaN
            batch = batch[np.abs(batch) < SENTINEL]
            if batch.size == 0:
                return
            low, high = float(batch.min()), float(batch.max())
        self._low = min(self._low, low)
        self._high = max(self._high, high)

    def result(self) -> Range:
        """Give the range so far."""
        return Range(self._low, self._high) if self._low <= self._high else Range(0.0, 0.0)


STATISTICS: dict[str, Callable[[], Statistic]] = {"min_max": MinMax, "second_moment": SecondMoment}
