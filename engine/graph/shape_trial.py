"""Shapes that onnx has no rule for, found out by running the one operator on zeros."""

from collections.abc import Callable
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from engine.errors import EngineError
from engine.runtime import sessions
from engine.target import Target

Shape = tuple[int, ...]

# Domains of which onnx knows few shapes.
_TRIED = frozenset({"ai.onnx.ml", "com.microsoft"})
# What gives another shape for other data, makes something of zeros that no real data ask of it, or holds packed weights.
_NOT_TRIED = (
    "Attention", "Search", "Sampling", "Tokenizer", "Unique", "NonMaxSuppression", "CropAndResize", "DictVectorizer",
    "MoE", "NBits", "Quant", "QLinear", "Integer",
)  # fmt: skip
_MOST_BYTES = 1 << 26


def shapes_by_running(
    model: ir.Model, node: ir.Node, shape_of: Callable[[ir.Value], tuple[int, Shape] | None]
) -> dict[str, tuple[int, Shape]]:
    """Give element type and shape of each output of a node; empty where it is not of the kind that is tried, or fails.

    `shape_of` gives the element type and the shape of an input, None where either is not known.
    """
    if node.domain not in _TRIED or any(part in node.op_type for part in _NOT_TRIED) or _has_body(node):
        return {}
    inputs = [value for value in node.inputs if value is not None and value.name]
    known = {str(value.name): (value, shape_of(value)) for value in inputs}
    arrays = {name: _array(value, found) for name, (value, found) in known.items()}
    if any(array is None for array in arrays.values()):
        return {}
    try:
        given = sessions.session(_alone(model, node, arrays), Target(), optimise=False).run(
            {name: array for name, array in arrays.items() if array is not None}
        )
    except EngineError:
        return {}
    return {
        name: (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
    }


def _has_body(node: ir.Node) -> bool:
    return any(each.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for each in node.attributes.values())


def _array(value: ir.Value, found: tuple[int, Shape] | None) -> np.ndarray | None:
    """Give a weight itself, of anything else zeros of its shape."""
    if found is None or prod(found[1]) * 8 > _MOST_BYTES:
        return None
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy()
    dtype = helper.tensor_dtype_to_np_dtype(found[0])
    return np.zeros(found[1], dtype) if dtype.kind in "fiub" else None


def _alone(model: ir.Model, node: ir.Node, arrays: dict[str, np.ndarray | None]) -> bytes:
    """Write a network of the one node."""
    graph = onnx.GraphProto(name="trial")
    graph.node.append(ir.to_proto(node))
    for name, array in arrays.items():
        assert array is not None
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    graph.output.extend(onnx.ValueInfoProto(name=str(value.name)) for value in node.outputs if value.name)
    imports = [helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    serialized: bytes = helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version).SerializeToString()
    return serialized
