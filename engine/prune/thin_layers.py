"""Two or three thin layers in the place of one: how their weights are stored, and what they multiply out to."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import io
from engine.graph.linear import LinearLayer

Doubles = npt.NDArray[np.float64]

_PARTS = {2: ("down", "up"), 3: ("down", "core", "up")}


def product(layer: LinearLayer, parts: Sequence[Doubles]) -> Doubles:
    """Give the matrix (outputs, inputs) that thin layers come to, one after the other."""
    if len(parts) == 2:
        return parts[1] @ parts[0]
    down, core, up = parts
    inner = (up @ core).reshape(len(up), len(down), -1)
    return np.ascontiguousarray(np.einsum("orp,rc->ocp", inner, down)).reshape(layer.outputs, -1)


def write(model: ir.Model, layer: LinearLayer, parts: Sequence[npt.NDArray[Any]]) -> None:
    """Put thin layers, given as (outputs, inputs), in the place of one; the last has its bias, its name and its output."""
    node = layer.node
    taken = io.value_names(model)
    weights = [
        _register(model, taken, f"{layer.weight.name}_{part}", _stored(layer, array, number, len(parts)))
        for number, (part, array) in enumerate(zip(_PARTS[len(parts)], parts, strict=True))
    ]
    nodes: list[ir.Node] = []
    value = node.inputs[0]
    for number, weight in enumerate(weights):
        last = number == len(weights) - 1
        thin = ir.Node(
            node.domain,
            node.op_type,
            [value, weight, *(node.inputs[2:] if last else [])],
            _attributes(layer, number, len(weights)),
            name=node.name if last else f"{layer.name}_{_PARTS[len(weights)][number]}",
        )
        if not last:
            thin.outputs[0].name = io.unused_name(taken, f"{node.outputs[0].name}_thin_")
            thin.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        nodes.append(thin)
        value = thin.outputs[0]
    ir.convenience.replace_nodes_and_values(
        cast("ir.Graph", node.graph), node, [node], nodes, node.outputs, nodes[-1].outputs
    )
    if not layer.weight.uses():
        model.graph.initializers.pop(str(layer.weight.name))


def _stored(layer: LinearLayer, array: npt.NDArray[Any], number: int, count: int) -> npt.NDArray[Any]:
    """Give a thin layer's weights in the layout of its operator."""
    if layer.node.op_type == "MatMul":
        return array.T
    if layer.node.op_type == "Gemm":
        return array
    kernel = layer.shape[2:] if count == 3 and number == 1 else (1,) * len(layer.shape[2:])
    return array.reshape(len(array), -1, *kernel)


def _attributes(layer: LinearLayer, number: int, count: int) -> list[ir.Attr]:
    """A convolution moves where its kernel is: in the core of three, in the first of two. Gemm scales at the end."""
    node = layer.node
    if node.op_type == "Gemm":
        last = [attribute for name, attribute in node.attributes.items() if name in {"alpha", "beta"}]
        return [ir.AttrInt64("transB", 1), *(last if number == count - 1 else [])]
    if node.op_type == "Conv" and number == (1 if count == 3 else 0):
        return list(node.attributes.values())
    return []


def _register(model: ir.Model, taken: set[str], stem: str, array: npt.NDArray[Any]) -> ir.Value:
    name = stem if stem not in taken else io.unused_name(taken, f"{stem}_")
    taken.add(name)
    made = np.array(array, np.float32, order="C")
    value = ir.Value(
        name=name,
        const_value=ir.tensor(made, name=name),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(made.shape),
    )
    model.graph.register_initializer(value)
    return value
