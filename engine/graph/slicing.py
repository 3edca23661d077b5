"""Remove channels: cut the initializers, rewrite the sizes that nodes hold, give a new valid network."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from engine.errors import SpecInvalidError
from engine.graph.coupling import Coupling
from engine.graph.execution import Member
from engine.graph.labels import Array
from engine.graph.losses import by_initializer, losses_by_axis, removed
from engine.graph.size_rewrites import rewrite_sizes


def remove(model: ir.Model, coupling: Coupling, atoms: Iterable[int]) -> ir.Model:
    """Give a copy of the analysed model without the channels of these atoms; tensors that stay whole are shared.

    Raises SpecInvalidError if the atoms may not go, or not in this combination.
    """
    gone = removed(coupling, atoms)
    pruned = model.clone()
    for name, members in by_initializer(coupling, gone).items():
        value = pruned.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        _store(value, _cut(tensor.numpy(), members, gone, name))
    rewrite_sizes(pruned, coupling, gone)
    _forget_shapes(pruned)
    return pruned


def _store(value: ir.Value, array: Array) -> None:
    old = value.const_value
    assert old is not None
    value.const_value = ir.tensor(np.ascontiguousarray(array), dtype=old.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _cut(array: Array, members: list[Member], gone: Array, name: str) -> Array:
    """Drop what any member loses: first whole places, then places that differ from line to line."""
    losses = losses_by_axis([member.labels for member in members], gone)
    whole = {axis: loss.reshape(-1) for axis, loss in losses.items() if loss.size == loss.shape[axis]}
    tables = {axis: loss for axis, loss in losses.items() if axis not in whole}
    for axis, loss in whole.items():
        if loss.all():
            raise SpecInvalidError(
                f"{name} would have width 0.", node=name, hint="Keep at least one unit of each group."
            )
        array = array.compress(~loss, axis=axis)
        for other, table in tables.items():
            tables[other] = table.compress(~loss, axis=axis) if table.shape[axis] > 1 else table
    for axis, table in tables.items():
        if any(table.shape[other] > 1 for other in tables if other != axis):
            raise SpecInvalidError(f"Two axes of {name} would lose places that depend on each other.", node=name)
        array = _cut_lines(array, table, axis, name)
    return array


def _cut_lines(array: Array, table: Array, axis: int, name: str) -> Array:
    kept = np.moveaxis(~np.broadcast_to(table, array.shape), axis, -1)
    counts = kept.sum(axis=-1)
    left = int(counts.flat[0])
    if not (counts == left).all() or left == 0:
        raise SpecInvalidError(f"{name} would have lines of unequal length.", node=name)
    lines = np.moveaxis(array, axis, -1)
    return np.moveaxis(lines[kept].reshape(*lines.shape[:-1], left), -1, axis)


def _forget_shapes(model: ir.Model) -> None:
    """Inferred shapes of inner values are stale."""
    outputs = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None
