"""Equal constants stored once: passes give each use of a weight its own copy, and a file needs none of them."""

import hashlib
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from engine.graph.derived import Opened, is_stored

# A smaller constant costs hardly more than its name does where it is read.
_SMALLEST_BYTES = 64


def merged(model: ir.Model) -> ir.Model:
    """Give the network with equal constants of a graph merged into the first of them: a copy, or itself if there are none.

    Whoever works on the network keeps its own copies. What a caller may replace, and what is an output, stays.
    """
    if not any(any(_equal(graph)) for graph in model.graphs()):
        return model
    copy = model.clone()
    for graph in copy.graphs():
        for first, *others in list(_equal(graph)):
            for other in others:
                other.replace_all_uses_with(first)
                graph.initializers.pop(str(other.name))
    return copy


def _equal(graph: ir.Graph) -> Iterator[list[ir.Value]]:
    """Yield sets of two or more constants that hold the same."""
    alike: dict[tuple[object, ...], list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output() or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.nbytes >= _SMALLEST_BYTES:
            alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    for values in alike.values():
        if len(values) > 1:
            yield from _same_content(values)


def _same_content(values: Iterable[ir.Value]) -> Iterator[list[ir.Value]]:
    found: dict[object, list[ir.Value]] = {}
    for value in values:
        assert value.const_value is not None
        found.setdefault(_content(value.const_value), []).append(value)
    yield from (same for same in found.values() if len(same) > 1)


def _content(tensor: ir.TensorProtocol) -> object:
    """Give what equal tensors have in common; what is made only while it is written equals itself alone."""
    if isinstance(tensor, ir.LazyTensor):
        return id(tensor)
    if is_stored(tensor):
        with Opened(tensor) as array:
            return hashlib.blake2b(array.tobytes()).digest()
    return hashlib.blake2b(tensor.tobytes()).digest()
