"""Which initializers of a network are weights, and how trained values get back into it."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from engine.errors import SpecInvalidError
from engine.graph import io
from engine.train.framework import Tensor
from engine.train.twin.node import Graph, Node
from engine.train.twin.table import OPERATORS
from engine.train.twin.tensors import to_numpy

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
# What masks add to logits is far beyond what any weight is.
_MASK = 1e4


def trainable(model: ir.Model, graph: Graph, chosen: Collection[str] | None = None) -> list[str]:
    """Name the initializers to train: the chosen ones, or all that are weights.

    Weights are floats of more than one element that a node computes with. Single numbers are taken for constants of the
    arithmetic (an epsilon, a temperature), what is infinite or beyond 10,000 for a mask.

    Raises:
        SpecInvalidError: a chosen name is no float initializer of the network.
    """
    found = {str(value.name): value for _, value in io.initializers(model) if _is_float(value)}
    if chosen is not None:
        unknown = sorted(set(chosen) - set(found))
        if unknown:
            raise SpecInvalidError(f"The network has no float initializer {', '.join(unknown[:5])}.")
        return [name for name in found if name in set(chosen)]
    computed = computed_with(graph)
    return [name for name, value in found.items() if name in computed and _is_weight(value)]


def write_back(model: ir.Model, values: Mapping[str, Tensor]) -> None:
    """Put values into a network's initializers by name, each in the type that it has there; nothing else changes.

    Raises:
        SpecInvalidError: the network lacks one of them, or has it in another shape.
    """
    places = {str(value.name): value for _, value in io.initializers(model)}
    for name, tensor in values.items():
        place = places.get(name)
        before = None if place is None else place.const_value
        if place is None or before is None or tuple(before.shape.numpy()) != tuple(tensor.shape):
            raise SpecInvalidError(f"The network has no initializer {name} of shape {tuple(tensor.shape)}.")
        array = to_numpy(tensor).astype(before.dtype.numpy())
        place.const_value = ir.Tensor(array, dtype=before.dtype, name=name)


def _is_float(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype in _FLOATS


def _is_weight(value: ir.Value) -> bool:
    assert value.const_value is not None
    if value.const_value.size <= 1:
        return False
    array = value.const_value.numpy().astype(np.float32)
    return bool(np.abs(array).max() < _MASK)  # also false of NaN


def computed_with(graph: Graph) -> set[str]:
    """Name the values that nodes compute with, and do not only read as numbers (bounds, scales of a resize)."""
    found: set[str] = set()
    for node in graph.nodes:
        host = _host(node)
        found.update(name for place, name in enumerate(node.inputs) if place not in host)
        for body in node.bodies.values():
            found |= computed_with(body)
    return found


def _host(node: Node) -> frozenset[int]:
    known = OPERATORS.get((node.domain, node.op_type))
    return frozenset() if known is None else known.host
