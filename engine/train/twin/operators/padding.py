"""Padding with a constant or with elements of the tensor itself."""

from collections.abc import Sequence

import numpy as np

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.windows import padding
from engine.train.twin.table import operator


@operator("Pad", host=(1, 2, 3))
def pad(
    node: Node, x: Tensor, amounts: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Pad axes at both ends; a negative amount cuts off."""
    listed = node.integers("pads") if amounts is None else [int(each) for each in amounts]
    begins, ends = _spread(listed or [], x.dim(), axes)
    mode = node.text("mode", "constant")
    if mode != "constant":
        return _padded_with_itself(x, begins, ends, mode)
    fill = node.number("value", 0.0) if value is None else value.detach().reshape(-1)[0].item() if value.numel() else 0
    return functional.pad(x, padding(begins, ends), value=fill)


@operator("CenterCropPad", host=(1,))
def center_crop_pad(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    """Bring axes to a shape about their middle: what is too long is cut, what is too short filled with zeros."""
    named = node.integers("axes") or range(x.dim())
    begins, ends = [0] * x.dim(), [0] * x.dim()
    for axis, size in zip(named, shape.tolist(), strict=True):
        more = size - x.shape[axis]
        # Of an odd number the smaller half is before, for cuts and for zeros.
        begins[axis] = more // 2 if more > 0 else -(-more // 2)
        ends[axis] = more - begins[axis]
    return functional.pad(x, padding(begins, ends))


def _spread(amounts: Sequence[int], rank: int, axes: Tensor | None) -> tuple[list[int], list[int]]:
    """Give amounts before and after for every axis."""
    named = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    begins, ends = [0] * rank, [0] * rank
    for index, axis in enumerate(named):
        begins[axis], ends[axis] = amounts[index], amounts[index + len(named)]
    return begins, ends


def _padded_with_itself(x: Tensor, begins: Sequence[int], ends: Sequence[int], mode: str) -> Tensor:
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if not begin and not end:
            continue
        kept = np.arange(x.shape[axis])[max(-begin, 0) : x.shape[axis] - max(-end, 0)]
        places = np.pad(kept, (max(begin, 0), max(end, 0)), mode=mode)  # type: ignore[call-overload]
        x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x
