"""Sampling a tensor at places that are computed: grids and regions."""

import math

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.windows import Windows, windows
from engine.train.twin.table import operator

_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    """Sample `x` (N, C, sizes...) at places from -1 to 1, `grid` (N, sizes..., axes) (Jaderberg et al. 2015)."""
    mode = node.text("mode", "linear")
    return functional.grid_sample(
        x,
        grid.to(x.dtype),
        mode=_MODES.get(mode, mode),
        padding_mode=node.text("padding_mode", "zeros"),
        align_corners=bool(node.integer("align_corners", 0)),
    )


@operator("AffineGrid", host=(1,))
def affine_grid(node: Node, theta: Tensor, size: Tensor) -> Tensor:
    """Give the grid at which an affine map of each sample reads an image of this size."""
    sizes = [int(each) for each in size]
    return functional.affine_grid(theta, sizes, align_corners=bool(node.integer("align_corners", 0)))


@operator("DeformConv")
def deform_conv(
    node: Node, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Convolve images with taps that an offset moves and a mask weighs (Dai et al. 2017, Zhu et al. 2019).

    `offset` is (N, groups * taps * 2, height, width) of the output, rows before columns, `mask` (N, groups * taps, height, width).
    """
    window = windows(node, x.shape[2:], weight.shape[2:])
    groups, parts = node.integer("offset_group", 1), node.integer("group", 1)
    taps, (height, width) = weight[0, 0].numel(), offset.shape[2:]
    moved = offset.reshape(len(x), groups, taps, 2, height, width)
    places = [moved[:, :, :, axis] + _taps(x, window, axis, (height, width)) for axis in (0, 1)]
    # What grid_sample takes: columns before rows, from -1 at one edge of the image to 1 at the other.
    scaled = [(2 * places[axis] + 1) / x.shape[2 + axis] - 1 for axis in (1, 0)]
    grid = torch.stack(scaled, dim=-1).reshape(len(x) * groups, taps * height, width, 2)
    found = functional.grid_sample(x.reshape(len(x) * groups, -1, *x.shape[2:]), grid, align_corners=False)
    found = found.reshape(len(x), groups, -1, taps, height, width)
    if mask is not None:
        found = found * mask.reshape(len(x), groups, 1, taps, height, width)
    found = found.reshape(len(x), parts, -1, taps, height, width)
    kernels = weight.reshape(parts, -1, weight.shape[1], taps)
    result = torch.einsum("npcthw,poct->npohw", found, kernels).reshape(len(x), -1, height, width)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


def _taps(x: Tensor, window: Windows, axis: int, size: tuple[int, int]) -> Tensor:
    """Give where each tap of each window lies along an axis, (taps, height, width)."""
    taps = torch.arange(window.kernel[axis], device=x.device) * window.dilations[axis] - window.begins[axis]
    starts = torch.arange(size[axis], device=x.device) * window.strides[axis]
    rows, columns = window.kernel
    if axis == 0:
        taps, starts = taps.repeat_interleave(columns), starts.unsqueeze(1)
    else:
        taps = taps.repeat(rows)
    return (taps.reshape(-1, 1, 1) + starts).to(x.dtype)


@operator("RoiAlign", host=(1, 2))
def roi_align(node: Node, x: Tensor, regions: Tensor, samples: Tensor) -> Tensor:
    """Pool regions (count, 4), left, top, right, bottom, of their samples into bins of equal size (He et al. 2017).

    Regions are read as numbers: no slope leads back to them.
    """
    half_pixel = node.version >= 16 and node.text("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    scaled = regions.detach() * node.number("spatial_scale", 1.0) - (0.5 if half_pixel else 0.0)
    height, width = node.integer("output_height", 1), node.integer("output_width", 1)
    made = []
    for region, sample in zip(scaled.tolist(), samples.tolist(), strict=True):
        left, top, right, bottom = region
        least = 0.0 if half_pixel else 1.0
        rows = _points(top, max(bottom - top, least), height, node.integer("sampling_ratio", 0))
        columns = _points(left, max(right - left, least), width, node.integer("sampling_ratio", 0))
        made.append(_pooled(x[sample], rows, columns, (height, width), node.text("mode", "avg")))
    return torch.stack(made) if made else x.new_zeros(0, x.shape[1], height, width)


def _points(begin: float, size: float, bins: int, ratio: int) -> list[float]:
    """Give the places along one axis at which each bin is sampled, bin by bin."""
    step = size / bins
    count = ratio if ratio > 0 else math.ceil(step)
    return [begin + (index + (point + 0.5) / count) * step for index in range(bins) for point in range(count)]


def _pooled(x: Tensor, rows: list[float], columns: list[float], bins: tuple[int, int], mode: str) -> Tensor:
    (top, lower), (left, right) = _neighbours(x, 1, rows), _neighbours(x, 2, columns)
    corners = torch.stack(
        [
            x[:, vertical.index][:, :, horizontal.index] * vertical.weight.unsqueeze(1) * horizontal.weight
            for vertical in (top, lower)
            for horizontal in (left, right)
        ]
    )
    count = (len(rows) // bins[0], len(columns) // bins[1])
    if mode == "max":
        # Of the weighted corners themselves, which is how the standard and onnxruntime have it.
        return corners.amax(0).unflatten(2, (bins[1], count[1])).unflatten(1, (bins[0], count[0])).amax(dim=(2, 4))
    return corners.sum(0).unflatten(2, (bins[1], count[1])).unflatten(1, (bins[0], count[0])).mean(dim=(2, 4))


class _Neighbour:
    def __init__(self, index: Tensor, weight: Tensor) -> None:
        self.index, self.weight = index, weight


def _neighbours(x: Tensor, axis: int, places: list[float]) -> tuple[_Neighbour, _Neighbour]:
    """Give the elements before and after each place with their weights; one beyond the edge by more than 1 weighs nothing."""
    size = x.shape[axis]
    place = torch.tensor(places, dtype=x.dtype, device=x.device)
    inside = ((place >= -1.0) & (place <= size)).to(x.dtype)
    place = place.clamp(0.0, size - 1.0)
    first = place.floor().long().clamp(max=size - 1)
    part = place - first
    return (
        _Neighbour(first, (1 - part) * inside),
        _Neighbour((first + 1).clamp(max=size - 1), part * inside),
    )
