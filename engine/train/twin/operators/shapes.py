"""Shapes, and what changes them without computing."""

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator


@operator("Shape")
def shape(node: Node, x: Tensor) -> Tensor:
    """The sizes from axis `start` to before `end`, on the CPU."""
    sizes = list(x.shape)[node.integer("start", 0) : node.integer("end", x.dim())]
    return torch.tensor(sizes, dtype=torch.int64)


@operator("Size")
def size(_: Node, x: Tensor) -> Tensor:
    """The number of elements, on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Identity")
def identity(_: Node, x: Tensor) -> Tensor:
    """The same."""
    return x


@operator("Reshape", host=(1,))
def reshape(node: Node, x: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Another shape: -1 stands for the rest, 0 for the size that is there (unless `allowzero`)."""
    sizes = node.integers("shape") if wanted is None else wanted.tolist()
    assert sizes is not None
    if not node.integer("allowzero", 0):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    """A matrix: the axes before `axis`, and those from there on."""
    axis = node.integer("axis", 1)
    before = list(x.shape)[: axis + x.dim() if axis < 0 else axis]
    rows = 1
    for length in before:
        rows *= length
    return x.reshape(rows, x.numel() // rows if rows else -1)


@operator("Squeeze", host=(1,))
def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without axes of size 1: the listed ones, or all of them."""
    listed = _axes(node, axes)
    return x.squeeze() if listed is None else x.squeeze(tuple(listed))


@operator("Unsqueeze", host=(1,))
def unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """With axes of size 1, counted in the result."""
    listed = _axes(node, axes)
    assert listed is not None
    rank = x.dim() + len(listed)
    for axis in sorted(axis % rank for axis in listed):
        x = x.unsqueeze(axis)
    return x


@operator("Expand", host=(1,))
def expand(_: Node, x: Tensor, wanted: Tensor) -> Tensor:
    """Broadcast with a shape."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(wanted.tolist())))


@operator("Concat")
def concat(node: Node, *inputs: Tensor) -> Tensor:
    """One behind the other along an axis."""
    return torch.cat(inputs, node.integer("axis", 1))


@operator("Split", host=(1,))
def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Parts along an axis: of the listed sizes, or equal ones, of which the last may be smaller."""
    axis = node.integer("axis", 0)
    listed = node.integers("split") if sizes is None else sizes.tolist()
    if listed is None:
        count = node.integer("num_outputs", len(node.outputs))
        each = -(-x.shape[axis] // count)
        listed = [min(each, x.shape[axis] - each * place) for place in range(count)]
    return tuple(torch.split(x, listed, axis))


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    """Axes in another order, backwards by default."""
    return x.permute(node.integers("perm") or list(reversed(range(x.dim()))))


@operator("Tile", host=(1,))
def tile(_: Node, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeated along each axis."""
    return x.repeat(repeats.tolist())


@operator("Slice", host=(1, 2, 3, 4))
def slice_axes(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    strides: Tensor | None = None,
) -> Tensor:
    """Ranges along axes, also backwards; attributes stated them before operator set 10."""
    if starts is None or ends is None:
        first, last, places = node.integers("starts") or [], node.integers("ends") or [], node.integers("axes")
    else:
        first, last, places = starts.tolist(), ends.tolist(), None if axes is None else axes.tolist()
    steps = [1] * len(first) if strides is None else strides.tolist()
    for axis, start, end, step in zip(places or range(len(first)), first, last, steps, strict=True):
        x = _range(x, axis % x.dim(), slice(start, end, step))
    return x


def _range(x: Tensor, axis: int, wanted: slice) -> Tensor:
    start, end, step = wanted.indices(x.shape[axis])
    if step < 0:  # PyTorch has no slices that run backwards.
        places = torch.arange(start, min(end, start), step, device=x.device)
        return x.index_select(axis, places)
    return x[(slice(None),) * axis + (slice(start, max(start, end), step),)]


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels into blocks of space: (N, C, H, W) to (N, C / b^2, H b, W b)."""
    n, channels, height, width = x.shape
    block = node.integer("blocksize", 1)
    depth = channels // block**2
    if node.text("mode", "DCR") == "DCR":
        moved = x.reshape(n, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, depth, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Blocks of space into channels: (N, C, H, W) to (N, C b^2, H / b, W / b)."""
    n, channels, height, width = x.shape
    block = node.integer("blocksize", 1)
    blocks = x.reshape(n, channels, height // block, block, width // block, block)
    depth_first = node.text("mode", "DCR") == "DCR"
    moved = blocks.permute(0, 3, 5, 1, 2, 4) if depth_first else blocks.permute(0, 1, 3, 5, 2, 4)
    return moved.reshape(n, channels * block**2, height // block, width // block)


@operator("ReverseSequence", host=(1,))
def reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    """The first `lengths` elements of each sequence in reverse order."""
    batch, time = node.integer("batch_axis", 1), node.integer("time_axis", 0)
    parts = []
    for place, length in enumerate(lengths.tolist()):
        one = x.narrow(batch, place, 1)
        head, tail = one.narrow(time, 0, length), one.narrow(time, length, x.shape[time] - length)
        parts.append(torch.cat([torch.flip(head, [time]), tail], time))
    return torch.cat(parts, batch)


def _axes(node: Node, axes: Tensor | None) -> list[int] | None:
    return node.integers("axes") if axes is None else [int(axis) for axis in axes.reshape(-1).tolist()]
