"""The zero-mask oracle: the original network with removed channels silenced must give what the pruned network gives.

A removed channel is silenced where it is read: the weights that multiply it become zero, and where activations are
contracted or averaged without a weight, a mask is multiplied in. Zeroing what makes a channel would not do: sigmoid(0) is
not 0. Normalisations over channels take their statistics from the kept channels only, so that the oracle is exact for
them as well.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engine.errors import ModelUnsupportedError
from engine.graph import io
from engine.graph.attributes import integer, number
from engine.graph.coupling import Coupling
from engine.graph.execution import Member, Sink
from engine.graph.labels import Array
from engine.graph.losses import by_initializer, losses_by_axis, removed


def mask(model: ir.Model, coupling: Coupling, atoms: Iterable[int]) -> ir.Model:
    """Give a copy of the analysed model, of the same shapes, in which the channels of these atoms have no effect."""
    gone = removed(coupling, atoms)
    masked = model.clone()
    for name, members in by_initializer(coupling, gone).items():
        value = masked.graph.initializers[name]
        for member in members:
            if member.role == "in":
                _silence(value, member, gone)
    nodes = {str(node.name): node for node in masked.graph}
    editor = _Editor(masked)
    by_node: dict[tuple[str, int], list[Sink]] = {}
    for sink in coupling.sinks:
        if gone[sink.labels.atoms].any():
            by_node.setdefault((sink.node, sink.index), []).append(sink)
    for (name, index), sinks in by_node.items():
        _mask_sink(editor, nodes[name], index, sinks, gone)
    for node in masked.graph:
        for output in node.outputs:
            if output not in masked.graph.outputs:
                output.shape = None
    return masked


def _silence(value: ir.Value, member: Member, gone: Array) -> None:
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy()
    loss = np.broadcast_to(gone[member.labels.atoms], array.shape)
    zero = _zero_of(value, array)
    value.const_value = ir.tensor(np.where(loss, zero, array).astype(array.dtype), dtype=tensor.dtype, name=value.name)


def _zero_of(value: ir.Value, array: Array) -> Array:
    """Give what stands for 0: a quantized weight has its zero point there."""
    for use in value.uses():
        node = use.node
        if node.op_type == "DequantizeLinear" and use.idx == 0:
            point = node.inputs[2] if len(node.inputs) > 2 else None
            if point is not None and point.const_value is not None:
                points = point.const_value.numpy()
                axis = integer(node, "axis", 1) % array.ndim
                return (
                    points.reshape([-1 if place == axis else 1 for place in range(array.ndim)])
                    if points.size > 1
                    else points
                )
    return np.zeros((), array.dtype)


class _Editor:
    """Adds nodes to a network."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken = io.value_names(model)
        self._nodes = {str(node.name) for node in model.graph.all_nodes()}
        self._axes_are_inputs = model.opset_imports.get("", 0) >= 18

    def constant(self, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
        name = io.unused_name(self._taken, "mask_")
        array = array if dtype is None else array.astype(dtype.numpy())
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.model.graph.register_initializer(value)
        return value

    def add(self, before: ir.Node, op_type: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        name = io.unused_name(self._nodes, f"mask_{op_type}_")
        node = ir.node(op_type, inputs, attributes or None, name=name)
        node.outputs[0].name = io.unused_name(self._taken, f"{name}_output")
        self.model.graph.insert_before(before, node)
        return node.outputs[0]

    def after(self, node: ir.Node, op_type: str, operand: ir.Value) -> None:
        """Send a node's output through one more node before anybody reads it."""
        output = node.outputs[0]
        added = ir.node(op_type, [output, operand], name=io.unused_name(self._nodes, f"mask_{op_type}_"))
        result = added.outputs[0]
        result.name = io.unused_name(self._taken, f"{added.name}_output")
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        added.replace_input_with(0, output)
        if result in self.model.graph.outputs:
            output.name, result.name = f"{output.name}_unmasked", output.name
        self.model.graph.insert_after(node, added)

    def mean(self, before: ir.Node, value: ir.Value, axes: Sequence[int], ratio: ir.Value) -> ir.Value:
        """Average over the kept elements: the plain mean counts the silenced ones too."""
        if self._axes_are_inputs:
            listed = self.constant(np.array(axes, np.int64))
            found = self.add(before, "ReduceMean", value, listed, keepdims=1)
        else:
            found = self.add(before, "ReduceMean", value, axes=list(axes), keepdims=1)
        return self.add(before, "Mul", found, ratio)


@dataclass(frozen=True)
class _Kept:
    """Ones where elements are kept, and all elements by kept ones: what a mean over all has to be multiplied with."""

    silencer: ir.Value
    ratio: ir.Value


def _mask_sink(editor: _Editor, node: ir.Node, index: int, sinks: list[Sink], gone: Array) -> None:
    value = node.inputs[index]
    assert value is not None
    dtype = sinks[0].dtype
    factors = [_silencer(editor, node, sink, gone) for sink in sinks]
    # Layers of labels that share an axis are counted together, others on their own.
    ratio = 1.0
    for axis, loss in losses_by_axis([sink.labels for sink in sinks], gone).items():
        ratio /= 1.0 - float(np.moveaxis(loss, axis, -1).reshape(-1, loss.shape[axis])[0].mean())
    silencer = factors[0]
    for factor in factors[1:]:
        silencer = editor.add(node, "Mul", silencer, factor)
    if not any(sink.statistics for sink in sinks):
        node.replace_input_with(index, editor.add(node, "Mul", value, silencer))
        return
    replace = _STATISTICS.get(node.op_type)
    if replace is None:
        raise ModelUnsupportedError(f"{node.op_type} cannot be masked.", node=str(node.name))
    replace(editor, node, _Kept(silencer, editor.constant(np.array(ratio, np.float32), dtype)))


def _silencer(editor: _Editor, node: ir.Node, sink: Sink, gone: Array) -> ir.Value:
    """Give ones and zeros that broadcast against the input; through a reshape they take the way of the value itself."""
    value = node.inputs[sink.index]
    reshape = None if value is None else value.producer()
    if sink.before is None or reshape is None:
        return editor.constant((~gone[sink.labels.atoms]).astype(np.float32), sink.dtype)
    source, target = reshape.inputs[:2]
    assert source is not None
    assert target is not None
    kept = editor.constant((~gone[sink.before.atoms]).astype(np.float32), sink.dtype)
    whole = editor.add(node, "Expand", kept, editor.add(node, "Shape", source))
    return editor.add(node, "Reshape", whole, target)


def _reduce_mean(editor: _Editor, node: ir.Node, kept: _Kept) -> None:
    value = node.inputs[0]
    assert value is not None
    node.replace_input_with(0, editor.add(node, "Mul", value, kept.silencer))
    editor.after(node, "Mul", kept.ratio)


def _layer_norm(editor: _Editor, node: ir.Node, kept: _Kept) -> None:
    centred = "RMS" not in node.op_type and "Simplified" not in node.op_type
    values = [value for value in node.inputs if value is not None]
    source, vectors = values[0], values[1:]
    if node.op_type.startswith("Skip"):
        count = 2 if centred else 1
        source = editor.add(node, "Add", source, values[1])
        for bias in values[2 + count :]:
            source = editor.add(node, "Add", source, bias)
        vectors = values[2 : 2 + count]
        if len(node.outputs) > 3 and node.outputs[3].uses():
            node.outputs[3].replace_all_uses_with(source)
    rank = _rank(kept.silencer)
    axis = integer(node, "axis", -1) % rank if not node.op_type.startswith("Skip") else rank - 1
    axes = range(axis, rank)
    result = _standardised(editor, node, source, kept, axes, centred=centred)
    _replace(editor, node, _affine(editor, node, result, vectors))


def _rank(silencer: ir.Value) -> int:
    """Give the rank of a mask: a constant, a product of constants, or one reshaped to a written target."""
    while silencer.const_value is None:
        producer = silencer.producer()
        assert producer is not None
        follow = producer.inputs[1 if producer.op_type == "Reshape" else 0]
        assert follow is not None
        if producer.op_type == "Reshape" and follow.const_value is not None:
            return int(follow.const_value.size)
        silencer = follow
    return len(silencer.const_value.shape)


def _standardised(
    editor: _Editor,
    node: ir.Node,
    source: ir.Value,
    kept: _Kept,
    axes: Iterable[int],
    *,
    centred: bool = True,
) -> ir.Value:
    listed = list(axes)
    value = editor.add(node, "Mul", source, kept.silencer)
    if centred:
        difference = editor.add(node, "Sub", value, editor.mean(node, value, listed, kept.ratio))
        value = editor.add(node, "Mul", difference, kept.silencer)
    square = editor.add(node, "Mul", value, value)
    dtype = ir.DataType.FLOAT if kept.ratio.dtype is None else kept.ratio.dtype
    # The contrib Skip forms default to 1e-12, everything else to 1e-5.
    default = 1e-12 if node.op_type.startswith("Skip") else 1e-5
    epsilon = editor.constant(np.array(number(node, "epsilon", default), np.float32), dtype)
    deviation = editor.add(
        node, "Sqrt", editor.add(node, "Add", editor.mean(node, square, listed, kept.ratio), epsilon)
    )
    return editor.add(node, "Div", value, deviation)


def _affine(editor: _Editor, node: ir.Node, value: ir.Value, vectors: Sequence[ir.Value]) -> ir.Value:
    result = editor.add(node, "Mul", value, vectors[0])
    return editor.add(node, "Add", result, vectors[1]) if len(vectors) > 1 else result


def _replace(editor: _Editor, node: ir.Node, result: ir.Value) -> None:
    output = node.outputs[0]
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    if result in editor.model.graph.outputs:
        output.name, result.name = f"{output.name}_unmasked", output.name
    editor.model.graph.remove(node, safe=True)


def _instance_norm(editor: _Editor, node: ir.Node, kept: _Kept) -> None:
    source, *vectors = [value for value in node.inputs if value is not None]
    rank = _rank(kept.silencer)
    result = _standardised(editor, node, source, kept, range(2, rank))
    spread = editor.constant(np.array([1, -1, *[1] * (rank - 2)], np.int64))
    _replace(
        editor, node, _affine(editor, node, result, [editor.add(node, "Reshape", each, spread) for each in vectors])
    )


def _group_norm(editor: _Editor, node: ir.Node, kept: _Kept) -> None:
    """Statistics by group: the same as over the last axis of batch x groups x rest."""
    source, *vectors = [value for value in node.inputs if value is not None]
    groups = integer(node, "num_groups", 1)
    rank = _rank(kept.silencer)
    shape = editor.add(node, "Shape", source)
    lines = editor.constant(np.array([0, groups, -1], np.int64))
    ones = editor.add(
        node,
        "Add",
        editor.add(node, "Mul", source, editor.constant(np.zeros((), np.float32), kept.ratio.dtype)),
        kept.silencer,
    )
    grouped = _Kept(editor.add(node, "Reshape", ones, lines), kept.ratio)
    result = _standardised(editor, node, editor.add(node, "Reshape", source, lines), grouped, [2])
    result = editor.add(node, "Reshape", result, shape)
    channels = max(int(vector.const_value.size) for vector in vectors if vector.const_value is not None)
    spread = editor.constant(np.array([1, -1, *[1] * (rank - 2)], np.int64))
    affine = []
    for vector in vectors:
        size = int(vector.const_value.size) if vector.const_value is not None else channels
        if size == groups != channels:
            column = editor.add(node, "Reshape", vector, editor.constant(np.array([groups, 1], np.int64)))
            wide = editor.add(node, "Expand", column, editor.constant(np.array([groups, channels // groups], np.int64)))
            affine.append(editor.add(node, "Reshape", wide, spread))
        else:
            affine.append(editor.add(node, "Reshape", vector, spread))
    _replace(editor, node, _affine(editor, node, result, affine))


_STATISTICS: dict[str, Callable[[_Editor, ir.Node, _Kept], None]] = {
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "ReduceMean": _reduce_mean,
    "SimplifiedLayerNormalization": _layer_norm,
    "SkipLayerNormalization": _layer_norm,
    "SkipSimplifiedLayerNormalization": _layer_norm,
}
