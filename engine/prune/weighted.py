"""Layers whose weights can be refitted: what they read, their weights as a matrix, and where their sums end up."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import io
from engine.graph.sizes import integer, integers, number, text
from engine.solve import Window, patches, pixels, positions
from engine.solve.gram import AutoPad

Array = npt.NDArray[Any]
Kind = Literal["conv", "matmul", "norm"]


@dataclass(frozen=True)
class Layer:
    """A node with constant weights of its own, seen as rows times a matrix plus a bias."""

    node: ir.Node
    kind: Kind
    weight: ir.Value
    # A vector, or None where there is none.
    bias: ir.Value | None
    # The node and the input that hold the bias, or could hold it; None where there is no place for one.
    bias_at: tuple[ir.Node, int] | None
    # What the node's sums are called when the bias is in.
    out: ir.Value
    outputs_last: bool = False
    window: Window | None = None
    epsilon: float = 0.0

    @property
    def name(self) -> str:
        """What reports call it."""
        return str(self.node.name)

    @property
    def source(self) -> str:
        """The tensor that it multiplies."""
        return str(cast("ir.Value", self.node.inputs[0]).name)

    @property
    def out_axis(self) -> int:
        """The axis of the weights that counts outputs."""
        return 1 if self.outputs_last else 0

    @property
    def groups(self) -> int:
        """Number of independent problems: those of a grouped convolution."""
        return 1 if self.window is None else self.window.groups

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored weights."""
        return tuple(int(size) for size in _tensor(self.weight).shape.numpy())

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.shape[self.out_axis]

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution: seen as one over an input with zeros between its elements."""
        return self.window is not None and bool(self.window.stretch)

    @property
    def inputs(self) -> int:
        """Number of weights of each output."""
        return 1 if self.kind == "norm" else math.prod(self.shape) // self.outputs

    def matrix(self) -> Array:
        """Give the weights as (outputs, inputs)."""
        array = _tensor(self.weight).numpy().astype(np.float64)
        array = np.moveaxis(array, self.out_axis, 0)
        return self._turned(array).reshape(self.outputs, self.inputs)

    def _turned(self, array: Array) -> Array:
        """Turn the kernels of a transposed convolution round: its last place meets the first element."""
        return np.flip(array, tuple(range(2, array.ndim))) if self.transposed else array

    def offset(self) -> Array | None:
        """Give the bias as a vector."""
        return None if self.bias is None else _tensor(self.bias).numpy().astype(np.float64).reshape(-1)

    def columns(self, axis_places: Array) -> Array:
        """Give the columns of the matrix that belong to places of the weights' input axis."""
        if self.kind != "conv":
            return axis_places
        kernel = math.prod(self.shape[2:])
        found: Array = (axis_places[:, None] * kernel + np.arange(kernel)).reshape(-1)
        return found

    def store(self, model: ir.Model, matrix: Array, offset: Array | None) -> None:
        """Put new weights into the network."""
        first = (self.outputs, *(size for axis, size in enumerate(self.shape) if axis != self.out_axis))
        _set(self.weight, np.moveaxis(self._turned(matrix.reshape(first)), 0, self.out_axis))
        if offset is None or self.bias_at is None:
            return
        node, index = self.bias_at
        old = None if self.bias is None else _tensor(self.bias)
        if self.bias is not None and len(self.bias.uses()) == 1:
            _set(self.bias, offset.reshape(tuple(old.shape.numpy()) if old is not None else (-1,)))
            return
        name = io.unused_name(io.value_names(model), f"{self.name}_bias_")
        shaped = offset.reshape(tuple(old.shape.numpy()) if old is not None else (-1,))
        tensor = ir.tensor(shaped.astype(_tensor(self.weight).dtype.numpy()), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shaped.shape))
        model.graph.register_initializer(value)
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)

    def rows(self, array: Array, first: int, keep: int | None) -> Array:
        """Give `keep` rows per sample that the weights are multiplied with: (groups, rows, inputs)."""
        if self.window is not None:
            return patches(array, self.window, self._chosen(array, first, keep))
        flat = array.reshape(-1, array.shape[-1])
        chosen = self._chosen_rows(array, first, keep)
        return flat[chosen][None]

    def targets(self, array: Array, source: Array, first: int, keep: int | None) -> Array:
        """Give the rows of an output array at the same places as `rows` of the input `source`."""
        if self.window is not None:
            return pixels(array, self.groups, self._chosen(source, first, keep))
        flat = array.reshape(-1, array.shape[-1])
        return flat[self._chosen_rows(source, first, keep)][None]

    def row_count(self, source: Array) -> int:
        """Give how many rows one input array has."""
        if self.window is not None:
            return int(len(source) * math.prod(self.window.outputs(source.shape[2:])))
        return int(source.size // source.shape[-1])

    def _chosen(self, source: Array, first: int, keep: int | None) -> npt.NDArray[np.intp]:
        assert self.window is not None
        places = math.prod(self.window.outputs(source.shape[2:]))
        return positions(first, len(source), places, keep)

    def _chosen_rows(self, source: Array, first: int, keep: int | None) -> npt.NDArray[np.intp]:
        rows = self.row_count(source)
        samples = len(source) if source.ndim > 2 else 1
        chosen: npt.NDArray[np.intp] = positions(first, 1, rows, None if keep is None else keep * samples)[0]
        return chosen


def layers(model: ir.Model) -> tuple[list[Layer], dict[str, str]]:
    """List the layers of the main graph in topological order, and weighted nodes that are none with the reason."""
    found: list[Layer] = []
    refused: dict[str, str] = {}
    for node in model.graph:
        layer = _read(node)
        if isinstance(layer, Layer):
            found.append(layer)
        elif layer is not None:
            refused[str(node.name)] = layer
    return found, refused


def residual(layer: Layer) -> ir.Value | None:
    """Give what is added to the layer's output, where it enters one sum and nothing else."""
    use = _only_use(layer.out)
    if use is None or use.op_type != "Add" or use.domain not in {"", "ai.onnx"}:
        return None
    other = use.inputs[1] if use.inputs[0] is layer.out else use.inputs[0]
    return None if other is None or other is layer.out or other.is_initializer() else other


def _read(node: ir.Node) -> Layer | str | None:
    reader = _READERS.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
    if reader is None:
        return "this operator's weights are not refitted" if node.op_type in _WEIGHTED else None
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.inputs[0] is None or node.inputs[0].is_initializer():
        return "its weights stand on the left"
    if weight is None or not weight.is_initializer() or weight.const_value is None or weight.is_graph_input():
        return None if node.op_type == "MatMul" else "its weights are not constant"
    if weight.const_value.dtype != ir.DataType.FLOAT:
        return f"its weights are {weight.const_value.dtype.name.lower()}, not float32"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return "its weights are shared"
    return next(iter(reader(node, weight)), None)


def _conv(node: ir.Node, weight: ir.Value) -> Iterator[Layer | str]:
    shape = tuple(_tensor(weight).shape.numpy())
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not bias.is_initializer():
        yield "its bias is not constant"
    if len(shape) < 3:
        yield "its weights have no spatial axis"
    window = Window(
        tuple(int(size) for size in shape[2:]),
        tuple(integers(node, "strides") or ()),
        tuple(integers(node, "dilations") or ()),
        tuple(integers(node, "pads") or ()),
        integer(node, "group", 1),
        cast("AutoPad", text(node, "auto_pad", "NOTSET")),
    )
    yield Layer(node, "conv", weight, bias, (node, 2), node.outputs[0], window=window)


def _conv_transpose(node: ir.Node, weight: ir.Value) -> Iterator[Layer | str]:
    shape = tuple(_tensor(weight).shape.numpy())
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    axes = len(shape) - 2
    if bias is not None and not bias.is_initializer():
        yield "its bias is not constant"
    if integer(node, "group", 1) != 1:
        yield "it is a transposed convolution of several groups"
    if text(node, "auto_pad", "NOTSET") != "NOTSET" or node.attributes.get("output_shape") is not None:
        yield "its padding follows from the size of its output"
    dilations = integers(node, "dilations") or (1,) * axes
    pads = integers(node, "pads") or (0,) * (2 * axes)
    longer = integers(node, "output_padding") or (0,) * axes
    reach = [(size - 1) * step for size, step in zip(shape[2:], dilations, strict=True)]
    begins = [most - pad for most, pad in zip(reach, pads[:axes], strict=True)]
    ends = [most - pad + more for most, pad, more in zip(reach, pads[axes:], longer, strict=True)]
    if axes < 1 or min((*begins, *ends), default=0) < 0:
        yield "it cuts off more than its kernel reaches"
    kernel, strides = tuple(int(size) for size in shape[2:]), tuple(integers(node, "strides") or (1,) * axes)
    window = Window(kernel, dilations=tuple(dilations), pads=(*begins, *ends), stretch=strides)
    yield Layer(node, "conv", weight, bias, (node, 2), node.outputs[0], outputs_last=True, window=window)


def _gemm(node: ir.Node, weight: ir.Value) -> Iterator[Layer | str]:
    last = not integer(node, "transB", 0)
    if integer(node, "transA", 0) or number(node, "alpha", 1.0) != 1 or number(node, "beta", 1.0) != 1:
        yield "it is scaled, or its input is transposed"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    outputs = int(_tensor(weight).shape.numpy()[1 if last else 0])
    if bias is not None and (not bias.is_initializer() or _tensor(bias).size != outputs):
        yield "its bias is not a constant vector"
    yield Layer(node, "matmul", weight, bias, (node, 2), node.outputs[0], outputs_last=last)


def _matmul(node: ir.Node, weight: ir.Value) -> Iterator[Layer | str]:
    if len(_tensor(weight).shape) != 2:
        yield "its weights are not one matrix"
    outputs = int(_tensor(weight).shape.numpy()[-1])
    add = _only_use(node.outputs[0])
    if add is not None and add.op_type == "Add" and add.domain in {"", "ai.onnx"}:
        index = 1 if add.inputs[0] is node.outputs[0] else 0
        bias = add.inputs[index]
        vector = bias is not None and bias.is_initializer() and bias.const_value is not None
        if vector and bias is not None and _tensor(bias).size == outputs == int(_tensor(bias).shape.numpy()[-1]):
            yield Layer(node, "matmul", weight, bias, (add, index), add.outputs[0], outputs_last=True)
    yield Layer(node, "matmul", weight, None, None, node.outputs[0], outputs_last=True)


def _norm(node: ir.Node, weight: ir.Value) -> Iterator[Layer | str]:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if integer(node, "axis", -1) != -1 and len(_tensor(weight).shape) != 1:
        yield "it normalises several axes"
    if bias is None or not bias.is_initializer():
        yield "it has no constant bias"
    yield Layer(node, "norm", weight, bias, (node, 2), node.outputs[0], epsilon=number(node, "epsilon", 1e-5))


_READERS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LayerNormalization": _norm,
}
_WEIGHTED = frozenset({"FusedConv", "FusedGemm", "FusedMatMul", "LSTM", "GRU", "RNN"})


def normalised(array: Array, epsilon: float) -> Array:
    """Give what a layer normalisation multiplies with its gain."""
    wide = array.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    found: Array = (centred / deviation).astype(np.float32)
    return found


def _only_use(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _set(value: ir.Value, array: Array) -> None:
    dtype = _tensor(value).dtype
    value.const_value = ir.tensor(np.ascontiguousarray(array.astype(dtype.numpy())), dtype=dtype, name=value.name)
