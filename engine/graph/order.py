"""What ONNX asks of a file and ONNX Runtime does by itself: nodes in an order in which they can be computed, one name of a domain."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from onnx import GraphProto, ModelProto, NodeProto

# Its name is the empty one; ONNX Runtime knows it by this one too.
_STANDARD = "ai.onnx"


def settle(model: ModelProto) -> tuple[str, ...]:
    """Sort the nodes and name the standard domain as onnx does, in place; say what was done, in words."""
    done = []
    if _name_standard(model):
        done.append("Operators are of the domain `ai.onnx`, which is read as the standard one.")
    if sort_nodes(model.graph):
        done.append("Operators do not stand in the order in which they are computed; they are sorted.")
    return tuple(done)


def _name_standard(model: ModelProto) -> bool:
    named = [entry for entry in model.opset_import if entry.domain == _STANDARD]
    # Where a function has this domain, it is that of somebody's own operators.
    if any(function.domain == _STANDARD for function in model.functions):
        return False
    nodes = [node for node in _all_nodes(model) if node.domain == _STANDARD]
    for each in (*named, *nodes):
        each.domain = ""
    for function in model.functions:
        for entry in function.opset_import:
            entry.domain = "" if entry.domain == _STANDARD else entry.domain
    return bool(named or nodes)


def _all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(inner for body in _bodies(node) for inner in body.node)


def sort_nodes(graph: GraphProto) -> bool:
    """Sort the nodes of a graph and of its bodies in place, as near to their order as can be; say whether any moved.

    A graph with a circle stays as it is.
    """
    bodies = [body for node in graph.node for body in _bodies(node)]
    moved = [sort_nodes(body) for body in bodies]
    order = _order(graph)
    if order == list(range(len(graph.node))):
        return any(moved)
    nodes = [NodeProto.FromString(graph.node[at].SerializeToString()) for at in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _order(graph: GraphProto) -> list[int]:
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    waits = [{makers[name] for name in _read(node) if name in makers} for node in graph.node]
    readers: list[list[int]] = [[] for _ in waits]
    for at, makes in enumerate(waits):
        for maker in makes:
            readers[maker].append(at)
    left = [len(makes) for makes in waits]
    ready = [at for at, count in enumerate(left) if not count]
    heapify(ready)
    order = []
    while ready:
        at = heappop(ready)
        order.append(at)
        for reader in readers[at]:
            left[reader] -= 1
            if not left[reader]:
                heappush(ready, reader)
    return order if len(order) == len(left) else list(range(len(left)))


def _read(node: NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those that its bodies take from around them included."""
    yield from node.input
    for body in _bodies(node):
        for inner in body.node:
            yield from _read(inner)
        yield from (value.name for value in body.output)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
