"""Means over all spatial axes as GlobalAveragePool: the same numbers, but an operator that kernels know in every layout."""

import onnx
import onnx_ir as ir

from engine.graph import io


def use_global_average_pool(model: ir.Model) -> ir.Model:
    """Give the network with ReduceMean over axes 2 and up written as GlobalAveragePool, and Flatten where axes were dropped."""
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    taken = io.value_names(inferred)
    for graph in inferred.graphs():
        for node in list(graph):
            if node.op_type == "ReduceMean" and node.domain in {"", "ai.onnx"} and _is_spatial(node):
                _rewrite(graph, node, taken)
    return inferred


def _is_spatial(node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None or len(source.shape) < 3:
        return False
    rank = len(source.shape)
    return sorted(axis % rank for axis in _axes(node)) == list(range(2, rank))


def _axes(node: ir.Node) -> list[int]:
    """Give the axes: an attribute before opset 18, an input since."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    value = node.inputs[1] if len(node.inputs) > 1 else None
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return [] if constant is None else [int(axis) for axis in constant.numpy().reshape(-1)]


def _rewrite(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    keep = node.attributes.get("keepdims")
    output = node.outputs[0]
    pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
    added = [pool]
    if keep is not None and keep.as_int() == 0:
        added.append(ir.node("Flatten", [pool.outputs[0]]))
        pool.outputs[0].name = io.unused_name(taken, "pool")
    last = added[-1].outputs[0]
    last.type, last.shape = output.type, output.shape
    ir.convenience.replace_all_uses_with(output, last, replace_graph_outputs=True)
    last.name, output.name = output.name, io.unused_name(taken, "was")
    graph.insert_before(node, added)
    graph.remove(node, safe=True)
