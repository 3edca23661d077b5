"""Comparison and logic: what has no gradient of its own, and Where, which takes it through what was chosen."""

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.broadcasting import aligned
from engine.train.twin.table import operator


@operator("Equal")
def equal(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Where the left one is equal."""
    return left == aligned(node, left, right)


@operator("Greater")
def greater(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Where the left one is larger."""
    return left > aligned(node, left, right)


@operator("GreaterOrEqual")
def greater_or_equal(_: Node, left: Tensor, right: Tensor) -> Tensor:
    """Where the left one is not smaller."""
    return left >= right


@operator("Less")
def less(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Where the left one is smaller."""
    return left < aligned(node, left, right)


@operator("LessOrEqual")
def less_or_equal(_: Node, left: Tensor, right: Tensor) -> Tensor:
    """Where the left one is not larger."""
    return left <= right


@operator("And")
def both(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Logical and."""
    return torch.logical_and(left, aligned(node, left, right))


@operator("Or")
def either(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Logical or."""
    return torch.logical_or(left, aligned(node, left, right))


@operator("Xor")
def one_alone(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Logical exclusive or."""
    return torch.logical_xor(left, aligned(node, left, right))


@operator("Not")
def negation(_: Node, x: Tensor) -> Tensor:
    """Logical not."""
    return torch.logical_not(x)


@operator("IsNaN")
def is_nan(_: Node, x: Tensor) -> Tensor:
    """Where there is no number."""
    return torch.isnan(x)


@operator("IsInf")
def is_infinite(node: Node, x: Tensor) -> Tensor:
    """Where the number is infinite; either sign may be left out."""
    found = torch.isinf(x)
    if not node.integer("detect_negative", 1):
        found = found & (x > 0)
    if not node.integer("detect_positive", 1):
        found = found & (x < 0)
    return found


@operator("Where")
def where(_: Node, condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Elements of one or the other."""
    return torch.where(condition, chosen, other)
