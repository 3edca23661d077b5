"""Operators that take, join, repeat or pad elements, and those whose results no channel reaches."""

import math

import numpy as np
import onnx_ir as ir

from engine.graph import labels as lab
from engine.graph.attributes import axes_of, integer, integers, slices, text
from engine.graph.execution import Execution
from engine.graph.labels import Array, Labels, Shape, UnfollowableError
from engine.graph.rules.registry import Rules, follows, listed


@follows(0)
def cut(run: Execution, node: ir.Node) -> None:
    """Run Slice; ranges on the labelled axis are rewritten."""
    found = run.moved(node.inputs[0])
    if found is None:
        return
    operands = [run.known(node, index) for index in range(1, len(node.inputs))]
    if any(value is not None and known is None for value, known in zip(node.inputs[3:], operands[2:], strict=True)):
        raise UnfollowableError("its axes or steps are computed from data")
    where = slices(node, operands, len(found.shape))
    if where is None or not _fixed_range(run, node, found):
        _slice_by_data(run, node, found)
        return
    shape = run.shape(node.outputs[0])
    taken = found
    for axis, part in enumerate(where):
        taken = lab.take(taken, axis, part, shape[axis])
    if where[found.axis] != slice(None) and shape[found.axis] != found.shape[found.axis]:
        run.note(node, "slice", found)
        _require_prefix(run, found, where[found.axis], node)
    run.set(node, _alive(run, taken, found, node))


def _fixed_range(run: Execution, node: ir.Node, found: Labels) -> bool:
    """Tell whether the range on the labelled axis is the same for every dynamic size."""
    if "starts" in node.attributes:
        return True
    axes = axes_of(node, run.known(node, 3), len(found.shape)) or tuple(range(len(run.fixed(node, 1))))
    where = [place for place, axis in enumerate(axes) if axis == found.axis]
    return all(bool(run.fixed(node, index)[place]) for index in (1, 2) for place in where)


def _require_prefix(run: Execution, found: Labels, part: slice, node: ir.Node) -> None:
    """Each line must lose as many channels before the range as every other line, or the range would differ."""
    start, stop, step = part.indices(found.shape[found.axis])
    if step != 1 and found.rows:
        run.merge(found, found.rows, node)
    elif found.rows and start > 0:
        run.grid(lab.take(found, found.axis, slice(0, start), start))
    del stop


def _slice_by_data(run: Execution, node: ir.Node, found: Labels) -> None:
    """Ranges known only at run time may cut any axis that keeps neither its size nor its labels."""
    shape = run.shape(node.outputs[0])
    axes = axes_of(node, run.known(node, 3), len(found.shape)) or tuple(range(len(shape)))
    if found.axis in axes or any(axis in axes for axis in found.rows):
        run.freeze(found, node, "its range is computed from data")
        return
    run.set(node, Labels(shape, found.atoms, found.axis))


def _alive(run: Execution, result: Labels, source: Labels, node: ir.Node) -> Labels | None:
    if result.shape[result.axis] > 0 and 0 not in result.atoms.shape:
        return result
    run.freeze(source, node, "a size is zero")
    return None


@follows(0)
def split(run: Execution, node: ir.Node) -> None:
    """Cut into pieces; their sizes are rewritten."""
    found = run.moved(node.inputs[0])
    if found is None:
        return
    axis = integer(node, "axis", 0) % len(found.shape)
    start = 0
    if any(run.shape(output)[axis] == 0 for output in node.outputs):
        run.freeze(found, node, "a size is zero")
    for index, output in enumerate(node.outputs):
        size = run.shape(output)[axis]
        run.set(node, lab.take(found, axis, slice(start, start + size), size), index)
        start += size
    if axis == found.axis:
        run.note(node, "split", found, axis=axis)


def concat(run: Execution, node: ir.Node) -> None:
    """Join along an axis; parts without labels keep their place."""
    axis = integer(node, "axis", 0) % len(run.shape(node.outputs[0]))
    parts = [run.label(value) for value in node.inputs]
    run_along = {part.axis for part in parts if part is not None}
    if not run_along and any(not run.constant(value) for value in node.inputs):
        return
    hint = next(iter(run_along)) if len(run_along) == 1 else None
    found = [part or run.moved(value, hint) for part, value in zip(parts, node.inputs, strict=True)]
    labelled = [part for part in found if part is not None]
    if not labelled:
        return
    shrinking = labelled[0].axis
    if any(part.axis != shrinking for part in labelled) or (shrinking != axis and len(labelled) < len(found)):
        for part in labelled:
            run.freeze(part, node, "joins parts of which some cannot be pruned along this axis")
        if any(part.axis != shrinking for part in labelled):
            return
    run.set(node, _joined(run, node, found, axis, shrinking))


def _joined(run: Execution, node: ir.Node, found: list[Labels | None], axis: int, shrinking: int) -> Labels:
    shape = run.shape(node.outputs[0])
    labelled = [part for part in found if part is not None]
    if axis != shrinking and len(labelled) == len(found) and all(part.atoms.shape[axis] == 1 for part in labelled):
        first = labelled[0].atoms
        if all(np.array_equal(part.atoms, first) for part in labelled):
            return Labels(shape, first, shrinking)
    sizes = [run.shape(value)[axis] for value in node.inputs]
    outline = [1] * len(shape)
    for part in labelled:
        outline = [max(left, right) for left, right in zip(outline, part.atoms.shape, strict=True)]
    pieces = []
    for piece, size in zip(found, sizes, strict=True):
        outline[axis] = size
        if math.prod(outline) * len(sizes) > lab.MOST_LABELS:
            raise lab.TooManyLabelsError
        atoms = np.zeros((), np.int32) if piece is None else lab.full_on(piece, axis)
        pieces.append(np.broadcast_to(atoms, outline))
    return Labels(shape, np.concatenate(pieces, axis=axis), shrinking)


