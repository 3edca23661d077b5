"""Operators that give the same elements another shape or order: they are run on the labels themselves."""

import math

import numpy as np
import onnx_ir as ir

from engine.graph import labels as lab
from engine.graph.attributes import axes_of, integer, integers, text
from engine.graph.execution import Execution, Split
from engine.graph.labels import Labels, Shape, UnfollowableError
from engine.graph.rules.registry import Rules, follows, listed


@follows(0)
def identity(run: Execution, node: ir.Node) -> None:
    """Pass labels through, to the mask of Dropout too."""
    found = run.moved(node.inputs[0])
    for index in range(len(node.outputs)):
        run.set(node, found, index)


@follows(0)
def transpose(run: Execution, node: ir.Node) -> None:
    """Permute the axes of the labels; views of weights stay weights."""
    if run.constant(node.inputs[0]):
        return
    found = run.label(node.inputs[0])
    if found is not None:
        permutation = integers(node, "perm") or list(reversed(range(len(found.shape))))
        run.set(node, lab.transpose(found, permutation))


def view(run: Execution, node: ir.Node) -> None:
    """Pass labels of activations; a weight seen through a Cast is handled where it is used. CastLike reads a type only."""
    if not run.constant(node.inputs[0]):
        run.set(node, run.label(node.inputs[0]))


@follows(0)
def reshape(run: Execution, node: ir.Node) -> None:
    """Reshape the labels and remember which size to rewrite."""
    found = run.moved(node.inputs[0])
    if found is None:
        return
    target = run.known(node, 1)
    result = reshaped(run, node, found, run.shape(node.outputs[0]))
    if result is None:
        return
    if target is None:
        run.freeze(found, node, "its target shape is computed from data")
        run.set(node, result)
        return
    written = result.axis < len(target) and target[result.axis] not in {-1, 0}
    dynamic = bool(written and not run.fixed(node, 1)[result.axis])
    if dynamic and (target == -1).any():
        run.freeze(found, node, "its target shape multiplies a dynamic size with a width")
    run.note(node, "reshape", result, dynamic=dynamic)
    run.set(node, result)


def reshaped(run: Execution, node: ir.Node, found: Labels, shape: Shape) -> Labels | None:
    """Run a reshape of any operator, noting where it reads one axis as blocks."""
    if 0 in shape:
        run.freeze(found, node, "a size is zero")
        return None
    if math.prod(shape) != math.prod(found.shape):
        raise UnfollowableError("the sizes declared for its output do not fit those of its inputs")
    axis = _pixel_shuffle_axis(node, found, shape)
    result = lab.reshape(found, shape, run.align(node)) if axis is None else _unpacked(run, node, found, shape, axis)
    if result is None:
        run.freeze(found, node, "no axis of the result tells its channels apart")
        return None
    if not found.rows and result.rows and axis is None:
        run.splits.append(Split(str(node.name), found.vector(), math.prod(shape[result.axis :][:1]), "heads"))
    return result


def _pixel_shuffle_axis(node: ir.Node, found: Labels, shape: Shape) -> int | None:
    """Recognise channels read as (channel, r, r) that the next node interleaves with rows and columns."""
    uses = node.outputs[0].uses()
    follower = next(iter(uses)).node if len(uses) == 1 else None
    if (
        follower is None
        or follower.op_type != "Transpose"
        or len(shape) != 6
        or found.axis != 1
        or len(found.shape) != 4
    ):
        return None
    return 1 if integers(follower, "perm") == [0, 1, 4, 2, 5, 3] else None


def _unpacked(run: Execution, node: ir.Node, found: Labels, shape: Shape, axis: int) -> Labels:
    """Split channels so that the outer part shrinks: the inner parts of one channel go together."""
    vector = run.collapse(found, node)
    table = vector.reshape(shape[axis], -1)
    run.unite(table[:, :1], table, node)
    return lab.along(shape, axis, table[:, 0])


@follows(0)
def flatten(run: Execution, node: ir.Node) -> None:
    """Reshape to two axes; nothing to rewrite."""
    found = run.moved(node.inputs[0])
    if found is not None:
        run.set(node, reshaped(run, node, found, run.shape(node.outputs[0])))


@follows(0)
def unsqueeze(run: Execution, node: ir.Node) -> None:
    """Insert axes."""
    found = run.moved(node.inputs[0])
    if found is not None:
        axes = axes_of(node, run.known(node, 1), len(run.shape(node.outputs[0])))
        if axes is None:
            raise UnfollowableError("its axes are computed from data")
        run.set(node, lab.unsqueeze(found, axes))


@follows(0)
def squeeze(run: Execution, node: ir.Node) -> None:
    """Drop axes of size 1."""
    found = run.moved(node.inputs[0])
    if found is not None:
        axes = axes_of(node, run.known(node, 1), len(found.shape))
        if axes is None:
            # Without a list every 1 goes, and a width that becomes 1 would go too.
            run.freeze(found, node, "it drops whatever axis has size 1")
            axes = tuple(axis for axis, size in enumerate(found.shape) if size == 1)
        run.set(node, lab.squeeze(found, axes))


@follows(0)
def depth_to_space(run: Execution, node: ir.Node) -> None:
    """Move blocks of channels into space: the parts of one result channel need not be neighbours."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    vector = run.channels(node.inputs[0], 1, node)
    if vector is None:
        return
    size = integer(node, "blocksize", 1)
    batch, channels, height, width = found.shape
    rest = channels // size**2
    if text(node, "mode", "DCR") == "CRD":
        table = vector.reshape(rest, size, size)
        run.unite(table[:, :1, :1], table, node)
        run.set(node, lab.along(run.shape(node.outputs[0]), 1, table[:, 0, 0]))
        return
    parts = Labels((batch, size, size, rest, height, width), vector.reshape(1, size, size, rest, 1, 1), 3)
    run.grid(parts)
    parts = lab.transpose(parts, (0, 3, 4, 1, 5, 2))
    run.set(node, lab.reshape(parts, run.shape(node.outputs[0]), run.align(node)))


@follows(0)
def space_to_depth(run: Execution, node: ir.Node) -> None:
    """Move space into channels: each channel comes back once for each place of the block."""
    vector = run.channels(node.inputs[0], 1, node)
    if vector is not None:
        places = integer(node, "blocksize", 1) ** 2
        by_channel = text(node, "mode", "DCR") == "CRD"
        atoms = np.repeat(vector, places) if by_channel else np.tile(vector, places)
        run.set(node, lab.along(run.shape(node.outputs[0]), 1, atoms))


RULES: Rules = {
    **listed(identity, "Identity", "Dropout"),
    **listed(view, "Cast", "CastLike"),
    **listed(transpose, "Transpose"),
    **listed(reshape, "Reshape"),
    **listed(flatten, "Flatten"),
    **listed(unsqueeze, "Unsqueeze"),
    **listed(squeeze, "Squeeze"),
    **listed(depth_to_space, "DepthToSpace"),
    **listed(space_to_depth, "SpaceToDepth"),
}
