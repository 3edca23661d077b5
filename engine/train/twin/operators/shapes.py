"""Shapes, and what changes them."""

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator


@operator("Reshape", host=(1,))
def reshape(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Another shape: -1 stands for the rest, 0 for the size that is there (unless `allowzero`)."""
    sizes = node.integers("shape") if shape is None else shape.tolist()
    assert sizes is not None
    if not node.integer("allowzero", 0):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Constant")
def constant(node: Node) -> Tensor:
    """The value of the attribute that is there."""
    found = node.tensor("value")
    if found is not None:
        return found
    for name, kind in (("value_float", node.floating), ("value_floats", node.floating)):
        if name in node.attributes:
            return torch.tensor(node.attributes[name], dtype=kind)
    for name in ("value_int", "value_ints"):
        if name in node.attributes:
            return torch.tensor(node.attributes[name], dtype=torch.int64)
    raise ValueError("its value is of no type that can be trained through")
