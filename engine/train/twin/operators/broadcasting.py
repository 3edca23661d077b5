"""The broadcasting of old operator sets, by attributes; new ones broadcast as PyTorch does."""

from engine.train.framework import Tensor
from engine.train.twin.node import Node


def aligned(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Give the right operand its place: before operator set 7, `axis` said at which axis of the left one it starts."""
    if node.version >= 7 or not node.integer("broadcast", 0) or "axis" not in node.attributes or not right.dim():
        return right
    behind = left.dim() - node.integer("axis", 0) % left.dim() - right.dim()
    return right.reshape(*right.shape, *[1] * behind)
