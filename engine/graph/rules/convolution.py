"""Convolutions, pooling and resizing: space is mixed, channels are kept, grouped or contracted."""

import numpy as np
import onnx_ir as ir

from engine.graph import labels as lab
from engine.graph.attributes import integer
from engine.graph.execution import Execution, Split
from engine.graph.labels import Array, Labels
from engine.graph.rules.elementwise import join
from engine.graph.rules.registry import CONTRIB, Rules, follows, keep_if_read, listed


@follows(0)
def conv(run: Execution, node: ir.Node) -> None:
    """Conv in all its forms; ConvTranspose differs in where the weight keeps which channels."""
    _convolve(run, node, 2)


@follows(0, 3)
def fused_conv(run: Execution, node: ir.Node) -> None:
    """Conv with an activation and perhaps a tensor that is added before it."""
    _convolve(run, node, 2)
    added = node.inputs[3] if len(node.inputs) > 3 else None
    output = node.outputs[0]
    if added is None or not output.name:
        return
    if output.name not in run.labels:
        run.freeze(run.label(added), node, "meets a value without removable channels")
        return
    result = join(run, node, [output, added], run.shape(output))
    run.set(node, result)


def _convolve(run: Execution, node: ir.Node, bias: int) -> None:
    weight = node.inputs[1]
    assert weight is not None
    shape = run.shape(weight)
    groups = integer(node, "group", 1)
    vector = run.channels(node.inputs[0], 1, node)
    if not run.constant(weight):
        run.freeze(run.label(weight), node, "its weight is computed")
        run.freeze(vector, node, "its weight is computed")
        return
    turned = node.op_type == "ConvTranspose"
    taken = run.shape(node.inputs[0])[1]
    given = shape[1] * groups if turned else shape[0]
    if vector is not None and _whole_groups(run, vector, groups):
        atoms = _passed(run, node, vector, groups, given)
        run.member(weight, lab.along(shape, 0, vector if turned else atoms), "pass", node)
    else:
        if vector is not None:
            _take_in(run, node, weight, vector, groups, turned=turned)
        fresh = None if _is_depthwise(groups, taken) else run.fresh(f"{node.name}:out", given, node)
        if fresh is None:
            return
        atoms = fresh
        _give_out(run, node, weight, atoms, groups, turned=turned)
    if len(node.inputs) > bias and node.inputs[bias] is not None:
        constant = node.inputs[bias]
        assert constant is not None
        run.member(constant, lab.along((given,), 0, atoms), "pass", node)
    run.set(node, lab.along(run.shape(node.outputs[0]), 1, atoms))


def _is_depthwise(groups: int, taken: int) -> bool:
    return groups > 1 and groups == taken


def _whole_groups(run: Execution, vector: Array, groups: int) -> bool:
    """Tell whether labels only differ between groups; true of every depthwise convolution."""
    if groups == 1:
        return False
    table = run.union.find(vector).reshape(groups, -1)
    return bool((table == table[:, :1]).all()) and (table.shape[1] == 1 or bool((table > 0).any()))


def _passed(run: Execution, node: ir.Node, vector: Array, groups: int, given: int) -> Array:
    """A group's results go with the group."""
    rows = vector.reshape(groups, -1)
    run.note(
        node,
        "attribute",
        Labels(rows.shape, rows, 0) if rows.shape[1] == 1 else Labels((groups, 1), rows[:, :1], 0),
        name="group",
    )
    return np.repeat(rows[:, 0], given // groups)


def _take_in(run: Execution, node: ir.Node, weight: ir.Value, vector: Array, groups: int, *, turned: bool) -> None:
    shape = run.shape(weight)
    if groups > 1:
        run.splits.append(Split(str(node.name), vector, len(vector) // groups, "conv_groups"))
        run.grid(Labels((groups, len(vector) // groups), vector.reshape(groups, -1), 1))
    ones = (1,) * (len(shape) - 2)
    if turned:
        run.member(weight, lab.along(shape, 0, vector), "in", node)
    elif groups == 1:
        run.member(weight, lab.along(shape, 1, vector), "in", node)
    else:
        rows = np.repeat(vector.reshape(groups, -1), shape[0] // groups, axis=0)
        run.member(weight, Labels(shape, rows.reshape(*rows.shape, *ones), 1), "in", node)


def _give_out(run: Execution, node: ir.Node, weight: ir.Value, atoms: Array, groups: int, *, turned: bool) -> None:
    shape = run.shape(weight)
    if groups > 1:
        run.splits.append(Split(str(node.name), atoms, len(atoms) // groups, "conv_groups"))
        run.grid(Labels((groups, len(atoms) // groups), atoms.reshape(groups, -1), 1))
    if not turned:
        run.member(weight, lab.along(shape, 0, atoms), "out", node)
    elif groups == 1:
        run.member(weight, lab.along(shape, 1, atoms), "out", node)
    else:
        rows = np.repeat(atoms.reshape(groups, -1), shape[0] // groups, axis=0)
        run.member(weight, Labels(shape, rows.reshape(*rows.shape, *(1,) * (len(shape) - 2)), 1), "out", node)


@follows(0)
def spatial(run: Execution, node: ir.Node) -> None:
    """Pooling: mixes space, keeps channels."""
    vector = run.channels(node.inputs[0], 1, node)
    if vector is None:
        return
    # Indices of the largest elements count through all channels.
    keep_if_read(run, node, 0, 1, "places of its largest elements are read")
    for index, output in enumerate(node.outputs):
        if output.name and run.sizes.shape(output) is not None:
            run.set(node, lab.along(run.shape(output), 1, vector), index)


@follows(0)
def resize(run: Execution, node: ir.Node) -> None:
    """Resize space; the channel count in its sizes is rewritten."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    shape = run.shape(node.outputs[0])
    if shape[found.axis] != found.shape[found.axis]:
        run.freeze(found, node, "resizes the channels")
        return
    changed = [axis for axis in found.rows if shape[axis] != found.shape[axis]]
    result = run.merge(found, changed, node)
    result = Labels(shape, result.atoms, result.axis)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        if run.known(node, 3) is None:
            run.freeze(found, node, "its sizes are computed from data")
        run.note(node, "resize", result)
    run.set(node, result)


def grid_sample(run: Execution, node: ir.Node) -> None:
    """Sample space at computed places; channels pass."""
    run.freeze(run.label(node.inputs[1]), node, "its grid must stay")
    spatial(run, node)


RULES: Rules = {
    **listed(conv, "Conv", "ConvTranspose"),
    **listed(fused_conv, "FusedConv", domain=CONTRIB),
    **listed(
        spatial,
        *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
    ),
    **listed(resize, "Resize", "Upsample"),
    **listed(grid_sample, "GridSample"),
    **listed(spatial, "RoiAlign", "MaxRoiPool"),
}
