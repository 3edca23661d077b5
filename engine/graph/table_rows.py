"""How many rows the tables have that the inputs' whole numbers are looked up in: what a tokenizer may give at most."""

from collections.abc import Mapping

from onnx import GraphProto, NodeProto

# By kind: where the table and the numbers are, and the attribute with the axis.
_LOOKUPS = {"Gather": "axis", "GatherBlockQuantized": "gather_axis"}
_MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def table_rows(graph: GraphProto) -> Mapping[str, int]:
    """Give for each input that is looked up as it is the rows of its smallest table."""
    stored = {tensor.name: tensor.dims for tensor in graph.initializer}
    inputs = {value.name for value in graph.input} - stored.keys()
    makers = {node.output[0]: node for node in graph.node if node.op_type in _MOVES and node.output}
    found: dict[str, int] = {}
    for node in graph.node:
        dims = stored.get(node.input[0]) if node.op_type in _LOOKUPS and len(node.input) > 1 else None
        if not dims or _axis(node) != 0:
            continue
        name = node.input[1]
        while name in makers:
            name = makers[name].input[0]
        if name in inputs:
            found[name] = min(found.get(name, dims[0]), dims[0])
    return found


def _axis(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == _LOOKUPS[node.op_type]), 0)
