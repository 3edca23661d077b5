"""Reductions: over other axes labels pass; over the labelled one only sums are exact."""

import onnx_ir as ir

from engine.graph.attributes import axes_of, integer
from engine.graph.execution import Execution
from engine.graph.labels import Labels
from engine.graph.rules.registry import Rules, follows, listed

# Removed channels add nothing to these, and ReduceMean's divisor changes.
_EXACT = frozenset({"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})


@follows(0)
def reduce(run: Execution, node: ir.Node) -> None:
    """Pass, sum over, or keep."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    rank = len(found.shape)
    axes = axes_of(node, run.known(node, 1), rank)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        run.freeze(found, node, "its axes are computed from data")
        return
    if not axes:
        # An empty list means the same as none.
        axes = () if integer(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    if found.axis in axes:
        if node.op_type in _EXACT:
            run.sink(node, 0, found)
        elif node.op_type == "ReduceMean":
            run.sink(node, 0, found, statistics=True)
        else:
            run.freeze(found, node, f"{node.op_type} mixes its channels")
        return
    found = run.merge(found, [axis for axis in axes if axis in found.rows], node)
    shape = run.shape(node.outputs[0])
    if integer(node, "keepdims", 1):
        run.set(node, Labels(shape, found.atoms, found.axis))
        return
    atoms = found.atoms.squeeze(tuple(axes))
    run.set(node, Labels(shape, atoms, found.axis - sum(axis < found.axis for axis in axes)))


RULES: Rules = listed(
    reduce,
    *("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceLogSum", "ReduceLogSumExp"),
)
