"""Operations that exporters write as several nodes, run as one: PyTorch has a kernel for each, with its slope.

GELU, x / 2 * (1 + erf(x / sqrt(2))), takes up to a fifth of a training step of an encoder when it runs node by node, and keeps
four tensors more for the way back. The network does not change: where a value between the nodes is wanted they run one by one.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.train.framework import Tensor
from engine.train.twin.node import Node

_CLOSE = 1e-4
_GELU_OPSET, _NORM_OPSET = 20, 17
_MOST_FACTORS = 3


def fused(nodes: Sequence[Node], constants: Mapping[str, Tensor], wanted: Collection[str]) -> list[Node]:
    """Give nodes that compute the same in the same order, with each chain that is known in one node."""
    chains = _Chains(nodes, constants, wanted)
    made: dict[int, Node] = {}
    gone: set[int] = set()
    for place, node in enumerate(nodes):
        rule = _RULES.get(node.op_type)
        found = rule(chains, place) if rule is not None and not node.domain else None
        if found is None:
            continue
        single, members, last = found
        if chains.closed(single, members, last):
            made[last] = single
            gone |= members - {last}
    return [made.get(place, node) for place, node in enumerate(nodes) if place not in gone]


# The one node, the places of those that it stands for, and the place of the last of them.
_Found = tuple[Node, set[int], int]


class _Chains:
    def __init__(self, nodes: Sequence[Node], constants: Mapping[str, Tensor], wanted: Collection[str]) -> None:
        self.nodes, self._wanted = nodes, wanted
        self._makers = {name: place for place, node in enumerate(nodes) for name in node.outputs if name}
        self._constants = constants
        self._readers: dict[str, set[int]] = {}
        for place, node in enumerate(nodes):
            for name in node.reads:
                self._readers.setdefault(name, set()).add(place)

    def number(self, name: str) -> float | None:
        """Give a constant's one number, of an initializer or of a Constant node."""
        place = self.maker(name, "Constant")
        value = self._constants.get(name) if place is None else self.nodes[place].tensor("value")
        return float(value) if value is not None and value.numel() == 1 else None

    def maker(self, name: str, *kinds: str) -> int | None:
        """Give the place of the node of one of these operators that makes a value."""
        place = self._makers.get(name)
        return place if place is not None and self._is(place, kinds) else None

    def reader(self, place: int, *kinds: str) -> int | None:
        """Give the place of the one node that reads a node's result, where it is of one of these operators."""
        found = self._readers.get(self.nodes[place].outputs[0], set())
        only = next(iter(found)) if len(found) == 1 else None
        return only if only is not None and self._is(only, kinds) else None

    def scaled(self, name: str) -> tuple[int, str, float] | None:
        """Take a product with a number apart: its place, what is multiplied, and by what."""
        place = self.maker(name, "Mul", "Div")
        if place is None:
            return None
        first, second = self.nodes[place].inputs
        number = self.number(second)
        if number is not None:
            divides = self.nodes[place].op_type == "Div"
            return (place, first, 1 / number if divides else number) if number or not divides else None
        number = self.number(first)
        return (place, second, number) if number is not None and self.nodes[place].op_type == "Mul" else None

    def is_stored(self, name: str) -> bool:
        """Say whether no node makes a value."""
        return name not in self._makers

    def closed(self, single: Node, members: set[int], last: int) -> bool:
        """Say whether nobody, the one node included, reads what the members make, but for the last one's result."""
        inside = {name for member in members - {last} for name in self.nodes[member].outputs if name}
        return inside.isdisjoint((*self._wanted, *single.inputs)) and all(
            self._readers.get(name, set()) <= members for name in inside
        )

    def other(self, place: int, name: str) -> str:
        """Give the operand beside one that is known."""
        first, second = self.nodes[place].inputs
        return second if first == name else first

    def _is(self, place: int, kinds: Sequence[str]) -> bool:
        return self.nodes[place].op_type in kinds and not self.nodes[place].domain


def _gelu(chains: _Chains, place: int) -> _Found | None:
    """Half of x * (1 + erf(x / sqrt(2)))."""
    source = chains.scaled(chains.nodes[place].inputs[0])
    if source is None or abs(source[2] - math.sqrt(0.5)) > _CLOSE:
        return None
    return _half_gated(chains, place, source[1], {place, source[0]}, "none")


