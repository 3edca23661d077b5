"""Tensors that come from nothing but attributes and shapes."""

import math

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator


def _refuse_constant(node: Node) -> str | None:
    kept = {"value_float", "value_floats", "value_int", "value_ints"}
    if node.tensor("value") is None and not kept & set(node.attributes):
        return "its value is of no type that can be trained through"
    return None


@operator("Constant", refuses=_refuse_constant)
def constant(node: Node) -> Tensor:
    """The value of the attribute that is there."""
    found = node.tensor("value")
    if found is not None:
        return found
    for name in ("value_float", "value_floats"):
        if name in node.attributes:
            return torch.tensor(node.attributes[name], dtype=node.floating)
    name = "value_int" if "value_int" in node.attributes else "value_ints"
    return torch.tensor(node.attributes[name], dtype=torch.int64)


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    """One value everywhere, zero by default."""
    value = node.tensor("value")
    if value is None:
        return torch.zeros(shape.tolist(), dtype=node.floating)
    return torch.full(shape.tolist(), value.item(), dtype=value.dtype)


@operator("Range", host=(0, 1, 2))
def steps(_: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from `start` to before `limit`."""
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((last - first) / step), 0)
    return (torch.arange(count) * step + first).to(start.dtype)


@operator("EyeLike")
def eye_like(node: Node, x: Tensor) -> Tensor:
    """Ones on the `k`-th diagonal."""
    k, kind = node.integer("k", 0), node.type("dtype", x.dtype)
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]
    return (columns - rows == k).to(kind)
