"""What a network computes, as one digest: two that differ only in names, order or form of storage have the same."""

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir


def content_digest(model: ir.Model) -> str:
    """Give the sha256 of operators, attributes, wiring and weights, seen from the outputs; what reaches none does not count.

    Inputs and outputs of the network count by name, because callers know them by it.
    """
    functions = "".join(sorted(str(key) for key in model.functions))
    opsets = str(sorted(model.opset_imports.items()))
    return _hash("network", opsets, functions, _graph(model.graph, {}, by_name=True))


def _graph(graph: ir.Graph, outer: Mapping[ir.Value, str], *, by_name: bool) -> str:
    known = dict(outer)
    for place, value in enumerate(graph.inputs):
        # Those of a body go by their place.
        known[value] = _hash("input", str(value.name)) if by_name else _hash("input of a body", str(place))
    for value in graph.initializers.values():
        # One that callers may replace is told apart by its name too.
        known[value] = _hash("weights", _tensor(value.const_value), known.get(value, ""))
    for node in graph:
        made = _node(node, known)
        for index, value in enumerate(node.outputs):
            known[value] = _hash(made, str(index))
    return _hash(*(_hash(str(value.name) if by_name else "", known[value]) for value in graph.outputs))


def _node(node: ir.Node, known: Mapping[ir.Value, str]) -> str:
    attributes = [_hash(name, _attribute(node.attributes[name], known)) for name in sorted(node.attributes)]
    inputs = ["" if value is None else known[value] for value in node.inputs]
    return _hash(node.domain, node.op_type, node.overload, *attributes, "inputs", *inputs)


def _attribute(attribute: ir.Attr, known: Mapping[ir.Value, str]) -> str:
    if attribute.type == ir.AttributeType.GRAPH:
        return _graph(attribute.as_graph(), known, by_name=False)
    if attribute.type == ir.AttributeType.GRAPHS:
        return _hash(*(_graph(graph, known, by_name=False) for graph in attribute.as_graphs()))
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor(attribute.as_tensor())
    return _hash(str(attribute.type), str(attribute.ref_attr_name), repr(attribute.value))


def _tensor(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None:
        return ""
    if tensor.dtype == ir.DataType.STRING:
        return _hash(str(tensor.dtype), str(tuple(tensor.shape.numpy())), repr(np.asarray(tensor.numpy()).tolist()))
    return _hash(str(tensor.dtype), str(tuple(tensor.shape.numpy())), hashlib.sha256(tensor.tobytes()).hexdigest())


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
