"""Resizing by interpolation: each axis by itself, as a weighted sum of a few neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ModelUnsupportedError
from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized: sizes before and after, the factor, and the part of the input that is cut out, 0 to 1."""

    before: int
    after: int
    scale: float
    begin: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class _Method:
    """How values between elements are found, in the words of the operator's attributes."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    extrapolation: float
    antialias: bool


@operator("Resize", host=(1, 2, 3))
def resize(
    node: Node, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Resize axes by factors or to sizes."""
    if node.version < 11:
        # Operator set 10 has the factors where later ones have the region.
        return _resized(x, _by_factors(x, _numbers(roi)), _plain_method(node))
    method = _Method(
        node.text("mode", "nearest"),
        node.text("coordinate_transformation_mode", "half_pixel"),
        node.text("nearest_mode", "round_prefer_floor"),
        node.number("cubic_coeff_a", -0.75),
        bool(node.integer("exclude_outside", 0)),
        node.number("extrapolation_value", 0.0),
        bool(node.integer("antialias", 0)),
    )
    return _resized(x, _axes(node, x, roi, scales, sizes), method)


@operator("Upsample", host=(1,))
def upsample(node: Node, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Resize axes by factors, as operators before Resize did."""
    factors = node.numbers("scales") if scales is None else _numbers(scales)
    return _resized(x, _by_factors(x, factors or []), _plain_method(node))


def _plain_method(node: Node) -> _Method:
    return _Method(node.text("mode", "nearest"), "asymmetric", "simple", -0.75, False, 0.0, False)


def _by_factors(x: Tensor, factors: Sequence[float]) -> list[_Axis]:
    return [
        _Axis(size, int(np.floor(np.float32(size) * np.float32(factor))), factor)
        for size, factor in zip(x.shape, factors, strict=True)
    ]


def _axes(node: Node, x: Tensor, roi: Tensor | None, scales: Tensor | None, sizes: Tensor | None) -> list[_Axis]:
    """Read for every axis of `x` what becomes of it."""
    named = [axis % x.dim() for axis in node.integers("axes") or range(x.dim())]
    if scales is not None and scales.numel():
        factors = _numbers(scales)
        lengths = [
            int(np.floor(np.float32(x.shape[axis]) * np.float32(each)))
            for axis, each in zip(named, factors, strict=True)
        ]
    elif sizes is not None:
        lengths = [int(size) for size in sizes]
        factors = [length / x.shape[axis] for axis, length in zip(named, lengths, strict=True)]
        policy = node.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(factors)
            lengths = [int(x.shape[axis] * each + 0.5) for axis, each in zip(named, factors, strict=True)]
    else:
        raise ModelUnsupportedError(f"{node.name} has neither scales nor sizes.")
    cropped = node.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    region = _numbers(roi) if cropped and roi is not None else [0.0] * len(named) + [1.0] * len(named)
    found = [_Axis(size, size, 1.0) for size in x.shape]
    for index, axis in enumerate(named):
        found[axis] = _Axis(x.shape[axis], lengths[index], factors[index], region[index], region[index + len(named)])
    return found


def _resized(x: Tensor, axes: Sequence[_Axis], method: _Method) -> Tensor:
    moved = [index for index, axis in enumerate(axes) if axis != _Axis(axis.before, axis.before, 1.0)]
    kept = x.dtype
    if _is_native(x, axes, moved, method):
        corners = method.coordinates == "align_corners"
        size = [axis.after for axis in axes[2:]]
        return functional.interpolate(x, size, mode="bilinear", align_corners=corners)
    if method.mode != "nearest" and not x.is_floating_point():
        x = x.double()
    for index in moved:
        x = _resized_along(x, index, axes[index], method)
    return x if x.dtype == kept else _to_whole(x, kept)


def _is_native(x: Tensor, axes: Sequence[_Axis], moved: Sequence[int], method: _Method) -> bool:
    """Say whether PyTorch's bilinear interpolation, which is faster, gives the same."""
    if (
        x.dim() != 4
        or method.mode != "linear"
        or method.antialias
        or method.exclude_outside
        or not x.is_floating_point()
    ):
        return False
    exact = all(abs(axis.before * axis.scale - axis.after) < 1e-4 and axis.after > 1 for axis in axes[2:])
    same = {"half_pixel", "pytorch_half_pixel", "align_corners"}
    return exact and method.coordinates in same and set(moved) <= {2, 3}


def _resized_along(x: Tensor, index: int, axis: _Axis, method: _Method) -> Tensor:
    places = _coordinates(axis, method)
    outside = (places < 0) | (places > axis.before - 1) if method.coordinates == "tf_crop_and_resize" else None
    if method.mode == "nearest":
        x = x.index_select(index, _tensor(_nearest(places, axis, method), x))
    else:
        x = _interpolated(x, index, *_taps(places, axis, method))
    if outside is None or not outside.any():
        return x
    mask = _tensor(outside, x).reshape(-1, *[1] * (x.dim() - index - 1))
    return x.masked_fill(mask, method.extrapolation)


def _interpolated(x: Tensor, index: int, neighbours: Array, weights: Array) -> Tensor:
    """Sum neighbours (output, taps) along an axis by their weights."""
    shape = (-1, *[1] * (x.dim() - index - 1))
    total = None
    for tap in range(neighbours.shape[1]):
        if not weights[:, tap].any():
            continue
        part = x.index_select(index, _tensor(neighbours[:, tap], x)) * _tensor(weights[:, tap], x).to(x.dtype).reshape(
            shape
        )
        total = part if total is None else total + part
    return x if total is None else total


def _coordinates(axis: _Axis, method: _Method) -> Array:
    """Give for each output element where it lies in the input, in single precision as onnxruntime computes it."""
    place = np.arange(axis.after, dtype=np.float32)
    scale, kind = np.float32(axis.scale), method.coordinates
    if kind == "asymmetric":
        return place / scale
    if kind == "align_corners":
        return place * np.float32(axis.before - 1) / np.float32(axis.after - 1) if axis.after > 1 else place * 0
    if kind == "tf_crop_and_resize":
        begin, end, last = np.float32(axis.begin), np.float32(axis.end), np.float32(axis.before - 1)
        if axis.after > 1:
            return begin * last + place * (end - begin) * last / np.float32(axis.after - 1)
        return place + np.float32(0.5) * (begin + end) * last
    if kind == "pytorch_half_pixel" and axis.after == 1:
        return np.zeros(1, np.float32)
    half = np.float32(0.5)
    found: Array = (place + half) / scale - half
    if kind == "half_pixel_symmetric":
        # The centres of input and output stay on each other where the output is not a whole multiple.
        ratio = np.float32(axis.after) / np.float32(scale * np.float32(axis.before))
        found = found + np.float32(axis.before) / 2 * (1 - ratio)
    return found


def _nearest(places: Array, axis: _Axis, method: _Method) -> Array:
    kind = method.nearest
    if kind == "simple":
        chosen = np.ceil(places) if axis.scale < 1 else np.floor(places)
    elif kind == "round_prefer_floor":
        chosen = np.ceil(places - np.float32(0.5))
    elif kind == "round_prefer_ceil":
        chosen = np.floor(places + np.float32(0.5))
    else:
        chosen = np.floor(places) if kind == "floor" else np.ceil(places)
    return chosen.clip(0, axis.before - 1).astype(np.int64)


def _taps(places: Array, axis: _Axis, method: _Method) -> tuple[Array, Array]:
    """Give neighbours (output, taps) of each place and their weights."""
    places = places.astype(np.float64)
    reach = 1 if method.mode == "linear" else 2
    # Antialiasing widens the filter by the factor by which the axis shrinks.
    shrink = max(1.0, 1.0 / axis.scale) if method.antialias else 1.0
    if method.mode == "linear" and not method.antialias:
        places = places.clip(0, axis.before - 1)
    first = np.floor(places - reach * shrink).astype(np.int64) + 1
    neighbours = first[:, None] + np.arange(int(np.ceil(2 * reach * shrink)) + 1)
    distance = np.abs(neighbours - places[:, None]) / shrink
    weights = np.clip(1 - distance, 0, 1) if reach == 1 else _cubic(distance, method.cubic)
    if method.exclude_outside or method.antialias:
        inside = (neighbours >= 0) & (neighbours < axis.before)
        weights = np.where(inside, weights, 0.0) if method.exclude_outside else weights
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1.0, total)
    return neighbours.clip(0, axis.before - 1), weights


def _cubic(distance: Array, a: float) -> Array:
    """Weigh by the cubic convolution of Keys (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _numbers(values: Tensor | None) -> list[float]:
    return [] if values is None else [float(value) for value in values.reshape(-1)]


def _tensor(array: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)


def _to_whole(x: Tensor, kind: Any) -> Tensor:
    limits = torch.iinfo(kind)
    return x.round().clamp(limits.min, limits.max).to(kind)
