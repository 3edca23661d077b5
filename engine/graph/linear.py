"""The linear layer: a Conv, ConvTranspose, Gemm or MatMul with constant weights, seen as inputs times one matrix plus a bias.

Methods of quantization and pruning speak of weights as (outputs, inputs), whatever the operator stores; this is the one
place that knows how each of them stores it. What a method cannot handle beyond that it refuses itself.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import io
from engine.graph.attributes import integer, integers, number, text
from engine.solve.gram import AutoPad, Window

Array = npt.NDArray[Any]

OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
STANDARD = frozenset({"", "ai.onnx"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# Operators between weights and the constant that they follow from.
_DEPTH = 16
# Why a node of these operators is no linear layer.
BOTH_ACTIVATIONS = "both operands are activations"
NOT_CONSTANT = "its weights are not constant"
CONSTANT_INPUT = "its input is a constant"
NO_SPATIAL_AXIS = "its weights have no spatial axis"
NO_MATRIX = "its weights are not one matrix"


@dataclass(frozen=True)
class BiasPlace:
    """Where a layer's bias is, or could be put: an input of the node itself or, of a MatMul, of the Add after it."""

    node: ir.Node
    index: int
    # None: there is no bias yet.
    value: ir.Value | None

    @property
    def out(self) -> ir.Value:
        """The layer's result with the bias in."""
        return self.node.outputs[0]

    def vector(self) -> npt.NDArray[np.float64] | None:
        """Give the bias as one number per output."""
        return None if self.value is None else _tensor(self.value).numpy().astype(np.float64).reshape(-1)

    def store(self, model: ir.Model, vector: Array, dtype: ir.DataType) -> None:
        """Put another bias in its place; a bias that others read too stays theirs."""
        shape = (-1,) if self.value is None else _shape(self.value)
        if self.value is not None and len(self.value.uses()) == 1:
            store(self.value, vector.reshape(shape))
            return
        name = io.unused_name(io.value_names(model), f"{self.node.name}_bias_")
        array = vector.reshape(shape).astype(dtype.numpy())
        value = ir.Value(name=name, const_value=ir.tensor(array, dtype=dtype, name=name), type=ir.TensorType(dtype))
        value.shape = ir.Shape(array.shape)
        model.graph.register_initializer(value)
        if len(self.node.inputs) <= self.index:
            self.node.resize_inputs(self.index + 1)
        self.node.replace_input_with(self.index, value)


