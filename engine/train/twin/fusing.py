"""What exporters wrote as several nodes and PyTorch has one kernel for, forwards and back: fewer passes over the activations.

GELU, x / 2 * (1 + erf(x / sqrt(2))), takes up to a fifth of a training step of an encoder when it runs node by node.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from engine.train.framework import Tensor
from engine.train.twin.node import Node

_CLOSE = 1e-3


def fused(nodes: Sequence[Node], constants: Mapping[str, Tensor], wanted: Collection[str]) -> list[Node]:
    """Replace what has one kernel, in nodes in the order of execution; values that are wanted keep the nodes that make them."""
    steps = _Steps(nodes, constants, frozenset(wanted))
    replaced: dict[int, Node] = {}
    gone: set[int] = set()
    for node in nodes:
        found = _gelu(node, steps) if node.op_type == "Erf" and not node.domain else None
        if found is not None:
            replaced[id(found.last)] = found.node
            gone.update(id(each) for each in found.members)
    return [replaced.get(id(node), node) for node in nodes if id(node) in replaced or id(node) not in gone]


@dataclass(frozen=True)
class _Found:
    """A pattern: its nodes, the last of which gives the result, and what takes their place."""

    node: Node
    last: Node
    members: tuple[Node, ...]


@dataclass
class _Steps:
    nodes: Sequence[Node]
    constants: Mapping[str, Tensor]
    wanted: frozenset[str]
    makers: dict[str, Node] = field(default_factory=dict)
    readers: dict[str, list[Node]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for node in self.nodes:
            self.makers.update(dict.fromkeys(node.outputs, node))
            for name in node.reads:
                self.readers[name].append(node)

    def number(self, name: str) -> float | None:
        """Give a constant that is one number."""
        tensor = self.constants.get(name)
        maker = self.makers.get(name)
        if tensor is None and maker is not None and maker.op_type == "Constant":
            tensor = maker.tensor("value")
        return float(tensor) if tensor is not None and tensor.numel() == 1 else None

    def only_reader(self, node: Node, kind: str) -> Node | None:
        """Give the node that alone reads what another one makes, where it is of a kind."""
        name = node.outputs[0]
        readers = self.readers[name]
        if len(readers) != 1 or name in self.wanted or readers[0].op_type != kind or readers[0].domain:
            return None
        return readers[0]

    def is_number(self, name: str, value: float) -> bool:
        """Say whether a value is this constant."""
        found = self.number(name)
        return found is not None and abs(found - value) < _CLOSE * abs(value)


def _gelu(erf: Node, steps: _Steps) -> _Found | None:
    scaled = steps.makers.get(erf.inputs[0])
    source = None if scaled is None else _scaled_by_root_of_half(scaled, steps)
    plus = steps.only_reader(erf, "Add")
    first = None if plus is None else steps.only_reader(plus, "Mul")
    if scaled is None or source is None or plus is None or first is None:
        return None
    if steps.only_reader(scaled, "Erf") is not erf or not any(steps.is_number(name, 1.0) for name in plus.inputs):
        return None
    return _product_of(source, (scaled, erf, plus, first), steps)


def _product_of(source: str, members: tuple[Node, ...], steps: _Steps) -> _Found | None:
    """Find the half and the value that the sum is multiplied with, in either order, or their product."""
    *_, plus, first = members
    other = _other(first, plus.outputs[0])
    half = steps.makers.get(other)
    if half is not None and steps.only_reader(half, "Mul") is first and _is_half_of(half, source, steps):
        return _as_gelu(source, first, (half, *members))
    last = steps.only_reader(first, "Mul")
    if last is None:
        return None
    factors = {other, _other(last, first.outputs[0])}
    if source in factors and any(steps.is_number(name, 0.5) for name in factors - {source}):
        return _as_gelu(source, last, (*members, last))
    return None


def _scaled_by_root_of_half(node: Node, steps: _Steps) -> str | None:
    """Name what a node divides by the root of two."""
    if node.domain or node.op_type not in {"Div", "Mul"}:
        return None
    if node.op_type == "Div":
        return node.inputs[0] if steps.is_number(node.inputs[1], math.sqrt(2)) else None
    return next((_other(node, name) for name in node.inputs if steps.is_number(name, math.sqrt(0.5))), None)


def _is_half_of(node: Node, source: str, steps: _Steps) -> bool:
    """Say whether a node gives half of a value."""
    if node.op_type == "Div":
        return node.inputs[0] == source and steps.is_number(node.inputs[1], 2.0)
    return node.op_type == "Mul" and source in node.inputs and steps.is_number(_other(node, source), 0.5)


def _other(node: Node, name: str) -> str:
    return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


def _as_gelu(source: str, last: Node, members: tuple[Node, ...]) -> _Found:
    node = Node(last.name, "Gelu", "", 20, (source,), last.outputs[:1], floating=last.floating)
    return _Found(node, last, members)
