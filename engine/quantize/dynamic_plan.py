"""Which layers `quantize_dynamic` computes in integers, which tables it stores in them, and why others stay in float."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

import onnx_ir as ir

from engine.graph.attributes import integer
from engine.graph.linear import (
    CONSTANT_INPUT,
    NO_MATRIX,
    STANDARD,
    LinearLayer,
    constant_root,
    is_constant,
    node_name,
    picks_from_table,
    read,
    why_not_constant,
)
from engine.graph.quantized import reads_integer_weights
from engine.quantize.integer_types import AskedWeights

OPERATORS = ("MatMul", "Gemm", "LSTM", "Gather")
_NO_KERNEL = {
    "Conv": "integer convolutions with ranges taken in every run are several times slower than float",
    "GRU": "ONNX Runtime has no integer kernel for it",
    "RNN": "ONNX Runtime has no integer kernel for it",
}


@dataclass(frozen=True)
class DynamicSettings:
    """How to quantize with ranges that are taken in every run."""

    per_channel: bool
    weights: AskedWeights
    operators: tuple[Literal["MatMul", "Gemm", "LSTM", "Gather"], ...]
    # Layers with fewer weights stay in float.
    smallest: int
    # Names of nodes that stay in float.
    exclude: tuple[str, ...]


@dataclass(frozen=True)
class IntegerNode:
    """A node that will compute in integers, or a table that will be stored in them."""

    node: ir.Node
    # Positions of the weights among the node's inputs.
    positions: tuple[int, ...]
    # Of a MatMul or Gemm.
    linear: LinearLayer | None = None

    @property
    def name(self) -> str:
        """What the report calls it."""
        return node_name(self.node)

    @property
    def weights(self) -> tuple[ir.Value, ...]:
        """The float weights."""
        return tuple(cast("ir.Value", self.node.inputs[position]) for position in self.positions)


@dataclass
class DynamicPlan:
    """Nodes in topological order, and what stays in float with the reason."""

    layers: list[IntegerNode] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def make_plan(model: ir.Model, settings: DynamicSettings) -> DynamicPlan:
    """Decide what is quantized; nothing is changed. Bodies of If and Loop count like the main graph."""
    plan = DynamicPlan()
    found: list[IntegerNode] = []
    for node in model.graph.all_nodes():
        if node.domain not in STANDARD or reads_integer_weights(node):
            continue
        if node.op_type == "Gather" and not picks_from_table(node):
            continue
        if node.op_type in _NO_KERNEL:
            plan.refused[node_name(node)] = _NO_KERNEL[node.op_type]
        elif node.op_type in settings.operators:
            layer = _read(node, settings)
            if isinstance(layer, IntegerNode):
                found.append(layer)
            else:
                plan.refused[node_name(node)] = layer
    quantized = {layer.node for layer in found}
    for layer in found:
        if all(use.node in quantized for weight in layer.weights for use in weight.uses()):
            plan.layers.append(layer)
        else:
            plan.refused[layer.name] = "its weights are shared with an operator that needs them in float"
    return plan


def _read(node: ir.Node, settings: DynamicSettings) -> IntegerNode | str:
    if node.name in settings.exclude:
        return "the recipe excludes it"
    layer = {"LSTM": _lstm, "Gather": _table}.get(node.op_type, _linear)(node)
    if not isinstance(layer, IntegerNode):
        return layer
    if any(weight.is_graph_output() for weight in layer.weights):
        return "its weights are also an output of the network"
    if sum(cast("ir.TensorProtocol", weight.const_value).size for weight in layer.weights) < settings.smallest:
        return f"it has fewer than {settings.smallest} weights"
    return layer


def _linear(node: ir.Node) -> IntegerNode | str:
    layer = read(node)
    if not isinstance(layer, LinearLayer):
        return layer or f"{node.op_type} is no matrix product"
    if layer.on_left:
        return "its weights are on the left"
    if layer.reads_transposed:
        return "its input is transposed"
    if layer.bias is not None and layer.beta != 1 and layer.bias.const_value is None:
        return "beta is not 1 and the bias is not constant"
    return IntegerNode(node, (layer.position,), layer)


def _lstm(node: ir.Node) -> IntegerNode | str:
    if integer(node, "layout", 0):
        return "the kernel knows no batch-first layout"
    reason = next((reason for value in node.inputs[1:3] for reason in _objections(value, rank=3)), None)
    if reason is None and (node.inputs[0] is None or node.inputs[0].is_initializer()):
        reason = CONSTANT_INPUT
    return reason or IntegerNode(node, (1, 2))


def _table(node: ir.Node) -> IntegerNode | str:
    table = node.inputs[0]
    if table is not None and constant_root(table) is not None and not table.is_initializer():
        return why_not_constant(table)
    if table is None or not table.is_initializer() or integer(node, "axis", 0) != 0:
        return "it does not pick rows of a constant table"
    return next(_objections(table, rank=2), None) or IntegerNode(node, (0,))


def _objections(weight: ir.Value | None, *, rank: int) -> Iterator[str]:
    """Object to weights of operators that are no linear layers."""
    if weight is None or not is_constant(weight) or weight.const_value is None:
        yield why_not_constant(weight)
        return
    if weight.const_value.dtype != ir.DataType.FLOAT:
        yield f"its weights are {weight.const_value.dtype.name.lower()}, not float32"
    if len(weight.const_value.shape) != rank:
        yield NO_MATRIX
