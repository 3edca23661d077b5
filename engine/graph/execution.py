"""One run of a graph on labels: what every rule reads and writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from engine.graph import labels as lab
from engine.graph.attributes import integer, integers
from engine.graph.labels import Array, Labels, Shape, UnfollowableError
from engine.graph.sizes import Sizes

Role = Literal["in", "out", "pass"]
SiteKind = Literal["reshape", "expand", "resize", "split", "slice", "gather", "attribute"]
# Nodes through which a weight is still the same weight, seen from another side.
_VIEWS = frozenset({"Transpose", "Identity", "Cast", "DequantizeLinear"})


@dataclass(frozen=True)
class Member:
    """Labels of one initializer in one use: `in` = it is multiplied with the channel and summed, `out` = it makes it."""

    initializer: str
    labels: Labels
    role: Role
    node: str


@dataclass(frozen=True)
class Site:
    """Something in a node that must be rewritten when channels go: a shape, split sizes, ranges or an attribute."""

    node: str
    kind: SiteKind
    labels: Labels
    # Which axis of `labels` the attribute counts, and its name.
    axis: int = 0
    name: str = ""
    # The old size is computed at run time from dynamic ones, so that the new one cannot be written as a number.
    dynamic: bool = False


@dataclass(frozen=True)
class Sink:
    """A node that mixes labelled elements without a weight: masking must happen at its input."""

    node: str
    index: int
    labels: Labels
    statistics: bool
    # Labels before the reshape that feeds the node, where the mask has to take the same way as the value.
    before: Labels | None = None
    dtype: ir.DataType = ir.DataType.FLOAT


@dataclass(frozen=True)
class Producer:
    """An axis that was given atoms."""

    key: str
    node: str
    op_type: str
    atoms: Array


@dataclass(frozen=True)
class Freeze:
    """Atoms that must stay, with the node that wants it and why."""

    node: str
    op_type: str
    reason: str
    atoms: Array


@dataclass(frozen=True)
class Split:
    """A labelled axis that the graph reads as blocks of `inner` channels: heads, or the groups of a convolution."""

    node: str
    atoms: Array
    inner: int
    kind: Literal["heads", "conv_groups"]


Pattern = Callable[[str, int], Array | None]


def every_unit(key: str, size: int) -> Array | None:
    """Plan of the first layer: each place of each axis is its own channel."""
    del key
    return np.arange(size)


@dataclass
class Execution:
    """State of a run. `pattern` says for each prunable axis which of its places share an atom, None = no atoms."""

    model: ir.Model
    sizes: Sizes
    union: lab.Union
    pattern: Pattern = every_unit
    labels: dict[str, Labels] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    producers: list[Producer] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    grids: list[Labels] = field(default_factory=list)
    lossy: list[Array] = field(default_factory=list)
    deferred: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)

    # --- values ------------------------------------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Shape:
        """Give a value's shape; of the inputs and the first output it is known when a rule runs."""
        found = self.sizes.shape(value)
        if found is None:
            raise UnfollowableError("a shape could not be inferred")
        return found

    def known(self, node: ir.Node, index: int) -> Array | None:
        """Give the content of an input that shape arithmetic determines."""
        return self.sizes.constant(node.inputs[index]) if index < len(node.inputs) else None

    def fixed(self, node: ir.Node, index: int) -> Array:
        """Tell which elements of a known input stay the same when dynamic dimensions change."""
        value = node.inputs[index]
        known = self.sizes.constant(value)
        assert value is not None
        assert known is not None
        return ~self.sizes.moving.get(str(value.name), np.zeros(known.shape, bool))

    def label(self, value: ir.Value | None) -> Labels | None:
        """Give an activation's labels, None if it has none."""
        return None if value is None or value.name is None else self.labels.get(value.name)

    def set(self, node: ir.Node, labels: Labels | None, index: int = 0) -> None:
        """Label an output. Labels that all go together cannot go at all: the axis would become empty."""
        if labels is None or index >= len(node.outputs) or not node.outputs[index].name or not labels.atoms.size:
            return
        value = node.outputs[index]
        if labels.atoms.shape[labels.axis] == 1:
            self.freeze(labels, node, "one place stands for all its channels")
            return
        assert value.name is not None
        self._require_fit(node, labels, value)
        if labels.rows:
            self.grids.append(labels)
        self.labels[value.name] = labels

    def _require_fit(self, node: ir.Node, labels: Labels, value: ir.Value) -> None:
        shape = self.sizes.shape(value)
        if labels.shape == shape and all(own in {1, size} for own, size in zip(labels.atoms.shape, shape, strict=True)):
            return
        self._require_inferred(node)
        raise AssertionError((node.name, node.op_type, labels.shape, labels.atoms.shape, shape))

    def _require_inferred(self, node: ir.Node) -> None:
        """Sizes that only the file declares, with stand-ins for dynamic ones, need not fit those of the inputs."""
        if any(value.name in self.sizes.declared for value in node.outputs):
            raise UnfollowableError("the sizes declared for its output do not fit those of its inputs")

    def moved(self, value: ir.Value | None, axis: int | None = None) -> Labels | None:
        """Give labels for a movement op: a constant that is moved around is itself a prunable source."""
        if value is None or value.name is None or not self.constant(value) or value.name in self.labels:
            return self.label(value)
        shape, floating = self.shape(value), ir.DataType(self.sizes.types[value.name]).is_floating_point()
        wide = [place for place, size in enumerate(shape) if size > 1]
        axis = wide[-1] if axis is None and wide else axis
        if not floating or axis is None or shape[axis] == 1:
            return None
        atoms = self.fresh(value.name, shape[axis], None)
        if atoms is None:
            return None
        found = lab.along(shape, axis, atoms)
        self.sources.add(value.name)
        self.member(value, found, "out", None)
        self.labels[value.name] = found
        return found

    # --- weights -----------------------------------------------------------------------------------------------------

    def constant(self, value: ir.Value | None) -> bool:
        """Tell whether a value is a weight or a plain view of one."""
        while value is not None and not value.is_initializer():
            node = value.producer()
            if node is None or node.op_type not in _VIEWS:
                return False
            value = node.inputs[0]
        return value is not None and not value.is_graph_input()

    def member(self, value: ir.Value, found: Labels, role: Role, node: ir.Node | None) -> None:
        """Record that an initializer carries labels, seen through the views between it and its use.

        What the graph computes or takes as an input carries none: the channels stay.
        """
        if node is not None and not self.constant(value):
            self.freeze(found, node, "its parameters are computed")
            return
        producer = value.producer()
        name = "" if node is None else str(node.name)
        if producer is None:
            assert value.name is not None
            self.members.append(Member(value.name, found, role, name))
            if found.rows:
                self.grids.append(found)
            return
        source = producer.inputs[0]
        assert source is not None
        if producer.op_type == "Transpose":
            permutation = integers(producer, "perm") or list(reversed(range(len(found.shape))))
            found = lab.transpose(found, np.argsort(permutation).tolist())
        if producer.op_type == "DequantizeLinear":
            self.scales(producer, found)
        self.member(source, found, role, node)

    def scales(self, node: ir.Node, found: Labels) -> None:
        """Let the scale and zero point of a (de)quantize node follow the channels that they are listed for."""
        axis = integer(node, "axis", 1) % max(1, len(found.shape))
        for value in node.inputs[1:]:
            shape = () if value is None else self.shape(value)
            if value is None or all(size == 1 for size in shape):
                continue
            if len(shape) > 1 or integer(node, "block_size", 0) or not self.constant(value):
                self.freeze(found, node, "scales stand for blocks of the axis, not for its channels")
            elif axis == found.axis:
                self.member(value, lab.along(shape, 0, self.collapse(found, node)), "pass", node)

    # --- atoms -------------------------------------------------------------------------------------------------------

    def fresh(self, key: str, size: int, node: ir.Node | None) -> Array | None:
        """Give atoms to a prunable axis as the plan wants it."""
        pattern = self.pattern(key, size) if size > 1 else None
        if pattern is None:
            return None
        atoms = self.union.fresh(int(pattern.max()) + 1)[pattern]
        self.producers.append(
            Producer(key, "" if node is None else str(node.name), node.op_type if node else "constant", atoms)
        )
        return atoms

    def unite(self, left: Array, right: Array, node: ir.Node) -> None:
        """Unite atoms element by element; what meets an unlabelled element must stay."""
        if left is right:
            return
        try:
            left, right = np.broadcast_arrays(left, right)
        except ValueError:
            self._require_inferred(node)
            raise
        left, right = left.reshape(-1), right.reshape(-1)
        both = (left > 0) & (right > 0)
        if both.all():
            self.union.unite(left, right)
            return
        self.union.unite(left[both], right[both])
        alone = np.maximum(left, right)[~both]
        self.freeze(alone[alone > 0], node, "meets channels that cannot be removed")

    def freeze(self, what: Labels | Array | None, node: ir.Node, reason: str) -> None:
        """Keep atoms, with the reason."""
        atoms = what.atoms if isinstance(what, Labels) else what
        if atoms is None:
            return
        atoms = np.unique(atoms)
        atoms = atoms[atoms > 0]
        if len(atoms):
            self.freezes.append(Freeze(str(node.name), node.op_type, reason, atoms))

    def freeze_inputs(self, node: ir.Node, reason: str) -> None:
        """Keep everything that a node reads."""
        for value in node.inputs:
            self.freeze(self.label(value), node, reason)

    def merge(self, found: Labels, axes: Sequence[int], node: ir.Node) -> Labels:
        """Unite labels over axes that an op mixes, so that they no longer vary there."""
        axes = [axis for axis in axes if found.atoms.shape[axis] > 1]
        if not axes:
            return found
        assert found.axis not in axes
        return Labels(found.shape, self.align(node)(found.atoms, tuple(axes)), found.axis)

    def align(self, node: ir.Node) -> Callable[[Array, tuple[int, ...]], Array]:
        """Give the function that unites atoms over axes and keeps size 1 there."""

        def run(atoms: Array, axes: tuple[int, ...]) -> Array:
            first = atoms
            for axis in axes:
                first = first.take([0], axis=axis)
            self.unite(first, atoms, node)
            return first

        return run

    def collapse(self, found: Labels, node: ir.Node) -> Array:
        """Unite labels over every axis but the one that shrinks; give them as a vector."""
        return self.merge(found, found.rows, node).vector()

    def channels(self, value: ir.Value | None, axis: int, node: ir.Node) -> Array | None:
        """Give the labels of an input along an op's channel axis as a vector, and keep labels of any other axis."""
        found = self.label(value)
        if found is None:
            return None
        if found.axis != axis % len(found.shape):
            self.freeze(
                found, node, f"labels run along axis {found.axis}, which {node.op_type} does not treat as channels"
            )
            return None
        return self.collapse(found, node)

    # --- notes -------------------------------------------------------------------------------------------------------

    def note(
        self,
        node: ir.Node,
        kind: SiteKind,
        found: Labels | None,
        *,
        axis: int = 0,
        name: str = "",
        dynamic: bool = False,
    ) -> None:
        """Record what to rewrite in a node when these labels lose atoms."""
        if found is not None:
            self.sites.append(Site(str(node.name), kind, found, axis, name, dynamic))

    def sink(self, node: ir.Node, index: int, found: Labels, *, statistics: bool = False) -> None:
        """Record that a node sums over labelled elements; `statistics` = it also divides by their number."""
        value = node.inputs[index]
        producer = None if value is None else value.producer()
        reshaped = producer is not None and producer.op_type == "Reshape" and not self.constant(value)
        before = self.label(producer.inputs[0]) if producer is not None and reshaped else None
        dtype = ir.DataType.FLOAT if value is None else ir.DataType(self.sizes.types[str(value.name)])
        self.sinks.append(Sink(str(node.name), index, found, statistics, before, dtype))
        if statistics:
            self.lossy.append(np.unique(found.atoms))

    def grid(self, found: Labels) -> None:
        """Ask that each line of a table of labels loses the same number of atoms."""
        if found.rows:
            self.grids.append(found)


def block_pattern(ids: Mapping[str, Array], keys: frozenset[str] | None = None) -> Pattern:
    """Plan of a later layer: the listed axes get one atom per block, others one per place, or none outside `keys`."""

    def pattern(key: str, size: int) -> Array | None:
        if key in ids:
            return ids[key]
        return np.arange(size) if keys is None or key in keys else None

    return pattern
