"""Reads a network as terms: which operators belong together, which widths they depend on, what is stored for them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from engine.graph import io, linear, macs
from engine.graph import sizes as concrete
from engine.graph.coupling import analyse
from engine.graph.groups import Group
from engine.graph.linear import LinearLayer
from engine.graph.sizes import Sizes
from engine.prune.widths import groups_by_name
from engine.search.anatomy import Layer, Side
from engine.search.architecture import Architecture
from engine.search.terms import Size, Structure, Tensor, Term

# Where a node stands that no layer is before.
_INPUT = "input"
_NOTHING = Size(fixed=1)


def structure_of(model: ir.Model, architecture: Architecture, file_bytes: int) -> Structure:
    """Read a prepared network; it stays as it is. `file_bytes`: what it takes as a file."""
    reader = _Reader(model, architecture)
    return Structure(
        full={name: group.size for name, group in architecture.groups.items()},
        terms=tuple(reader.terms()),
        file_bytes=file_bytes,
        macs=sum(reader.macs.values()),
        parameters=sum(
            tensor.const_value.size for _, tensor in io.initializers(model) if tensor.const_value is not None
        ),
    )


def terms_by_node(model: ir.Model, architecture: Architecture) -> dict[str, str]:
    """Give the term of each node of a prepared network by the node's name, and by the names of what it makes."""
    found: dict[str, str] = {}
    for node, place in _places(model, architecture).items():
        found |= {name: place.term for name in (node.name, *(value.name for value in node.outputs)) if name}
    return found


@dataclass(frozen=True)
class _Place:
    """Where a node belongs: the last layer before it, or itself, and the branches that it goes with."""

    layer: str | None
    blocks: tuple[str, ...]
    term: str
    order: int


def _places(model: ir.Model, architecture: Architecture) -> dict[ir.Node, _Place]:
    found: dict[ir.Node, _Place] = {}
    of_layer: dict[str, tuple[str, ...]] = {}
    for order, node in enumerate(model.graph):
        name = linear.node_name(node)
        blocks = tuple(block for block, branch in architecture.blocks.items() if name in branch.nodes or name == block)
        if name in architecture.layers and isinstance(linear.read(node), LinearLayer):
            of_layer[name] = blocks
            found[node] = _Place(name, blocks, name, order)
            continue
        before = [found[each] for value in node.inputs if value is not None and (each := value.producer()) in found]
        last = max(before, key=lambda place: place.order, default=None)
        layer = None if last is None else last.layer
        own = layer is not None and of_layer[layer] == blocks
        # What stays when the layer goes has a name of its own.
        term = layer if own and layer is not None else f"{layer or _INPUT}|{'|'.join(blocks)}"
        # It stands where its layer stands: what comes later is what a later layer made.
        found[node] = _Place(layer, blocks, term, order if last is None else last.order)
    return found


@dataclass
class _Building:
    """A term while its nodes are gathered."""

    place: _Place
    nodes: list[ir.Node] = field(default_factory=list)
    tensors: list[ir.Value] = field(default_factory=list)


