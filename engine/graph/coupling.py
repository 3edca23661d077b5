"""Which channels go together: the graph is executed on labels, and the result is read as groups of removable units.

Three layers of labels are run. In the first every place of a prunable axis is its own channel. In the second, axes that the
graph reads in blocks (heads, groups of a convolution) are labelled by block, so that whole blocks can go. In the third,
axes that met labels of another axis in the first (token mixing) get their turn. Layers never touch each other: an element
goes if any of its labels goes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from engine.graph import macs as multiply
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
from engine.graph.labels import Array, Labels, TooManyLabelsError, Union
from engine.graph.preparation import both_sizes, prepare
from engine.graph.rules import RULES
from engine.graph.sizes import Sizes

# A set of channels that must go together is not searched beyond this many.
_LARGEST_UNIT = 1024
_SEARCH_SECONDS = 2.0


@dataclass(frozen=True)
class Slice:
    """One initializer that a group cuts: the label of each place on an axis (a table where it differs by block)."""

    initializer: str
    axis: int
    atoms: Array
    role: str
    node: str


@dataclass(frozen=True)
class Group:
    """Channels that are alternatives to each other, and everything that loses a slice with them."""

    name: str
    kind: str
    atoms: tuple[int, ...]
    slices: tuple[Slice, ...]
    producers: tuple[str, ...]
    lossy: bool
    # Any removed set must cost each line of the graph's tables as much: `balance @ removed == 0`.
    balance: Array = field(repr=False)
    # Sets of which at least one atom must stay, or an axis would become empty.
    lines: tuple[frozenset[int], ...] = field(repr=False)


@dataclass(frozen=True)
class Unit:
    """The least that can be removed at once, and what it saves (multiply-accumulates at batch 1)."""

    atoms: tuple[int, ...]
    parameters: float
    macs: float


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
    _cost: Mapping[int, tuple[float, float]] = field(repr=False)

    def units(self, group: Group, scores: Mapping[int, float] | None = None) -> tuple[Unit, ...]:
        """Partition a group's channels into the least sets whose removal keeps every shape rectangular.

        Where a set may be put together from alternatives (one channel of each head), those of low score are taken first,
        and units come in that order. Channels that fit into no set are left out.
        """
        weights = scores or {}
        atoms = sorted(group.atoms, key=lambda atom: (weights.get(atom, 0.0), atom))
        return tuple(self._unit(found) for found in _balanced(atoms, group))

    def choose(self, group: Group, count: int, scores: Mapping[int, float] | None = None) -> tuple[Unit, ...]:
        """Give up to `count` units of low score that may go together: every axis and every part of a split keeps one."""
        gone: set[int] = set()
        chosen: list[Unit] = []
        for unit in self.units(group, scores):
            after = gone.union(unit.atoms)
            if len(chosen) < count and not any(line <= after for line in group.lines if not line.isdisjoint(unit.atoms)):
                chosen.append(unit)
                gone = after
        return tuple(chosen)

    def _unit(self, atoms: Sequence[int]) -> Unit:
        costs = [self._cost.get(atom, (0.0, 0.0)) for atom in atoms]
        return Unit(tuple(atoms), sum(cost[0] for cost in costs), sum(cost[1] for cost in costs))

    def group_of(self, atom: int) -> Group | None:
        """Give the group that an atom belongs to."""
        return next((group for group in self.groups if atom in group.atoms), None)

    def summary(self) -> dict[str, object]:
        """Give the result as JSON for people: shares, groups, and what froze which node."""
        return {
            "prunable_parameters": round(self.prunable_parameters, 4),
            "prunable_macs": round(self.prunable_macs, 4),
            "parameters": self.parameters,
            "macs": sum(self.macs.values()),
            "groups": [
                {
                    "name": group.name,
                    "kind": group.kind,
                    "channels": len(group.atoms),
                    "lossy": group.lossy,
                    "producers": list(group.producers),
                    "slices": [{"initializer": part.initializer, "axis": part.axis} for part in group.slices],
                }
                for group in self.groups
            ],
            "frozen": [
                {"node": item.node, "op": item.op_type, "reason": item.reason, "channels": item.channels}
                for item in self.frozen
            ],
        }


def analyse(model: ir.Model, dims: Mapping[str, int] | None = None) -> Coupling:
    """Find what can be removed. Brings the model into pruning form in place, which does not change its results.

    `dims` chooses sizes for symbolic dimensions where the defaults (images 64, sequences 8, batch 1) do not suit the graph.
    """
    prepare(model)
    sizes, other = both_sizes(model, dict(dims or {}))
    union = Union()
    units = execute(model, sizes, other, union, every_unit)
    runs = [units]
    ids = _blocks(units.splits, units.producers, len(union))
    if ids:
        runs.append(execute(model, sizes, other, union, block_pattern(ids)))
    if units.deferred:
        runs.append(execute(model, sizes, other, union, block_pattern({}, frozenset(units.deferred))))
    return _result(model, sizes, union, runs, frozenset(ids))


def execute(model: ir.Model, sizes: Sizes, other: Sizes, union: Union, pattern: Pattern) -> Execution:
    """Run the graph on labels once."""
    run = Execution(model, sizes, other, union, pattern)
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
    except TooManyLabelsError:
        run.freeze_inputs(node, "its labels vary over too many elements to analyse")


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
    costs = _Costs(model, members, runs, root, macs)
    groups: list[Group] = []
    events: list[Freeze] = []
    for index, run in enumerate(runs):
        frozen = np.zeros(len(root), bool)
        for event in run.freezes:
            frozen[root[event.atoms]] = True
        found, stuck = _groups(run, root, frozen, members, blocks if index == 1 and blocks else None, len(groups))
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
        _cost=costs.by_atom(),
    )


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


def _groups(
    run: Execution, root: Array, frozen: Array, members: tuple[Member, ...], blocks: frozenset[str] | None, number: int
) -> tuple[list[Group], list[Freeze]]:
    joined = _Joined(len(root))
    for producer in run.producers:
        joined.join(root[producer.atoms])
    tables = _tables(run, root)
    for table in tables:
        joined.join(table.atoms)
    by_group: dict[int, list[Producer]] = {}
    for producer in run.producers:
        by_group.setdefault(joined.of(root[producer.atoms[0]]), []).append(producer)
    of_tables: dict[int, list[_Table]] = {}
    for table in tables:
        of_tables.setdefault(joined.of(table.atoms[0]), []).append(table)
    slices = _slices(members, joined)
    lines = _lines(run, root, frozen, joined)
    lossy = np.zeros(len(root), bool)
    for atoms in run.lossy:
        lossy[root[atoms]] = True
    found: list[Group] = []
    stuck: list[Freeze] = []
    for key, producers in by_group.items():
        if blocks is not None and not any(producer.key in blocks for producer in producers):
            continue
        atoms = np.unique(np.concatenate([root[producer.atoms] for producer in producers]))
        every, atoms = atoms, atoms[~frozen[atoms]]
        if len(atoms) == 0 or len(every) < 2:
            continue
        balance = _balance(of_tables.get(key, []), atoms)
        group = Group(
            name=f"g{number + len(found)}",
            kind=_kind(run, root, producers, every, blocks),
            atoms=tuple(int(atom) for atom in atoms),
            slices=tuple(slices.get(key, ())),
            producers=tuple(producer.node or producer.key for producer in producers),
            lossy=bool(lossy[atoms].any()),
            balance=balance,
            lines=tuple(lines.get(key, ())),
        )
        if all(producer.op_type == "constant" for producer in producers) and len(group.slices) < 2:
            # A table that nothing else depends on.
            continue
        if next(iter(_balanced(list(group.atoms), group)), None) is None:
            first = producers[0]
            stuck.append(
                Freeze(first.node, first.op_type, "no set of its channels keeps every shape rectangular", atoms)
            )
            continue
        found.append(group)
    return found, stuck


def _kind(run: Execution, root: Array, producers: list[Producer], atoms: Array, blocks: frozenset[str] | None) -> str:
    """Name a group by what it is in the vocabulary of networks."""
    ops = {producer.op_type for producer in producers}
    inside = np.zeros(len(root), bool)
    inside[atoms] = True
    contracted = any(inside[root[sink.labels.atoms]].any() for sink in run.sinks if not sink.statistics)
    kinds = {split.kind for split in run.splits if inside[root[split.atoms]].any()}
    if blocks is not None:
        if ops <= {"Conv", "ConvTranspose"} and not contracted and "heads" not in kinds:
            return "conv_groups"
        return "heads" if not ops <= {"Conv", "ConvTranspose"} or contracted else "blocks"
    if ops & {"LSTM", "GRU", "RNN"}:
        return "recurrent"
    if contracted or ("heads" in kinds and not ops <= {"Conv", "ConvTranspose"}):
        return "head_width"
    if ops & {"Conv", "ConvTranspose", "FusedConv"}:
        return "channels"
    stream = len([producer for producer in producers if producer.op_type in {"MatMul", "Gemm", "Gather"}]) > 2
    return "hidden" if stream or ops & {"Gather", "constant"} else "ffn"


class _Joined:
    """Connected sets of canonical atoms."""

    def __init__(self, count: int) -> None:
        self._union = Union()
        self._union.fresh(count)

    def join(self, atoms: Array) -> None:
        atoms = atoms[atoms > 0]
        if len(atoms) > 1:
            self._union.unite(np.broadcast_to(atoms[:1], atoms.shape) + 1, atoms + 1)

    def of(self, atom: int) -> int:
        return int(self._union.find(np.array([atom + 1]))[0]) - 1

    def of_all(self, atoms: Array) -> Array:
        return self._union.find(atoms + 1) - 1


def _slices(members: Iterable[Member], joined: _Joined) -> dict[int, list[Slice]]:
    found: dict[int, list[Slice]] = {}
    for member in members:
        atoms = np.unique(member.labels.atoms)
        for key in np.unique(joined.of_all(atoms[atoms > 0])):
            shown = member.labels.atoms.reshape(-1) if not member.labels.rows else member.labels.table()
            part = Slice(member.initializer, member.labels.axis, shown, member.role, member.node)
            found.setdefault(int(key), []).append(part)
    return found


def _lines(run: Execution, root: Array, frozen: Array, joined: _Joined) -> dict[int, set[frozenset[int]]]:
    """List the sets of atoms that make up a whole axis somewhere, by the group that they all belong to."""
    found: dict[int, set[frozenset[int]]] = {}
    seen: set[tuple[int, int]] = set()
    for labels in (*run.labels.values(), *(member.labels for member in run.members)):
        if (id(labels.atoms), labels.axis) in seen:
            continue
        seen.add((id(labels.atoms), labels.axis))
        table = root[labels.table()] if labels.rows else root[labels.vector()][None]
        for line in np.unique(table, axis=0) if len(table) > 1 else table:
            atoms = np.unique(line)
            if atoms[0] > 0 and not frozen[atoms].any():
                keys = np.unique(joined.of_all(atoms))
                if len(keys) == 1:
                    found.setdefault(int(keys[0]), set()).add(frozenset(atoms.tolist()))
    return found


@dataclass(frozen=True)
class _Table:
    """A grid whose lines must lose equally: distinct lines as counts of each atom."""

    atoms: Array
    counts: Array


def _tables(run: Execution, root: Array) -> list[_Table]:
    seen: set[bytes] = set()
    found: list[_Table] = []
    objects: set[tuple[int, int]] = set()
    for grid in run.grids:
        if (id(grid.atoms), grid.axis) in objects:
            continue
        objects.add((id(grid.atoms), grid.axis))
        lines = np.unique(np.sort(root[grid.table()], axis=1), axis=0)
        key = lines.tobytes()
        if len(lines) < 2 or key in seen:
            continue
        seen.add(key)
        atoms, places = np.unique(lines, return_inverse=True)
        counts = np.zeros((len(lines), len(atoms)), np.int32)
        np.add.at(counts, (np.arange(len(lines))[:, None], places.reshape(lines.shape)), 1)
        keep = (atoms > 0) & (counts != counts[:1]).any(axis=0)
        if keep.any():
            found.append(_Table(atoms[keep], counts[:, keep]))
    return found


def _balance(tables: list[_Table], atoms: Array) -> Array:
    """Give the linear conditions on removed atoms: each line's loss equals the first line's."""
    rows = []
    for table in tables:
        inside = np.isin(table.atoms, atoms)
        differences = table.counts[1:] - table.counts[:1]
        line = np.zeros((len(differences), len(atoms)), np.int32)
        line[:, np.searchsorted(atoms, table.atoms[inside])] = differences[:, inside]
        rows.append(line)
    if not rows:
        return np.zeros((0, len(atoms)), np.int32)
    return np.unique(np.concatenate(rows), axis=0)


def _balanced(order: list[int], group: Group) -> Iterable[list[int]]:
    """Yield disjoint least sets of atoms that meet the balance, each begun by the first atom left in `order`."""
    if not len(group.balance):
        yield from ([atom] for atom in order)
        return
    columns, kind_of = np.unique(group.balance, axis=1, return_inverse=True)
    place = {atom: number for number, atom in enumerate(group.atoms)}
    kinds = {atom: int(kind_of[place[atom]]) for atom in order}
    # Atoms of one kind are interchangeable; those that come first in `order` are taken first.
    left: list[list[int]] = [[] for _ in range(columns.shape[1])]
    for atom in reversed(order):
        left[kinds[atom]].append(atom)
    recipes: dict[int, Array | None] = {}
    taken: set[int] = set()
    for atom in order:
        if atom in taken:
            continue
        first = kinds[atom]
        available = np.array([len(atoms) for atoms in left])
        recipe = recipes.get(first)
        if first not in recipes or (recipe is not None and (recipe > available).any()):
            recipe = recipes[first] = _recipe(columns, first, available)
        if recipe is not None:
            found = [left[kind].pop() for kind in np.flatnonzero(recipe) for _ in range(int(recipe[kind]))]
            taken.update(found)
            yield found


def _recipe(columns: Array, first: int, available: Array) -> Array | None:
    """Find how many atoms of each kind make the least balanced set with one of kind `first`; None if there is none."""
    if not columns[:, first].any():
        return np.eye(len(available), dtype=np.int64)[first]
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - slow to load, and most graphs need no search

    low = np.zeros(len(available))
    low[first] = 1
    result = milp(
        np.ones(len(available)),
        constraints=LinearConstraint(columns, 0, 0),
        bounds=Bounds(low, np.minimum(available, _LARGEST_UNIT)),
        integrality=np.ones(len(available)),
        options={"time_limit": _SEARCH_SECONDS, "mip_rel_gap": 0.0},
    )
    return None if result.x is None else np.rint(result.x).astype(np.int64)


class _Costs:
    """What atoms weigh: their share of each initializer and of each node's multiply-accumulates."""

    def __init__(
        self, model: ir.Model, members: tuple[Member, ...], runs: list[Execution], root: Array, macs: Mapping[str, int]
    ) -> None:
        self._members = members
        self._macs = macs
        self._sizes = {
            name: value.const_value.size
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self._weights: dict[str, dict[str, int]] = {}
        for member in members:
            if member.node in macs and len(member.labels.shape) > 1:
                self._weights.setdefault(member.node, {})[member.initializer] = self._sizes[member.initializer]
        # Products of two activations: labels of what they read and write.
        self._products: dict[str, list[Array]] = {}
        for node in model.graph:
            name = str(node.name)
            if name in macs and name not in self._weights:
                for run in runs:
                    found = [run.label(value) for value in (*node.inputs[:3], node.outputs[0])]
                    self._products.setdefault(name, []).extend(root[part.atoms] for part in found if part is not None)

    def _worth(self, member: Member) -> tuple[float, float]:
        weights = self._weights.get(member.node, {})
        share = weights.get(member.initializer, 0) / max(1, sum(weights.values()))
        return float(self._sizes[member.initializer]), share * self._macs.get(member.node, 0)

    def by_atom(self) -> dict[int, tuple[float, float]]:
        found: dict[int, list[float]] = {}
        for member in self._members:
            parameters, macs = self._worth(member)
            atoms, counts = np.unique(member.labels.atoms, return_counts=True)
            for atom, count in zip(atoms.tolist(), (counts / member.labels.atoms.size).tolist(), strict=True):
                cost = found.setdefault(atom, [0.0, 0.0])
                cost[0] += count * parameters
                cost[1] += count * macs
        for name, tables in self._products.items():
            largest: dict[int, float] = {}
            for table in tables:
                atoms, counts = np.unique(table, return_counts=True)
                for atom, count in zip(atoms.tolist(), (counts / table.size).tolist(), strict=True):
                    largest[atom] = max(largest.get(atom, 0.0), count)
            for atom, share in largest.items():
                found.setdefault(atom, [0.0, 0.0])[1] += share * self._macs[name]
        found.pop(0, None)
        return {atom: (cost[0], cost[1]) for atom, cost in found.items()}

    def shares(self, free: Array) -> tuple[float, float]:
        """Add up the parameters and multiply-accumulates that belong to at least one free atom."""
        by_initializer: dict[str, dict[int, Array]] = {}
        worth: dict[str, tuple[float, float]] = {}
        for member in self._members:
            axes = by_initializer.setdefault(member.initializer, {})
            mask = free[member.labels.atoms]
            axes[member.labels.axis] = mask | axes[member.labels.axis] if member.labels.axis in axes else mask
            old = worth.get(member.initializer, (0.0, 0.0))
            new = self._worth(member)
            worth[member.initializer] = (new[0], max(old[1], new[1]))
        parameters = macs = 0.0
        for name, axes in by_initializer.items():
            kept = float(np.prod([1.0 - mask.mean() for mask in axes.values()]))
            parameters += worth[name][0] * (1.0 - kept)
            macs += worth[name][1] * (1.0 - kept)
        for name, tables in self._products.items():
            macs += self._macs[name] * max((float(free[table].mean()) for table in tables), default=0.0)
        return parameters, macs
