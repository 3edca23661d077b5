"""Weights that no plan of quantization looks at: named, with the reason, so that nothing stays in float unsaid."""

from collections.abc import Collection, Iterator

import onnx_ir as ir

from engine.graph import products
from engine.graph.linear import STANDARD, is_constant, node_name
from engine.graph.weights import counts_as_weights

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
# Their first two inputs are an input and weights; what follows are biases and states.
_RECURRENT_WEIGHTS = 2
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "PRelu", "Sum", "BiasGelu", "BiasAdd"}
)
_MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Resize", "Slice",
     "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)  # fmt: skip
_POSITIONS = "they are tables of positions (cosines, sines, biases), which it reads as they are"
_NO_INTEGER_FORM = {
    "MoE": "its experts are stacked in three axes, and no method here stores those in integers",
    "QMoE": "it reads these beside its integer weights",
    "LSTM": "this method has no form for it; quantize_dynamic has one",
    "GRU": "ONNX Runtime has no integer kernel for it",
    "RNN": "ONNX Runtime has no integer kernel for it",
    "ConvTranspose": "this method has no form for it",
    "Conv": "this method has no form for it",
    "Einsum": "it multiplies stacks of matrices",
    "GroupQueryAttention": _POSITIONS,
    "MultiHeadAttention": _POSITIONS,
    "RotaryEmbedding": _POSITIONS,
}


def rest_in_float(
    model: ir.Model,
    told: Collection[str],
    *,
    operators: Collection[str] = (),
    known: Collection[str] = (),
    exclude: Collection[str] = (),
) -> dict[str, str]:
    """Give by node the reason why it reads weights in float, for nodes that are not `told` of already.

    `operators`: those that the recipe names, of the `known` ones that the method can treat. Call it before any node is
    replaced: then `told` has the names of what is quantized too.
    """
    found: dict[str, str] = {}
    for node in model.graph.all_nodes():
        name = node_name(node)
        if name not in told and name not in found and any(_float_weights(node)):
            found[name] = _reason(node, operators, known, exclude)
    return found


def _reason(node: ir.Node, operators: Collection[str], known: Collection[str], exclude: Collection[str]) -> str:
    if node.name in exclude:
        return "the recipe excludes it"
    if node.op_type in known and node.op_type not in operators and node.domain in STANDARD:
        return f"{node.op_type} is not among the recipe's operators"
    return products.objection(node) or _reason_of_kind(node.op_type)


def _reason_of_kind(kind: str) -> str:
    if kind in _NO_INTEGER_FORM:
        return _NO_INTEGER_FORM[kind]
    if kind in _ELEMENTWISE:
        return f"{kind} reads them number by number, and is no product"
    if kind in _MOVES:
        return f"{kind} only moves them, and what reads its result is no product with constant weights"
    return f"{kind} has no form with integer weights"


def _float_weights(node: ir.Node) -> Iterator[ir.Value]:
    for index, value in enumerate(node.inputs):
        if value is None or not is_constant(value) or value.const_value is None:
            continue
        bias = node.op_type in _RECURRENT and index > _RECURRENT_WEIGHTS
        shape = tuple(int(size) for size in value.const_value.shape.numpy())
        if value.const_value.dtype in _FLOATS and counts_as_weights(shape) and not bias:
            yield value
