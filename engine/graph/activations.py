"""What one sample costs in memory while a network runs, and so how many samples may run at once."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from engine.contract import RUN_BYTES, Samples
from engine.data.batches import sample_bytes
from engine.errors import EngineError, ModelUnsupportedError
from engine.graph import io, sizes
from engine.graph.sizes import Sizes
from engine.runtime import tracing
from engine.target import Target

# Shapes of fewer nodes say too little of the whole.
_LEAST_KNOWN = 0.8
# Of a word, however long: what ONNX Runtime holds of it beside its letters.
_STRING_BYTES = 32
# Outputs of these are the input's bytes under another shape.
_SAME_BYTES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def affordable_batch(
    model: ir.Model, samples: Samples, most: int, *, budget: int = RUN_BYTES, target: Target | None = None
) -> int:
    """Give how many samples to run at once: at most `most`, and at least one.

    The tensors that are alive at the same time in one run stay within `budget` bytes. What a runtime takes is about three
    times as much: its arena grows in powers of two, and kernels lay their input out anew. Where shapes do not tell what a
    sample costs, it is run once on `target` to see.
    """
    feed = next(iter(samples.batches(1)), None)
    if feed is None:
        return 1
    cost = live_bytes(model, feed)
    if cost is None:
        cost = 0 if target is None else _run_bytes(model, feed, target)
    return max(1, min(most, budget // max(cost, sample_bytes(feed), 1)))


def live_bytes(model: ir.Model, feed: Mapping[str, np.ndarray]) -> int | None:
    """Give the most bytes of activations that are alive at the same time in a run on this feed; None: shapes are unknown.

    A tensor lives from the node that makes it to the last one that reads it; a network's inputs and outputs live throughout.
    """
    try:
        return most_alive(model, sizes.of_feed(model, {name: array.shape for name, array in feed.items()}))
    except ModelUnsupportedError:
        return None


def most_alive(model: ir.Model, found: Sizes) -> int | None:
    """Give the same by shapes that are known already."""
    nodes = list(model.graph)
    known = sum(all(found.shape(value) is not None for value in node.outputs if value.name) for node in nodes)
    if known < _LEAST_KNOWN * len(nodes):
        return None
    return max(_alive(model, nodes, found), default=0)


def _run_bytes(model: ir.Model, feed: Mapping[str, np.ndarray], target: Target) -> int:
    """Give twice the bytes that the costliest node reads and writes in a run: what else is alive, it does not tell."""
    if io.weight_bytes(model) >= io.SINGLE_FILE_BYTES:
        return 0
    try:
        runs = tracing.profile(io.to_bytes(model), target, [feed])
    except EngineError:
        # Whoever runs it next says why.
        return 0
    return 2 * max((node.bytes for run in runs for node in run), default=0)


def _alive(model: ir.Model, nodes: list[ir.Node], found: Sizes) -> Iterator[int]:
    """Yield the bytes that are alive while each node runs."""
    place = {node: number for number, node in enumerate(nodes)}
    # The bytes of a tensor under another shape are its own. What a body reads may be read until the network ends.
    last: dict[ir.Value, int] = {}
    for number, node in reversed(list(enumerate(nodes))):
        for value in node.outputs:
            reads = [place.get(use.node, len(nodes)) for use in value.uses()]
            reads += [last.get(use.node.outputs[0], 0) for use in value.uses() if use.node.op_type in _SAME_BYTES]
            last[value] = len(nodes) if value.is_graph_output() else max(reads, default=number)
    ends: dict[int, int] = {}
    alive = sum(_bytes(value, found) for value in model.graph.inputs if not value.is_initializer())
    for number, node in enumerate(nodes):
        made = 0 if node.op_type in _SAME_BYTES else 1
        for value in node.outputs:
            size = made * _bytes(value, found)
            alive += size
            ends[last[value]] = ends.get(last[value], 0) + size
        yield alive
        alive -= ends.pop(number, 0)


def _bytes(value: ir.Value, found: Sizes) -> int:
    shape = found.shape(value)
    kind = found.types.get(str(value.name))
    if shape is None or kind is None:
        return 0
    item = _STRING_BYTES if kind == ir.DataType.STRING else ir.DataType(kind).itemsize
    return math.ceil(math.prod(shape) * item)
