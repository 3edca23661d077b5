"""Sampling a tensor at places that are computed: grids and regions."""

import math

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
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
