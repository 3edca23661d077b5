"""Gathering, scattering, choosing and ordering by index; gradients go through the values, never the indices."""

import math

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator

# ONNX's names of what happens where a place is written twice, and PyTorch's.
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Gather")
def gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Entries along an axis; the axes of `indices` take its place."""
    axis = node.integer("axis", 0) % x.dim()
    places = _counted_from_front(indices, x.shape[axis])
    if not places.dim():
        return x.index_select(axis, places.reshape(1)).squeeze(axis)
    return x.index_select(axis, places.reshape(-1)).reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """For each place of `indices` the element that it names along an axis."""
    axis = node.integer("axis", 0)
    return torch.gather(x, axis, _counted_from_front(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Slices that the last axis of `indices` names, within each of the leading `batch_dims`."""
    shared = node.integer("batch_dims", 0)
    depth = indices.shape[-1]
    batch, inner, rest = x.shape[:shared], x.shape[shared : shared + depth], x.shape[shared + depth :]
    rows = math.prod(batch)
    places = _linear(indices, inner).reshape(rows, -1)
    values = x.reshape(rows, math.prod(inner), math.prod(rest))
    found = values[torch.arange(rows, device=x.device)[:, None], places]
    return found.reshape(*indices.shape[:-1], *rest)


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """The tensor with elements replaced, or reduced with what is there."""
    axis = node.integer("axis", 0)
    return _scatter(node, x, axis, _counted_from_front(indices, x.shape[axis]), updates)


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """The tensor with slices replaced, or reduced with what is there."""
    depth = indices.shape[-1]
    inner, rest = x.shape[:depth], x.shape[depth:]
    width = math.prod(rest)
    places = _linear(indices, inner).reshape(-1, 1).expand(-1, width)
    values = x.reshape(math.prod(inner), width)
    return _scatter(node, values, 0, places, updates.reshape(-1, width)).reshape(x.shape)


@operator("OneHot", host=(1,))
def one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """The second of two values at the index along a new axis, the first elsewhere."""
    length = int(depth.reshape(-1)[0])
    axis = node.integer("axis", -1) % (indices.dim() + 1)
    places = torch.arange(length, device=indices.device).reshape(-1, *[1] * (indices.dim() - axis))
    chosen = _counted_from_front(indices, length).unsqueeze(axis) == places
    return torch.where(chosen, values[1], values[0])


@operator("NonZero")
def non_zero(_: Node, x: Tensor) -> Tensor:
    """The places that are not zero, (rank, count)."""
    return torch.nonzero(x).T


@operator("Compress")
def compress(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    """Entries along an axis (elements of the flattened tensor without one) where the condition holds."""
    axis = node.integer("axis", 0)
    if "axis" not in node.attributes:
        x = x.reshape(-1)
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@operator("TopK", host=(1,))
def top_k(node: Node, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest or smallest elements along an axis with their places; of equals the first come first."""
    axis, count = node.integer("axis", -1), node.integer("k", 1) if k is None else int(k.reshape(-1)[0])
    order = torch.sort(x.detach(), dim=axis, descending=bool(node.integer("largest", 1)), stable=True).indices
    places = order.narrow(axis, 0, count)
    return torch.gather(x, axis, places), places


@operator("Trilu", host=(1,))
def triangle(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The upper or lower triangle from the `k`-th diagonal on, zero elsewhere."""
    diagonal = 0 if k is None else int(k.reshape(-1)[0])
    return torch.triu(x, diagonal) if node.integer("upper", 1) else torch.tril(x, diagonal)


def _counted_from_front(indices: Tensor, size: int) -> Tensor:
    """Give indices of which the negative ones counted from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def _linear(indices: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Give the place in row-major order that the last axis of `indices` names."""
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for axis, size in enumerate(sizes):
        place = place * size + _counted_from_front(indices[..., axis], size)
    return place


def _scatter(node: Node, x: Tensor, axis: int, places: Tensor, updates: Tensor) -> Tensor:
    reduction = _REDUCTIONS.get(node.text("reduction", "none"))
    if reduction is None:
        return torch.scatter(x, axis, places, updates)
    if reduction == "sum":
        return torch.scatter_add(x, axis, places, updates)
    return torch.scatter_reduce(x, axis, places, updates, reduction)
