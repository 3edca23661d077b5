"""What a layer's inputs say of its weights: X'^T X', what the inputs lack, and rows that candidates are judged on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Singles = NDArray[np.float32]
_SLAB = 256


@dataclass(frozen=True)
class Inputs:
    """Sums over rows of the inputs X' that a layer gets now, beside the inputs X that it got in the original network."""

    rows: int
    xtx: Singles  # X'^T X' (inputs, inputs)
    # X'^T (X - X') (inputs, inputs), or with `pulls` that times the layer's W^T (inputs, outputs); None where X' is X.
    lack: Singles | None
    pulls: bool
    held_out: Singles  # X' of other rows
    held_out_original: Singles  # X of the same ones

    def pull(self, weights: Floats, outputs: slice | NDArray[np.intp]) -> Singles | None:
        """Give X'^T (X - X') W^T, (inputs, outputs), for these outputs of a layer and their weights; None where it is zero."""
        if self.lack is None:
            return None
        found: Singles = self.lack[:, outputs] if self.pulls else self.lack @ weights.T.astype(np.float32)
        return found

    def targets(self, weights: Floats) -> Singles:
        """Give X W^T of the held-out rows."""
        found: Singles = self.held_out_original @ weights.T.astype(np.float32)
        return found

    def errors(self, targets: Singles, candidate: Floats) -> NDArray[np.float64]:
        """Give the mean square of X' C^T less the targets on held-out rows, for each output of C (outputs, inputs)."""
        off = self.held_out @ candidate.T.astype(np.float32) - targets
        found: NDArray[np.float64] = np.square(off).mean(0, dtype=np.float64)
        return found


class InputSums:
    """Accumulates `Inputs` in constant memory, in blocks that do not depend on how rows were cut into batches.

    Products are summed in float32: what rounding leaves of them is far below the damping of every solver. Only a triangle
    of X'^T X' is computed (BLAS syrk). `weights` (outputs, inputs), if given, are multiplied with what the inputs lack at
    once, which is less work where outputs are fewer than inputs.
    """

    def __init__(self, inputs: int, weights: Floats | None = None, *, block: int = 1024) -> None:
        from scipy.linalg import get_blas_funcs  # noqa: PLC0415  # slow to load, and most jobs take no sums

        self._weights = None if weights is None else np.asarray(weights, np.float32)
        self._block = block
        self._rows = self.held_out = 0
        self._waiting = 0
        self._now = np.zeros((block, inputs), np.float32)
        self._lack = np.zeros((block, inputs), np.float32)
        # Column-major, as BLAS takes it without a copy.
        self._xtx = np.zeros((inputs, inputs), np.float32, order="F")
        self._syrk = get_blas_funcs("syrk", (self._xtx,))
        self._cross: Singles | None = None
        self._held_out: list[tuple[Singles, Singles]] = []

    def update(self, now: Floats, was: Floats) -> None:
        """Add rows (rows, inputs) of what the layer gets now and of what it got in the original network."""
        self._rows += len(now)
        start = 0
        while start < len(now):
            take = min(self._block - self._waiting, len(now) - start)
            into = slice(self._waiting, self._waiting + take)
            self._now[into] = now[start : start + take]
            np.subtract(was[start : start + take], self._now[into], out=self._lack[into])
            self._waiting += take
            start += take
            if self._waiting == self._block:
                self._flush()

    def hold_out(self, now: Floats, was: Floats) -> None:
        """Keep rows that nothing is fitted to."""
        self._held_out.append((np.array(now, np.float32), np.array(was, np.float32)))
        self.held_out += len(now)

    def result(self) -> Inputs:
        """Give the sums; nothing may be added after that."""
        if self._waiting:
            self._flush()
        width = len(self._xtx)
        xtx = self._xtx
        # Copy the triangle over in slabs: a whole copy or two of it would be the largest arrays of the solver.
        for start in range(0, width, _SLAB):
            stop = min(start + _SLAB, width)
            square = np.tril(xtx[start:stop, start:stop])
            xtx[start:stop, start:stop] = square + np.tril(square, -1).T
            xtx[start:stop, stop:] = xtx[stop:, start:stop].T
        pairs = self._held_out or [(np.zeros((0, width), np.float32),) * 2]
        held_out, original = (np.concatenate(side) for side in zip(*pairs, strict=True))
        return Inputs(self._rows, xtx, self._cross, self._weights is not None, held_out, original)

    def _flush(self) -> None:
        now, lack = self._now[: self._waiting], self._lack[: self._waiting]
        # The transpose of a row-major matrix is column-major already.
        self._xtx = self._syrk(1.0, now.T, beta=1.0, c=self._xtx, lower=1, overwrite_c=1)
        if self._cross is not None or lack.any():
            part = np.asarray(now.T @ (lack if self._weights is None else lack @ self._weights.T), np.float32)
            if self._cross is None:
                self._cross = part
            else:
                self._cross += part
        self._waiting = 0
