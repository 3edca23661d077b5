"""Nodes that onnxruntime runs for the twin, one by one: values go on from there, gradients end there."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from engine.graph import dtypes
from engine.runtime import sessions
from engine.target import Target
from engine.train.framework import Tensor
from engine.train.twin.node import Node
from engine.train.twin.tensors import from_numpy, holds, to_numpy, torch_type

# What stands for a value: a tensor, or a sequence or text as onnxruntime gives it.
Value = Any


class OnnxRuntimeNodes:
    """Sessions of single nodes.

    Args:
        model: the network that has them, without functions.
        names: those of its main graph that are run here, by name or first output.
        target: what they run on; of its provider only the CPU's is used.
        floating: the type that the twin holds 16-bit and 32-bit floats in.
    """

    def __init__(self, model: ir.Model, names: Collection[str], target: Target, floating: Any) -> None:
        self._model, self._target, self._floating = model, Target(threads=target.threads), floating
        self._nodes = {name: node for node in model.graph if (name := _name(node)) in names}
        types, _ = dtypes.infer(model)
        self._types = {str(value.name): kind for value, kind in types.items()}
        self._sessions: dict[str, sessions.Session] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def run(self, node: Node, values: Mapping[str, Value], device: Any) -> tuple[Value, ...]:
        """Give the outputs of a node for values by name; those that are tensors on the device, without gradient."""
        feed = {name: self._array(name, values[name]) for name in node.reads}
        session = self._sessions.get(node.name)
        if session is None:
            session = self._sessions[node.name] = self._open(node, feed)
        found = session.run(feed)
        return tuple(self._tensor(found[name], device) if name else None for name in node.outputs)

    def _array(self, name: str, value: Value) -> Value:
        if not isinstance(value, Tensor):
            return value
        kind = self._types.get(name)
        array = to_numpy(value)
        return array if kind is None else array.astype(kind.numpy())

    def _tensor(self, value: Value, device: Any) -> Value:
        if not isinstance(value, np.ndarray):
            return value
        try:
            kind = ir.DataType.from_numpy(value.dtype)
        except TypeError:
            return value
        return from_numpy(value, torch_type(kind, self._floating)).to(device) if holds(kind) else value

    def _open(self, node: Node, feed: Mapping[str, Value]) -> sessions.Session:
        graph = onnx.GraphProto(name="node")
        graph.node.append(ir.to_proto(self._nodes[node.name]))
        graph.input.extend(helper.make_value_info(name, _type_of(value)) for name, value in feed.items())
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.outputs if name)
        imports = [helper.make_opsetid(domain, version) for domain, version in self._model.opset_imports.items()]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=self._model.ir_version)
        return sessions.session(proto.SerializeToString(), self._target)


def _name(node: ir.Node) -> str:
    return node.name or next((str(value.name) for value in node.outputs), "")


def _type_of(value: Value) -> onnx.TypeProto:
    if isinstance(value, Sequence):
        return helper.make_sequence_type_proto(
            _type_of(value[0]) if len(value) else _tensor_type(np.zeros(0, np.float32))
        )
    return _tensor_type(value)


def _tensor_type(array: Any) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
