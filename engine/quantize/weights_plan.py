"""Which weights `quantize_weights` stores in few bits and in what form, and why others stay in float."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import io
from engine.graph.attributes import integer
from engine.graph.folded_constants import tied_to
from engine.graph.heads import heads
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
from engine.solve.grid import Bits

# The operator sets in which DequantizeLinear took an axis, and then blocks and 4-bit types.
AXIS_OPSET, BLOCKS_OPSET = 13, 21
OPERATORS = ("MatMul", "Gemm", "Conv", "Gather")
_SMALLEST_WEIGHTS = 1024
_SMALLEST_BLOCK = 16

Floats = npt.NDArray[np.floating[Any]]
Form = Literal["nbits", "blocks", "channels", "flat_blocks", "cast_channels", "cast_blocks", "table"]


@dataclass(frozen=True)
class WeightsSettings:
    """How to store weights in few bits."""

    bits: Bits
    # Weights of one output that share a scale.
    group: int
    method: Literal["auto", "rtn", "gptq"]
    symmetric: bool
    # Rounding to nearest also tries smaller ranges.
    range_search: bool
    # GPTQ rounds the inputs of largest energy first.
    activation_order: bool
    format: Literal["matmul_nbits", "qdq"]
    # How MatMulNBits computes; `auto`: as both were measured, where there are data.
    accuracy: Literal["auto", "int8", "float32"]
    operators: tuple[Literal["MatMul", "Gemm", "Conv", "Gather"], ...]
    # Names of nodes that stay in float.
    exclude: tuple[str, ...]
    # Bits of the layers that make the outputs; None: as all others.
    head_bits: Bits | None = None


@dataclass(frozen=True)
class StoredLayer:
    """A node whose weights can be stored in few bits, and how."""

    node: ir.Node
    weight: ir.Value
    # None: a Gather, whose table has a row for each output.
    linear: LinearLayer | None
    # What it becomes.
    bits: Bits
    group: int | None  # None: one scale per output
    symmetric: bool
    form: Form

    @property
    def name(self) -> str:
        """What the report calls it."""
        return node_name(self.node)

    @property
    def position(self) -> int:
        """Which of the node's inputs holds the weights."""
        return 0 if self.linear is None else self.linear.position

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weights."""
        assert self.weight.const_value is not None
        return self.weight.const_value

    @property
    def shape(self) -> tuple[int, ...]:
        """The weights' own shape."""
        return tuple(int(size) for size in self.tensor.shape.numpy())

    @property
    def outputs_last(self) -> bool:
        """Whether the weights are stored (inputs, outputs)."""
        return self.linear is not None and self.linear.axis == 1

    @property
    def alpha(self) -> float:
        """What the product is multiplied with: the stored weights take it in."""
        return 1.0 if self.linear is None else self.linear.alpha

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.shape[1] if self.outputs_last else self.shape[0]

    @property
    def inputs(self) -> int:
        """Number of weights of each output."""
        return math.prod(self.shape) // self.outputs

    def matrix(self, array: Floats) -> Floats:
        """Give stored weights as (outputs, inputs)."""
        rows: Floats = array if self.linear is None else self.linear.matrix(array)
        return rows * np.float32(self.alpha)


@dataclass
class WeightsPlan:
    """Layers in topological order, and those that stay in float with the reason."""

    layers: list[StoredLayer] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def make_plan(model: ir.Model, settings: WeightsSettings) -> WeightsPlan:
    """Decide which weights are stored how; nothing is changed. Bodies of If and Loop count like the main graph."""
    plan = WeightsPlan()
    found: list[StoredLayer] = []
    bits = settings.head_bits or settings.bits
    wider = heads(model) if bits != settings.bits else frozenset[ir.Node]()
    for node in model.graph.all_nodes():
        if node.op_type not in settings.operators or node.domain not in STANDARD or reads_integer_weights(node):
            continue
        if node.op_type == "Gather" and not picks_from_table(node):
            continue
        asked = replace(settings, bits=bits) if node in wider else settings
        layer = _read(node, asked, io.opset(model))
        if isinstance(layer, StoredLayer):
            found.append(layer)
        else:
            plan.refused[node_name(node)] = layer
    by_weight: dict[ir.Value, list[StoredLayer]] = {}
    for layer in found:
        by_weight.setdefault(layer.weight, []).append(layer)
    for layer in found:
        users = by_weight[layer.weight]
        alike = all(
            (user.outputs_last, user.alpha, user.form) == (layer.outputs_last, layer.alpha, layer.form)
            for user in users
        )
        if len(users) == len(layer.weight.uses()) and alike and not layer.weight.is_graph_output():
            plan.layers.append(layer)
        else:
            plan.refused[layer.name] = (
                f"`{layer.weight.name}` is shared with an operator that needs it as it is, so that a second copy would"
                " only add to the size"
            )
    _align_tied(plan)
    return plan


def _align_tied(plan: WeightsPlan) -> None:
    """Let tables take the blocks of the product that is tied to them, unless those have fewer bits: one copy serves both."""
    tables = {layer.weight: place for place, layer in enumerate(plan.layers) if layer.form == "table"}
    for layer in plan.layers:
        table = tied_to(layer.weight, tables) if layer.form == "nbits" else None
        if table is None or layer.group is None or layer.inputs % layer.group:
            continue
        place = tables[table]
        if layer.bits >= plan.layers[place].bits:
            plan.layers[place] = replace(
                plan.layers[place], bits=layer.bits, group=layer.group, symmetric=layer.symmetric
            )