@follows(0)
def expand(run: Execution, node: ir.Node) -> None:
    """Broadcast; the labelled axis is not written into the target."""
    found = run.moved(node.inputs[0])
    if found is None:
        return
    result = lab.expand(found, run.shape(node.outputs[0]))
    if run.known(node, 1) is None:
        run.freeze(found, node, "its target shape is computed from data")
    run.note(node, "expand", result)
    run.set(node, result)


@follows(0)
def tile(run: Execution, node: ir.Node) -> None:
    """Repeat."""
    found, repeats = run.moved(node.inputs[0]), run.known(node, 1)
    if found is None:
        return
    if repeats is None or not run.fixed(node, 1)[found.axis]:
        run.freeze(found, node, "its repeats are computed from data")
        return
    run.set(node, lab.tile(found, repeats.tolist()))


@follows(0)
def gather(run: Execution, node: ir.Node) -> None:
    """Select by constant indices, look rows of a table up, or pass labels beside a dynamic selection."""
    source, shape = node.inputs[0], run.shape(node.inputs[0])
    axis = integer(node, "axis", 0) % len(shape)
    index = run.known(node, 1)
    chosen = run.shape(node.inputs[1])
    output = run.shape(node.outputs[0])
    if run.constant(source) and index is None:
        _look_up(run, node, shape, axis)
        return
    found = run.moved(source)
    if found is None:
        return
    if found.axis == axis and (index is None or index.ndim != 1 or not run.fixed(node, 1).all()):
        run.freeze(found, node, "selects single channels or selects by data")
        return
    if found.axis == axis:
        run.note(node, "gather", found)
        found = run.merge(found, found.rows, node)
    elif index is None and found.atoms.shape[axis] > 1:
        run.freeze(found, node, "selects by data between places with different labels")
        return
    atoms = found.atoms
    if index is None or atoms.shape[axis] == 1:
        atoms = _unvaried(atoms, axis, len(chosen))
    else:
        atoms = np.take(atoms, index, axis=axis)
    new_axis = found.axis if found.axis <= axis else found.axis + len(chosen) - 1
    run.set(node, Labels(output, atoms, new_axis))


def _unvaried(atoms: Array, axis: int, rank: int) -> Array:
    shape = atoms.shape
    return atoms.reshape((*shape[:axis], *(1,) * rank, *shape[axis + 1 :]))


def _look_up(run: Execution, node: ir.Node, shape: Shape, axis: int) -> None:
    """An embedding: the table's other axis is prunable."""
    source = node.inputs[0]
    assert source is not None
    if len(shape) != 2 or not ir.DataType(run.sizes.types[str(source.name)]).is_floating_point():
        return
    other = 1 - axis
    atoms = run.fresh(f"{node.name}:out", shape[other], node)
    if atoms is None:
        return
    run.member(source, lab.along(shape, other, atoms), "out", node)
    output = run.shape(node.outputs[0])
    run.set(node, lab.along(output, len(output) - 1 if axis == 0 else 0, atoms))


@follows(0)
def pad(run: Execution, node: ir.Node) -> None:
    """Add places without labels on the labelled axis; other axes only get longer."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    rank = len(found.shape)
    listed_pads = integers(node, "pads")
    known = run.known(node, 1)
    pads = np.array(listed_pads) if listed_pads is not None else known
    axes = run.known(node, 3)
    if axes is None and len(node.inputs) > 3 and node.inputs[3] is not None:
        raise UnfollowableError("its axes are computed from data")
    if pads is None or (
        listed_pads is None and axes is None and not run.fixed(node, 1)[[found.axis, found.axis + rank]].all()
    ):
        run.freeze(found, node, "its widths are computed from data")
        return
    width = np.zeros((rank, 2), int)
    places = np.arange(rank) if axes is None else axes % rank
    width[places] = pads.reshape(2, -1).T
    if (width < 0).any() and (width[list(found.varying)] < 0).any():
        run.freeze(found, node, "crops labelled places")
        return
    if text(node, "mode", "constant") != "constant" and width[found.axis].any():
        run.freeze(found, node, "repeats channels at the border")
        return
    atoms = np.pad(found.atoms, [tuple(width[a]) if a == found.axis else (0, 0) for a in range(rank)])
    rows = [tuple(width[a]) if a in found.rows else (0, 0) for a in range(rank)]
    run.set(node, Labels(run.shape(node.outputs[0]), np.pad(atoms, rows, mode="edge"), found.axis))


def unlabelled(run: Execution, node: ir.Node) -> None:
    """Results that are about sizes, positions or constants: channels of the inputs do not reach them."""
    del run, node


RULES: Rules = {
    **listed(cut, "Slice"),
    **listed(split, "Split"),
    **listed(concat, "Concat"),
    **listed(expand, "Expand"),
    **listed(tile, "Tile"),
    **listed(gather, "Gather"),
    **listed(pad, "Pad"),
    **listed(
        unlabelled,
        *("Shape", "Size", "Constant", "ConstantOfShape", "Range", "RandomNormal", "RandomUniform", "EyeLike"),
        *("Bernoulli", "RandomNormalLike", "RandomUniformLike"),
    ),
}
