"""Normalisations: per channel they pass; over channels they pass too, but their statistics change (lossy)."""

import numpy as np
import onnx_ir as ir

from engine.graph import labels as lab
from engine.graph.attributes import integer, integers
from engine.graph.execution import Execution
from engine.graph.labels import Labels
from engine.graph.rules.elementwise import follow, join
from engine.graph.rules.registry import CONTRIB, Rules, follows, keep_if_read, listed


@follows(0)
def batch_norm(run: Execution, node: ir.Node) -> None:
    """Per channel: its vectors follow."""
    vector = run.channels(node.inputs[0], 1, node)
    if vector is None:
        return
    if integer(node, "training_mode", 0):
        run.freeze(vector, node, "is in training mode")
    for value in node.inputs[1:]:
        _vector_follows(run, node, value, vector)
    run.set(node, lab.along(run.shape(node.outputs[0]), 1, vector))


def _vector_follows(run: Execution, node: ir.Node, value: ir.Value | None, vector: np.ndarray) -> None:
    if value is None:
        return
    if run.constant(value):
        run.member(value, lab.along(run.shape(value), 0, vector), "pass", node)
    else:
        run.freeze(vector, node, "its parameters are computed")


@follows(0)
def layer_norm(run: Execution, node: ir.Node) -> None:
    """Normalise the last axes, gain and shift follow."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    axis = integer(node, "axis", -1) % len(found.shape)
    keep_if_read(run, node, 0, 1, "its statistics are read")
    run.set(node, _normalised(run, node, found, axis, list(node.inputs[1:])))


def _normalised(run: Execution, node: ir.Node, found: Labels, axis: int, vectors: list[ir.Value | None]) -> Labels:
    if found.axis >= axis:
        run.sink(node, 0, found, statistics=True)
        run.grid(found)
    else:
        found = run.merge(found, [row for row in found.rows if row >= axis], node)
    for value in vectors:
        if value is None:
            continue
        own = run.shape(value)
        place = found.axis - (len(found.shape) - len(own))
        if place < 0 or own[place] == 1:
            continue
        if run.constant(value):
            follow(run, node, value, found)
        else:
            run.freeze(found, node, "its parameters are computed")
    return found


def skip_layer_norm(run: Execution, node: ir.Node) -> None:
    """Add the residual, then normalise: input, skip, gain, shift, bias."""
    values = list(node.inputs)
    # The fourth output is the sum itself.
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:3]):
        run.freeze_inputs(node, "its statistics are read")
    simplified = "Simplified" in node.op_type
    bias = values[(3 if simplified else 4) :][:1]
    parts = [value for value in (*values[:2], *bias) if value is not None]
    found = join(run, node, parts, run.shape(node.outputs[0]))
    if found is None:
        return
    vectors = values[2 : 3 if simplified else 4]
    run.set(node, _normalised(run, node, found, len(found.shape) - 1, list(vectors)))
    run.set(node, found, 3)


def embed_layer_norm(run: Execution, node: ir.Node) -> None:
    """Sum of up to three looked-up rows, normalised: the width is prunable."""
    output = run.shape(node.outputs[0])
    atoms = run.fresh(f"{node.name}:out", output[-1], node)
    if atoms is None:
        return
    for value in node.inputs[2:7]:
        if value is not None:
            own = run.shape(value)
            run.member(value, lab.along(own, len(own) - 1, atoms), "out", node)
    found = lab.along(output, len(output) - 1, atoms)
    run.lossy.append(np.unique(atoms))
    run.set(node, found)


@follows(0)
def instance_norm(run: Execution, node: ir.Node) -> None:
    """Per channel over space; exporters also spell GroupNorm with it after a reshape."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    if found.axis == 1:
        vector = run.collapse(found, node)
        for value in node.inputs[1:]:
            _vector_follows(run, node, value, vector)
        run.set(node, lab.along(found.shape, 1, vector))
        return
    if found.axis < 1:
        run.freeze(found, node, "labels run along the batch")
        return
    run.sink(node, 0, found, statistics=True)
    run.grid(found)
    run.set(node, found)