class _Reader:
    def __init__(self, model: ir.Model, architecture: Architecture) -> None:
        self._model, self._architecture = model, architecture
        self._sizes: Sizes = concrete.infer(model)
        self.macs: Mapping[str, int] = macs.count(model)

    def terms(self) -> Iterator[Term]:
        built: dict[str, _Building] = {}
        places = _places(self._model, self._architecture)
        for node, place in places.items():
            built.setdefault(place.term, _Building(place)).nodes.append(node)
        for value in self._stored():
            users = [places[use.node] for use in value.uses() if use.node in places]
            # What several branches share stays as long as one of them does.
            owner = min(users, key=lambda place: (len(place.blocks), place.order), default=None)
            name = f"{_INPUT}|" if owner is None else owner.term
            built.setdefault(name, _Building(_Place(None, (), name, 0))).tensors.append(value)
        for term in built.values():
            yield self._term(term)

    def _stored(self) -> Iterator[ir.Value]:
        return (value for _, value in io.initializers(self._model) if value.const_value is not None)

    def _term(self, building: _Building) -> Term:
        place = building.place
        layer = None if place.layer is None else self._architecture.layers[place.layer]
        own = layer is not None and place.term == layer.name
        first = building.nodes[0] if building.nodes else None
        weight = None if not own or first is None else _weight(first)
        gives = _NOTHING if layer is None else self._size(layer.makes)
        at = {id(value): number for number, value in enumerate(building.tensors)}
        return Term(
            name=place.term,
            layer=place.layer if own else None,
            blocks=place.blocks,
            signature=self._signature(building, layer if own else None),
            reads=self._size(layer.reads) if own and layer is not None else gives,
            gives=gives,
            rows=max(self._rows(first), 1) if first is not None else 1,
            tensors=tuple(self._tensor(value, weight=value is weight) for value in building.tensors),
            macs=tuple(self._macs(building.nodes, at)),
        )

    def _size(self, side: Side) -> Size:
        full = self._architecture.groups
        parts = {name: places for name, places in side.parts if name in full}
        taken = sum(places * full[name].size for name, places in parts.items())
        return Size(fixed=side.size - round(taken), per_kept=parts)

    def _tensor(self, value: ir.Value, *, weight: bool) -> Tensor:
        tensor = value.const_value
        assert tensor is not None
        shape = tuple(int(size) for size in tensor.shape.numpy())
        cuts = self._cuts.get(str(value.name), {})
        return Tensor(
            item=tensor.nbytes / max(tensor.size, 1),
            axes=tuple(self._axis(size, cuts.get(axis, {})) for axis, size in enumerate(shape)),
            weight=weight,
        )

    def _axis(self, size: int, parts: Mapping[str, float]) -> Size:
        taken = sum(places * self._architecture.groups[name].size for name, places in parts.items())
        return Size(fixed=size - round(taken), per_kept=dict(parts))

    @cached_property
    def _cuts(self) -> dict[str, dict[int, dict[str, float]]]:
        """Give by tensor and axis how many places go with each channel of each group."""
        copy = io.copy(self._model)
        groups = groups_by_name(analyse(copy).groups)
        found: dict[str, dict[int, dict[str, float]]] = {}
        for name in self._architecture.groups:
            for tensor, axis, places in _places_of(groups[name]):
                found.setdefault(tensor, {}).setdefault(axis, {})[name] = places
        return found

    def _macs(self, nodes: list[ir.Node], at: Mapping[int, int]) -> Iterator[tuple[int, int]]:
        for node in nodes:
            count = self.macs.get(str(node.name), 0)
            if count:
                weight = _weight(node)
                yield count, -1 if weight is None else at.get(id(weight), -1)

    def _signature(self, building: _Building, layer: Layer | None) -> str:
        kinds = Counter(node.op_type for node in building.nodes)
        said = " ".join(f"{kind}*{count}" if count > 1 else kind for kind, count in sorted(kinds.items()))
        rows = self._rows(building.nodes[0]) if building.nodes else 0
        if layer is None:
            return f"{said} rows={rows}"
        grouped = "depthwise" if layer.depthwise else f"groups={layer.groups}"
        return f"{layer.op} {layer.kernel} {layer.strides} {grouped} rows={rows}: {said}"

    def _rows(self, node: ir.Node) -> int:
        """Give how many places an operator's result has beside its channels."""
        shape = self._sizes.shape(node.outputs[0])
        if not shape:
            return 0
        channel = 1 if node.op_type in {"Conv", "ConvTranspose"} else -1
        return int(np.prod(shape) // max(shape[channel], 1))


def _weight(node: ir.Node) -> ir.Value | None:
    layer = linear.read(node)
    return layer.weight if isinstance(layer, LinearLayer) and layer.weight.is_initializer() else None


def _places_of(group: Group) -> Iterator[tuple[str, int, float]]:
    """Yield the tensors and axes that a group cuts, with the places that each of its channels has there."""
    atoms = np.array(group.atoms)
    seen = set()
    for part in group.slices:
        if (part.initializer, part.axis) in seen:
            continue
        seen.add((part.initializer, part.axis))
        lines = len(part.atoms) if part.atoms.ndim > 1 else 1
        places = np.isin(part.atoms, atoms).sum() / lines / len(atoms)
        if places:
            yield part.initializer, part.axis, float(places)