@dataclass(frozen=True)
class LinearLayer:
    """A node with constant float32 weights: inputs times a matrix plus a bias."""

    node: ir.Node
    weight: ir.Value
    # Which of the node's inputs holds the weights: 0 for a MatMul with weights on the left.
    position: int
    # The axis of the stored weights that counts outputs (of one group, in a transposed convolution).
    axis: int

    @property
    def name(self) -> str:
        """What reports call it."""
        return node_name(self.node)

    @property
    def input(self) -> ir.Value:
        """The activation that it multiplies."""
        return cast("ir.Value", self.node.inputs[1 - self.position])

    @property
    def bias(self) -> ir.Value | None:
        """The node's own bias; a MatMul has none, but see `bias_place`."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def is_convolution(self) -> bool:
        """Whether its rows are windows of an image, plain or transposed."""
        return self.node.op_type in _CONVOLUTIONS

    @property
    def on_left(self) -> bool:
        """Whether the weights are the left operand: it then multiplies columns, not rows."""
        return self.position == 0

    @property
    def shared(self) -> bool:
        """Whether anything else needs the weights as they are."""
        return len(self.weight.uses()) > 1 or self.weight.is_graph_output()

    @property
    def reads_vector(self) -> bool:
        """Whether it is a MatMul of an activation that has no axis of rows."""
        shape = self.input.shape
        return self.node.op_type == "MatMul" and shape is not None and len(shape) < 2

    @property
    def reads_transposed(self) -> bool:
        """Whether it is a Gemm that turns its input first."""
        return self.node.op_type == "Gemm" and integer(self.node, "transA", 0) == 1

    @property
    def alpha(self) -> float:
        """What a Gemm multiplies the product with."""
        return number(self.node, "alpha", 1.0) if self.node.op_type == "Gemm" else 1.0

    @property
    def beta(self) -> float:
        """What a Gemm multiplies its bias with."""
        return number(self.node, "beta", 1.0) if self.node.op_type == "Gemm" else 1.0

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weights as they are stored; large ones may lie on disk."""
        return _tensor(self.weight)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored weights."""
        return _shape(self.weight)

    @property
    def groups(self) -> int:
        """Number of independent problems: those of a grouped convolution."""
        return integer(self.node, "group", 1) if self.is_convolution else 1

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        size = self.shape[self.axis]
        return size * self.groups if self.node.op_type == "ConvTranspose" else size

    @property
    def inputs(self) -> int:
        """Number of weights of each output."""
        return math.prod(self.shape) // max(1, self.outputs)

    def matrix(self, stored: Array | None = None) -> Array:
        """Give weights as (outputs, inputs), a convolution's inputs ordered as channel, then kernel position.

        `stored`: an array of the stored shape; by default the layer's own. Kernels of a transposed convolution are turned
        round: it is a convolution over an input with zeros between its elements, and its last place meets the first one.
        """
        array = self.tensor.numpy() if stored is None else stored
        if self.node.op_type == "ConvTranspose":
            array = np.flip(array, tuple(range(2, array.ndim)))
            array = array.reshape(self.groups, len(array) // self.groups, *array.shape[1:]).swapaxes(1, 2)
            return array.reshape(self.outputs, self.inputs)
        return (array.T if self.axis else array).reshape(self.outputs, self.inputs)

    def stored(self, matrix: Array) -> Array:
        """Undo `matrix`."""
        if self.node.op_type == "ConvTranspose":
            channels, outputs, *kernel = self.shape
            array = matrix.reshape(self.groups, outputs, channels // self.groups, *kernel).swapaxes(1, 2)
            return np.flip(array.reshape(self.shape), tuple(range(2, len(self.shape))))
        return matrix.T if self.axis else matrix.reshape(self.shape)

    def columns(self, channels: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Give the columns of the matrix that belong to these of an output's input channels."""
        size = math.prod(self.shape[2:]) if self.is_convolution else 1
        found: npt.NDArray[np.intp] = (channels[:, None] * size + np.arange(size)).reshape(-1)
        return found

    def write(self, matrix: Array) -> None:
        """Put other weights, given as (outputs, inputs), into the network."""
        store(self.weight, self.stored(matrix))

    def window(self) -> Window | None:
        """Give a convolution's geometry; None for a matrix product."""
        if self.node.op_type == "ConvTranspose":
            return _transposed_window(self.node, self.shape)
        return window(self.node, self.shape) if self.node.op_type == "Conv" else None

    def bias_place(self) -> BiasPlace | None:
        """Say where the bias is or could be; None for a MatMul that nothing constant is added to."""
        if self.node.op_type != "MatMul":
            return BiasPlace(self.node, 2, self.bias)
        add = _only_reader(self.node.outputs[0])
        if self.on_left or add is None or add.op_type != "Add" or add.domain not in STANDARD:
            return None
        index = 1 if add.inputs[0] is self.node.outputs[0] else 0
        value = add.inputs[index]
        if value is None or not is_constant(value) or _shape(value)[-1:] != (self.outputs,):
            return None
        return BiasPlace(add, index, value) if _tensor(value).size == self.outputs else None


def read(node: ir.Node) -> LinearLayer | str | None:
    """Give a node as a linear layer, or say why it is none; None for other operators."""
    if node.op_type not in OPERATORS or node.domain not in STANDARD:
        return None
    left, right = node.inputs[0], node.inputs[1]
    position = 0 if node.op_type == "MatMul" and _is_stored(left) and not _is_stored(right) else 1
    weight, activation = (left, right) if position == 0 else (right, left)
    reason = next(_objections(node, weight, activation), None)
    if reason is not None:
        return reason
    rows = node.op_type == "Conv" or position == 0 or (node.op_type == "Gemm" and integer(node, "transB", 0) == 1)
    return LinearLayer(node, cast("ir.Value", weight), position, 0 if rows else 1)


def _objections(node: ir.Node, weight: ir.Value | None, activation: ir.Value | None) -> Iterator[str]:
    if node.op_type == "MatMul" and not _is_stored(weight):
        computed = next((each for each in (weight, activation) if each is not None and _is_computed(each)), None)
        yield BOTH_ACTIVATIONS if computed is None else _computed_by(computed)
    if weight is None or not is_constant(weight):
        yield why_not_constant(weight)
        return
    tensor = _tensor(weight)
    if tensor.dtype != ir.DataType.FLOAT:
        yield f"its weights are {tensor.dtype.name.lower()}, not float32"
    if activation is None or activation.is_initializer():
        yield CONSTANT_INPUT
    if node.op_type in _CONVOLUTIONS and len(tensor.shape) < 3:
        yield NO_SPATIAL_AXIS
    if node.op_type not in _CONVOLUTIONS and len(tensor.shape) != 2:
        yield NO_MATRIX


