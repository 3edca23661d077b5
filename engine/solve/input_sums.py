"""What a layer's inputs say of its weights: X'^T X', what the inputs lack, and rows that candidates are judged on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engine.solve.blas_threads import side_by_side

Floats = NDArray[np.floating]
Singles = NDArray[np.float32]
# Columns that are summed by one thread at a time.
_SLAB = 384


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

    Products are summed in float32: what rounding leaves of them is far below the damping of every solver. Only the lower
    triangle of X'^T X' is computed, in slabs of columns that `threads` work on side by side. `weights` (outputs, inputs), if
    given, are multiplied with what the inputs lack at once, which is less work where outputs are fewer than inputs.
    """

    def __init__(self, inputs: int, weights: Floats | None = None, *, block: int = 1024, threads: int = 1) -> None:
        self._weights = None if weights is None else np.asarray(weights, np.float32)
        self._block = block
        self._threads = threads
        self._rows = self.held_out = 0
        self._waiting = 0
        self._now = np.zeros((block, inputs), np.float32)
        self._lack = np.zeros((block, inputs), np.float32)
        self._inputs = inputs
        # By slab, its columns from the diagonal down.
        self._triangle = {
            start: np.zeros((inputs - start, min(_SLAB, inputs - start)), np.float32)
            for start in range(0, inputs, _SLAB)
        }
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
        width = self._inputs
        xtx = np.empty((width, width), np.float32)
        for start in list(self._triangle):
            # Each is let go of as it is copied: a whole copy of the sums would be the largest array of the solver.
            columns = self._triangle.pop(start)
            stop = start + columns.shape[1]
            xtx[start:, start:stop] = columns
            xtx[start:stop, start:] = columns.T
        pairs = self._held_out or [(np.zeros((0, width), np.float32),) * 2]
        held_out, original = (np.concatenate(side) for side in zip(*pairs, strict=True))
        # Who waits for the layer to be solved holds this object: it must not hold its room as well.
        self._held_out.clear()
        self._now = self._lack = np.zeros((0, width), np.float32)
        return Inputs(self._rows, xtx, self._cross, self._weights is not None, held_out, original)

    def _flush(self) -> None:
        if self._cross is None and self._lack[: self._waiting].any():
            outputs = self._inputs if self._weights is None else len(self._weights)
            self._cross = np.zeros((self._inputs, outputs), np.float32)
        # A thread costs more than it saves where there is little to multiply.
        threads = self._threads if self._inputs * self._waiting >= _SLAB * _SLAB else 1
        side_by_side(lambda work: work(), list(self._sums()), threads=threads)
        self._waiting = 0

    def _sums(self) -> Iterator[Callable[[], None]]:
        """Give what has to be added up, in parts that do not touch each other."""
        now, lack = self._now[: self._waiting], self._lack[: self._waiting]

        def square(start: int, total: Singles) -> None:
            total += now[:, start:].T @ now[:, start : start + _SLAB]

        def cross(total: Singles, start: int) -> None:
            some = slice(start, start + _SLAB)
            right = lack[:, some] if self._weights is None else lack @ self._weights[some].T
            total[:, some] += now.T @ right

        # The longest ones first: the last ones are then short.
        if self._cross is not None:
            for start in range(0, self._cross.shape[1], _SLAB):
                yield partial(cross, self._cross, start)
        for start, total in self._triangle.items():
            yield partial(square, start, total)
