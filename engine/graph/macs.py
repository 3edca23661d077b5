"""Multiply-accumulate operations of each node, by concrete shapes."""

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from engine.graph import sizes as concrete
from engine.graph.attributes import integer, text
from engine.graph.sizes import Shape, Sizes


def count(model: ir.Model, dims: Mapping[str, int] | None = None) -> dict[str, int]:
    """Give the multiply-accumulates of each node that has any, at batch 1 and the given dynamic dimensions."""
    return by_node(model, concrete.infer(model, dims))


def by_node(model: ir.Model, sizes: Sizes) -> dict[str, int]:
    """Give the multiply-accumulates of each node by shapes that are already known."""
    found: dict[str, int] = {}
    for node in model.graph:
        rule = _RULES.get(node.op_type)
        if rule is None:
            continue
        shapes = [sizes.shape(value) for value in node.inputs]
        output = sizes.shape(node.outputs[0])
        if output is None or any(shape is None for shape in shapes[:2]):
            continue
        given = tuple(shape or () for shape in shapes)
        found[str(node.name)] = rule(node, given, output)
    return found


def _conv(_: ir.Node, shapes: tuple[Shape, ...], output: Shape) -> int:
    return math.prod(output) * math.prod(shapes[1][1:])


def _quantized_conv(_: ir.Node, shapes: tuple[Shape, ...], output: Shape) -> int:
    return math.prod(output) * math.prod(shapes[3][1:])


def _conv_transpose(_: ir.Node, shapes: tuple[Shape, ...], output: Shape) -> int:
    del output
    return math.prod(shapes[0]) * math.prod(shapes[1][1:])


def _matmul(node: ir.Node, shapes: tuple[Shape, ...], output: Shape) -> int:
    turned = integer(node, "transA", 0) and len(shapes[0]) > 1
    return math.prod(output) * shapes[0][-2 if turned else -1]


def _einsum(node: ir.Node, shapes: tuple[Shape, ...], output: Shape) -> int:
    del output
    equation = text(node, "equation", "").replace(" ", "").split("->")[0]
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.split(","), shapes, strict=False):
        for letter, size in zip(letters, shape, strict=False):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


def _recurrent(_: ir.Node, shapes: tuple[Shape, ...], output: Shape) -> int:
    del output
    steps, batch, width = shapes[0]
    directions, rows, _width = shapes[1]
    hidden = shapes[2][2]
    return steps * batch * directions * rows * (width + hidden)


def _packed_attention(node: ir.Node, shapes: tuple[Shape, ...], output: Shape) -> int:
    if len(shapes) > 2 and len(shapes[1]) == len(shapes[0]):
        return _attention(node, shapes, output)
    batch, time, width = shapes[0]
    return batch * time * (width * shapes[1][1] + 2 * time * output[-1])


def _attention(_: ir.Node, shapes: tuple[Shape, ...], output: Shape) -> int:
    query, key = shapes[0], shapes[1]
    if len(key) < 2:
        return 0
    # Scores and the weighted sum: both run over every pair of positions.
    return key[-2] * (math.prod(query) + math.prod(output))


_RULES: dict[str, Callable[[ir.Node, tuple[Shape, ...], Shape], int]] = {
    "Attention": _packed_attention,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "FusedConv": _conv,
    "FusedGemm": _matmul,
    "FusedMatMul": _matmul,
    "GRU": _recurrent,
    "Gemm": _matmul,
    "GroupQueryAttention": _attention,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MultiHeadAttention": _attention,
    "QLinearConv": _quantized_conv,
    "RNN": _recurrent,
}


def total(model: ir.Model, dims: Mapping[str, int] | None = None) -> int:
    """Add up the multiply-accumulates of a network at batch 1."""
    return sum(count(model, dims).values())
