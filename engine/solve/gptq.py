"""GPTQ: weights rounded one input at a time, each error made good by the inputs that are still free."""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from engine.solve.grid import Bits, Quantized, fit

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]


def gptq(
    weights: Floats,
    xtx: Floats,
    *,
    bits: Bits = 4,
    group: int | None = 32,
    symmetric: bool = False,
    activation_order: bool = False,
    damping: float = 0.01,
    search: int = 16,
    sweeps: int = 0,
    block: int = 128,
) -> Quantized:
    """Quantize weights (outputs, inputs) so that X W^T changes least, given xtx = X^T X (inputs, inputs).

    Frantar et al., "GPTQ" (ICLR 2023). With H = X^T X + damping * mean(diag) * I and the upper triangular U for which
    H^-1 = U^T U, input j is rounded and its error e = (w - q) / U[j, j] taken off the inputs after it as e * U[j, j+1:].
    U comes from one Cholesky factorisation of H with reversed order, so H^-1 is never formed. An input that was always
    zero has a diagonal of mean size and no off-diagonal: it is rounded to nearest and disturbs no other.

    A group's grid is fitted when its first input is reached, to the weights as corrected so far, and is what comes back.
    `activation_order` takes inputs by falling diagonal; grids are then fitted to the original weights, since a group's
    inputs are no longer reached together. `search` as in `grid.fit`, weighted by 1 / U[j, j]^2.

    `sweeps` > 0 follows with as many rounds of coordinate descent on the same damped objective (Behdin et al.,
    "QuantEase", 2023), each with a least-squares refit of the scales. No round can raise the objective.
    """
    outputs, inputs = weights.shape
    group = min(group or inputs, inputs)
    hessian = damped(xtx, damping)
    # A group never reaches past the block that it begins in, so its weights are up to date when its grid is fitted.
    block = group * max(1, block // group) if group < inputs else block
    order = np.argsort(-np.diag(hessian), kind="stable") if activation_order else np.arange(inputs)
    upper = inverse_factor(hessian[np.ix_(order, order)])
    importance = np.empty(inputs)
    importance[order] = np.diag(upper) ** -2.0

    grids = _Grids(outputs, inputs, bits, group, symmetric=symmetric, search=search, importance=importance)
    # One row per input: the inner loop then works on contiguous memory.
    left = np.array(weights.T[order], np.float64, order="C")
    if activation_order:
        for index in range(grids.count):
            grids.fit(index, np.asarray(weights.T[grids.span(index)], np.float64))

    codes = np.empty((inputs, outputs), np.uint8)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = np.empty((stop - start, outputs))
        for row in range(start, stop):
            column = int(order[row])
            if not activation_order and column % group == 0:
                grids.fit(column // group, left[row : row + group])
            scale, zero = grids.of(column)
            code = np.clip(np.rint(left[row] / scale) + zero, 0, grids.levels)
            codes[column] = code
            error = (left[row] - (code - zero) * scale) / upper[row, row]
            errors[row - start] = error
            left[row + 1 : stop] -= upper[row, row + 1 : stop, None] * error
        left[stop:] -= upper[start:stop, stop:].T @ errors

    if sweeps:
        _descend(np.asarray(weights.T, np.float64), hessian, codes, grids, sweeps=sweeps, block=block)
    return Quantized(np.ascontiguousarray(codes.T), grids.scale, grids.zero, bits, group)


def damped(xtx: Floats, damping: float) -> Doubles:
    """Give X^T X in float64 with `damping` * mean diagonal added to the diagonal, inputs that were always zero decoupled."""
    hessian = np.array(xtx, np.float64)
    diagonal = np.diag(hessian).copy()
    alive = diagonal > 0
    mean = float(diagonal[alive].mean()) if alive.any() else 1.0
    hessian[~alive, :] = 0
    hessian[:, ~alive] = 0
    hessian[np.diag_indices_from(hessian)] = np.where(alive, diagonal + damping * mean, mean)
    return hessian


def inverse_factor(hessian: Doubles) -> Doubles:
    """Give the upper triangular U with U^T U = H^-1.

    H reversed on both axes has a lower Cholesky factor; reversed back it is the upper R with R R^T = H, and U = R^-1.
    Where H is not positive definite in float64, its diagonal is raised by 10^-8 of its mean, then tenfold each time.
    """
    raised = 0.0
    for _ in range(12):
        try:
            lower = linalg.cholesky(
                hessian[::-1, ::-1] + raised * np.eye(len(hessian)), lower=True, overwrite_a=True, check_finite=True
            )
        except linalg.LinAlgError:
            raised = max(raised * 10, 1e-8 * float(np.trace(hessian)) / len(hessian))
            continue
        upper = np.asfortranarray(lower[::-1, ::-1])
        (invert,) = linalg.get_lapack_funcs(("trtri",), (upper,))
        inverse, _ = invert(upper, lower=0)
        return np.ascontiguousarray(np.triu(inverse))
    raise linalg.LinAlgError("X^T X has no Cholesky factor, even with its diagonal raised")


class _Grids:
    """The grids of one layer, fitted group by group."""

    def __init__(
        self, outputs: int, inputs: int, bits: Bits, group: int, *, symmetric: bool, search: int, importance: Doubles
    ) -> None:
        self.count = -(-inputs // group)
        self.levels = (1 << bits) - 1
        self.group = group
        self.scale = np.ones((outputs, self.count), np.float32)
        self.zero = np.zeros((outputs, self.count), np.uint8)
        self._inputs = inputs
        self._bits: Bits = bits
        self._symmetric = symmetric
        self._search = search
        self._importance = importance

    def span(self, index: int) -> slice:
        return slice(index * self.group, min((index + 1) * self.group, self._inputs))

    def fit(self, index: int, rows: Doubles) -> None:
        self.scale[:, index], self.zero[:, index] = fit(
            rows.T,
            bits=self._bits,
            symmetric=self._symmetric,
            importance=self._importance[self.span(index)],
            search=self._search,
        )

    def of(self, column: int) -> tuple[Doubles, Doubles]:
        index = column // self.group
        return self.scale[:, index].astype(np.float64), self.zero[:, index].astype(np.float64)


def _descend(
    target: Doubles, hessian: Doubles, codes: NDArray[np.uint8], grids: _Grids, *, sweeps: int, block: int
) -> None:
    """Improve codes (inputs, outputs) and scales in place; `target` is (inputs, outputs).

    For inputs j the residual H (w - q) is kept; q_j + residual_j / H_jj is the best value of q_j while all others stand,
    and since the objective is a parabola in q_j, its nearest code is the best code.
    """
    inputs = len(target)
    residual = hessian @ (target - _values(codes, grids))
    for _ in range(sweeps):
        for start in range(0, inputs, block):
            stop = min(start + block, inputs)
            moved = np.empty((stop - start, target.shape[1]))
            for row in range(start, stop):
                scale, zero = grids.of(row)
                old = codes[row].astype(np.float64)
                wanted = (old - zero) + residual[row] / (hessian[row, row] * scale)
                new = np.clip(np.rint(wanted) + zero, 0, grids.levels)
                codes[row] = new
                moved[row - start] = (new - old) * scale
                residual[start:stop] -= hessian[start:stop, row, None] * moved[row - start]
            residual[:start] -= hessian[:start, start:stop] @ moved
            residual[stop:] -= hessian[stop:, start:stop] @ moved
        for index in range(grids.count):
            _refit(index, hessian, residual, codes, grids)


def _refit(index: int, hessian: Doubles, residual: Doubles, codes: NDArray[np.uint8], grids: _Grids) -> None:
    """Move the scales of one group to their least-squares optimum for the present codes, where that gains."""
    span = grids.span(index)
    steps = codes[span].astype(np.float64) - grids.zero[:, index]
    slope = np.einsum("io,io->o", steps, residual[span])
    curve = np.einsum("io,io->o", steps, hessian[span, span] @ steps)
    old = grids.scale[:, index]
    wanted = old + np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
    new = np.where(wanted > np.finfo(np.float32).tiny, wanted, old).astype(np.float32)
    change = new.astype(np.float64) - old
    # Rounding the scale to float32 may undo a gain that was tiny to begin with.
    change = np.where(change * (slope - 0.5 * curve * change) > 0, change, 0.0)
    grids.scale[:, index] = np.where(change != 0, new, old)
    residual -= hessian[:, span] @ (steps * change)


def _values(codes: NDArray[np.uint8], grids: _Grids) -> Doubles:
    values = np.empty(codes.shape)
    for index in range(grids.count):
        span = grids.span(index)
        values[span] = (codes[span].astype(np.float64) - grids.zero[:, index]) * grids.scale[:, index]
    return values
