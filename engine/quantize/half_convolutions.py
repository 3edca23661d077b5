"""Convolutional networks in float16 as ONNX Runtime's CUDA kernels run them fast; what is computed stays the same.

Its fused kernels (convolution, sum and Relu in one) are for float32 alone, so in float16 every pass over a map counts, and a first
convolution on three channels is a kernel of its own that took 18 % of ResNet-50 on an H100.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import io
from engine.graph.sizes import Sizes, infer

Array = npt.NDArray[Any]

# With fewer samples the number of kernels counts, and not what they read and write.
_LEAST_BATCH = 8
_LEAST_OPSET = 13
_MOST_CHANNELS = 4
# Kernels of 16-bit numbers read so many channels at a time.
_CHANNELS_TOGETHER = 8
_END = np.iinfo(np.int64).max


def suit_cuda(model: ir.Model, batch: int) -> tuple[str, ...]:
    """Rewrite in place what computes in float16; say in words what was done."""
    if batch < _LEAST_BATCH or io.opset(model) < _LEAST_OPSET:
        return ()
    return _Rewriter(model).run()


@dataclass(frozen=True)
class _Conv:
    """A convolution of two axes with constant weights; `pads` are those before and after each axis."""

    node: ir.Node
    weight: Array
    bias: Array | None
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]

    @classmethod
    def of(cls, node: ir.Node | None) -> "_Conv | None":
        """Give it for a plain one in float16: one group, no dilation, pads as numbers."""
        if (
            node is None
            or node.op_type != "Conv"
            or node.domain not in {"", "ai.onnx"}
            or not _is_half(node.outputs[0])
        ):
            return None
        constants = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:]]
        arrays = [tensor.numpy() for tensor in constants if tensor is not None]
        if not arrays or len(arrays) < len(constants):
            return None
        attributes = node.attributes
        plain = (
            arrays[0].ndim == 4
            and _ints(node, "dilations", (1, 1)) == (1, 1)
            and ("group" not in attributes or attributes["group"].as_int() == 1)
            and ("auto_pad" not in attributes or attributes["auto_pad"].as_string() == "NOTSET")
        )
        if not plain:
            return None
        strides, pads = _ints(node, "strides", (1, 1)), _ints(node, "pads", (0, 0, 0, 0))
        return cls(node, arrays[0], arrays[1] if len(arrays) > 1 else None, (strides[0], strides[1]), pads)  # type: ignore[arg-type]


class _Rewriter:
    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken = io.all_names(model)

    def run(self) -> tuple[str, ...]:
        graph = self._model.graph
        sizes = infer(self._model)
        pools = sum([self._pool_first(node) for node in list(graph) if node.op_type == "MaxPool"])
        joined = sum([self._join(node, sizes) for node in list(graph) if node.op_type == "Add"])
        firsts = sum([self._read_blocks(found) for found in map(_Conv.of, list(graph)) if found is not None])
        for value in list(graph.initializers.values()):
            if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
                graph.initializers.pop(str(value.name))
        return tuple(self._words(pools, joined, firsts))

    @staticmethod
    def _words(pools: int, joined: int, firsts: int) -> Iterator[str]:
        if firsts:
            yield "the first convolution reads blocks of 2x2 pixels"
        if joined:
            yield f"{joined} sums of two convolutions became one convolution"
        if pools:
            yield f"{pools} Relu come{'s' if pools == 1 else ''} after the pooling"

    # Relu and MaxPool: the largest of what was rectified is the largest, rectified, and there are fewer of them.

    def _pool_first(self, pool: ir.Node) -> bool:
        relu = pool.inputs[0].producer() if pool.inputs[0] is not None else None
        if relu is None or relu.op_type != "Relu" or not _is_half(relu.outputs[0]) or not _read_once(relu.outputs[0]):
            return False
        if len(pool.outputs) > 1 and (pool.outputs[1].uses() or pool.outputs[1].is_graph_output()):
            return False
        pool.replace_input_with(0, relu.inputs[0])
        output = pool.outputs[0]
        after = self._node("Relu", [output], name=str(relu.name))
        self._model.graph.remove(relu, safe=True)
        self._model.graph.insert_after(pool, after)
        self._stand_in(output, after.outputs[0])
        after.replace_input_with(0, output)
        return True

    # Sums of two 1x1 convolutions, one of them on a shortcut: one convolution of both inputs' channels.

    def _join(self, add: ir.Node, sizes: Sizes) -> bool:
        both = [_Conv.of(value.producer() if value is not None else None) for value in add.inputs]
        if any(
            each is None or each.weight.shape[2:] != (1, 1) or any(each.pads) or not _read_once(each.node.outputs[0])
            for each in both
        ):
            return False
        left, right = (each for each in both if each is not None)
        shapes = [sizes.shape(each.node.outputs[0]) for each in (left, right)]
        if shapes[0] is None or shapes[0] != shapes[1] or left.node is right.node:
            return False
        graph = self._model.graph
        inputs = [self._strided(each, add) for each in (left, right)]
        concat = self._node("Concat", inputs, {"axis": 1})
        biases = [each.bias.astype(np.float32) for each in (left, right) if each.bias is not None]
        weights = [self._constant(np.concatenate([left.weight, right.weight], axis=1), "joined_weight")]
        if biases:
            weights.append(self._constant(sum(biases[1:], biases[0]).astype(left.weight.dtype), "joined_bias"))
        conv = self._node("Conv", [concat.outputs[0], *weights], {"kernel_shape": [1, 1]}, name=str(add.name))
        graph.insert_before(add, [concat, conv])
        self._stand_in(add.outputs[0], conv.outputs[0])
        graph.remove([add, left.node, right.node], safe=True)
        return True

    def _strided(self, conv: _Conv, before: ir.Node) -> ir.Value:
        """Give what a 1x1 convolution reads, without what its strides leave out."""
        source = conv.node.inputs[0]
        assert source is not None
        if conv.strides == (1, 1):
            return source
        ranges = [[0, 0], [_END, _END], [2, 3], list(conv.strides)]
        bounds = [
            self._constant(np.array(values, np.int64), f"joined_{name}")
            for name, values in zip(("starts", "ends", "axes", "steps"), ranges, strict=True)
        ]
        taken = self._node("Slice", [source, *bounds])
        self._model.graph.insert_before(before, taken)
        return taken.outputs[0]

    # A first convolution with strides of 2: one with strides of 1 on blocks of 2x2 pixels, whose numbers are channels.

    def _read_blocks(self, conv: _Conv) -> bool:
        source = conv.node.inputs[0]
        planes = None if source is None else _image(source)
        if source is None or planes is None or conv.strides != (2, 2):
            return False
        channels, height, width = planes
        if not 1 <= channels <= _MOST_CHANNELS or height % 2 or width % 2 or conv.weight.shape[1] != channels:
            return False
        rows = _Blocks.of(height, conv.weight.shape[2], conv.pads[0], conv.pads[2])
        columns = _Blocks.of(width, conv.weight.shape[3], conv.pads[1], conv.pads[3])
        if rows is None or columns is None:
            return False
        wide = -(-4 * channels // _CHANNELS_TOGETHER) * _CHANNELS_TOGETHER
        blocks = self._blocks(source, (channels, height, width), wide, conv.node)
        weight = self._constant(_on_blocks(conv.weight, rows, columns, wide), "blocks_weight")
        attributes = {
            "kernel_shape": [rows.kernel, columns.kernel],
            "pads": [rows.before, columns.before, rows.after, columns.after],
        }
        made = self._node("Conv", [blocks, weight, *conv.node.inputs[2:]], attributes, name=str(conv.node.name))
        self._model.graph.insert_before(conv.node, made)
        self._stand_in(conv.node.outputs[0], made.outputs[0])
        self._model.graph.remove(conv.node, safe=True)
        return True

    def _blocks(self, source: ir.Value, planes: tuple[int, int, int], wide: int, before: ir.Node) -> ir.Value:
        """Give the blocks as channels, (row in block, column in block, channel); kernels that have channels last read them as they are."""
        channels, height, width = planes
        cut = self._constant(np.array([0, channels, height // 2, 2, width // 2, 2], np.int64), "blocks_cut")
        last = self._constant(np.array([0, height // 2, width // 2, 4 * channels], np.int64), "blocks_last")
        nodes = [self._node("Reshape", [source, cut])]
        nodes.append(self._node("Transpose", [nodes[-1].outputs[0]], {"perm": [0, 2, 4, 3, 5, 1]}))
        nodes.append(self._node("Reshape", [nodes[-1].outputs[0], last]))
        if wide > 4 * channels:
            pads = self._constant(np.array([0] * 7 + [wide - 4 * channels], np.int64), "blocks_pads")
            nodes.append(self._node("Pad", [nodes[-1].outputs[0], pads], {"mode": "constant"}))
        nodes.append(self._node("Transpose", [nodes[-1].outputs[0]], {"perm": [0, 3, 1, 2]}))
        self._model.graph.insert_before(before, nodes)
        return nodes[-1].outputs[0]

    # Parts of the graph

    def _node(
        self, operator: str, inputs: list[ir.Value | None] | list[ir.Value], attributes: Any = None, *, name: str = ""
    ) -> ir.Node:
        node = ir.node(operator, inputs, attributes, name=name or io.unused_name(self._taken, f"{operator}_half_"))
        node.outputs[0].name = io.unused_name(self._taken, f"{operator}_half_output_")
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        return node

    def _constant(self, array: Array, stem: str) -> ir.Value:
        name = io.unused_name(self._taken, stem)
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self._model.graph.register_initializer(value)
        return value

    def _stand_in(self, old: ir.Value, new: ir.Value) -> None:
        """Let everybody read the new value, under the old one's name."""
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name, old.name = old.name, new.name


