"""How near two networks' outputs are to each other, from a few numbers per sample, with intervals over the samples."""

from math import log10, sqrt

import numpy as np

from engine.measure import metrics
from engine.measure.intervals import (
    Floats,
    all_or_nothing,
    around,
    error_of_pulls,
    mean_interval,
    not_narrower,
    wilson,
)
from engine.report.values import Interval, Quality

# What a fit is called at worst: below it nothing is lost any more.
_WORST_R2 = -1e6


def sqnr(signal: Floats, noise: Floats) -> Quality:
    """Signal to noise over all samples in dB; its error from how much each sample pulls on either sum."""
    total, lost, limit = float(signal.sum()), float(noise.sum()), metrics.MOST_DB
    if not total or not lost:
        value, error = (limit if not lost else -limit), 0.0
    else:
        value = max(min(10 * log10(total / lost), limit), -limit)
        error = error_of_pulls(10 / np.log(10) * (signal / total - noise / lost))
    return quality("sqnr_db", value, around(value, error, len(signal)), error, len(signal))


def r2(variation: Floats, noise: Floats) -> Quality:
    """Share of the original's variation over the samples that is left; both per sample, of one column or of all numbers."""
    total = float(variation.sum())
    value = max(1 - float(noise.sum()) / total, _WORST_R2)
    error = error_of_pulls((noise - (1 - value) * variation) / total)
    return quality("r2", value, around(value, error, len(noise)), error, len(noise))


def share(metric: str, shares: Floats) -> Quality:
    """Mean of a share per sample, 1 where nothing changed: its interval has a width where no sample changed."""
    value, count = float(shares.mean()), len(shares)
    if all_or_nothing(shares):
        error = sqrt(value * (1 - value) / count)
        return quality(metric, value, wilson(float(shares.sum()), count), error, count)
    interval, error = mean_interval(shares)
    return quality(metric, value, not_narrower(interval, 1 - shares), error, count)


def mean(metric: str, values: Floats) -> Quality:
    """Mean of a number per sample."""
    interval, error = mean_interval(values)
    return quality(metric, float(values.mean()), interval, error, len(values))


def quality(metric: str, value: float, interval: Interval, error: float, samples: int) -> Quality:
    """Give a metric that compares two networks' outputs."""
    return Quality(
        metric=metric,
        original=None,
        compressed=value,
        difference=None,
        interval=interval,
        standard_error=error,
        samples=samples,
    )
