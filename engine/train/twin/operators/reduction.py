"""Reductions over axes, and running sums and products along one."""

from collections.abc import Callable

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.spatial_mean import spatial_mean
from engine.train.twin.table import operator

# Reduces a tensor over axes, of which there is at least one, and keeps them as size 1.
Reduce = Callable[[Tensor, "list[int]"], Tensor]


def _sum(x: Tensor, axes: list[int]) -> Tensor:
    return torch.sum(x, axes, keepdim=True, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    if axes == [2, 3] and x.dim() == 4:
        return spatial_mean(x)
    return torch.mean(x, axes, keepdim=True)


def _max(x: Tensor, axes: list[int]) -> Tensor:
    return torch.amax(x, axes, keepdim=True) if x.numel() else _of_nothing(x, axes, largest=False)


def _min(x: Tensor, axes: list[int]) -> Tensor:
    return torch.amin(x, axes, keepdim=True) if x.numel() else _of_nothing(x, axes, largest=True)


def _prod(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = torch.prod(x, axis, keepdim=True, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int]) -> Tensor:
    return _sum(torch.abs(x), axes)


def _l2(x: Tensor, axes: list[int]) -> Tensor:
    if x.is_floating_point():
        # Its gradient at 0 is 0 and not infinite, as that of a root would be.
        return torch.linalg.vector_norm(x, dim=axes, keepdim=True)
    return torch.sqrt(_sum(x * x, axes).double()).to(x.dtype)


def _log_sum(x: Tensor, axes: list[int]) -> Tensor:
    return torch.log(_sum(x, axes))


def _log_sum_exp(x: Tensor, axes: list[int]) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=True)


def _sum_of_squares(x: Tensor, axes: list[int]) -> Tensor:
    return _sum(x * x, axes)


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceProd": _prod,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": _sum_of_squares,
}
# What they do to an element that is summed with no other.
_ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": torch.log,
    "ReduceSumSquare": torch.square,
}


@operator(*_REDUCTIONS, host=(1,))
def reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Reduce over the axes of the attribute (old operator sets) or the input; over all where none is listed."""
    listed = node.integers("axes") if axes is None else [int(axis) for axis in axes.reshape(-1).tolist()]
    if not listed and node.integer("noop_with_empty_axes", 0):
        return _ALONE.get(node.op_type, _same)(x)
    places = sorted(axis % max(x.dim(), 1) for axis in listed) if listed else list(range(x.dim()))
    if not x.dim():
        return _ALONE.get(node.op_type, _same)(x)
    found = _REDUCTIONS[node.op_type](x, places)
    if node.integer("keepdims", 1):
        return found
    return found.reshape([size for place, size in enumerate(found.shape) if place not in places])


@operator("ArgMax", "ArgMin")
def extreme_place(node: Node, x: Tensor) -> Tensor:
    """Where the largest or smallest element is along an axis; the first of several, or the last on request."""
    find = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    axis, keep = node.integer("axis", 0), bool(node.integer("keepdims", 1))
    if node.integer("select_last_index", 0):
        return x.shape[axis] - 1 - find(torch.flip(x, [axis]), axis, keepdim=keep)
    return find(x, axis, keepdim=keep)


@operator("CumSum", host=(1,))
def running_sum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """Running sum along an axis."""
    return _running(node, x, int(axis), lambda values, place: torch.cumsum(values, place, dtype=x.dtype), 0)


@operator("CumProd", host=(1,))
def running_product(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """Running product along an axis."""
    return _running(node, x, int(axis), lambda values, place: torch.cumprod(values, place, dtype=x.dtype), 1)


def _running(node: Node, x: Tensor, axis: int, run: Callable[[Tensor, int], Tensor], neutral: int) -> Tensor:
    """Run along an axis, `exclusive` of the element itself, in `reverse` from the end."""
    reverse = node.integer("reverse", 0)
    values = torch.flip(x, [axis]) if reverse else x
    if node.integer("exclusive", 0):
        first = torch.full_like(values.narrow(axis, 0, 1), neutral)
        values = torch.cat([first, values.narrow(axis, 0, values.shape[axis] - 1)], axis)
    found = run(values, axis)
    return torch.flip(found, [axis]) if reverse else found


def _same(x: Tensor) -> Tensor:
    return x


def _of_nothing(x: Tensor, axes: list[int], *, largest: bool) -> Tensor:
    """Give what the extreme of no elements is: the other end of the type's range."""
    if x.is_floating_point():
        value = float("inf") if largest else float("-inf")
    elif x.dtype == torch.bool:
        value = largest
    else:
        value = torch.iinfo(x.dtype).max if largest else torch.iinfo(x.dtype).min
    return torch.full([1 if place in axes else size for place, size in enumerate(x.shape)], value, dtype=x.dtype)
