"""Casts between element types. Gradients go through those between floats; 16-bit floats are held as the twin's own type."""

from typing import Any

import onnx_ir as ir

from engine.train.framework import Tensor
from engine.train.twin.node import Node
from engine.train.twin.table import operator
from engine.train.twin.tensors import holds, wrapped


def _refuse_cast(node: Node) -> str | None:
    wanted, given = ir.DataType(node.integer("to", 1)), node.input_types[0] if node.input_types else None
    for kind in (wanted, given):
        if kind is not None and not holds(kind):
            return f"elements of type {kind.name}"
    return None


@operator("Cast", refuses=_refuse_cast)
def cast(node: Node, x: Tensor) -> Tensor:
    """Another element type."""
    return _converted(x, node.type("to", node.floating), ir.DataType(node.integer("to", 1)))


def _refuse_cast_like(node: Node) -> str | None:
    for kind in node.input_types:
        if kind is not None and not holds(kind):
            return f"elements of type {kind.name}"
    return None


@operator("CastLike", refuses=_refuse_cast_like)
def cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    """The element type of another tensor."""
    return _converted(x, like.dtype, node.input_types[1])


def _converted(x: Tensor, kind: Any, named: ir.DataType | None) -> Tensor:
    if kind == x.dtype:
        return x
    return x.to(kind) if kind.is_floating_point else wrapped(x.to(kind), named)
