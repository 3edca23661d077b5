"""Give every use of a weight its own initializer, so that a change for one layer cannot corrupt another."""

import onnx_ir as ir

from engine.graph import io


def unshare(model: ir.Model, consumers: frozenset[str] = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})) -> int:
    """Copy in place each initializer that several inputs of `consumers` read; give how many copies were made.

    Exporters share weights between layers, also through Identity. Only names multiply: equal tensors stay one object until
    somebody replaces one.
    """
    bypass_identities(model)
    taken = io.value_names(model)
    copies = 0
    for graph, value in list(io.initializers(model)):
        uses = [use for use in value.uses() if use.node.op_type in consumers]
        if value.is_graph_output() or len(value.uses()) <= 1 or not uses:
            continue
        kept = len(uses) == len(value.uses())
        for node, index in uses[1:] if kept else uses:
            twin = ir.Value(
                name=io.unused_name(taken, f"{value.name}_"),
                type=value.type,
                shape=value.shape,
                const_value=value.const_value,
            )
            twin.meta.update(value.meta)
            graph.register_initializer(twin)
            node.replace_input_with(index, twin)
            copies += 1
    return copies


def bypass_identities(model: ir.Model) -> None:
    """Let consumers of an Identity of an initializer read the initializer itself."""
    for graph in model.graphs():
        for node in list(graph):
            source = node.inputs[0] if node.op_type == "Identity" else None
            if source is None or not source.is_initializer() or source.is_graph_input():
                continue
            output = node.outputs[0]
            if output.is_graph_output():
                continue
            output.replace_all_uses_with(source)
            graph.remove(node, safe=True)
