"""Activations."""

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator


@operator("Relu")
def relu(_: Node, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)
