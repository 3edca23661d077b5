"""16-bit networks as networks of 32-bit floats: every 16-bit number is one, so methods that want float32 can have it.

Inputs and outputs keep their types, behind casts. What was computed in 16 bits is then computed in 32, which moves it by less
than its own rounding.
"""

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from engine.graph import dtypes, io
from engine.graph.derived import Derivation, Form, is_stored
from engine.graph.quantized import is_quantized

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_STATING = ("to", "dtype")
# Smaller weights are not worth a cast.
_SMALLEST = 1024


@dataclass
class Widened:
    """What was widened in a network. `weights`: by name the tensor that was made, and the 16-bit one that it is made of."""

    weights: dict[str, tuple[ir.TensorProtocol, ir.TensorProtocol]] = field(default_factory=dict)

    def narrow(self, model: ir.Model) -> int:
        """Store the weights in 16 bits again, in place, and widen them where they are read; give how many.

        What was left alone goes back as it was. What was changed is rounded to 16 bits, unless its numbers do not fit; what is
        new goes there only if every number is a 16-bit one.
        """
        kinds = {narrow.dtype for _, narrow in self.weights.values()}
        taken, done = io.value_names(model), 0
        for graph, value in list(io.initializers(model)):
            stored = self._stored(value, kinds)
            if stored is None:
                continue
            name = io.unused_name(taken, f"{value.name}_{stored.dtype.name.lower()}_")
            made = ir.Value(
                name=name,
                type=ir.TensorType(stored.dtype),
                shape=ir.Shape(stored.shape.numpy()),
                const_value=_renamed(stored, name),
            )
            graph.register_initializer(made)
            graph.initializers.pop(str(value.name))
            _read_through_cast(graph, value, made, taken)
            done += 1
        return done

    def _stored(self, value: ir.Value, kinds: set[ir.DataType]) -> ir.TensorProtocol | None:
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALLEST:
            return None
        if value.is_graph_output() or any(is_quantized(use.node.op_type) for use in value.uses()):
            return None
        made, narrow = self.weights.get(str(value.name), (None, None))
        if made is tensor:
            return narrow
        if is_stored(tensor):
            return None
        return _exactly(tensor, kinds) if narrow is None else _rounded(tensor, narrow.dtype)


def widen(model: ir.Model) -> Widened:
    """Let a network hold and compute in 32-bit floats where it has 16-bit ones, in place."""
    widened = Widened()
    if not _holds_halves(model):
        return widened
    if model.functions:
        passes.InlinePass()(model)
    taken, derivation = io.value_names(model), Derivation()
    _keep_boundary(model, taken)
    for graph in model.graphs():
        for value in graph.initializers.values():
            _widen_weight(value, derivation, widened)
        for value in () if graph is model.graph else graph.inputs:
            _retype(value)
        for node in list(graph):
            for output in node.outputs:
                _retype(output)
            _widen_attributes(node)
    _restate_boundary(model)
    _drop_idle_casts(model)
    return widened


def _holds_halves(model: ir.Model) -> bool:
    if any(value.dtype in HALVES for _, value in io.initializers(model)):
        return True
    return any(value.dtype in HALVES for value in (*model.graph.inputs, *model.graph.outputs))


def _keep_boundary(model: ir.Model, taken: set[str]) -> None:
    """Put a cast behind each 16-bit input and before each 16-bit output."""
    graph = model.graph
    for value in graph.inputs:
        if value.dtype in HALVES and value.uses():
            uses = list(value.uses())
            wide = _cast(value, ir.DataType.FLOAT, taken)
            graph.insert_before(graph[0], [wide])
            for node, index in uses:
                node.replace_input_with(index, wide.outputs[0])
    for position, value in enumerate(graph.outputs):
        if value.dtype in HALVES and value.producer() is not None:
            narrow = _cast(value, value.dtype, taken)
            output = narrow.outputs[0]
            output.name, value.name = value.name, io.unused_name(taken, f"{value.name}_wide_")
            graph.append(narrow)
            graph.outputs[position] = output


def _cast(value: ir.Value, kind: ir.DataType, taken: set[str]) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(kind))], num_outputs=1)
    node.outputs[0].name = node.name = io.unused_name(taken, f"{value.name}_{kind.name.lower()}_")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind), value.shape
    node.metadata_props[_BOUNDARY] = ""
    return node


