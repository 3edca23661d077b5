"""A node and a graph as the twin's operators read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx_ir as ir

from engine.train.framework import Tensor, torch
from engine.train.twin.tensors import holds, to_torch, torch_type

_STANDARD = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, eq=False)
class Node:
    """A node. `inputs` and `outputs` name values, "" where one is omitted; `version` is that of its domain's operator set.

    `floating` is the type in which the twin holds 16-bit and 32-bit floats. `input_types` and `output_types` are those that
    the file states, None where it does not.
    """

    name: str
    op_type: str
    domain: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    floating: Any = torch.float32
    attributes: Mapping[str, Any] = field(default_factory=dict)
    bodies: Mapping[str, "Graph"] = field(default_factory=dict)
    input_types: tuple[ir.DataType | None, ...] = ()
    output_types: tuple[ir.DataType | None, ...] = ()

    def integer(self, name: str, default: int) -> int:
        """Read an integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """Read a float attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Read a string attribute."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """Read a list of integers, None where it is absent."""
        found = self.attributes.get(name)
        return None if found is None else [int(item) for item in found]

    def numbers(self, name: str) -> list[float] | None:
        """Read a list of floats, None where it is absent."""
        found = self.attributes.get(name)
        return None if found is None else [float(item) for item in found]

    def texts(self, name: str) -> list[str] | None:
        """Read a list of strings, None where it is absent."""
        found = self.attributes.get(name)
        return None if found is None else [str(item) for item in found]

    def tensor(self, name: str) -> Tensor | None:
        """Read a tensor attribute, None where it is absent; 16-bit and 32-bit floats in the twin's type."""
        return self.attributes.get(name)

    def type(self, name: str, default: Any) -> Any:
        """Read an attribute that names an element type, as the twin holds it."""
        found = self.attributes.get(name)
        return default if not found else torch_type(ir.DataType(int(found)), self.floating)

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Name all values that the node needs, those that its bodies take from outside included; each once."""
        found = dict.fromkeys(name for name in self.inputs if name)
        for body in self.bodies.values():
            found.update(dict.fromkeys(body.captured))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph in the order of execution; `initializers` name its constants, which the twin holds."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: tuple[str, ...]
    nodes: tuple[Node, ...]

    @cached_property
    def captured(self) -> tuple[str, ...]:
        """Name the values that it takes from the graph around it."""
        known = {*self.inputs, *self.initializers}
        found: dict[str, None] = {}
        for node in self.nodes:
            found.update(dict.fromkeys(name for name in node.reads if name not in known))
            known.update(node.outputs)
        found.update(dict.fromkeys(name for name in self.outputs if name not in known))
        return tuple(found)


def read_graph(graph: ir.Graph, versions: Mapping[str, int], floating: Any) -> Graph:
    """Read a graph with the bodies of its nodes."""
    return Graph(
        inputs=tuple(str(value.name) for value in graph.inputs if value.name not in graph.initializers),
        outputs=tuple(str(value.name) for value in graph.outputs),
        initializers=tuple(graph.initializers),
        nodes=tuple(read_node(node, versions, floating) for node in graph),
    )


def read_node(node: ir.Node, versions: Mapping[str, int], floating: Any) -> Node:
    """Read a node; one without a name takes that of its first output."""
    domain = "" if node.domain in _STANDARD else node.domain
    version = node.version if node.version is not None else versions.get(domain, 1)
    bodies = {
        name: read_graph(attribute.as_graph(), versions, floating)
        for name, attribute in node.attributes.items()
        if attribute.type == ir.AttributeType.GRAPH
    }
    return Node(
        name=node.name or _names(node.outputs)[0],
        op_type=node.op_type,
        domain=domain,
        version=version,
        inputs=_names(node.inputs),
        outputs=_names(node.outputs),
        floating=floating,
        attributes={
            name: _plain(attribute, floating)
            for name, attribute in node.attributes.items()
            if attribute.type not in _GRAPHS
        },
        bodies=bodies,
        input_types=tuple(_type(value) for value in node.inputs),
        output_types=tuple(_type(value) for value in node.outputs),
    )


_GRAPHS = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def _names(values: Sequence[ir.Value | None]) -> tuple[str, ...]:
    return tuple("" if value is None else value.name or "" for value in values)


def _type(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.dtype
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor().dtype
    return value.dtype


def _plain(attribute: ir.Attr, floating: Any) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return to_torch(tensor, floating) if holds(tensor.dtype) else None
    return attribute.value
