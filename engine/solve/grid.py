"""Integer grids for weights: their fit, rounding to nearest, and the value that every weight quantizer gives back."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Codes = NDArray[np.uint8]

Bits = Literal[4, 8]
# Ranges that a search tries before it looks between them.
_COARSE = 4


@dataclass(frozen=True)
class Quantized:
    """Weights as unsigned codes with the grid that they were made on: weight = (code - zero) * scale.

    A symmetric grid has the zero 2 ** (bits - 1) everywhere, so `code - zero` is the signed integer. Group g covers the
    inputs g * group ... (g + 1) * group - 1; the last group may be shorter.
    """

    codes: Codes  # (outputs, inputs)
    scale: NDArray[np.float32]  # (outputs, groups)
    zero: Codes  # (outputs, groups)
    bits: Bits
    group: int

    def part(self, outputs: slice) -> "Quantized":
        """Give some of the outputs."""
        return Quantized(self.codes[outputs], self.scale[outputs], self.zero[outputs], self.bits, self.group)

    def values(self) -> NDArray[np.float32]:
        """Give the weights that the codes stand for, (outputs, inputs)."""
        inputs = self.codes.shape[1]
        scale = np.repeat(self.scale, self.group, 1)[:, :inputs]
        zero = np.repeat(self.zero, self.group, 1)[:, :inputs]
        return (self.codes.astype(np.float32) - zero) * scale


def fit(
    weights: Floats,
    *,
    bits: Bits,
    symmetric: bool,
    importance: Floats | None = None,
    search: int = 0,
) -> tuple[NDArray[np.float32], Codes]:
    """Give scale and zero (each of the shape without the last axis) of the grid for each row on the last axis.

    The range is the smallest that holds all weights and zero. `search` > 0 also looks among that many smaller ranges, down
    to half, for the one with the least squared error, weighted by `importance` (broadcast on the last axis): coarsely over
    all of them, then between the best and its neighbours, since the error has one valley but for its noise.
    """
    levels = (1 << bits) - 1
    if symmetric:
        # With 2 ** bits codes, one more below zero than above, a weight at either end is at most half a step off.
        high = np.abs(weights).max(-1)
        low = -high
    else:
        high = np.maximum(weights.max(-1), 0)
        low = np.minimum(weights.min(-1), 0)
    best = _grid(low, high, bits, symmetric=symmetric)
    if search <= 0:
        return best
    room = np.empty_like(weights)
    least = _error(weights, *best, levels, importance, off=room)
    at = np.ones_like(low)
    step = 0.5 / min(search, _COARSE)
    tries = [np.full_like(low, 1 - step * part) for part in range(1, min(search, _COARSE) + 1)]
    while tries:
        for shrink in tries:
            tried = _grid(low * shrink, high * shrink, bits, symmetric=symmetric)
            error = _error(weights, *tried, levels, importance, off=room)
            better = error < least
            least = np.where(better, error, least)
            best = (np.where(better, tried[0], best[0]), np.where(better, tried[1], best[1]))
            at = np.where(better, shrink, at)
        step /= 2
        finer = step * search >= 0.5
        tries = [np.clip(at + side, 0.5, 1).astype(low.dtype) for side in (-step, step)] if finer else []
    return best


def encode(weights: Floats, scale: Floats, zero: Codes, bits: Bits) -> Codes:
    """Give the nearest codes; ties go to the even step as in ONNX."""
    codes = weights / scale
    np.rint(codes, out=codes)
    codes += zero
    return np.clip(codes, 0, (1 << bits) - 1, out=codes).astype(np.uint8)


def round_to_nearest(
    weights: Floats, *, bits: Bits = 4, group: int | None = 32, symmetric: bool = False, search: int = 0
) -> Quantized:
    """Round weights (outputs, inputs) to the nearest code of a grid per output and group of inputs (None: one group)."""
    outputs, inputs = weights.shape
    group = min(group or inputs, inputs)
    groups = -(-inputs // group)
    padded = weights
    if inputs % group:
        # Zeros lie in every grid and never widen its range.
        padded = np.pad(weights, ((0, 0), (0, groups * group - inputs)))
    blocks = padded.reshape(outputs, groups, group)
    scale, zero = fit(blocks, bits=bits, symmetric=symmetric, search=search)
    codes = encode(blocks, scale[..., None], zero[..., None], bits).reshape(outputs, -1)[:, :inputs]
    return Quantized(np.ascontiguousarray(codes), scale, zero, bits, group)


def _grid(low: Floats, high: Floats, bits: Bits, *, symmetric: bool) -> tuple[NDArray[np.float32], Codes]:
    steps = (1 << bits) - 1
    with np.errstate(under="ignore"):
        scale = ((high - low) / steps).astype(np.float32)
    # A group of zeros, or of weights too small for a float32 scale, is stored as zeros.
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    if symmetric:
        return scale, np.full(scale.shape, 1 << (bits - 1), np.uint8)
    return scale, np.clip(np.rint(-low / scale), 0, steps).astype(np.uint8)


def _error(
    weights: Floats, scale: Floats, zero: Codes, levels: int, importance: Floats | None, *, off: Floats
) -> Floats:
    """Give each row's squared error on a grid; `off` is room for it, shaped as the weights."""
    origin = zero[..., None].astype(weights.dtype)
    step = scale[..., None].astype(weights.dtype)
    np.divide(weights, step, out=off)
    np.rint(off, out=off)
    np.maximum(off, -origin, out=off)
    np.minimum(off, levels - origin, out=off)
    off *= step
    off -= weights
    off *= off
    if importance is not None:
        off *= importance
    found: Floats = off.sum(-1)
    return found
