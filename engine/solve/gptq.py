"""GPTQ: weights rounded one input at a time, each error made good by the inputs that are still free."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import linalg

from engine.solve.blas_threads import side_by_side
from engine.solve.grid import Bits, Quantized, fit

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

# Inputs within which errors are fed back row by row; beyond them a matrix product does it.
_PART = 32
# Outputs for which equations are solved by one thread, and multiplications that one takes in a part of a product.
_SOLVED_BY_ONE, _MULTIPLIED_BY_ONE = 256, 1 << 25
# Rows of a part of a product, below which its other factor is read too often.
_FEWEST_ROWS = 256


@dataclass(frozen=True)
class Curvature:
    """The damped H = X^T X of a layer's inputs, factorised, in the precision that weights are corrected in.

    Layers that read one tensor share it.
    """

    xtx: Floats  # (inputs, inputs)
    damping: float
    # With R the upper triangular factor, R R^T = H with inputs in `order`: R[k, j] / R[j, j], what input j takes over of the
    # error of each input k before it.
    shares: Floats
    diagonal: Floats  # of R
    order: NDArray[np.intp]  # in which inputs are rounded
    by_energy: bool  # whether that is by falling diagonal, not as they come

    def hessian(self) -> Floats:
        """Make H (inputs, inputs), which is as large as the factor and not needed for as long."""
        found: Floats = np.array(self.xtx, self.shares.dtype, order="C")
        _damp(found, self.damping)
        return found

    @property
    def importance(self) -> Floats:
        """Give what an error of each input costs once the inputs after it have made good what they can: R[j, j]^2."""
        found = np.empty_like(self.diagonal)
        found[self.order] = np.square(self.diagonal)
        return found

    def solve(self, right: Floats, *, threads: int = 1) -> Floats:
        """Give H^-1 times a matrix (inputs, any)."""
        parts = [right[:, start : start + _SOLVED_BY_ONE] for start in range(0, right.shape[1], _SOLVED_BY_ONE)]
        return np.concatenate(side_by_side(self._solve, parts, threads=threads), axis=1)

    def _solve(self, right: Floats) -> Floats:
        # Column-major as BLAS has it, a row-major array is its transpose, and X S^T = B^T stands for S X^T = B.
        (divide,) = linalg.get_blas_funcs(("trsm",), (self.shares, right))
        turned = np.array(right[self.order] if self.by_energy else right, divide.dtype, order="C").T
        turned = divide(1.0, self.shares.T, turned, side=1, lower=1, diag=1, overwrite_b=1)
        turned /= np.square(self.diagonal)
        turned = divide(1.0, self.shares.T, turned, side=1, lower=1, trans_a=1, diag=1, overwrite_b=1)
        if not self.by_energy:
            solved: Floats = turned.T
            return solved
        found = np.empty(right.shape, turned.dtype)
        found[self.order] = turned.T
        return found


def curvature(
    xtx: Floats, *, damping: float = 0.01, activation_order: bool = False, dtype: DTypeLike = np.float64
) -> Curvature:
    """Damp and factorise X^T X (inputs, inputs), in float64; the results are kept as `dtype`."""
    hessian: Floats = np.array(xtx, dtype, order="C")
    _damp(hessian, damping)
    order = np.argsort(-np.diag(hessian), kind="stable") if activation_order else np.arange(len(hessian))
    root = root_factor(hessian[np.ix_(order, order)] if activation_order else hessian)
    diagonal = np.diag(root).copy()
    shares = np.divide(root, diagonal, out=np.empty(root.shape, dtype), casting="same_kind")
    return Curvature(xtx, damping, shares, diagonal.astype(dtype), order, activation_order)


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

    Frantar et al., "GPTQ" (ICLR 2023), as Babai's nearest plane (Chen et al., "The Geometry of LLM Quantization", 2025):
    with H = X^T X + damping * mean(diag) * I = R R^T and R upper triangular, the objective is |R^T (w - q)|^2, and each
    input j is rounded once those before it are, from w_j + sum over k < j of R[k, j] / R[j, j] * (w_k - q_k). R comes from
    one Cholesky factorisation of H with reversed order; no inverse is formed. An input that was always zero has a diagonal
    of mean size and no off-diagonal: it is rounded to nearest and disturbs no other.

    A group's grid is fitted when its first input is reached, to the weights as corrected so far, and is what comes back.
    `activation_order` takes inputs by falling diagonal; grids are then fitted to the original weights, since a group's
    inputs are no longer reached together. `search` as in `grid.fit`, weighted by R[j, j]^2.

    `sweeps` > 0 follows with as many rounds of coordinate descent on the same damped objective (Behdin et al.,
    "QuantEase", 2023), each with a least-squares refit of the scales. No round can raise the objective.

    Weights of float32 are corrected in float32, others in float64; the factorisation is always float64.
    """
    curved = curvature(xtx, damping=damping, activation_order=activation_order, dtype=_precision(weights))
    return round_by(
        weights, curved, bits=bits, group=group, symmetric=symmetric, search=search, sweeps=sweeps, block=block
    )


