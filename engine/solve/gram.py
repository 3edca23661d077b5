"""Streaming sums over a layer's inputs and targets, and the rows that a convolution multiplies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

AutoPad = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]


@dataclass(frozen=True)
class Moments:
    """Sums over `rows` rows of inputs X (rows, inputs) and targets Y (rows, outputs): all that least squares needs."""

    rows: int
    xtx: Doubles  # (inputs, inputs)
    xty: Doubles  # (inputs, outputs)
    x_sum: Doubles  # (inputs,)
    y_sum: Doubles  # (outputs,)
    y_squares: Doubles  # (outputs,)

    def error(self, weights: Floats, bias: Floats | None = None) -> float:
        """Give the mean square of X W^T + b - Y over rows and outputs, for weights (outputs, inputs)."""
        return float(self.errors(weights, bias).mean())

    def errors(self, weights: Floats, bias: Floats | None = None) -> Doubles:
        """Give the mean square of X W^T + b - Y for each output."""
        w = np.asarray(weights, np.float64)
        b = np.zeros(len(w)) if bias is None else np.asarray(bias, np.float64)
        total = (
            np.einsum("oi,oi->o", w @ self.xtx, w)
            - 2 * np.einsum("oi,io->o", w, self.xty)
            + self.y_squares
            + 2 * b * (w @ self.x_sum - self.y_sum)
            + self.rows * b * b
        )
        # Each term may be far larger than their sum: rounding can leave a small negative rest.
        found: Doubles = np.maximum(total, 0.0) / max(self.rows, 1)
        return found


class Gram:
    """Accumulates X^T X and X^T Y over any number of batches in constant memory.

    Rows are collected into blocks of a fixed size, multiplied in the precision of the data (float32) and added up in
    float64. Blocks do not depend on how the rows were cut into batches, so neither does a single bit of the result.
    `groups` > 1 keeps as many independent sums (the groups of a convolution), each over its own columns.
    """

    def __init__(self, inputs: int, outputs: int = 0, *, groups: int = 1, block: int = 1024) -> None:
        self.rows = 0
        self._block = block
        self._waiting = 0
        self._x = np.zeros((groups, block, inputs), np.float32)
        self._y = np.zeros((groups, block, outputs), np.float32)
        self._xtx = np.zeros((groups, inputs, inputs))
        self._xty = np.zeros((groups, inputs, outputs))
        self._x_sum = np.zeros((groups, inputs))
        self._y_sum = np.zeros((groups, outputs))
        self._y_squares = np.zeros((groups, outputs))

    def update(self, x: Floats, y: Floats | None = None) -> None:
        """Add rows: x (rows, inputs) and y (rows, outputs), or both with a leading axis of groups."""
        x = x if x.ndim == 3 else x[None]
        if y is None:
            y = np.zeros((*x.shape[:2], self._y.shape[2]), np.float32)
        y = y if y.ndim == 3 else y[None]
        if x.shape[:2] != y.shape[:2]:
            raise ValueError(f"inputs have {x.shape[:2]} groups and rows, targets {y.shape[:2]}")
        start = 0
        while start < x.shape[1]:
            take = min(self._block - self._waiting, x.shape[1] - start)
            into = slice(self._waiting, self._waiting + take)
            self._x[:, into] = x[:, start : start + take]
            self._y[:, into] = y[:, start : start + take]
            self._waiting += take
            start += take
            if self._waiting == self._block:
                self._flush()
        self.rows += x.shape[1]

    def moments(self, group: int = 0) -> Moments:
        """Give the sums so far of one group; more rows may follow."""
        x, y = self._x[group, : self._waiting], self._y[group, : self._waiting]
        return Moments(
            rows=self.rows,
            xtx=self._xtx[group] + x.T @ x,
            xty=self._xty[group] + x.T @ y,
            x_sum=self._x_sum[group] + x.sum(0, dtype=np.float64),
            y_sum=self._y_sum[group] + y.sum(0, dtype=np.float64),
            y_squares=self._y_squares[group] + np.square(y, dtype=np.float64).sum(0),
        )

    def _flush(self) -> None:
        for group, (x, y) in enumerate(zip(self._x, self._y, strict=True)):
            self._xtx[group] += x.T @ x
            self._xty[group] += x.T @ y
        self._x_sum += self._x.sum(1, dtype=np.float64)
        self._y_sum += self._y.sum(1, dtype=np.float64)
        self._y_squares += np.square(self._y, dtype=np.float64).sum(1)
        self._waiting = 0


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution over any number of spatial axes, named as ONNX names it."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()  # begins, then ends
    groups: int = 1
    auto_pad: AutoPad = "NOTSET"
    stretch: tuple[int, ...] = ()
    """Distance of the input's elements once zeros stand between them: the strides of a transposed convolution."""

    def steps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give strides and dilations with ONNX's default of one."""
        ones = (1,) * len(self.kernel)
        return self.strides or ones, self.dilations or ones

    def padding(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Give (begin, end) of each spatial axis for an input of these sizes."""
        strides, dilations = self.steps()
        if self.auto_pad == "NOTSET":
            pads = self.pads or (0,) * (2 * len(self.kernel))
            return list(zip(pads[: len(self.kernel)], pads[len(self.kernel) :], strict=True))
        if self.auto_pad == "VALID":
            return [(0, 0)] * len(self.kernel)
        found = []
        for size, kernel, stride, dilation in zip(sizes, self.kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            small = total // 2
            found.append((small, total - small) if self.auto_pad == "SAME_UPPER" else (total - small, small))
        return found

    def stretched(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Give the spatial sizes of an input once zeros stand between its elements."""
        return tuple((size - 1) * step + 1 for size, step in zip(sizes, self.stretch or (1,) * len(sizes), strict=True))

    def outputs(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Give the spatial sizes of the output for an input of these sizes."""
        strides, dilations = self.steps()
        sizes = self.stretched(sizes)
        return tuple(
            (size + begin + end - (kernel - 1) * dilation - 1) // stride + 1
            for size, (begin, end), kernel, stride, dilation in zip(
                sizes, self.padding(sizes), self.kernel, strides, dilations, strict=True
            )
        )


def positions(first: int, samples: int, total: int, keep: int | None, *, seed: int = 0) -> NDArray[np.intp]:
    """Choose which of `total` output positions to look at in each sample: (samples, kept), ascending.

    One position is drawn from each of `keep` equal strata. The choice depends on the index of the sample in the dataset
    (`first` is that of the first one here), not on the batch that it comes in.
    """
    if keep is None or keep >= total:
        return np.broadcast_to(np.arange(total), (samples, total))
    edges = np.arange(keep + 1) * total // keep
    chosen = np.empty((samples, keep), np.intp)
    for row in range(samples):
        chosen[row] = np.random.default_rng((seed, first + row)).integers(edges[:-1], edges[1:])
    return chosen


def patches(x: Floats, window: Window, chosen: NDArray[np.intp] | None = None) -> Floats:
    """Give the rows that a convolution multiplies with its weights (im2col): (groups, rows, channels / groups * kernel).

    x is (samples, channels, *sizes); columns are ordered as the weights' axes. `chosen` (samples, kept) limits the rows
    to these flat output positions, and only those are copied.
    """
    samples = len(x)
    strides, dilations = window.steps()
    spread = _spread(x, window)
    padded = np.pad(spread, [(0, 0), (0, 0), *window.padding(spread.shape[2:])])
    spatial = tuple(range(2, x.ndim))
    extent = tuple((kernel - 1) * dilation + 1 for kernel, dilation in zip(window.kernel, dilations, strict=True))
    every = [slice(None, None, step) for step in (1, 1, *strides, *dilations)]
    view = sliding_window_view(padded, extent, spatial)[tuple(every)]
    outputs = view.shape[2 : 2 + len(spatial)]
    if chosen is None:
        chosen = positions(0, samples, math.prod(outputs), None)
    where = np.unravel_index(chosen, outputs)
    rows = np.moveaxis(view, 1, 1 + len(spatial))[
        (np.arange(samples)[:, None], *where)
    ]  # (samples, kept, channels, *kernel)
    rows = rows.reshape(samples * chosen.shape[1], window.groups, -1)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


def _spread(x: Floats, window: Window) -> Floats:
    """Put the zeros between the elements that a transposed convolution sees there."""
    if not window.stretch:
        return x
    spread = np.zeros((*x.shape[:2], *window.stretched(x.shape[2:])), x.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in window.stretch))] = x
    return spread


def pixels(y: Floats, groups: int = 1, chosen: NDArray[np.intp] | None = None) -> Floats:
    """Give a convolution's output (samples, channels, *sizes) as rows: (groups, rows, channels / groups)."""
    samples, channels = y.shape[:2]
    flat = y.reshape(samples, channels, -1)
    if chosen is None:
        chosen = positions(0, samples, flat.shape[2], None)
    rows = flat[np.arange(samples)[:, None], :, chosen].reshape(-1, groups, channels // groups)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))