@dataclass(frozen=True)
class _Blocks:
    """One axis: kernel and pads in blocks of two, and how many numbers further in its first block the kernel begins."""

    kernel: int
    before: int
    after: int
    shift: int

    @classmethod
    def of(cls, size: int, kernel: int, before: int, after: int) -> "_Blocks | None":
        """Give it for an even size and strides of two; None where the last blocks would be too many."""
        outputs = (size + before + after - kernel) // 2 + 1
        first = -(-before // 2)
        shift = 2 * first - before
        blocks = -(-(kernel + shift) // 2)
        last = outputs - 1 + blocks - size // 2 - first
        return cls(blocks, first, last, shift) if outputs > 0 and last >= 0 else None


def _on_blocks(weight: Array, rows: _Blocks, columns: _Blocks, wide: int) -> Array:
    """Give weights on blocks: (output channels, wide, rows of blocks, columns of blocks)."""
    outputs, channels, height, width = weight.shape
    even = np.zeros((outputs, channels, 2 * rows.kernel, 2 * columns.kernel), weight.dtype)
    even[:, :, rows.shift : rows.shift + height, columns.shift : columns.shift + width] = weight
    cut = even.reshape(outputs, channels, rows.kernel, 2, columns.kernel, 2).transpose(0, 3, 5, 1, 2, 4)
    found = np.zeros((outputs, wide, rows.kernel, columns.kernel), weight.dtype)
    found[:, : 4 * channels] = cut.reshape(outputs, 4 * channels, rows.kernel, columns.kernel)
    return found


def _image(value: ir.Value) -> tuple[int, int, int] | None:
    """Give channels, height and width of an input of the network, behind a cast or not, where they are numbers."""
    producer = value.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    if source is None or not source.is_graph_input() or not _is_half(value) or source.shape is None:
        return None
    sizes = [size for size in list(source.shape)[1:] if isinstance(size, int)]
    return (sizes[0], sizes[1], sizes[2]) if len(source.shape) == 4 and len(sizes) == 3 else None


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def _is_half(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT16


def _read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()
