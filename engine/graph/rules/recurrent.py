"""Recurrent layers: hidden units are prunable, their weights stand in blocks of gates."""

import numpy as np
import onnx_ir as ir

from engine.graph.attributes import integer
from engine.graph.execution import Execution, Role
from engine.graph.labels import Array, Labels
from engine.graph.rules.registry import Rules, follows, listed

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@follows(0, 5, 6)
def recurrent(run: Execution, node: ir.Node) -> None:
    """Inputs X, W, R, B, lengths, initial h, initial c, P; results for all steps, the last h and the last c."""
    gates = _GATES[node.op_type]
    found = run.label(node.inputs[0])
    weights = [node.inputs[index] for index in (1, 2)]
    if integer(node, "layout", 0) or not all(run.constant(value) for value in weights):
        run.freeze_inputs(node, "its weights are computed or its layout starts with the batch")
        return
    weight, recurrence = weights
    assert weight is not None
    assert recurrence is not None
    if found is not None:
        vector = run.channels(node.inputs[0], 2, node)
        if vector is not None:
            run.member(weight, Labels(run.shape(weight), vector.reshape(1, 1, -1), 2), "in", node)
    directions, _, hidden = run.shape(recurrence)
    fresh = run.fresh(f"{node.name}:hidden", directions * hidden, node)
    states = [
        (index, value) for index in (5, 6) if index < len(node.inputs) and (value := node.inputs[index]) is not None
    ]
    if fresh is None:
        for _, value in states:
            run.freeze(run.label(value), node, "meets a state that cannot be pruned")
        return
    atoms = fresh.reshape(directions, hidden)
    gated = np.tile(atoms, (1, gates))[:, :, None]
    _weigh(run, node, weight, gated, axis=1, role="out")
    _weigh(run, node, recurrence, gated, axis=1, role="out")
    _weigh(run, node, recurrence, atoms[:, None, :], axis=2, role="in")
    for index, times in ((3, 2 * gates), (7, 3)):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and run.constant(value):
            _weigh(run, node, value, np.tile(atoms, (1, times)), axis=1, role="pass")
        elif value is not None:
            run.freeze(atoms, node, "its parameters are computed")
    for _, value in states:
        _start(run, node, value, atoms)
    run.note(node, "attribute", Labels((directions, hidden), atoms, 1), axis=1, name="hidden_size")
    _finish(run, node, atoms)


def _weigh(run: Execution, node: ir.Node, value: ir.Value, atoms: Array, *, axis: int, role: Role) -> None:
    run.member(value, Labels(run.shape(value), atoms, axis), role, node)


def _start(run: Execution, node: ir.Node, value: ir.Value, atoms: Array) -> None:
    """A starting state has the hidden units on its last axis."""
    spread = atoms[:, None, :]
    if run.constant(value) and value.name not in run.labels:
        _weigh(run, node, value, spread, axis=2, role="pass")
        return
    found = run.label(value)
    if found is None or found.axis != 2:
        run.freeze(found, node, "meets hidden units along another axis")
        run.freeze(atoms, node, "its starting state cannot be pruned")
        return
    run.unite(found.atoms, spread, node)


def _finish(run: Execution, node: ir.Node, atoms: Array) -> None:
    for index, output in enumerate(node.outputs):
        if not output.name or run.sizes.shape(output) is None:
            continue
        shape = run.shape(output)
        spread = atoms[None, :, None, :] if index == 0 else atoms[:, None, :]
        run.set(node, Labels(shape, spread, len(shape) - 1), index)


RULES: Rules = listed(recurrent, *_GATES)
