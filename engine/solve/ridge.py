"""Least squares towards the current weights: the repair of a layer after its inputs or its neighbours changed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from engine.solve.gram import Moments

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

# Relative to the mean variance of an input; the choice of a value is made on held-out rows.
RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
DEFAULT = 1e-2


@dataclass(frozen=True)
class Fit:
    """Refitted weights and bias, and what they gained on the rows that judge them (held out where given)."""

    weights: Doubles  # (outputs, inputs)
    bias: Doubles | None  # (outputs,)
    ridge: float  # relative to the mean variance of an input
    before: float  # mean squared error of the current weights
    after: float

    @property
    def better(self) -> bool:
        """Say whether the fit beats the current weights."""
        return self.after < self.before


def reconstruct(
    moments: Moments,
    weights: Floats,
    bias: Floats | None,
    *,
    held_out: Moments | None = None,
    fit_bias: bool = True,
) -> Fit:
    """Solve min |X W^T + b - Y|^2 + ridge * |W - W0|^2 for W (outputs, inputs), with b free and unpunished.

    Centred sums take the bias out: W = W0 + (Y'X - W0 X'X)(X'X + ridge I)^-1, b = mean(Y) - W mean(X), by Cholesky in
    float64. Where the rows say nothing about a direction, or are fewer than the inputs, W stays at W0 there.

    The ridge is relative to the mean variance of an input, times max(1, 4 inputs / rows): below four rows per input the
    fit follows noise. With `held_out`, it goes down from strong to weak and ends when held-out error rises.
    With `fit_bias` False, b stays as it is (None: zero).
    """
    base = np.asarray(weights, np.float64)
    offset = np.zeros(len(base)) if bias is None else np.asarray(bias, np.float64)
    xtx, xty = moments.xtx, moments.xty - np.outer(moments.x_sum, np.zeros(len(base)) if fit_bias else offset)
    if fit_bias:
        xtx = xtx - np.outer(moments.x_sum, moments.x_sum) / moments.rows
        xty = xty - np.outer(moments.x_sum, moments.y_sum) / moments.rows
    mean = float(np.trace(xtx)) / len(xtx)
    judge = held_out or moments
    before = judge.error(base, offset)
    best = Fit(base, None if bias is None else offset, float("inf"), before, before)
    if mean <= 0:
        return best
    scarce = max(1.0, 4 * len(xtx) / moments.rows)
    slope = xty - xtx @ base.T
    for ridge in RIDGES if held_out else (DEFAULT,):
        system = xtx.copy()
        system[np.diag_indices_from(system)] += ridge * scarce * mean
        try:
            lower = linalg.cholesky(system, lower=True, overwrite_a=True)
        except linalg.LinAlgError:
            # Rounding of the sums outweighs so weak a ridge; weaker ones are no better.
            break
        half = linalg.solve_triangular(lower, slope, lower=True)
        solved = base + linalg.solve_triangular(lower, half, lower=True, trans="T").T
        moved = (moments.y_sum - solved @ moments.x_sum) / moments.rows if fit_bias else offset
        error = judge.error(solved, moved)
        if error >= best.after and np.isfinite(best.ridge):
            break
        if error < best.after:
            keeps_none = bias is None and not fit_bias
            best = Fit(solved, None if keeps_none else moved, ridge * scarce, before, error)
    return best


def affine(
    *, rows: int, x_sum: Floats, y_sum: Floats, xx: Floats, xy: Floats, gain: Floats, ridge: float = 1e-3
) -> tuple[Doubles, Doubles]:
    """Give gain and shift per channel that bring gain * x + shift closest to y, from sums over rows per channel.

    For depthwise convolutions (x is the output with the current weights and gain is one) and for normalisation layers
    (x is the normalised input). The gain is drawn towards the given one by `ridge` times the channel's own variance;
    a channel without variance keeps it.
    """
    variance = np.asarray(xx, np.float64) - np.square(x_sum, dtype=np.float64) / rows
    covariance = np.asarray(xy, np.float64) - np.asarray(x_sum, np.float64) * y_sum / rows
    # A variance that is only the rounding of its two terms is none.
    alive = variance > 1e-6 * np.asarray(xx, np.float64)
    total = np.where(alive, variance * (1 + ridge), 1.0)
    found = np.where(alive, (covariance + ridge * variance * gain) / total, gain)
    return found, (y_sum - found * x_sum) / rows
