"""Where to cut off an activation's range: a finer step for most numbers against an error on the few that are cut off."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.calibrate import Histogram, Range

Method = Literal["min_max", "percentile", "entropy", "mse"]

_LEVELS = 256
# Of all numbers, this share may be cut off on each side.
_CUT_OFF = 1e-4
_SHRINKS = np.linspace(1.0, 0.1, 91)

Doubles = npt.NDArray[np.float64]


def search(histogram: Histogram, method: Method) -> Range:
    """Give the range by one method; it holds zero and is never wider than what was seen."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if not high > low or histogram.counts.sum() == 0:
        return histogram.range
    found = _METHODS[method](histogram, low, high)
    return Range(max(found.low, low), min(found.high, high))


def _min_max(histogram: Histogram, low: float, high: float) -> Range:
    del histogram
    return Range(low, high)


def _percentile(histogram: Histogram, low: float, high: float) -> Range:
    total = np.cumsum(histogram.counts)
    cut = _CUT_OFF * float(total[-1] + histogram.zeros)
    edges = (np.arange(len(total) + 1) + histogram.start) * histogram.width
    first = int(np.searchsorted(total, cut, side="right"))
    last = int(np.searchsorted(total, total[-1] - cut, side="left"))
    return _not_empty(Range(min(float(edges[first]), 0.0), max(float(edges[last + 1]), 0.0)), low, high)


def _mse(histogram: Histogram, low: float, high: float) -> Range:
    """Give the range of the least squared error."""
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    return _least(lambda bottom, top: _noise(centres, counts, bottom, top), low, high)


def _least(cost: Callable[[float, float], float], low: float, high: float) -> Range:
    """Shrink both ends together, then each alone, to the least cost."""
    shrink = min(_SHRINKS, key=lambda factor: cost(factor * low, factor * high))
    bottom, top = shrink * low, shrink * high
    top = min((top, *(_SHRINKS * high)), key=lambda end: cost(bottom, end))
    bottom = min((bottom, *(_SHRINKS * low)), key=lambda end: cost(end, top))
    return Range(float(bottom), float(top))


def _noise(centres: Doubles, counts: Doubles, low: float, high: float) -> float:
    """Give the squared error of rounding to 256 steps."""
    step = max((high - low) / (_LEVELS - 1), float(np.finfo(np.float64).tiny))
    rounded = np.rint(np.clip(centres, low, high) / step) * step
    return float(counts @ np.square(rounded - centres))


def _entropy(histogram: Histogram, low: float, high: float) -> Range:
    """Give the range of the least divergence of the rounded distribution from the clipped one."""
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    if counts.sum() == 0:
        return Range(low, high)
    return _least(lambda bottom, top: _divergence(centres, counts, bottom, top), low, high)


def _divergence(centres: Doubles, counts: Doubles, low: float, high: float) -> float:
    inside = (centres >= low) & (centres <= high)
    kept = counts[inside]
    if kept.sum() == 0 or not high > low:
        return np.inf
    reference = kept.copy()
    reference[0] += counts[centres < low].sum()
    reference[-1] += counts[centres > high].sum()
    codes = np.clip(((centres[inside] - low) / (high - low) * _LEVELS).astype(np.int64), 0, _LEVELS - 1)
    used = kept > 0
    sums = np.bincount(codes, kept, _LEVELS)
    places = np.maximum(np.bincount(codes, used, _LEVELS), 1)
    spread = np.where(used, (sums / places)[codes], 0.0)
    p, q = reference / reference.sum(), spread / spread.sum()
    # A bin that only holds what was cut off has no counterpart: it costs as if the counterpart were next to nothing.
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))))


def _not_empty(found: Range, low: float, high: float) -> Range:
    return found if found.high > found.low else Range(low, high)


_METHODS: Mapping[Method, Callable[[Histogram, float, float], Range]] = {
    "min_max": _min_max,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
METHODS = tuple(_METHODS)
