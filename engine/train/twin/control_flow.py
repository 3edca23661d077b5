"""Operators that run graphs of their own: If, Loop and Scan, by the values of their conditions."""

from collections.abc import Callable, Mapping, Sequence

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Graph, Node

# Runs a body on its inputs by name and gives its outputs.
Run = Callable[[Graph, Mapping[str, Tensor]], "tuple[Tensor, ...]"]


def runs(node: Node) -> bool:
    """Say whether a node is one of these."""
    return not node.domain and (node.op_type in {"If", "Loop"} or (node.op_type == "Scan" and node.version >= 9))


def run(node: Node, inputs: Sequence[Tensor | None], body: Run) -> tuple[Tensor, ...]:
    """Run it; gradients go through what was run."""
    return {"If": _if, "Loop": _loop, "Scan": _scan}[node.op_type](node, inputs, body)


def _if(node: Node, inputs: Sequence[Tensor | None], body: Run) -> tuple[Tensor, ...]:
    condition = inputs[0]
    assert condition is not None
    return body(node.bodies["then_branch" if bool(condition) else "else_branch"], {})


def _loop(node: Node, inputs: Sequence[Tensor | None], body: Run) -> tuple[Tensor, ...]:
    graph = node.bodies["body"]
    trips = None if not inputs or inputs[0] is None else int(inputs[0])
    condition = len(inputs) < 2 or inputs[1] is None or bool(inputs[1])
    state = [tensor for tensor in inputs[2:] if tensor is not None]
    stacked: list[list[Tensor]] = [[] for _ in graph.outputs[1 + len(state) :]]
    turn = 0
    while condition and (trips is None or turn < trips):
        values = [torch.tensor(turn), torch.tensor(condition), *state]
        again, *found = body(graph, dict(zip(graph.inputs, values, strict=True)))
        condition, state, turn = bool(again), found[: len(state)], turn + 1
        for kept, value in zip(stacked, found[len(state) :], strict=True):
            kept.append(value)
    # A loop that never ran says nothing of the shapes that it would have given.
    return (*state, *(torch.stack(kept) if kept else torch.empty(0) for kept in stacked))


def _scan(node: Node, inputs: Sequence[Tensor | None], body: Run) -> tuple[Tensor, ...]:
    graph = node.bodies["body"]
    scanned = node.integer("num_scan_inputs", 1)
    given = [tensor for tensor in inputs if tensor is not None]
    state, sequences = given[: len(given) - scanned], given[len(given) - scanned :]
    axes = node.integers("scan_input_axes") or [0] * scanned
    backwards = node.integers("scan_input_directions") or [0] * scanned
    count = sequences[0].shape[axes[0]]
    stacked: list[list[Tensor]] = [[] for _ in graph.outputs[len(state) :]]
    for turn in range(count):
        slices = [
            tensor.select(axis, count - 1 - turn if back else turn)
            for tensor, axis, back in zip(sequences, axes, backwards, strict=True)
        ]
        found = body(graph, dict(zip(graph.inputs, [*state, *slices], strict=True)))
        for kept, value in zip(stacked, found[len(state) :], strict=True):
            kept.append(value)
        state = list(found[: len(state)])
    places = node.integers("scan_output_axes") or [0] * len(stacked)
    reverse = node.integers("scan_output_directions") or [0] * len(stacked)
    results = [
        torch.stack(kept[::-1] if back else kept, dim=axis)
        for kept, axis, back in zip(stacked, places, reverse, strict=True)
    ]
    return (*state, *results)
