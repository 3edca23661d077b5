"""Which weights of a layer to set to zero, and what the rest must become."""

import numpy as np
from numpy.typing import NDArray

from engine.solve.gptq import damped, inverse_factor

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]

# Zeros per run of inputs: (2, 4) keeps two of four.
Pattern = tuple[int, int]


def magnitude(
    weights: Floats, *, share: float | None = None, threshold: float | None = None, pattern: Pattern | None = None
) -> Mask:
    """Say which weights (outputs, inputs) stay: those of the largest absolute value.

    One of: `share` of the whole layer becomes zero; all below `threshold` do; `pattern` (n, m) of every m inputs do.
    """
    if threshold is not None:
        return np.abs(weights) >= threshold
    return _largest(np.abs(weights), share, pattern, per_output=False)


def wanda(weights: Floats, xtx_diagonal: Floats, *, share: float | None = None, pattern: Pattern | None = None) -> Mask:
    """Say which weights stay by |w| times the norm of its input, compared within each output.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024). `xtx_diagonal` is the
    diagonal of X^T X, (inputs,).
    """
    score = np.abs(np.asarray(weights, np.float64)) * np.sqrt(np.maximum(xtx_diagonal, 0))
    return _largest(score, share, pattern, per_output=True)


def sparsegpt(
    weights: Floats,
    xtx: Floats,
    *,
    share: float | None = None,
    pattern: Pattern | None = None,
    damping: float = 0.01,
    block: int = 128,
    sweeps: int = 0,
) -> tuple[NDArray[np.float64], Mask]:
    """Give weights with zeros, the others corrected so that X W^T changes least, and the mask of those that stay.

    Frantar and Alistarh, "SparseGPT" (ICML 2023): the elimination of GPTQ with zero for the rounded value. Weights are
    chosen by w^2 / U[j, j]^2, a block of inputs at a time: over the block with `share`, over each run with `pattern`. The elimination never
    goes back to weights it has passed; `sweeps` of `refit` do.
    """
    if (share is None) == (pattern is None):
        raise ValueError("give a share or a pattern")
    outputs, inputs = weights.shape
    if pattern is not None:
        block = pattern[1] * max(1, block // pattern[1])
    upper = inverse_factor(damped(xtx, damping))
    cost = np.diag(upper) ** 2
    left = np.array(weights.T, np.float64, order="C")
    stays = np.ones((inputs, outputs), bool)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = np.empty((stop - start, outputs))
        if share is not None:
            # Shares of single blocks are rounded so that their sum is right.
            due = round(share * stop * outputs) - round(share * start * outputs)
            stays[start:stop] = _keep(left[start:stop] ** 2 / cost[start:stop, None], due)
        for row in range(start, stop):
            if pattern is not None and (row - start) % pattern[1] == 0:
                end = min(row + pattern[1], inputs)
                score = left[row:end] ** 2 / cost[row:end, None]
                stays[row:end] = _runs(score.T, pattern).T
            error = np.where(stays[row], 0.0, left[row]) / upper[row, row]
            left[row] = np.where(stays[row], left[row], 0.0)
            errors[row - start] = error
            left[row + 1 : stop] -= upper[row, row + 1 : stop, None] * error
        left[stop:] -= upper[start:stop, stop:].T @ errors
    mask = np.ascontiguousarray(stays.T)
    return refit(weights, xtx, left.T, mask, sweeps=sweeps, damping=damping), mask


def refit(
    weights: Floats, xtx: Floats, start: Floats, stays: Mask, *, sweeps: int, damping: float = 0.01
) -> NDArray[np.float64]:
    """Give the values of the weights that stay for which X W^T changes least, by coordinate descent from `start`.

    All outputs at once, one input at a time; no sweep can raise the damped objective, and its limit is least squares on
    each output's own mask.
    """
    hessian = damped(xtx, damping)
    values = np.array(start.T, np.float64, order="C")
    residual = hessian @ (weights.T - values) if sweeps else values
    free = stays.T
    for _ in range(sweeps):
        for row in range(len(values)):
            step = np.where(free[row], residual[row] / hessian[row, row], 0.0)
            values[row] += step
            residual -= hessian[:, row, None] * step
    return np.ascontiguousarray(values.T)


def _largest(score: Floats, share: float | None, pattern: Pattern | None, *, per_output: bool) -> Mask:
    if (share is None) == (pattern is None):
        raise ValueError("give a share or a pattern")
    if pattern is not None:
        return _runs(score, pattern)
    assert share is not None
    if not per_output:
        return _keep(score, round(share * score.size))
    return np.stack([_keep(row, round(share * row.size)) for row in score])


def _keep(score: Floats, zeros: int) -> Mask:
    stays = np.ones(score.size, bool)
    stays[np.argsort(score, axis=None, kind="stable")[:zeros]] = False
    return stays.reshape(score.shape)


def _runs(score: Floats, pattern: Pattern) -> Mask:
    zeros, run = pattern
    if not 0 < zeros < run:
        raise ValueError(f"a pattern (n, m) needs 0 < n < m, not {pattern}")
    outputs, inputs = score.shape
    # A short last run holds its share of zeros: what is missing counts as zero already.
    padded = np.pad(score, ((0, 0), (0, -inputs % run)), constant_values=-1).reshape(outputs, -1, run)
    order = np.argsort(padded, axis=-1, kind="stable")
    stays = np.ones(padded.shape, bool)
    np.put_along_axis(stays, order[..., :zeros], False, axis=-1)
    return stays.reshape(outputs, -1)[:, :inputs]
