"""Products and convolutions of whole numbers, which travel as floats: slopes pass through them as if they were floats' own.

Sums of single precision are exact up to 2**24; beyond, they differ from the integer's in the last place.
"""

from typing import Any

import onnx_ir as ir

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.convolution import conv
from engine.train.twin.operators.quantization import (
    RANGES,
    along,
    dynamic_scale,
    offset,
    quantize,
    quantized_range,
    round_through,
)
from engine.train.twin.table import operator

_CONTRIB = "com.microsoft"


@operator("MatMulInteger")
def matmul_integer(
    node: Node, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """Multiply matrices of whole numbers less their zero points: of A for each row, of B for each column."""
    kind = _floating(node, a, b)
    return torch.matmul(_less(a, _rows(a_zero), kind), _less(b, b_zero, kind))


@operator("ConvInteger")
def conv_integer(
    node: Node, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None
) -> Tensor:
    """Convolve whole numbers less their zero points; padding counts as the zero point."""
    kind = _floating(node, x, weight)
    if weight_zero is not None:
        weight_zero = along(weight_zero, weight, 0)
    return conv(node, _less(x, x_zero, kind), _less(weight, weight_zero, kind))


@operator("QLinearMatMul")
def qlinear_matmul(
    node: Node,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    scale: Tensor,
    zero_point: Tensor,
) -> Tensor:
    """Multiply matrices of whole numbers and round the product to whole numbers of its own scale."""
    kind = scale.dtype
    product = torch.matmul(_less(a, _rows(a_zero), kind), _less(b, b_zero, kind))
    factor = _rows(a_scale) * b_scale / scale
    return _requantized(product * factor, zero_point, quantized_range(node, 7))


@operator("QLinearConv")
def qlinear_conv(
    node: Node,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Convolve whole numbers and round the result to whole numbers of its own scale; the bias is in steps of both scales."""
    kind = scale.dtype
    less = _less(weight, along(weight_zero, weight, 0), kind)
    result = conv(node, _less(x, x_zero, kind), less, None if bias is None else bias.to(kind))
    factor = along(x_scale * weight_scale / scale, result, 1)
    return _requantized(result * factor, zero_point, quantized_range(node, 7))


@operator("MatMulIntegerToFloat", domain=_CONTRIB)
def matmul_integer_to_float(
    node: Node,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply matrices of whole numbers and give the numbers that the product stands for."""
    product = matmul_integer(node, a, b, a_zero, b_zero) * (a_scale * b_scale)
    return product if bias is None else product + bias


@operator("DynamicQuantizeMatMul", domain=_CONTRIB)
def dynamic_quantize_matmul(
    node: Node, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Round A by its own range and multiply it with whole numbers; gives the numbers that the product stands for."""
    scale, zero_point = dynamic_scale(a)
    whole = quantize(a, scale, zero_point, RANGES[ir.DataType.UINT8])
    return matmul_integer_to_float(node, whole, b, scale, b_scale, zero_point, b_zero, bias)


def _requantized(x: Tensor, zero_point: Tensor, limits: tuple[int, int]) -> Tensor:
    return (round_through(x) + _rows(zero_point).to(x)).clamp(*limits)


def _less(x: Tensor, zero_point: Tensor | None, kind: Any) -> Tensor:
    x = x.to(kind)
    shift = offset(zero_point, x)
    return x if shift is None else x - shift


def _rows(values: Any) -> Any:
    """Lay one number for each row of a matrix along its rows."""
    return values.unsqueeze(-1) if values is not None and values.dim() == 1 and values.numel() > 1 else values


def _floating(node: Node, a: Tensor, b: Tensor) -> Any:
    """Give the type to compute in: that of the operand which is rounded in the twin itself, or the twin's."""
    return next((each.dtype for each in (a, b) if each.is_floating_point()), node.floating)