def _tanh_gelu(chains: _Chains, place: int) -> _Found | None:
    """Half of x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))."""
    source = chains.scaled(chains.nodes[place].inputs[0])
    if source is None or abs(source[2] - math.sqrt(2 / math.pi)) > _CLOSE:
        return None
    total = chains.maker(source[1], "Add")
    for name in () if total is None else chains.nodes[total].inputs:
        cube = chains.scaled(name)
        power = None if cube is None else chains.maker(cube[1], "Pow")
        if total is None or cube is None or power is None or abs(cube[2] - 0.044715) > _CLOSE:
            continue
        x, exponent = chains.nodes[power].inputs
        if chains.number(exponent) == 3 and chains.other(total, name) == x:
            return _half_gated(chains, place, x, {place, source[0], total, cube[0], power}, "tanh")
    return None


def _half_gated(chains: _Chains, place: int, x: str, members: set[int], approximate: str) -> _Found | None:
    """Follow a gate to where 1 is added to it and it is multiplied with x and a half, in any order."""
    last = chains.reader(place, "Add")
    if last is None or chains.number(chains.other(last, chains.nodes[place].outputs[0])) != 1:
        return None
    members, factor, whole = {*members, last}, 1.0, False
    for _ in range(_MOST_FACTORS):
        following = chains.reader(last, "Mul")
        if following is None:
            return None
        other = chains.other(following, chains.nodes[last].outputs[0])
        number, part = chains.number(other), chains.scaled(other)
        if number is not None:
            factor *= number
        elif other == x and not whole:
            whole = True
        elif part is not None and part[1] == x and not whole:
            whole, factor, members = True, factor * part[2], {*members, part[0]}
        else:
            return None
        members, last = {*members, following}, following
        if whole and abs(factor - 0.5) < _CLOSE:
            return _single(chains, last, "Gelu", _GELU_OPSET, (x,), approximate=approximate), members, last
    return None


def _layer_norm(chains: _Chains, place: int) -> _Found | None:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, from its root on."""
    shifted = chains.maker(chains.nodes[place].inputs[0], "Add")
    division = chains.reader(place, "Div")
    if shifted is None or division is None:
        return None
    variance, epsilon = chains.nodes[shifted].inputs
    if chains.number(epsilon) is None:
        variance, epsilon = epsilon, variance
    centred = chains.nodes[division].inputs[0]
    squares, subtraction = _mean_over_last(chains, variance), chains.maker(centred, "Sub")
    square = None if squares is None else _square_of(chains, chains.nodes[squares].inputs[0], centred)
    if chains.number(epsilon) is None or squares is None or square is None or subtraction is None:
        return None
    x, mean = chains.nodes[subtraction].inputs
    average = _mean_over_last(chains, mean)
    if average is None or chains.nodes[average].inputs[0] != x:
        return None
    members = {place, shifted, division, squares, square, subtraction, average}
    return _scaled_norm(chains, division, x, members, chains.number(epsilon))


def _scaled_norm(chains: _Chains, division: int, x: str, members: set[int], epsilon: float | None) -> _Found | None:
    product = chains.reader(division, "Mul")
    if product is None:
        return None
    inputs, last = [x, chains.other(product, chains.nodes[division].outputs[0])], product
    total = chains.reader(product, "Add")
    bias = "" if total is None else chains.other(total, chains.nodes[product].outputs[0])
    # What a node makes is added for another reason: a residual.
    if total is not None and chains.is_stored(bias):
        inputs, last = [*inputs, bias], total
    members = {*members, product, last}
    return _single(chains, last, "LayerNormalization", _NORM_OPSET, inputs, axis=-1, epsilon=epsilon), members, last


def _mean_over_last(chains: _Chains, name: str) -> int | None:
    place = chains.maker(name, "ReduceMean")
    if place is None:
        return None
    node = chains.nodes[place]
    last = chains.number(node.inputs[1]) == -1 if len(node.inputs) > 1 else node.integers("axes") == [-1]
    return place if last and node.integer("keepdims", 1) else None


def _square_of(chains: _Chains, name: str, x: str) -> int | None:
    place = chains.maker(name, "Pow", "Mul")
    if place is None or chains.nodes[place].inputs[0] != x:
        return None
    second = chains.nodes[place].inputs[1]
    squares = chains.number(second) == 2 if chains.nodes[place].op_type == "Pow" else second == x
    return place if squares else None


def _single(chains: _Chains, last: int, op_type: str, version: int, inputs: Sequence[str], **attributes: Any) -> Node:
    node = chains.nodes[last]
    return replace(node, op_type=op_type, version=version, inputs=tuple(inputs), attributes=attributes, input_types=())


_RULES: dict[str, Callable[[_Chains, int], _Found | None]] = {
    "Erf": _gelu,
    "Tanh": _tanh_gelu,
    "Sqrt": _layer_norm,
}
