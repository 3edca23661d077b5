"""What a file may say in several ways is said in one: open sizes, weights that are constants, nodes that are told apart."""

import onnx_ir as ir

from engine.graph.names import tell_apart
from engine.graph.sizes import OPEN_SIZE

# Another name of the standard domain, which is the empty one.
_STANDARD = "ai.onnx"
# From here on weights need not be listed among the inputs.
_CONSTANTS_IR = 4


def normalise(model: ir.Model) -> None:
    """Bring a network that was just read into this form, in place; it gives the same numbers as before."""
    for value in (*model.graph.inputs, *model.graph.outputs, *(out for node in model.graph for out in node.outputs)):
        _open_sizes(value)
    _make_weights_constant(model)
    if (version := model.opset_imports.pop(_STANDARD, None)) is not None:
        model.opset_imports.setdefault("", version)
    if not all(map(_is_sorted, model.graphs())):
        model.graph.sort()
    tell_apart(model.graph.all_nodes())


def _is_sorted(graph: ir.Graph) -> bool:
    made: set[ir.Node] = set()
    for node in graph:
        makers = (value.producer() for value in node.inputs if value is not None)
        if any(maker is not None and maker.graph is graph and maker not in made for maker in makers):
            return False
        made.add(node)
    return True


def _open_sizes(value: ir.Value) -> None:
    """Write an open size as such where an exporter wrote -1."""
    if value.shape is not None and OPEN_SIZE in value.shape.dims:
        value.shape = ir.Shape([None if size == OPEN_SIZE else size for size in value.shape.dims])


def _make_weights_constant(model: ir.Model) -> None:
    """Take initializers out of the inputs: old exporters had to list them there, and nothing is known of what may change."""
    kept = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    if len(kept) == len(model.graph.inputs):
        return
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    model.ir_version = max(model.ir_version, _CONSTANTS_IR)
