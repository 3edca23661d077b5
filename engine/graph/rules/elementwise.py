"""Operators that work place by place: one operand passes labels, several are united after broadcasting."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.graph import labels as lab
from engine.graph.execution import Execution
from engine.graph.labels import Labels, Shape
from engine.graph.rules.registry import CONTRIB, Rules, follows, listed


@follows(0)
def unary(run: Execution, node: ir.Node) -> None:
    """Pass labels through."""
    run.set(node, run.label(node.inputs[0]))


def joined(run: Execution, node: ir.Node) -> None:
    """Unite all operands."""
    run.set(node, join(run, node, [value for value in node.inputs if value is not None], run.shape(node.outputs[0])))


@follows(0)
def bounded(run: Execution, node: ir.Node) -> None:
    """Clip and its like: bounds are scalars and never labelled."""
    run.set(node, run.label(node.inputs[0]))


def aligned(found: Labels, rank: int) -> Labels:
    """Give labels leading axes of size 1 up to a rank."""
    missing = rank - len(found.shape)
    return lab.expand(found, (1,) * missing + found.shape) if missing else found


def join(run: Execution, node: ir.Node, values: Sequence[ir.Value], shape: Shape) -> Labels | None:
    """Unite the labels of operands that are broadcast against each other, and give the result's."""
    rank = len(shape)
    found = {value: aligned(part, rank) for value in values if (part := run.label(value)) is not None}
    if not found:
        return None
    lead = _lead(run, node, list(found.values()))
    atoms = lead.atoms
    for value in values:
        own = (1,) * (rank - len(run.shape(value))) + run.shape(value)
        if own[lead.axis] == 1:
            continue
        part = found.get(value)
        if part is not None:
            if part.axis == lead.axis:
                run.unite(lead.atoms, part.atoms, node)
                atoms = np.broadcast_to(atoms, np.broadcast_shapes(atoms.shape, part.atoms.shape))
            else:
                run.freeze(lead, node, "meets channels of another axis")
        elif run.constant(value):
            follow(run, node, value, Labels(shape, lead.atoms, lead.axis))
        else:
            run.freeze(lead, node, "meets a value without removable channels")
    return Labels(shape, atoms, lead.axis)


def _lead(run: Execution, node: ir.Node, found: list[Labels]) -> Labels:
    """Choose whose axis the result keeps; labels of other axes stay whole."""
    lead = found[0]
    for part in found[1:]:
        if part.axis != lead.axis:
            run.freeze(part, node, "meets channels of another axis")
    return lead


def follow(run: Execution, node: ir.Node, value: ir.Value, found: Labels) -> None:
    """Let a constant operand lose what the labelled operand loses."""
    own = run.shape(value)
    rank = len(found.shape)
    missing = rank - len(own)
    flat = [axis for axis in found.rows if axis < missing or own[axis - missing] == 1]
    merged = run.merge(found, flat, node)
    atoms = merged.atoms.reshape(merged.atoms.shape[missing:])
    run.member(value, Labels(own, atoms, found.axis - missing), "pass", node)


UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf",
    "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
JOINED = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip

RULES: Rules = {
    **listed(unary, *UNARY),
    **listed(joined, *JOINED),
    **listed(bounded, "Clip"),
    **listed(unary, "Gelu", "QuickGelu", domain=CONTRIB),
    **listed(joined, "BiasGelu", "FastGelu", "BiasAdd", domain=CONTRIB),
}
