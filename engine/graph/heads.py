"""The layers that make a network's outputs, such as the one of a language model that scores all of its tokens."""

import onnx_ir as ir

from engine.graph.linear import LinearLayer, read

# What may stand between such a layer and the output: it moves numbers, scales them, or squeezes each for itself.
_BEHIND = frozenset(
    {
        "Add", "Cast", "Div", "Flatten", "Gather", "Identity", "LogSoftmax", "Mul", "Reshape", "Sigmoid", "Slice", "Softmax",
        "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def heads(model: ir.Model) -> frozenset[ir.Node]:
    """Find the linear layers from which nothing but moving, scaling and squeezing leads to an output of the network."""
    found: set[ir.Node] = set()
    for output in model.graph.outputs:
        node = output.producer()
        while node is not None:
            if isinstance(read(node), LinearLayer):
                found.add(node)
                break
            node = _before(node)
    return frozenset(found)


def _before(node: ir.Node) -> ir.Node | None:
    """Give the node behind the only operand that is not constant."""
    if node.op_type not in _BEHIND:
        return None
    varying = [value for value in node.inputs if value is not None and value.const_value is None]
    return varying[0].producer() if len(varying) == 1 else None