# Marks casts that stay as they are, until the network is written.
_BOUNDARY = "onnxpress.boundary"


def _restate_boundary(model: ir.Model) -> None:
    for node in model.graph:
        if _BOUNDARY in node.metadata_props:
            node.outputs[0].type = ir.TensorType(ir.DataType(node.attributes["to"].as_int()))


def _widen_weight(value: ir.Value, derivation: Derivation, widened: Widened) -> None:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in HALVES:
        return
    form = Form(str(value.name), ir.DataType.FLOAT, tuple(int(size) for size in tensor.shape.numpy()))
    (made,) = derivation.make(tensor, lambda array: [array.astype(np.float32)], [form])
    value.const_value, value.type = made, ir.TensorType(ir.DataType.FLOAT)
    widened.weights[str(value.name)] = (made, tensor)


def _retype(value: ir.Value) -> None:
    if value.dtype in HALVES:
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    """Let attributes state 32 bits where they stated 16, and hold such numbers."""
    if _BOUNDARY in node.metadata_props:
        return
    for name in _STATING:
        if name in node.attributes and node.attributes[name].as_int() in {int(kind) for kind in HALVES}:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    held = node.attributes.get("value")
    if held is not None and held.type == ir.AttributeType.TENSOR and held.as_tensor().dtype in HALVES:
        tensor = held.as_tensor()
        node.attributes["value"] = ir.AttrTensor(
            "value", ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
        )


def _drop_idle_casts(model: ir.Model) -> None:
    """Read past casts of 32-bit floats to 32-bit floats: weights would not be seen behind them."""
    types, _ = dtypes.infer(model)
    for graph in model.graphs():
        for node in list(graph):
            source = node.inputs[0] if node.op_type == "Cast" else None
            if source is None or {types.get(source), node.attributes["to"].as_int()} != {ir.DataType.FLOAT}:
                continue
            output = node.outputs[0]
            if not output.is_graph_output():
                output.replace_all_uses_with(source)
                graph.remove(node, safe=True)


def _exactly(tensor: ir.TensorProtocol, kinds: set[ir.DataType]) -> ir.TensorProtocol | None:
    """Give a tensor in 16 bits, where none of its numbers changes by that."""
    array = tensor.numpy()
    for kind in kinds:
        with np.errstate(over="ignore"):
            narrow = array.astype(kind.numpy())
        if np.array_equal(narrow.astype(np.float32), array):
            return ir.Tensor(narrow, kind, name=tensor.name)
    return None


def _rounded(tensor: ir.TensorProtocol, kind: ir.DataType) -> ir.TensorProtocol | None:
    """Give a tensor in 16 bits, where none of its numbers is too large for them."""
    array = tensor.numpy()
    with np.errstate(over="ignore"):
        narrow = array.astype(kind.numpy())
    same = np.array_equal(np.isfinite(narrow.astype(np.float32)), np.isfinite(array))
    return ir.Tensor(narrow, kind, name=tensor.name) if same else None


def _renamed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Give a tensor under another name, without reading it where it is stored."""
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=name,
            base_dir=tensor.base_dir,
        )
    return ir.Tensor(tensor.numpy(), tensor.dtype, name=name)


def _read_through_cast(graph: ir.Graph, value: ir.Value, stored: ir.Value, taken: set[str]) -> None:
    """Widen for every reader: rows of a table after they were picked, all else before."""
    for node, index in tuple(value.uses()):
        if node.op_type == "Gather" and index == 0 and node.domain in {"", "ai.onnx"}:
            output = node.outputs[0]
            picked = ir.Node("", "Gather", [stored, node.inputs[1]], node.attributes.values(), name=node.name)
            picked.outputs[0].name = io.unused_name(taken, f"{output.name}_narrow_")
            wide = _plain_cast(picked.outputs[0], taken)
            ir.convenience.replace_nodes_and_values(
                cast("ir.Graph", node.graph), node, [node], [picked, wide], [output], wide.outputs
            )
    uses = tuple(value.uses())
    if uses:
        wide = _plain_cast(stored, taken)
        graph.insert_before(graph[0], [wide])
        for node, index in uses:
            node.replace_input_with(index, wide.outputs[0])


def _plain_cast(value: ir.Value, taken: set[str]) -> ir.Node:
    node = _cast(value, ir.DataType.FLOAT, taken)
    node.metadata_props.clear()
    return node
