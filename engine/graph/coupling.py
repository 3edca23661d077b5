"""Which channels go together: the graph is executed on labels, and the result is read as groups of removable units.

Three layers of labels are run. In the first every place of a prunable axis is its own channel. In the second, axes that the
graph reads in blocks (heads, groups of a convolution) are labelled by block, so that whole blocks can go. In the third,
axes that met labels of another axis in the first (token mixing) get their turn. Layers never touch each other: an element
goes if any of its labels goes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from engine.graph import macs as multiply
from engine.graph.costs import Costs
from engine.graph.execution import (
    Execution,
    Freeze,
    Member,
    Pattern,
    Producer,
    Sink,
    Site,
    Split,
    block_pattern,
    every_unit,
)
from engine.graph.grouping import Grouping, overlapping
from engine.graph.groups import Group, Unit, balanced
from engine.graph.labels import Array, Labels, UnfollowableError, Union
from engine.graph.preparation import prepare
from engine.graph.rules.catalogue import RULES
from engine.graph.sizes import Sizes


@dataclass(frozen=True)
class Frozen:
    """A node that keeps channels, and why."""

    node: str
    op_type: str
    reason: str
    channels: int


@dataclass(frozen=True)
class Coupling:
    """What can be removed from one network. Valid for that very model, as `analyse` left it."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    members: tuple[Member, ...] = field(repr=False)
    sites: tuple[Site, ...] = field(repr=False)
    sinks: tuple[Sink, ...] = field(repr=False)
    macs: Mapping[str, int] = field(repr=False)
    parameters: int
    prunable_parameters: float
    prunable_macs: float
    # The first node whose result has sizes that nothing tells, so that nothing behind it is followed.
    unsized: ir.Node | None = field(repr=False)
    _cost: Mapping[int, tuple[float, float]] = field(repr=False)
    # Axes that two layers label, as layer x line x place; a place goes if any of its labels goes.
    _overlaps: tuple[Array, ...] = field(repr=False)
    _overlaps_of: Mapping[int, tuple[int, ...]] = field(repr=False)

    def units(self, group: Group, scores: Mapping[int, float] | None = None) -> tuple[Unit, ...]:
        """Partition a group's channels into the least sets whose removal keeps every shape rectangular.

        Where a set may be put together from alternatives (one channel of each head), those of low score are taken first,
        and units come in that order. Channels that fit into no set are left out.
        """
        weights = scores or {}
        atoms = sorted(group.atoms, key=lambda atom: (weights.get(atom, 0.0), atom))
        return tuple(self._unit(found) for found in balanced(atoms, group))

    def choose(
        self, group: Group, count: int, scores: Mapping[int, float] | None = None, beside: Collection[int] = ()
    ) -> tuple[Unit, ...]:
        """Choose up to `count` units of low score that may go together, and `beside` what was chosen of other groups.

        Every axis and every part of a split keeps at least one channel.
        """
        gone = set(beside)
        chosen: list[Unit] = []
        for unit in self.units(group, scores):
            if len(chosen) == count:
                break
            gone.update(unit.atoms)
            if self._leaves_width(group, unit, gone):
                chosen.append(unit)
            else:
                gone.difference_update(unit.atoms)
        return tuple(chosen)

    def _leaves_width(self, group: Group, unit: Unit, gone: set[int]) -> bool:
        if any(line <= gone for line in group.lines if not line.isdisjoint(unit.atoms)):
            return False
        touched = {number for atom in unit.atoms for number in self._overlaps_of.get(atom, ())}
        removed = np.fromiter(gone, np.int64, len(gone))
        for number in touched:
            left = (~np.isin(self._overlaps[number], removed).any(axis=0)).sum(axis=1)
            if left.min() == 0 or left.min() < left.max():
                return False
        return True

    def _unit(self, atoms: Sequence[int]) -> Unit:
        costs = [self._cost.get(atom, (0.0, 0.0)) for atom in atoms]
        return Unit(tuple(atoms), sum(cost[0] for cost in costs), sum(cost[1] for cost in costs))


