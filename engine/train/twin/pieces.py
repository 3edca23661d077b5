"""The parts of a network that can be trained where unsupported operators cut it.

A piece is trained by itself: its inputs come from onnxruntime, and its outputs are held to what they should be.
"""

from dataclasses import dataclass

import onnx_ir as ir

from engine.graph import dtypes
from engine.train.twin.module import Twin
from engine.train.twin.node import Node

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Piece:
    """Nodes that are trained together, in the order of execution, by name.

    `inputs` are the values that they take from the rest of the network or from its inputs; `outputs` the floats that they
    give to the rest or as outputs and that depend on their parameters; `parameters` the initializers that they train.
    `twin.run(inputs by name, outputs)` computes them.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    parameters: tuple[str, ...]


def pieces(model: ir.Model, twin: Twin) -> list[Piece]:
    """Cut a network at the nodes that cannot be trained through; parts without parameters are left out.

    Without such nodes the whole is one piece, from the network's inputs to its outputs. No way leads out of a piece and back
    into it.
    """
    cuts = twin.cuts()
    nodes = twin.graph.nodes
    blocked = [node.name in cuts for node in nodes]
    levels = _levels(nodes, blocked)
    groups = _connected(twin, nodes, blocked, levels)
    types, _ = dtypes.infer(model)
    floats = {str(value.name) for value, kind in types.items() if kind in _FLOATS}
    found = [_piece(twin, group, floats) for group in groups]
    return [piece for piece in found if piece.outputs]


def _levels(nodes: tuple[Node, ...], blocked: list[bool]) -> list[int]:
    """Count for each node the cuts on the way to it: whatever comes back through a cut is on a later level."""
    level: dict[str, int] = {}
    found = []
    for node, cut in zip(nodes, blocked, strict=True):
        own = max((level.get(name, 0) for name in node.reads), default=0)
        found.append(own)
        level.update(dict.fromkeys(node.outputs, own + cut))
    return found


def _connected(twin: Twin, nodes: tuple[Node, ...], blocked: list[bool], levels: list[int]) -> list[list[Node]]:
    """Group the nodes of each level that pass values to each other, or are made of the same parameters."""
    leader: dict[int, int] = {place: place for place, cut in enumerate(blocked) if not cut}

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    makers = {name: place for place in leader for name in nodes[place].outputs if name}
    sharers: dict[tuple[str, int], int] = {}
    for place in leader:
        for name in nodes[place].reads:
            other = makers.get(name)
            if name in twin.parameters:
                other = sharers.setdefault((name, levels[place]), place)
            if other is not None and levels[other] == levels[place]:
                leader[find(place)] = find(other)
    groups: dict[int, list[Node]] = {}
    for place in leader:
        groups.setdefault(find(place), []).append(nodes[place])
    return list(groups.values())


def _piece(twin: Twin, group: list[Node], floats: set[str]) -> Piece:
    inside = {name for node in group for name in node.outputs if name}
    members = {id(node) for node in group}
    read_outside = {name for node in twin.graph.nodes if id(node) not in members for name in node.reads}
    read_outside.update(twin.outputs)
    constants = twin.constants
    trained: set[str] = set()
    for node in group:
        if any(name in twin.parameters or name in trained for name in _reads_with_bodies(node)):
            trained.update(name for name in node.outputs if name in floats)
    inputs = dict.fromkeys(
        name
        for node in group
        for name in node.reads
        if name not in inside and name not in twin.parameters and name not in constants
    )
    parameters = dict.fromkeys(name for node in group for name in _reads_with_bodies(node) if name in twin.parameters)
    return Piece(
        inputs=tuple(inputs),
        outputs=tuple(name for node in group for name in node.outputs if name in trained and name in read_outside),
        nodes=tuple(node.name for node in group),
        parameters=tuple(parameters),
    )


def _reads_with_bodies(node: Node) -> tuple[str, ...]:
    inner = (name for body in node.bodies.values() for each in body.nodes for name in _reads_with_bodies(each))
    return (*node.reads, *inner)
