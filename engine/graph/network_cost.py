"""What one sample costs a network by its shapes alone: arithmetic and memory. Nothing is run."""

from pathlib import Path

import onnx
import onnx_ir as ir

from engine.errors import EngineError
from engine.graph import io, macs, sizes
from engine.graph.activations import most_alive
from engine.inspection import NetworkCost

# What shape arithmetic on a network that nobody has tried may raise: the estimate is then left out, the network is not.
_SHAPES_FAIL = (
    EngineError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    ir.serde.SerdeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
)  # fmt: skip


def network_cost(path: Path) -> NetworkCost | None:
    """Give the cost of one sample, open sizes replaced by stand-ins; None where shapes do not tell it."""
    try:
        model = io.load(path)
        for number, node in enumerate(model.graph):
            node.name = f"node_{number}"
        found = sizes.of_feed(model, {}, run=False)
        alive = most_alive(model, found)
        work = sum(macs.by_node(model, found).values())
    except _SHAPES_FAIL:
        return None
    if alive is None:
        return None
    shapes = [found.shape(value) for value in model.graph.inputs if not value.is_initializer()]
    return NetworkCost(macs=work, live_bytes=alive, input_elements=sum(sizes.elements(shape) for shape in shapes))
