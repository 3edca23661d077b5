"""Pools over windows and over whole planes."""

import math

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.spatial_mean import spatial_mean
from engine.train.twin.operators.windows import Windows, padding, windows
from engine.train.twin.table import operator

_MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEANS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
    """Give each window's largest element, and where it lies in the flattened input when that is asked for."""
    window = windows(node, x.shape[2:], node.integers("kernel_shape") or [])
    surplus = window.surplus(x.shape[2:], ceil_mode=bool(node.integer("ceil_mode", 0)))
    values = x if x.is_floating_point() else x.double()
    pads = window.begins
    shifted = not _native(window, surplus)
    if shifted:
        ends = [end + more for end, more in zip(window.ends, surplus, strict=True)]
        values = functional.pad(values, padding(window.begins, ends), value=-math.inf)
        pads = (0,) * len(pads)
    pool = _MAXIMA[len(window.kernel)]
    if len(node.outputs) < 2 or not node.outputs[1]:
        return pool(values, window.kernel, window.strides, pads, window.dilations).to(x.dtype)
    largest, places = pool(values, window.kernel, window.strides, pads, window.dilations, return_indices=True)
    places = _places(places, tuple(values.shape[2:]), window.begins if shifted else pads, x, shifted=shifted)
    return largest.to(x.dtype), _flat(places, x, column_major=bool(node.integer("storage_order", 0)))


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    """Give each window's mean; padding counts where `count_include_pad` says so."""
    window = windows(node, x.shape[2:], node.integers("kernel_shape") or [])
    surplus = window.surplus(x.shape[2:], ceil_mode=bool(node.integer("ceil_mode", 0)))
    counted = bool(node.integer("count_include_pad", 0))
    if _native(window, surplus) and set(window.dilations) == {1}:
        mean = _MEANS[len(window.kernel)]
        return mean(x, window.kernel, window.strides, window.begins, count_include_pad=counted)
    ones = x.new_ones(1, 1, *x.shape[2:])
    if counted:
        ones = functional.pad(ones, padding(window.begins, window.ends), value=1.0)
        counts = _sums(ones, window, (0,) * len(surplus), surplus)
    else:
        counts = _sums(ones, window, window.begins, _added(window.ends, surplus))
    return _sums(x, window, window.begins, _added(window.ends, surplus)) / counts.clamp_min(1.0)


@operator("LpPool")
def lp_pool(node: Node, x: Tensor) -> Tensor:
    """Give each window's p-norm."""
    window = windows(node, x.shape[2:], node.integers("kernel_shape") or [])
    surplus = window.surplus(x.shape[2:], ceil_mode=bool(node.integer("ceil_mode", 0)))
    power = node.integer("p", 2)
    return _root(_sums(x.abs().pow(power), window, window.begins, _added(window.ends, surplus)), power)


@operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """Give each channel's mean, its axes kept with size 1."""
    del node
    return spatial_mean(x) if x.dim() == 4 else x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Tensor) -> Tensor:
    """Give each channel's largest element, its axes kept with size 1."""
    del node
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(node: Node, x: Tensor) -> Tensor:
    """Give each channel's p-norm, its axes kept with size 1."""
    power = node.integer("p", 2)
    return _root(x.abs().pow(power).sum(dim=tuple(range(2, x.dim())), keepdim=True), power)


@operator("MaxUnpool", host=(2,))
def max_unpool(node: Node, x: Tensor, places: Tensor, output_shape: Tensor | None = None) -> Tensor:
    """Put elements back where MaxPool found them, zeros elsewhere; `places` count in the flattened tensor."""
    window = windows(node, x.shape[2:], node.integers("kernel_shape") or [])
    if output_shape is not None:
        sizes = [int(size) for size in output_shape]
    else:
        sizes = list(x.shape[:2])
        for size, stride, extent, begin, end in zip(
            x.shape[2:], window.strides, window.extents, window.begins, window.ends, strict=True
        ):
            sizes.append((size - 1) * stride + extent - begin - end)
    empty = x.new_zeros(math.prod(sizes))
    return empty.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(sizes)


def _native(window: Windows, surplus: tuple[int, ...]) -> bool:
    """Say whether PyTorch's pools take these windows: equal padding of at most half a window."""
    small = all(2 * begin <= size for begin, size in zip(window.begins, window.kernel, strict=True))
    return window.symmetric and small and not any(surplus)


def _added(ends: tuple[int, ...], surplus: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(end + more for end, more in zip(ends, surplus, strict=True))


def _sums(x: Tensor, window: Windows, begins: tuple[int, ...], ends: tuple[int, ...]) -> Tensor:
    """Sum over windows after padding with zeros."""
    x = functional.pad(x, padding(begins, ends))
    planes = x.reshape(-1, 1, *x.shape[2:])
    ones, none = x.new_ones(1, 1, *window.kernel), (0,) * len(window.kernel)
    sums = torch.convolution(planes, ones, None, window.strides, none, window.dilations, False, none, 1)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _root(sums: Tensor, power: int) -> Tensor:
    # The slope of a root is infinite at zero, so that a window of zeros would send NaN back.
    return sums if power == 1 else sums.clamp_min(torch.finfo(sums.dtype).tiny).pow(1.0 / power)


def _places(places: Tensor, padded: tuple[int, ...], begins: tuple[int, ...], x: Tensor, *, shifted: bool) -> Tensor:
    """Turn places in a padded plane into places in the plane itself."""
    if not shifted:
        return places
    found = torch.zeros_like(places)
    step = 1
    for axis in reversed(range(len(padded))):
        found += (places % padded[axis] - begins[axis]) * step
        places = places // padded[axis]
        step *= x.shape[2 + axis]
    return found


def _flat(places: Tensor, x: Tensor, *, column_major: bool) -> Tensor:
    """Turn places in a plane into places in the whole tensor."""
    spatial = tuple(x.shape[2:])
    if column_major:
        turned, rest, factor = torch.zeros_like(places), places, math.prod(spatial)
        for size in reversed(spatial):
            factor //= size
            turned += (rest % size) * factor
            rest = rest // size
        places = turned
    planes = torch.arange(math.prod(x.shape[:2]), device=x.device).reshape(*x.shape[:2], *[1] * len(spatial))
    return places + planes * math.prod(spatial)
