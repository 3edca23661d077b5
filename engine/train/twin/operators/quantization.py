"""Rounding to integers and back, with slopes as if nothing had been rounded.

Quantised values travel as whole numbers in a tensor of floats: PyTorch differentiates no others. The straight-through estimator
(Bengio et al. 2013) takes rounding for the identity and stops at the ends of the range; a pair of QuantizeLinear and
DequantizeLinear has by it the slopes of LSQ (Esser et al. 2020) for its input and for its scale.
"""

from typing import Any

import onnx_ir as ir

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator

Range = tuple[int, int]

RANGES: dict[ir.DataType, Range] = {
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
}


class _RoundThrough(torch.autograd.Function):  # type: ignore[misc]
    """Rounds half to even; its slope is 1."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_context: Any, slope: Tensor) -> Tensor:
        return slope


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the slope is that of the identity."""
    return _RoundThrough.apply(x)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, limits: Range) -> Tensor:
    """Give whole numbers, as floats, in the range; `scale` and `zero_point` broadcast against `x`."""
    scaled = round_through(x / scale)
    return (scaled if zero_point is None else scaled + zero_point).clamp(*limits)


def dequantize(values: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Give the numbers that whole numbers stand for; `scale` and `zero_point` broadcast against `values`."""
    values = values.to(scale.dtype)
    return (values if zero_point is None else values - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, limits: Range) -> Tensor:
    """Round to the grid and back, as a pair of QuantizeLinear and DequantizeLinear does."""
    return dequantize(quantize(x, scale, zero_point, limits), scale, zero_point)


def along(values: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """Lay scales or zero points out so that they broadcast against `x`: one, one for each place on an axis, or for blocks."""
    if values.numel() == 1:
        return values.reshape(())
    axis %= x.dim()
    if block:
        return values.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])
    return values.reshape([-1 if place == axis else 1 for place in range(x.dim())])


def offset(values: Tensor | None, like: Tensor) -> Tensor | None:
    """Give zero points as floats beside `like`, None where all are zero: most are, and adding them costs a pass."""
    return values.to(like) if values is not None and values.any() else None


def quantized_range(node: Node, zero_point: int) -> Range:
    """Give the range of a node's whole numbers, by its output's type or by that of its zero point (the number of the input)."""
    kind = _kind(node, zero_point)
    return RANGES[ir.DataType.UINT8 if kind is None else kind]


def _kind(node: Node, zero_point: int) -> ir.DataType | None:
    asked = node.integer("output_dtype", 0)
    if asked:
        return ir.DataType(asked)
    if len(node.input_types) > zero_point and node.input_types[zero_point] is not None:
        return node.input_types[zero_point]
    return node.output_types[0] if node.output_types else None


def _refuses_floats(zero_point: int) -> Any:
    def reason(node: Node) -> str | None:
        kind = _kind(node, zero_point)
        return None if kind is None or kind in RANGES else f"values of type {kind.name} are not whole numbers"

    return reason


@operator("QuantizeLinear", host=(2,), refuses=_refuses_floats(2))
def quantize_linear(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Round to whole numbers in the range of the output's type: as a whole, along an axis or in blocks."""
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    shift = offset(zero_point, scale)
    return quantize(
        x.to(scale.dtype),
        along(scale, x, axis, block),
        None if shift is None else along(shift, x, axis, block),
        quantized_range(node, 2),
    )


@operator("DequantizeLinear", host=(2,))
def dequantize_linear(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Give the numbers that whole numbers stand for."""
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    shift = offset(zero_point, scale)
    return dequantize(x, along(scale, x, axis, block), None if shift is None else along(shift, x, axis, block))


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round to unsigned bytes by the range of this very tensor; gives whole numbers, scale and zero point.

    The scale takes no slope: it follows the two most extreme elements, and training them for the others' sake goes astray.
    """
    del node
    scale, zero_point = dynamic_scale(x)
    return quantize(x, scale, zero_point, RANGES[ir.DataType.UINT8]), scale, zero_point


def dynamic_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give the scale and the zero point by which a tensor's range, zero included, fills an unsigned byte."""
    x = x.detach()
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / 255
    # A tensor of zeros has no range; onnxruntime rounds it with a scale of 1.
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, (-low / scale).round().clamp(0, 255)