def analyse(model: ir.Model, dims: Mapping[str, int] | None = None) -> Coupling:
    """Find what can be removed. Brings the model into pruning form in place, which does not change its results.

    `dims` chooses sizes for symbolic dimensions where the defaults (images 64, sequences 8, batch 1) do not suit the graph.
    """
    sizes = prepare(model, dims)
    union = Union()
    units = execute(model, sizes, union, every_unit)
    runs = [units]
    ids = _blocks(units.splits, units.producers, len(union))
    if ids:
        runs.append(execute(model, sizes, union, block_pattern(ids)))
    if units.deferred:
        runs.append(execute(model, sizes, union, block_pattern({}, frozenset(units.deferred))))
    return _result(model, sizes, union, runs, frozenset(ids))


def execute(model: ir.Model, sizes: Sizes, union: Union, pattern: Pattern) -> Execution:
    """Run the graph on labels once."""
    run = Execution(model, sizes, union, pattern)
    for node in model.graph:
        _step(run, node)
    for value in model.graph.outputs:
        found = run.label(value)
        producer = value.producer()
        if found is not None and producer is not None:
            run.freeze(found, producer, f"gives the network's output {value.name}")
    _tie_shared(run)
    return run


def _step(run: Execution, node: ir.Node) -> None:
    rule = RULES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
    if rule is None and node.domain == "" and ("com.microsoft", node.op_type) in RULES:
        rule = RULES["com.microsoft", node.op_type]
    if any(
        attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in node.attributes.values()
    ):
        run.freeze_inputs(node, "has a subgraph")
        _freeze_captured(run, node)
        return
    if rule is None:
        run.freeze_inputs(node, "no rule knows this operator")
        return
    needed = [value for value in (*node.inputs, *node.outputs[:1]) if value is not None and value.name]
    if any(run.sizes.shape(value) is None for value in needed):
        run.freeze_inputs(node, "a shape could not be inferred")
        return
    try:
        rule(run, node)
    except UnfollowableError as error:
        _freeze_all(run, node, str(error))


def _freeze_all(run: Execution, node: ir.Node, reason: str) -> None:
    """Keep what a node reads and whatever its rule had begun to label."""
    run.freeze_inputs(node, reason)
    for producer in run.producers:
        if producer.node == node.name:
            run.freeze(producer.atoms, node, reason)
    for value in node.outputs:
        run.freeze(run.label(value), node, reason)


def _freeze_captured(run: Execution, node: ir.Node) -> None:
    """Keep what a subgraph reads from outside of it."""
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        graphs += list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            for inner in graph.all_nodes():
                for value in inner.inputs:
                    run.freeze(run.label(value), node, "its subgraph reads this value")
            for output in graph.outputs:
                run.freeze(run.label(output), node, "its subgraph reads this value")


def _uses(value: ir.Value) -> int:
    """Count the places where a weight is used, seen through its views."""
    views = {"Transpose", "Identity", "Cast", "DequantizeLinear"}
    total = 0
    for use in value.uses():
        seen_through = use.node.op_type in views and use.idx == 0
        total += _uses(use.node.outputs[0]) if seen_through else 1
    return total + value.is_graph_output()


def _tie_shared(run: Execution) -> None:
    """Unite, axis by axis, what several uses of one initializer say of it; an axis that not all label must stay."""
    by_name: dict[str, list[Member]] = {}
    for member in run.members:
        by_name.setdefault(member.initializer, []).append(member)
    for name, members in by_name.items():
        value = run.model.graph.initializers[name]
        uses = _uses(value)
        if uses < 2 or (name in run.sources and len(members) == 1):
            continue
        for axis in {member.labels.axis for member in members}:
            own = [member for member in members if member.labels.axis == axis]
            first = own[0]
            node = next(iter(value.uses())).node
            for member in own[1:]:
                run.unite(first.labels.atoms, member.labels.atoms, node)
            if len(own) < uses:
                run.freeze(first.labels, node, "shares its weight with a node that keeps this axis")


