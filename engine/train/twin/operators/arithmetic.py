"""Arithmetic, element by element."""

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator


@operator("Add")
def add(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Sum with broadcasting."""
    return left + _aligned(node, left, right)


@operator("Sub")
def subtract(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Difference with broadcasting."""
    return left - _aligned(node, left, right)


@operator("Mul")
def multiply(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Product with broadcasting."""
    return left * _aligned(node, left, right)


@operator("Div")
def divide(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Quotient with broadcasting; integers are cut towards zero, as in C."""
    right = _aligned(node, left, right)
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _aligned(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Give the right operand its place: before operator set 7 an attribute said at which axis of the left one it starts."""
    if node.version >= 7 or not node.integer("broadcast", 0):
        return right
    axis = node.integer("axis", left.dim() - right.dim())
    return right.reshape(*right.shape, *[1] * (left.dim() - axis % max(left.dim(), 1) - right.dim()))
