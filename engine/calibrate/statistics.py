"""What can be recorded of a tensor. Each statistic takes batches as they come and keeps a constant amount of memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.calibrate.moments import SecondMoment

if TYPE_CHECKING:
    from engine.contract import Observe

# Attention masks hold -3.4e38 where a position is hidden. Such sentinels are no activations and would make ranges useless.
SENTINEL = 1e30
# Bins on either side of zero. Their width is a power of two, so at least half of them are in use.
_BINS = 4096
_SMALLEST_EXPONENT = -140
# Of the numbers that one row of a tensor has, a histogram counts at most about this many.
_COUNTED = 1 << 14
# How much of a moving average the newest row makes.
_MOMENTUM = 0.01

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


class Statistic(Protocol):
    """A statistic of one tensor over all samples; its result must not depend on how samples were batched."""

    def update(self, batch: Array) -> None:
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


@dataclass(frozen=True)
class Histogram:
    """How often a tensor takes which values: counts[i] numbers lie in [(start + i) * width, (start + i + 1) * width).

    Exact zeros are counted apart: every grid holds them, and behind a Relu they are the most.
    """

    low: float
    high: float
    width: float
    start: int
    counts: npt.NDArray[np.int64]
    zeros: int

    @property
    def range(self) -> Range:
        """Give the range, which is exact."""
        return Range(self.low, self.high)

    @property
    def centres(self) -> Doubles:
        """Give the middle of each bin, within the range: a tensor of one value has it there."""
        middle = (np.arange(len(self.counts)) + (self.start + 0.5)) * self.width
        return np.asarray(np.clip(middle, self.low, self.high), np.float64)


@dataclass(frozen=True)
class ChannelRange:
    """Smallest and largest value of each channel."""

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ChannelMean:
    """Mean of each channel over all samples and positions."""

    mean: Doubles
    count: int


class MinMax:
    """The range of a tensor; [0, 0] if it never held a number."""

    def __init__(self) -> None:
        self._low = np.inf
        self._high = -np.inf

    def update(self, batch: Array) -> None:
        """Widen the range by one batch."""
        batch = _numbers(batch)
        if batch.size:
            self._low = min(self._low, float(batch.min()))
            self._high = max(self._high, float(batch.max()))

    def result(self) -> Range:
        """Give the range so far."""
        return Range(self._low, self._high) if self._low <= self._high else Range(0.0, 0.0)


class MovingAverage:
    """Exponential moving averages of each row's minimum and maximum: rows in order, whatever batch they come in."""

    def __init__(self) -> None:
        self._average: tuple[float, float] | None = None

    def update(self, batch: Array) -> None:
        """Move towards each row of one batch."""
        for row in batch if batch.ndim else batch[None]:
            numbers = _numbers(row)
            if numbers.size == 0:
                continue
            low, high = float(numbers.min()), float(numbers.max())
            before = self._average or (low, high)
            self._average = (before[0] + _MOMENTUM * (low - before[0]), before[1] + _MOMENTUM * (high - before[1]))

    def result(self) -> Range:
        """Give the averages so far."""
        return Range(*(self._average or (0.0, 0.0)))