def _blocks(splits: Sequence[Split], producers: Sequence[Producer], count: int) -> dict[str, Array]:
    """Find which producer axes are read in blocks, and which block each place falls into."""
    block_of = np.zeros(count, np.int64)
    total = 0
    for split in splits:
        blocks = np.arange(len(split.atoms)) // split.inner
        fresh = (split.atoms > 0) & (block_of[split.atoms] == 0)
        block_of[split.atoms[fresh]] = blocks[fresh] + total + 1
        total += int(blocks[-1]) + 1
    found: dict[str, Array] = {}
    for producer in producers:
        ids = block_of[producer.atoms]
        names, pattern = np.unique(ids, return_inverse=True)
        if ids.all() and 1 < len(names) < len(ids):
            found[producer.key] = pattern
    return found


# --- from runs to groups ---------------------------------------------------------------------------------------------


def _result(model: ir.Model, sizes: Sizes, union: Union, runs: list[Execution], blocks: frozenset[str]) -> Coupling:
    root = union.find(np.arange(len(union), dtype=np.int32))
    members = tuple(_canonical_member(member, root) for run in runs for member in run.members)
    macs = multiply.by_node(model, sizes)
    costs = Costs(model, members, runs, root, macs)
    groups: list[Group] = []
    events: list[Freeze] = []
    for index, run in enumerate(runs):
        # The second layer is the one with blocks, if there are any.
        found, stuck = Grouping(run, root, members, blocks if index == 1 and blocks else None).groups(len(groups))
        groups.extend(found)
        events.extend(run.freezes if run.pattern is every_unit else ())
        events.extend(stuck)
    free = np.zeros(len(root), bool)
    for group in groups:
        free[list(group.atoms)] = True
    parameters = sum(
        value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None
    )
    shares = costs.shares(free)
    overlaps = overlapping(runs, root)
    overlaps_of: dict[int, list[int]] = {}
    for number, lines in enumerate(overlaps):
        for atom in np.unique(lines).tolist():
            overlaps_of.setdefault(atom, []).append(number)
    return Coupling(
        groups=tuple(groups),
        frozen=_frozen(events, root),
        members=members,
        sites=tuple(replace(site, labels=_canonical(site.labels, root)) for run in runs for site in run.sites),
        sinks=tuple(_canonical_sink(sink, root) for run in runs for sink in run.sinks),
        macs=macs,
        parameters=parameters,
        prunable_parameters=shares[0] / max(1, parameters),
        prunable_macs=shares[1] / max(1, sum(macs.values())),
        unsized=_first_unsized(model, sizes),
        _cost=costs.by_atom(),
        _overlaps=overlaps,
        _overlaps_of={atom: tuple(numbers) for atom, numbers in overlaps_of.items()},
    )


def _first_unsized(model: ir.Model, sizes: Sizes) -> ir.Node | None:
    for node in model.graph:
        if any(sizes.shape(value) is None for value in node.outputs if value.uses()):
            return node
    return None


def _canonical(labels: Labels, root: Array) -> Labels:
    return Labels(labels.shape, root[labels.atoms], labels.axis)


def _canonical_member(member: Member, root: Array) -> Member:
    return replace(member, labels=_canonical(member.labels, root))


def _canonical_sink(sink: Sink, root: Array) -> Sink:
    before = None if sink.before is None else _canonical(sink.before, root)
    return replace(sink, labels=_canonical(sink.labels, root), before=before)


def _frozen(events: Iterable[Freeze], root: Array) -> tuple[Frozen, ...]:
    atoms: dict[tuple[str, str, str], list[Array]] = {}
    for event in events:
        atoms.setdefault((event.node, event.op_type, event.reason), []).append(root[event.atoms])
    return tuple(Frozen(*key, channels=len(np.unique(np.concatenate(found)))) for key, found in atoms.items())
