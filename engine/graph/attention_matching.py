"""Attention as exporters take it apart: scores of heads, Softmax, and the weighted sum of values."""

from dataclasses import dataclass
from typing import Self, TypeGuard

import onnx_ir as ir

from engine.graph.sizes import Sizes

_STANDARD = frozenset({"", "ai.onnx"})
# (samples, positions, heads, numbers) to (samples, heads, positions, numbers), and keys transposed on top of that.
_BY_HEADS, _KEYS_BY_HEADS = (0, 2, 1, 3), (0, 2, 3, 1)
_LAST_AXES = frozenset({-1, 3})


@dataclass(frozen=True)
class TakenApart:
    """Attention without a mask around one Softmax: `last` gives (samples, positions, heads * numbers), as the inputs are."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    heads: int
    scale: float
    last: ir.Node

    @classmethod
    def at(cls, softmax: ir.Node, sizes: Sizes) -> Self | None:
        """Give what surrounds a Softmax over the last axis; None where it is no attention, or somebody else reads a part of it."""
        axis = softmax.attributes.get("axis")
        if softmax.op_type != "Softmax" or (axis is not None and axis.as_int() not in _LAST_AXES):
            return None
        scores, scale = _scaled(_maker(softmax.inputs[0]))
        weighted = _reader(softmax.outputs[0])
        if not _is(scores, "MatMul") or not _is(weighted, "MatMul") or weighted.inputs[0] is not softmax.outputs[0]:
            return None
        together = _reader(weighted.outputs[0])
        last = _reader(together.outputs[0]) if _is(together, "Transpose") and _perm(together) == _BY_HEADS else None
        query, key = (
            _parted(scores.inputs[index], perm, sizes) for index, perm in ((0, _BY_HEADS), (1, _KEYS_BY_HEADS))
        )
        value = _parted(weighted.inputs[1], _BY_HEADS, sizes)
        if not _is(last, "Reshape") or query is None or key is None or value is None:
            return None
        given = sizes.shape(query[0])
        if query[1:] != key[1:] or query[1] != value[1] or given is None or not scale:
            return None
        if sizes.shape(last.outputs[0]) != (*given[:2], value[1] * value[2]):
            return None
        return cls(query[0], key[0], value[0], query[1], scale, last)


def _parted(value: ir.Value | None, perm: tuple[int, ...], sizes: Sizes) -> tuple[ir.Value, int, int] | None:
    """Give (samples, positions, heads * numbers) behind a Transpose of a Reshape into heads, their count and their numbers."""
    transpose = _maker(value)
    reshape = _maker(transpose.inputs[0]) if _is(transpose, "Transpose") and _perm(transpose) == perm else None
    source = reshape.inputs[0] if _is(reshape, "Reshape") else None
    if source is None or reshape is None or source.dtype not in {ir.DataType.FLOAT, None}:
        return None
    before, after = sizes.shape(source), sizes.shape(reshape.outputs[0])
    if before is None or after is None or len(before) != 3 or len(after) != 4:
        return None
    if after[:2] != before[:2] or after[2] * after[3] != before[2]:
        return None
    return source, after[2], after[3]


def _scaled(node: ir.Node | None) -> tuple[ir.Node | None, float]:
    """Give what makes the scores, and what they are multiplied with by a Mul or Div behind it."""
    if node is None or node.op_type not in {"Mul", "Div"}:
        return node, 1.0
    for position, other in ((0, 1), (1, 0)):
        constant = node.inputs[other]
        tensor = None if constant is None else ir.convenience.get_const_tensor(constant)
        if tensor is not None and tensor.size == 1 and (position == 0 or node.op_type == "Mul"):
            number = float(tensor.numpy().reshape(()))
            maker = _maker(node.inputs[position])
            return (maker, number) if node.op_type == "Mul" else (maker, 1 / number if number else 0.0)
    return None, 1.0


def _maker(value: ir.Value | None) -> ir.Node | None:
    """Give what makes a value that one node alone reads."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return value.producer()


def _reader(value: ir.Value) -> ir.Node | None:
    """Give the one node that reads a value."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _is(node: ir.Node | None, kind: str) -> TypeGuard[ir.Node]:
    return node is not None and node.op_type == kind and node.domain in _STANDARD


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()