def round_by(
    weights: Floats,
    curved: Curvature,
    *,
    bits: Bits = 4,
    group: int | None = 32,
    symmetric: bool = False,
    search: int = 16,
    sweeps: int = 0,
    block: int = 128,
    threads: int = 1,
) -> Quantized:
    """Do what `gptq` does with a factorisation that is known; outputs do not depend on each other.

    `threads` share the large products, each of which is cut in the same way for any number of them.
    """
    outputs, inputs = weights.shape
    group = min(group or inputs, inputs)
    # A group never reaches past the block that it begins in, so its weights are up to date when its grid is fitted.
    block = group * max(1, block // group) if group < inputs else block
    order, dtype = curved.order, _precision(weights)
    shares = curved.shares
    grids = _Grids(outputs, inputs, bits, group, symmetric=symmetric, search=search, importance=curved.importance)
    # One row per input: the inner loop then works on contiguous memory.
    target = np.array(weights.T, dtype, order="C")
    given = target[order] if curved.by_energy else target
    moved = given.copy()
    if curved.by_energy:
        for index in range(grids.count):
            grids.fit(index, target[grids.span(index)])

    codes = np.empty((inputs, outputs), np.uint8)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = np.empty((stop - start, outputs), dtype)
        for first, last in _parts(start, stop, group):
            if not curved.by_energy and first % group == 0:
                rows = slice(first, min(first + group, inputs))
                grids.fit(first // group, moved[rows] + shares[start:first, rows].T @ errors[: first - start])
            moved[first:last] += shares[start:first, first:last].T @ errors[: first - start]
            rows = slice(first, last)
            _round_part(
                moved[rows],
                given[rows],
                codes,
                grids,
                shares=shares[rows, rows],
                columns=order[rows],
                errors=errors[first - start :],
            )
        if stop < inputs:
            _add_product(moved[stop:], 1.0, shares[start:stop, stop:], errors, threads=threads)

    if sweeps:
        block = block if group < inputs else inputs
        _descend(target, curved.hessian(), codes, grids, sweeps=sweeps, block=block, threads=threads)
    return Quantized(np.ascontiguousarray(codes.T), grids.scale, grids.zero, bits, group)


def _add_product(total: Floats, factor: float, left: Floats, right: Floats, *, threads: int) -> None:
    """Add factor * left^T right in place; `total` and `right` are contiguous, row by row.

    BLAS adds while it multiplies: a product of its own and a sum would go through memory thrice, which takes as long again.
    """
    (multiply,) = linalg.get_blas_funcs(("gemm",), (total,))

    def add(rows: slice) -> None:
        # Column-major as BLAS has it, a row-major array is its transpose.
        some = np.ascontiguousarray(left[:, rows])
        multiply(factor, right.T, some.T, beta=1.0, c=total[rows].T, trans_b=True, overwrite_c=True)

    side_by_side(add, list(_rows_of_one(len(total), right.size)), threads=threads)


def _rows_of_one(rows: int, work: int) -> Iterator[slice]:
    """Cut rows into parts for one thread, of so many multiplications each."""
    step = max(_FEWEST_ROWS, _MULTIPLIED_BY_ONE // work)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _parts(start: int, stop: int, group: int) -> Iterator[tuple[int, int]]:
    """Cut rows into parts that do not cross the beginning of a group."""
    for begin in range(start, stop, min(group, stop - start)):
        end = min(begin + group, stop)
        for first in range(begin, end, _PART):
            yield first, min(first + _PART, end)


def _round_part(
    moved: Floats,
    given: Floats,
    codes: NDArray[np.uint8],
    grids: "_Grids",
    *,
    shares: Floats,
    columns: NDArray[np.intp],
    errors: Floats,
) -> None:
    """Round neighbouring inputs: `moved` as corrected for those before them, `errors` is filled with `given` less its code."""
    shares = np.ascontiguousarray(shares.T)
    code = np.empty(moved.shape[1], moved.dtype)
    for index, column in enumerate(columns):
        current = moved[index]
        if index:
            current += shares[index, :index] @ errors[:index]
        scale, zero, lowest, highest = grids.of(int(column))
        np.divide(current, scale, out=code)
        np.rint(code, out=code)
        np.maximum(code, lowest, out=code)
        np.minimum(code, highest, out=code)
        np.add(code, zero, out=codes[column], casting="unsafe")
        code *= scale
        np.subtract(given[index], code, out=errors[index])


def damped(xtx: Floats, damping: float) -> Doubles:
    """Give X^T X in float64 with `damping` * mean diagonal added to the diagonal, inputs that were always zero decoupled."""
    hessian = np.array(xtx, np.float64)
    _damp(hessian, damping)
    return hessian


def _damp(hessian: Floats, damping: float) -> None:
    diagonal = np.diag(hessian).copy()
    alive = diagonal > 0
    mean = float(diagonal[alive].mean(dtype=np.float64)) if alive.any() else 1.0
    hessian[~alive, :] = 0
    hessian[:, ~alive] = 0
    hessian[np.diag_indices_from(hessian)] = np.where(alive, diagonal + damping * mean, mean)


def root_factor(hessian: Floats) -> Doubles:
    """Give the upper triangular R with R R^T = H: the Cholesky factor of H with both axes reversed, reversed back.

    Where H is not positive definite in float64, its diagonal is raised by 10^-8 of its mean, then tenfold each time.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("X^T X holds NaN or infinity")
    factorise = linalg.get_lapack_funcs("potrf", dtype=np.float64)
    raised = 0.0
    for _ in range(12):
        # Symmetric, so that a row-major copy is a column-major one too, which is a copy in the order of memory.
        turned = np.array(hessian[::-1, ::-1], np.float64, order="C")
        if raised:
            turned[np.diag_indices_from(turned)] += raised
        upper, failed = factorise(turned.T, lower=0, clean=1, overwrite_a=1)
        if not failed:
            root: Doubles = upper.T[::-1, ::-1]
            return root
        raised = max(raised * 10, 1e-8 * float(np.trace(hessian)) / len(hessian))
    raise linalg.LinAlgError("X^T X has no Cholesky factor, even with its diagonal raised")


def inverse_factor(hessian: Floats) -> Doubles:
    """Give the upper triangular U with U^T U = H^-1, which is R^-1 of `root_factor`."""
    # The inverse of the reversed factor is the reversed inverse.
    invert = linalg.get_lapack_funcs("trtri", dtype=np.float64)
    inverse, _ = invert(np.asfortranarray(root_factor(hessian)[::-1, ::-1]), lower=1, overwrite_c=1)
    return np.ascontiguousarray(inverse[::-1, ::-1])


class _Grids:
    """The grids of one layer, fitted group by group."""

    def __init__(
        self, outputs: int, inputs: int, bits: Bits, group: int, *, symmetric: bool, search: int, importance: Floats
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
        self._known: tuple[int, tuple[Floats, Floats, Floats, Floats]] | None = None

    def span(self, index: int) -> slice:
        return slice(index * self.group, min((index + 1) * self.group, self._inputs))

    def fit(self, index: int, rows: Floats) -> None:
        self.scale[:, index], self.zero[:, index] = fit(
            rows.T,
            bits=self._bits,
            symmetric=self._symmetric,
            importance=self._importance[self.span(index)],
            search=self._search,
        )
        self._known = None

    def of(self, column: int) -> tuple[Floats, Floats, Floats, Floats]:
        """Give a column's scale and zero by output, and the least and the largest number of steps from zero."""
        index = column // self.group
        if self._known is None or self._known[0] != index:
            dtype = self._importance.dtype
            scale, zero = self.scale[:, index].astype(dtype), self.zero[:, index].astype(dtype)
            self._known = index, (scale, zero, -zero, self.levels - zero)
        return self._known[1]

    def moved(self, index: int, scale: NDArray[np.float32]) -> None:
        """Take other scales for a group."""
        self.scale[:, index] = scale
        self._known = None

    def values(self, codes: NDArray[np.uint8]) -> Floats:
        """Give the weights (inputs, outputs) that codes stand for."""
        found = codes.astype(self._importance.dtype)
        for index in range(self.count):
            span = self.span(index)
            found[span] -= self.zero[:, index]
            found[span] *= self.scale[:, index]
        return found


def _descend(
    target: Floats,
    hessian: Floats,
    codes: NDArray[np.uint8],
    grids: _Grids,
    *,
    sweeps: int,
    block: int,
    threads: int,
) -> None:
    """Improve codes (inputs, outputs) and scales in place; `target` is (inputs, outputs).

    For inputs j the residual H (w - q) is kept; q_j + residual_j / H_jj is the best value of q_j while all others stand,
    and since the objective is a parabola in q_j, its nearest code is the best code.
    """
    inputs, outputs = target.shape
    residual = np.zeros(target.shape, target.dtype)
    _add_product(residual, 1.0, hessian, target - grids.values(codes), threads=threads)
    for _ in range(sweeps):
        for start in range(0, inputs, block):
            stop = min(start + block, inputs)
            moved = np.empty((stop - start, outputs), target.dtype)
            for first, last in _parts(start, stop, grids.group):
                done = moved[: first - start]
                rows = residual[first:last] - hessian[first:last, start:first] @ done
                _move_part(rows, hessian, codes, grids, moved=moved[first - start : last - start], first=first)
            moved += _refit(
                start, residual[start:stop] - hessian[start:stop, start:stop] @ moved, hessian, codes, grids
            )
            _add_product(residual, -1.0, hessian[start:stop], moved, threads=threads)


def _move_part(
    rows: Floats, hessian: Floats, codes: NDArray[np.uint8], grids: _Grids, *, moved: Floats, first: int
) -> None:
    """Take the best code of each input from `first` on, given its row of the residual; tell in `moved` by how much it moves."""
    wanted = np.empty(rows.shape[1], rows.dtype)
    for index in range(len(moved)):
        at, move = first + index, moved[index]
        if index:
            rows[index] -= hessian[at, first:at] @ moved[:index]
        scale, zero, lowest, highest = grids.of(at)
        np.subtract(codes[at], zero, out=move)
        np.divide(rows[index], scale, out=wanted)
        wanted /= hessian[at, at]
        wanted += move
        np.rint(wanted, out=wanted)
        np.maximum(wanted, lowest, out=wanted)
        np.minimum(wanted, highest, out=wanted)
        np.add(wanted, zero, out=codes[at], casting="unsafe")
        np.subtract(wanted, move, out=move)
        np.multiply(move, scale, out=move)


def _refit(start: int, residual: Floats, hessian: Floats, codes: NDArray[np.uint8], grids: _Grids) -> Floats:
    """Move the scales of neighbouring groups to their least-squares optimum for the present codes, where that gains.

    Takes the rows of the residual of the groups' inputs, the first of which is `start`; gives by how much weights move.
    """
    moved = np.zeros_like(residual)
    for index in range(start // grids.group, -(-(start + len(residual)) // grids.group)):
        span = grids.span(index)
        done = moved[: span.start - start]
        own = slice(span.start - start, span.stop - start)
        rows = residual[own] - hessian[span, start : span.start] @ done
        steps = codes[span].astype(residual.dtype)
        steps -= grids.zero[:, index]
        slope = np.einsum("io,io->o", steps, rows)
        curve = np.einsum("io,io->o", steps, hessian[span, span] @ steps)
        old = grids.scale[:, index]
        wanted = old + np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
        new = np.where(wanted > np.finfo(np.float32).tiny, wanted, old).astype(np.float32)
        change = new.astype(residual.dtype) - old
        # Rounding the scale to float32 may undo a gain that was tiny to begin with.
        change = np.where(change * (slope - 0.5 * curve * change) > 0, change, 0.0)
        grids.moved(index, np.where(change != 0, new, old))
        np.multiply(steps, change, out=moved[own])
    return moved


def _precision(weights: NDArray[Any]) -> type[np.floating]:
    return np.float32 if weights.dtype == np.float32 else np.float64
