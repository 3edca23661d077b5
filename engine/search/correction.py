"""Learns what additive predictions leave out from networks that were measured as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.goal import Precision

Floats = npt.NDArray[np.float64]

# Standard deviations of log(measured / predicted): what all points of a precision share, and what near ones share.
_COMMON, _LOCAL = 0.5, 0.1
# How far apart points are near: root mean square of what they keep of each group and block, as shares.
_REACH = 0.25
_ROUNDS = 5
# Beyond so many standard deviations a measurement counts less (Huber).
_OUTLIER = 1.5


@dataclass(frozen=True)
class Seen:
    """A point as the correction sees it: its precision, and shares of what it keeps."""

    precision: Precision
    kept: Floats


class Correction:
    """A Gaussian process over log(measured / predicted), with Huber's weights, so that one bad measurement does no harm.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 2.
    """

    def __init__(self, rows: Sequence[tuple[Seen, float, float]], *, noise: float) -> None:
        usable = [row for row in rows if row[1] > 0 and row[2] > 0 and np.isfinite(row[1:]).all()]
        self._noise = noise
        self._precisions = np.array([seen.precision for seen, _, _ in usable])
        self._kept: Floats = np.array([seen.kept for seen, _, _ in usable])
        self._weights: Floats = np.zeros(0)
        if usable:
            covariance = np.stack([self._alike(seen) for seen, _, _ in usable])
            self._weights = self._fit(covariance, np.log([measured / predicted for _, predicted, measured in usable]))

    def apply(self, predicted: float, seen: Seen) -> float:
        """Give a prediction as it was corrected for points like this one."""
        if not len(self._weights) or not predicted > 0:
            return predicted
        return float(predicted * np.exp(self._alike(seen) @ self._weights))

    def _fit(self, covariance: Floats, logs: Floats) -> Floats:
        variance: Floats = np.full(len(logs), self._noise**2)
        for _ in range(_ROUNDS):
            solved = np.linalg.solve(covariance + np.diag(variance), logs).astype(np.float64)
            apart = np.abs(logs - covariance @ solved) / self._noise
            variance = np.asarray(self._noise**2 * np.maximum(1.0, apart / _OUTLIER), np.float64)
        return solved

    def _alike(self, seen: Seen) -> Floats:
        """Give the covariance of a point with each that was measured; precisions have nothing in common."""
        apart = np.square(self._kept - seen.kept).mean(axis=1) if len(seen.kept) else np.zeros(len(self._kept))
        found: Floats = _COMMON**2 + _LOCAL**2 * np.exp(-apart / (2 * _REACH**2))
        return np.where(self._precisions == seen.precision, found, 0.0)
