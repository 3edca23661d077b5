"""Sizes of axes that are read from a tensor's shape in every run, although they are fixed."""

import numpy as np
import onnx_ir as ir

from engine.graph import io
from engine.graph.attributes import integer


def use_fixed_sizes(model: ir.Model) -> int:
    """Put a constant wherever a Gather takes fixed sizes out of a shape, in place; gives how many there were.

    Exporters pad as TensorFlow does, for instance, by reading height and width back from an input whose batch alone is open.
    """
    taken, found = io.value_names(model), 0
    for graph in model.graphs():
        for node in list(graph):
            sizes = _sizes(node)
            if sizes is None:
                continue
            name = io.unused_name(taken, "size")
            tensor = ir.tensor(sizes, name=name)
            value = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(sizes.shape)
            )
            graph.register_initializer(value)
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
            found += 1
    return found


def _sizes(node: ir.Node) -> np.ndarray | None:
    """Give what a Gather takes out of a shape, where that is fixed and no output of the network."""
    if node.op_type != "Gather" or node.domain or integer(node, "axis", 0) != 0 or node.outputs[0].is_graph_output():
        return None
    told, indices = node.inputs
    shape = None if told is None else told.producer()
    if shape is None or shape.op_type != "Shape" or shape.domain or shape.attributes:
        return None
    source = shape.inputs[0]
    if source is None or source.shape is None or indices is None or indices.const_value is None:
        return None
    positions, rank = indices.const_value.numpy(), len(source.shape)
    if not all(-rank <= position < rank for position in positions.flat):
        return None
    sizes = [source.shape[int(position)] for position in positions.flat]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return np.array(sizes, dtype=np.int64).reshape(positions.shape)