class HistogramCounter:
    """A histogram whose bins double in width as the range grows.

    Edges are multiples of a power of two, so that two old bins are exactly one new one: the result is the same as if the
    final range had been known from the start, in whatever order the numbers came. Long rows are counted in part, always
    the same part.
    """

    def __init__(self) -> None:
        self._range = MinMax()
        self._exponent = _SMALLEST_EXPONENT
        self._counts = np.zeros(2 * _BINS, np.int64)
        self._zeros = 0

    def update(self, batch: Array) -> None:
        """Count the numbers of one batch."""
        if batch.size == 0:
            return
        self._range.update(batch)
        rows = batch.reshape(len(batch), -1) if batch.ndim > 1 else batch.reshape(1, -1)
        # An odd stride meets every phase of a row whose length is a power of two.
        numbers = _numbers(rows[:, :: rows.shape[1] // _COUNTED | 1])
        seen = numbers.size
        numbers = numbers[numbers != 0]
        self._zeros += seen - numbers.size
        if numbers.size == 0:
            return
        largest = max(float(numbers.max()), -float(numbers.min()))
        # The smallest e for which largest < _BINS * 2^e.
        self._widen(int(np.frexp(largest)[1]) - (_BINS.bit_length() - 1))
        scaled = np.ldexp(numbers.astype(np.float64, copy=False), -self._exponent)
        places = np.floor(scaled, out=scaled).astype(np.int64).ravel()
        places += _BINS
        np.clip(places, 0, 2 * _BINS - 1, out=places)
        self._counts += np.bincount(places, minlength=2 * _BINS)

    def result(self) -> Histogram:
        """Give the bins from the first to the last that is not empty."""
        found = self._range.result()
        used = np.flatnonzero(self._counts)
        first, last = (int(used[0]), int(used[-1])) if used.size else (_BINS, _BINS)
        counts = self._counts[first : last + 1].copy()
        return Histogram(
            found.low, found.high, float(np.ldexp(1.0, self._exponent)), first - _BINS, counts, self._zeros
        )

    def _widen(self, exponent: int) -> None:
        while self._exponent < exponent:
            if not self._counts.any():
                self._exponent = exponent
                return
            pairs = self._counts.reshape(-1, 2).sum(1)
            self._counts[:] = 0
            # Bin i of the old width is in bin floor(i / 2) of the new one, counted from zero.
            self._counts[_BINS // 2 : _BINS // 2 + _BINS] = pairs
            self._exponent += 1


class ChannelMinMax:
    """The range of each channel along one axis."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._found: tuple[Array, Array] | None = None

    def update(self, batch: Array) -> None:
        """Widen the ranges by one batch."""
        if batch.size == 0:
            return
        rest = tuple(axis for axis in range(batch.ndim) if axis != self._axis % batch.ndim)
        known = np.abs(batch) < SENTINEL
        low = batch.min(axis=rest, where=known, initial=np.inf)
        high = batch.max(axis=rest, where=known, initial=-np.inf)
        if self._found is not None:
            low, high = np.minimum(low, self._found[0]), np.maximum(high, self._found[1])
        self._found = low, high

    def result(self) -> ChannelRange:
        """Give the ranges so far; a channel that never held a number has [0, 0]."""
        low, high = self._found if self._found is not None else (np.zeros(0), np.zeros(0))
        seen = low <= high
        return ChannelRange(np.where(seen, low, 0).astype(np.float32), np.where(seen, high, 0).astype(np.float32))


class ChannelAverage:
    """The mean of each channel along one axis, summed up in float64."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sum: Doubles | None = None
        self._count = 0

    def update(self, batch: Array) -> None:
        """Add one batch."""
        if batch.size == 0:
            return
        rest = tuple(axis for axis in range(batch.ndim) if axis != self._axis % batch.ndim)
        found = batch.sum(axis=rest, dtype=np.float64, where=np.abs(batch) < SENTINEL)
        self._sum = found if self._sum is None else self._sum + found
        self._count += batch.size // max(len(found), 1)

    def result(self) -> ChannelMean:
        """Give the means so far."""
        total = self._sum if self._sum is not None else np.zeros(0)
        return ChannelMean(total / max(self._count, 1), self._count)


def statistic(request: "Observe") -> Statistic:
    """Make the collector for a request."""
    match request.statistic:
        case "min_max":
            return MinMax()
        case "moving_average":
            return MovingAverage()
        case "histogram":
            return HistogramCounter()
        case "channel_range":
            return ChannelMinMax(request.axis)
        case "channel_mean":
            return ChannelAverage(request.axis)
        case "second_moment":
            return SecondMoment()


def _numbers(batch: Array) -> Array:
    """Leave out sentinels, infinities and NaN; give the array itself where there are none, which is nearly always."""
    if batch.size == 0:
        return batch
    if batch.min() > -SENTINEL and batch.max() < SENTINEL:  # false for NaN
        return batch
    return np.asarray(batch[np.abs(batch) < SENTINEL])