def why_not_constant(weight: ir.Value | None) -> str:
    """Say that weights are not constant or, where they follow from a constant, from which and how."""
    found = None if weight is None else constant_root(weight)
    if found is None:
        return _computed_by(weight) if weight is not None and _is_computed(weight) else NOT_CONSTANT
    root, moves = found
    how = " and ".join(dict.fromkeys(move.op_type for move in moves))
    others = sorted({node_name(use.node) for use in root.uses()} - {node_name(moves[0])})
    shared = f", and `{others[0]}` needs them as they are" if others else ""
    return f"its weights, `{root.name}`, are stored as {_tensor(root).dtype.name.lower()} behind {how}{shared}"


def _computed_by(value: ir.Value) -> str:
    maker = cast("ir.Node", value.producer())
    return (
        f"its weights are computed from constants, by {maker.op_type} at last; `simplify` before this step does it once"
    )


def _is_computed(value: ir.Value, depth: int = 0) -> bool:
    """Say whether a value that a node makes follows from constants alone."""
    maker = value.producer()
    if maker is None or depth > _DEPTH:
        return False
    inputs = [each for each in maker.inputs if each is not None]
    random = maker.op_type.startswith("Random") or maker.op_type in {"Bernoulli", "Multinomial"}
    return not random and all(is_constant(each) or _is_computed(each, depth + 1) for each in inputs)


def node_name(node: ir.Node) -> str:
    """Give what reports call a node: its name or, where it has none, that of its first output."""
    return node.name or str(node.outputs[0].name)


def constant_root(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """Give the constant that a chain of Cast and Transpose makes a value of, and the chain; None where it is of another make."""
    moves: list[ir.Node] = []
    while not value.is_initializer():
        move = value.producer()
        if move is None or move.op_type not in {"Cast", "Transpose"} or move.domain not in STANDARD:
            return None
        moves.insert(0, move)
        value = cast("ir.Value", move.inputs[0])
    return (value, tuple(moves)) if is_constant(value) else None


def picks_from_table(node: ir.Node) -> bool:
    """Say whether a Gather reads constant numbers, and no sizes, places or results of other operators."""
    value = node.inputs[0]
    found = None if value is None else constant_root(value)
    return found is not None and _tensor(found[0]).dtype.is_floating_point()


def is_constant(value: ir.Value) -> bool:
    """Say whether a value is an initializer that no caller may replace."""
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def window(node: ir.Node, shape: Sequence[int]) -> Window:
    """Give the geometry of a Conv whose weights have this shape."""
    return Window(
        kernel=tuple(integers(node, "kernel_shape") or (int(size) for size in shape[2:])),
        strides=tuple(integers(node, "strides") or ()),
        dilations=tuple(integers(node, "dilations") or ()),
        pads=tuple(integers(node, "pads") or ()),
        groups=integer(node, "group", 1),
        auto_pad=cast("AutoPad", text(node, "auto_pad", "NOTSET")),
    )


def window_objection(layer: LinearLayer) -> str | None:
    """Say why a transposed convolution cannot be seen as a plain one over a stretched input; None where it can."""
    node = layer.node
    if node.op_type != "ConvTranspose":
        return None
    if text(node, "auto_pad", "NOTSET") != "NOTSET" or node.attributes.get("output_shape") is not None:
        return "its padding follows from the size of its output"
    if min(_transposed_window(node, layer.shape).pads) < 0:
        return "it cuts off more than its kernel reaches"
    return None


def store(value: ir.Value, array: Array) -> None:
    """Give an initializer another content of its own type."""
    dtype = _tensor(value).dtype
    value.const_value = ir.tensor(np.ascontiguousarray(array.astype(dtype.numpy())), dtype=dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _transposed_window(node: ir.Node, shape: Sequence[int]) -> Window:
    kernel = tuple(int(size) for size in shape[2:])
    axes = len(kernel)
    dilations = tuple(integers(node, "dilations") or (1,) * axes)
    pads = integers(node, "pads") or [0] * (2 * axes)
    longer = integers(node, "output_padding") or [0] * axes
    reach = [(size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
    begins = [most - pad for most, pad in zip(reach, pads[:axes], strict=True)]
    ends = [most - pad + more for most, pad, more in zip(reach, pads[axes:], longer, strict=True)]
    return Window(
        kernel,
        dilations=dilations,
        pads=(*begins, *ends),
        groups=integer(node, "group", 1),
        stretch=tuple(integers(node, "strides") or (1,) * axes),
    )


def _is_stored(value: ir.Value | None) -> bool:
    return value is not None and (value.is_initializer() or constant_root(value) is not None)


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(int(size) for size in _tensor(value).shape.numpy())