def tied_tables(plan: WeightsPlan) -> dict[ir.Value, StoredLayer]:
    """Give by table the product that reads its rows as columns in the very same blocks: one copy serves both."""
    tables = {layer.weight: layer for layer in plan.layers if layer.form == "table"}
    found: dict[ir.Value, StoredLayer] = {}
    for layer in plan.layers:
        table = tied_to(layer.weight, tables) if layer.form == "nbits" else None
        if table is None or layer.alpha != 1 or layer.group is None or layer.inputs % layer.group:
            continue
        other = tables[table]
        if (other.bits, other.group, other.symmetric) == (layer.bits, layer.group, layer.symmetric):
            found.setdefault(table, layer)
    return found


def _read(node: ir.Node, settings: WeightsSettings, opset: int) -> StoredLayer | str:
    if node.name in settings.exclude:
        return "the recipe excludes it"
    if node.op_type == "Gather":
        return _table(node, settings, opset)
    layer = read(node)
    if not isinstance(layer, LinearLayer):
        return layer or f"{node.op_type} is no layer"
    reason = next(_objections(layer), None)
    if reason is not None:
        return reason
    if layer.is_convolution:
        return _convolution(layer, settings, opset)
    return _product(layer, settings, opset)


def _objections(layer: LinearLayer) -> Iterator[str]:
    if layer.on_left:
        yield "its weights are on the left"
    if math.prod(layer.shape) < _SMALLEST_WEIGHTS:
        yield f"it has fewer than {_SMALLEST_WEIGHTS} weights"
    if layer.reads_vector:
        yield "its input is a vector"
    if layer.reads_transposed:
        yield "its input is transposed"
    if layer.beta != 1 and layer.bias is not None and not layer.bias.is_initializer():
        yield "beta is not 1 and the bias is not constant"


def _product(layer: LinearLayer, settings: WeightsSettings, opset: int) -> StoredLayer | str:
    bits, group, symmetric = settings.bits, settings.group, settings.symmetric
    if settings.format == "matmul_nbits":
        return StoredLayer(layer.node, layer.weight, layer, bits, group, symmetric, "nbits")
    if opset >= BLOCKS_OPSET:
        return StoredLayer(layer.node, layer.weight, layer, bits, group, symmetric, "blocks")
    if bits == 8 and opset >= AXIS_OPSET:
        return StoredLayer(layer.node, layer.weight, layer, 8, None, True, "channels")
    return f"DequantizeLinear of {bits}-bit blocks needs operator set {BLOCKS_OPSET}, and the network uses {opset}"


def _convolution(layer: LinearLayer, settings: WeightsSettings, opset: int) -> StoredLayer | str:
    inputs, group = layer.inputs, settings.group
    in_blocks = settings.bits == 4 and opset >= BLOCKS_OPSET and inputs >= group
    if settings.format == "matmul_nbits":
        # Cast and Mul do what DequantizeLinear does, but ONNX Runtime folds them when the network is loaded.
        fitting = next((size for size in (group, 64, 32, 16) if inputs % size == 0), None)
        if in_blocks and fitting is not None:
            return StoredLayer(layer.node, layer.weight, layer, 4, fitting, settings.symmetric, "cast_blocks")
        return StoredLayer(layer.node, layer.weight, layer, 8, None, True, "cast_channels")
    if in_blocks:
        return StoredLayer(layer.node, layer.weight, layer, 4, group, settings.symmetric, "flat_blocks")
    if opset >= AXIS_OPSET:
        return StoredLayer(layer.node, layer.weight, layer, 8, None, True, "channels")
    return f"DequantizeLinear per channel needs operator set {AXIS_OPSET}, and the network uses {opset}"


def _table(node: ir.Node, settings: WeightsSettings, opset: int) -> StoredLayer | str:
    reason = next(_table_objections(node), None)
    if reason is not None:
        return reason
    weight = cast("ir.Value", node.inputs[0])
    columns = int(cast("ir.TensorProtocol", weight.const_value).shape.numpy()[1])
    if settings.format == "matmul_nbits":
        if settings.bits == 4 and columns % 2:
            return "its rows have an odd number of columns, which do not fill whole bytes"
        # In 8 bits one scale per row is fine enough; blocks have to be powers of two.
        group = settings.group if settings.bits == 4 else max(_SMALLEST_BLOCK, 1 << (columns - 1).bit_length())
        return StoredLayer(node, weight, None, settings.bits, group, settings.symmetric, "table")
    if settings.bits == 8:
        return "standard operators would restore all of its rows in every run; quantize_dynamic stores it in 8 bits"
    if opset < BLOCKS_OPSET:
        return f"DequantizeLinear of 4-bit blocks needs operator set {BLOCKS_OPSET}, and the network uses {opset}"
    return StoredLayer(node, weight, None, 4, settings.group, settings.symmetric, "blocks")


def _table_objections(node: ir.Node) -> Iterator[str]:
    table, places = node.inputs[0], node.inputs[1]
    if table is None or not is_constant(table) or table.const_value is None:
        behind = table is not None and constant_root(table) is not None
        yield why_not_constant(table) if behind else "it does not pick rows of a constant table"
        return
    shape = table.const_value.shape.numpy()
    if table.const_value.dtype != ir.DataType.FLOAT:
        yield f"its weights are {table.const_value.dtype.name.lower()}, not float32"
    if places is None or places.is_initializer():
        yield CONSTANT_INPUT
    if len(shape) != 2:
        yield NO_MATRIX
    if math.prod(shape) < _SMALLEST_WEIGHTS:
        yield f"it has fewer than {_SMALLEST_WEIGHTS} weights"
    if integer(node, "axis", 0) != 0:
        yield "it does not pick rows of its table"
