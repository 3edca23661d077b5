"""Intervals that hold for what is measured here: rare disagreements, means of samples, and noisy times."""

from collections.abc import Callable
from functools import cache
from math import cos, pi, sin, sqrt, tan
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from engine.report.values import Interval

CONFIDENCE = 0.95
# More degrees of freedom than this, and the expansion is exact to eight digits.
_FEW_DEGREES = 100

Floats = NDArray[np.float64]


def one_sided(confidence: float) -> float:
    """Give the two-sided confidence whose ends are one-sided bounds of `confidence`."""
    return max(2 * confidence - 1, 0.0)


def critical(confidence: float) -> float:
    """Give z of a two-sided normal interval."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


@cache
def critical_t(confidence: float, degrees: int) -> float:
    """Give t of a two-sided Student interval (Abramowitz and Stegun, 26.7.3 to 26.7.5).

    Here and not scipy's: every job needs it, and most need nothing else of scipy, which is slow to load.
    """
    if degrees > _FEW_DEGREES:
        return _expanded_t(critical(confidence), degrees)
    return sqrt(degrees) * tan(_root(lambda angle: confidence - _share_within(angle, degrees), 0.0, pi / 2))


def _share_within(angle: float, degrees: int) -> float:
    """Share of Student's distribution that lies within t = sqrt(degrees) tan(angle) of zero: a finite sum."""
    odd = degrees % 2
    total, term = 0.0, cos(angle) if odd else 1.0
    for step in range(degrees // 2):
        total += term
        term *= cos(angle) ** 2 * (2 * step + 1 + odd) / (2 * step + 2 + odd)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def _expanded_t(z: float, degrees: int) -> float:
    """Expand t around the normal quantile in powers of 1 / degrees."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(degrees) ** power for power, term in enumerate(terms, 1))


def wilson(successes: float, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion: its width is not zero when all or none succeed."""
    z = critical(confidence)
    share, scale = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # Rounding must not put the share itself outside.
    low, high = min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)
    return Interval(low=low, high=high, confidence=confidence)


def tango(gained: int, lost: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the difference (gained - lost) / trials of two proportions on the same samples.

    `gained` and `lost` count the samples that only the second, or only the first, gets right. Tango's score interval (Statistics
    in Medicine 17, 1998) keeps its coverage when disagreements are few: none in n samples gives +-z^2 / (n + z^2).
    """
    z = critical(confidence)
    centre = (gained - lost) / trials
    low = _root(lambda at: _tango_score(gained, lost, trials, at) - z, -1.0, centre)
    high = _root(lambda at: _tango_score(gained, lost, trials, at) + z, centre, 1.0)
    return Interval(low=low, high=high, confidence=confidence)


def _tango_score(gained: int, lost: int, trials: int, at: float) -> float:
    """Score statistic of `difference == at`; it falls as `at` grows."""
    b = -gained - lost + (2 * trials - gained + lost) * at
    c = -lost * at * (1 - at)
    # The likelihood's maximum for the share of `lost` under that hypothesis.
    share = (sqrt(max(b * b - 8 * trials * c, 0.0)) - b) / (4 * trials)
    variance = trials * (2 * share + at * (1 - at))
    distance = gained - lost - trials * at
    if variance <= 0:
        return 0.0 if distance == 0 else float("inf") * distance
    return distance / sqrt(variance)


def _root(falling: Callable[[float], float], left: float, right: float) -> float:
    """Bisect a falling function's zero; 60 halvings reach double precision."""
    for _ in range(60):
        middle = (left + right) / 2
        left, right = (middle, right) if falling(middle) > 0 else (left, middle)
    return (left + right) / 2


def mean_interval(values: Floats, confidence: float = CONFIDENCE) -> tuple[Interval, float]:
    """Student's interval of the mean over samples, and its standard error. One sample tells nothing: the interval is infinite."""
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Interval(low=-np.inf, high=np.inf, confidence=confidence), float(np.inf)
    error = float(values.std(ddof=1) / sqrt(count))
    return around(mean, error, count, confidence), error


def around(value: float, error: float, samples: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a value with a standard error that was estimated from that many samples."""
    half = critical_t(confidence, max(samples - 1, 1)) * error
    return Interval(low=value - half, high=value + half, confidence=confidence)


def change_floor(samples: int, confidence: float = CONFIDENCE) -> float:
    """Give how large a share of samples may change although none of those seen did: the width of `tango` there."""
    z2 = critical(confidence) ** 2
    return z2 / (samples + z2)


def error_of_pulls(pulls: Floats) -> float:
    """Standard error of a value from the first-order influence of each sample (they add up to zero)."""
    count = len(pulls)
    return sqrt(float((pulls**2).sum()) * count / (count - 1)) if count > 1 else float("inf")


def all_or_nothing(scores: Floats) -> bool:
    """Say whether every sample's score is 0 or 1."""
    return bool(((scores == 0) | (scores == 1)).all())


def not_narrower(interval: Interval, difference: Floats) -> Interval:
    """Widen an interval to what samples like these could hide; where none changed, a change may be as large as 1."""
    largest = float(np.abs(difference).max()) or 1.0
    centre, floor = float((interval.low + interval.high) / 2), change_floor(len(difference)) * largest
    return Interval(low=min(interval.low, centre - floor), high=max(interval.high, centre + floor))


def rescale(value: float, interval: Interval, confidence: float, *, upper: bool) -> float:
    """Give the one-sided bound of another confidence from one side of a two-sided interval, as if that side were normal."""
    side = interval.high if upper else interval.low
    return value + (side - value) * critical(one_sided(confidence)) / critical(interval.confidence)


def rescale_ratio(value: float, interval: Interval, confidence: float, *, upper: bool) -> float:
    """Do the same for a ratio, on the logarithm's scale."""
    side = interval.high if upper else interval.low
    if value <= 0 or side <= 0:
        return side
    return float(value * (side / value) ** (critical(one_sided(confidence)) / critical(interval.confidence)))


def block_weights(turns: int, resamples: int, seed: int) -> NDArray[np.int32]:
    """Give how often each resample draws each turn: (resamples, turns), a circular block bootstrap.

    Blocks of neighbours keep what drifts slowly (clock, temperature, other programs) as correlated as it was.
    """
    length = max(1, round(turns ** (1 / 3)))
    blocks = -(-turns // length)
    starts = np.random.default_rng(seed).integers(0, turns, size=(resamples, blocks))
    lengths = np.full(blocks, length)
    # So many turns are drawn as there are: the last block is what is left.
    lengths[-1] = turns - (blocks - 1) * length
    # Where blocks begin and end, in rows that go on for as far as a block may reach over the end.
    width = turns + length
    first = starts + np.arange(resamples)[:, None] * width
    begun, ended = (
        np.bincount(each.ravel(), minlength=resamples * width).astype(np.int16) for each in (first, first + lengths)
    )
    covered = np.cumsum((begun - ended).reshape(resamples, width), axis=1, dtype=np.int32)
    drawn = covered[:, :turns].copy()
    drawn[:, :length] += covered[:, turns:]
    return drawn
