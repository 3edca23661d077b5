"""Layers whose weights can be refitted: what they read as rows, what they should give, and where their sums end up."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import linear
from engine.graph.attributes import integer, number
from engine.graph.linear import BiasPlace, LinearLayer
from engine.solve.gram import patches, pixels, positions

Array = npt.NDArray[Any]

# Operators with weights that are no rows times a matrix for us.
_OTHERS = frozenset({"FusedConv", "FusedGemm", "FusedMatMul", "LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class Normalisation:
    """A LayerNormalization: gain and shift of each channel of its last axis."""

    node: ir.Node
    weight: ir.Value
    bias: BiasPlace

    # The axis of the stored gain that counts channels.
    axis: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """What reports call it."""
        return linear.node_name(self.node)

    @property
    def source(self) -> str:
        """The tensor that it normalises."""
        return str(self.node.inputs[0].name) if self.node.inputs[0] is not None else ""

    @property
    def out(self) -> ir.Value:
        """Its result."""
        return self.node.outputs[0]

    @property
    def outputs(self) -> int:
        """Number of channels."""
        return int(self.gain().size)

    @property
    def channel_axis(self) -> int:
        """The axis of its result that counts channels."""
        return -1

    def gain(self) -> Array:
        """Give the gain of each channel."""
        assert self.weight.const_value is not None
        return self.weight.const_value.numpy().astype(np.float64).reshape(-1)

    def shift(self) -> Array:
        """Give the shift of each channel."""
        shift = self.bias.vector()
        assert shift is not None
        return shift

    def store(self, model: ir.Model, gain: Array, shift: Array) -> None:
        """Put another gain and shift into the network."""
        assert self.weight.const_value is not None
        linear.store(self.weight, gain.reshape(tuple(self.weight.const_value.shape.numpy())))
        self.bias.store(model, shift, self.weight.const_value.dtype)

    def normalised(self, array: Array) -> Array:
        """Give what it multiplies with its gain."""
        wide = array.astype(np.float64)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + number(self.node, "epsilon", 1e-5))
        found: Array = (centred / deviation).astype(np.float32)
        return found


@dataclass(frozen=True)
class Rows:
    """A linear layer with weights of its own, seen as rows times a matrix plus a bias."""

    linear: LinearLayer
    # Where its bias is or could be; None where there is no place for one.
    bias: BiasPlace | None

    @property
    def node(self) -> ir.Node:
        """The node that multiplies."""
        return self.linear.node

    @property
    def weight(self) -> ir.Value:
        """The stored weights."""
        return self.linear.weight

    @property
    def axis(self) -> int:
        """The axis of the stored weights that counts outputs."""
        return self.linear.axis

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.linear.name

    @property
    def source(self) -> str:
        """The tensor that it multiplies."""
        return str(self.linear.input.name)

    @property
    def out(self) -> ir.Value:
        """What the node's sums are called when the bias is in."""
        return self.node.outputs[0] if self.bias is None else self.bias.out

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.linear.outputs

    @property
    def channel_axis(self) -> int:
        """The axis of its result that counts outputs."""
        return 1 if self.linear.is_convolution else -1

    def matrix(self) -> Array:
        """Give the weights as (outputs, inputs)."""
        return self.linear.matrix().astype(np.float64)

    def offset(self) -> Array | None:
        """Give the bias as a vector."""
        return None if self.bias is None else self.bias.vector()

    def store(self, model: ir.Model, matrix: Array, offset: Array | None) -> None:
        """Put new weights into the network."""
        self.linear.write(matrix)
        if offset is not None and self.bias is not None:
            self.bias.store(model, offset, self.linear.tensor.dtype)

    def rows(self, array: Array, first: int, keep: int | None) -> Array:
        """Give `keep` rows per sample that the weights are multiplied with: (groups, rows, inputs)."""
        window = self.linear.window()
        if window is not None:
            return patches(array, window, self._places(array, first, keep))
        return array.reshape(-1, array.shape[-1])[self._places(array, first, keep)][None]

    def targets(self, array: Array, source: Array, first: int, keep: int | None) -> Array:
        """Give the rows of an output array at the same places as `rows` of the input `source`."""
        if self.linear.is_convolution:
            return pixels(array, self.linear.groups, self._places(source, first, keep))
        return array.reshape(-1, array.shape[-1])[self._places(source, first, keep)][None]

    def row_count(self, source: Array) -> int:
        """Give how many rows one input array has."""
        window = self.linear.window()
        if window is not None:
            return int(len(source) * math.prod(window.outputs(source.shape[2:])))
        return int(source.size // source.shape[-1])

    def _places(self, source: Array, first: int, keep: int | None) -> npt.NDArray[np.intp]:
        """Choose rows: of a convolution for each sample, else of all samples together."""
        if self.linear.is_convolution:
            return positions(first, len(source), self.row_count(source) // len(source), keep)
        samples = len(source) if source.ndim > 2 else 1
        chosen: npt.NDArray[np.intp] = positions(
            first, 1, self.row_count(source), None if keep is None else keep * samples
        )[0]
        return chosen


Refittable = Rows | Normalisation


def refittable(model: ir.Model) -> tuple[list[Refittable], dict[str, str]]:
    """List the layers of the main graph in topological order, and weighted nodes that are none with the reason."""
    found: list[Refittable] = []
    refused: dict[str, str] = {}
    for node in model.graph:
        layer = _read(node)
        if isinstance(layer, str):
            refused[linear.node_name(node)] = layer
        elif layer is not None:
            found.append(layer)
    return found, refused


def residual(layer: Refittable) -> ir.Value | None:
    """Give what is added to the layer's output, where it enters one sum and nothing else."""
    uses = list(layer.out.uses())
    if len(uses) != 1 or layer.out.is_graph_output():
        return None
    add = uses[0].node
    if add.op_type != "Add" or add.domain not in linear.STANDARD:
        return None
    other = add.inputs[1] if add.inputs[0] is layer.out else add.inputs[0]
    return None if other is None or other is layer.out or other.is_initializer() else other


def _read(node: ir.Node) -> Refittable | str | None:
    if node.op_type in _OTHERS:
        return "this operator's weights are not refitted"
    if node.op_type == "LayerNormalization" and node.domain in linear.STANDARD:
        return next(_normalisation(node))
    layer = linear.read(node)
    if isinstance(layer, LinearLayer):
        return next(_rows(layer))
    return None if layer == linear.BOTH_ACTIVATIONS else layer


def _rows(layer: LinearLayer) -> Iterator[Refittable | str]:
    if layer.on_left:
        yield "its weights stand on the left"
    if layer.shared:
        yield "its weights are shared"
    if layer.node.op_type == "ConvTranspose" and layer.groups != 1:
        yield "it is a transposed convolution of several groups"
    reason = linear.window_objection(layer)
    if reason is not None:
        yield reason
    if layer.reads_transposed or layer.alpha != 1 or layer.beta != 1:
        yield "it is scaled, or its input is transposed"
    place = layer.bias_place()
    bias = None if place is None else place.value
    if bias is not None and (not linear.is_constant(bias) or _size(bias) != layer.outputs):
        yield "its bias is not a constant vector"
    yield Rows(layer, place)


def _normalisation(node: ir.Node) -> Iterator[Refittable | str]:
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or not linear.is_constant(weight):
        yield linear.NOT_CONSTANT
        return
    assert weight.const_value is not None
    if weight.const_value.dtype != ir.DataType.FLOAT:
        yield f"its weights are {weight.const_value.dtype.name.lower()}, not float32"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        yield "its weights are shared"
    if integer(node, "axis", -1) != -1 and len(weight.const_value.shape) != 1:
        yield "it normalises several axes"
    if bias is None or not linear.is_constant(bias):
        yield "it has no constant bias"
    yield Normalisation(node, weight, BiasPlace(node, 2, bias))


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size