@follows(0)
def group_norm(run: Execution, node: ir.Node) -> None:
    """Whole groups, or as many members of each group."""
    last = node.domain == CONTRIB and bool(integer(node, "channels_last", 1))
    axis = len(run.shape(node.inputs[0])) - 1 if last else 1
    vector = run.channels(node.inputs[0], axis, node)
    if vector is None:
        return
    name = "groups" if node.domain == CONTRIB else "num_groups"
    groups = integer(node, name, 1)
    table = vector.reshape(groups, -1)
    canonical = run.union.find(table)
    found = lab.along(run.shape(node.outputs[0]), axis, vector)
    if groups > 1 and (canonical == canonical[:, :1]).all() and (canonical > 0).any():
        run.note(node, "attribute", Labels((groups, 1), table[:, :1], 0), name=name)
        if table.shape[1] == 1:
            run.grid(Labels((groups, 1), table[:, :1], 0))
    else:
        run.grid(Labels((groups, table.shape[1]), table, 1))
        run.sink(node, 0, found, statistics=True)
    for value in node.inputs[1:]:
        own = () if value is None else run.shape(value)
        if own and own[-1] == len(vector):
            _vector_follows(run, node, value, vector)
        elif own and own[-1] == groups and groups > 1:
            _group_vector_follows(run, node, value, canonical)
    run.set(node, found)


def _group_vector_follows(run: Execution, node: ir.Node, value: ir.Value | None, table: np.ndarray) -> None:
    if (table == table[:, :1]).all():
        _vector_follows(run, node, value, table[:, 0])


@follows(0)
def lp_normalisation(run: Execution, node: ir.Node) -> None:
    """Divide by a norm: removed channels add nothing to it."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    axis = integer(node, "axis", -1) % len(found.shape)
    if found.axis == axis:
        run.sink(node, 0, found)
    else:
        found = run.merge(found, [axis], node)
    run.set(node, found)


@follows(0)
def across_axes(run: Execution, node: ir.Node) -> None:
    """Operators that mix whole axes in a way that masking cannot undo: labels may only run along others."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    rank = len(found.shape)
    axes = _mixed_axes(run, node, rank)
    if found.axis in axes:
        run.freeze(found, node, f"{node.op_type} mixes its channels")
        for index, output in enumerate(node.outputs):
            if output.name and run.sizes.shape(output) == found.shape:
                run.set(node, found, index)
        return
    found = run.merge(found, [axis for axis in axes if axis in found.rows], node)
    if node.op_type in {"ArgMax", "ArgMin"} and not integer(node, "keepdims", 1):
        shape = run.shape(node.outputs[0])
        run.set(node, Labels(shape, found.atoms.squeeze(axes), found.axis - (axes[0] < found.axis)))
        return
    for index, output in enumerate(node.outputs):
        if output.name:
            run.set(node, Labels(run.shape(output), found.atoms, found.axis), index)


def _mixed_axes(run: Execution, node: ir.Node, rank: int) -> tuple[int, ...]:
    if node.op_type == "MeanVarianceNormalization":
        return tuple(axis % rank for axis in integers(node, "axes") or (0, 2, 3))
    if node.op_type == "CumSum":
        axis = run.known(node, 1)
        return tuple(range(rank)) if axis is None else (int(axis.reshape(-1)[0]) % rank,)
    plain = {
        "LRN": (1,),
        "Trilu": (rank - 2, rank - 1),
        "ReverseSequence": (integer(node, "time_axis", 0), integer(node, "batch_axis", 1)),
    }
    if node.op_type in plain:
        return plain[node.op_type]
    before = run.model.opset_imports.get("", 0) < 13
    if node.op_type in {"Softmax", "LogSoftmax", "Hardmax"} and before:
        # Older sets flatten everything from the axis on.
        return tuple(range(integer(node, "axis", 1) % rank, rank))
    return (integer(node, "axis", 0 if node.op_type in {"ArgMax", "ArgMin"} else -1) % rank,)


RULES: Rules = {
    **listed(batch_norm, "BatchNormalization"),
    **listed(layer_norm, "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    **listed(layer_norm, "SimplifiedLayerNormalization", "LayerNormalization", domain=CONTRIB),
    **listed(skip_layer_norm, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=CONTRIB),
    **listed(embed_layer_norm, "EmbedLayerNormalization", domain=CONTRIB),
    **listed(instance_norm, "InstanceNormalization"),
    **listed(group_norm, "GroupNormalization"),
    **listed(group_norm, "GroupNorm", domain=CONTRIB),
    **listed(lp_normalisation, "LpNormalization"),
    **listed(
        across_axes,
        *("Softmax", "LogSoftmax", "Hardmax", "TopK", "ArgMax", "ArgMin", "LRN", "MeanVarianceNormalization", "CumSum"),
        *("Trilu", "ReverseSequence"),
    ),
}
