"""From one run on labels to groups: which axes offer alternatives, and what must stay in balance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.graph.execution import Execution, Freeze, Member, Producer
from engine.graph.groups import Group, Slice, stuck
from engine.graph.labels import Array, Labels, Union

_WEIGHTED_ONCE = frozenset({"Conv", "ConvTranspose", "FusedConv"})


class Grouping:
    """Reads one run. `blocks` names the axes labelled by block if this is their layer."""

    def __init__(self, run: Execution, root: Array, members: tuple[Member, ...], blocks: frozenset[str] | None) -> None:
        self._run = run
        self._root = root
        self._blocks = blocks
        self._frozen = np.zeros(len(root), bool)
        for event in run.freezes:
            self._frozen[root[event.atoms]] = True
        self._lossy = np.zeros(len(root), bool)
        for atoms in run.lossy:
            self._lossy[root[atoms]] = True
        joined = _Joined(len(root))
        tables = _tables(run, root)
        for atoms in (*(root[producer.atoms] for producer in run.producers), *(table.atoms for table in tables)):
            joined.join(atoms)
        self._producers: dict[int, list[Producer]] = {}
        for producer in run.producers:
            self._producers.setdefault(joined.of(root[producer.atoms[0]]), []).append(producer)
        self._tables: dict[int, list[_Table]] = {}
        for table in tables:
            self._tables.setdefault(joined.of(table.atoms[0]), []).append(table)
        self._slices = _slices(members, joined, frozenset(self._producers))
        self._lines = _lines(run, root, self._frozen, joined)

    def groups(self, first: int) -> tuple[list[Group], list[Freeze]]:
        """Give the groups, numbered from `first`, and what cannot go although nothing freezes it."""
        found: list[Group] = []
        kept: list[Freeze] = []
        for key, producers in self._producers.items():
            group = self._group(key, producers, f"g{first + len(found)}")
            if group is None:
                continue
            reason = stuck(group)
            if reason is None:
                found.append(group)
            else:
                kept.append(Freeze(producers[0].node, producers[0].op_type, reason, np.array(group.atoms)))
        return found, kept

    def _group(self, key: int, producers: list[Producer], name: str) -> Group | None:
        if self._blocks is not None and not any(producer.key in self._blocks for producer in producers):
            # The first layer has the same group.
            return None
        every = np.unique(np.concatenate([self._root[producer.atoms] for producer in producers]))
        atoms = every[~self._frozen[every]]
        slices = self._slices.get(key, [])
        unread = all(producer.op_type == "constant" for producer in producers) and len(slices) < 2
        if len(atoms) == 0 or len(every) < 2 or unread:
            return None
        return Group(
            name=name,
            kind=self._kind(producers, every),
            atoms=tuple(int(atom) for atom in atoms),
            slices=tuple(slices),
            producers=tuple(producer.node or producer.key for producer in producers),
            lossy=bool(self._lossy[atoms].any()),
            balance=_balance(self._tables.get(key, []), atoms),
            lines=tuple(self._lines.get(key, ())),
        )

    def _kind(self, producers: list[Producer], atoms: Array) -> str:
        """Name a group by what it is in the vocabulary of networks."""
        run, root = self._run, self._root
        ops = {producer.op_type for producer in producers}
        inside = np.zeros(len(root), bool)
        inside[atoms] = True
        contracted = any(inside[root[sink.labels.atoms]].any() for sink in run.sinks if not sink.statistics)
        kinds = {split.kind for split in run.splits if inside[root[split.atoms]].any()}
        convolved = ops <= _WEIGHTED_ONCE
        if self._blocks is not None:
            if convolved and not contracted:
                return "conv_groups" if kinds == {"conv_groups"} else "blocks"
            return "heads"
        if ops & {"LSTM", "GRU", "RNN"}:
            return "recurrent"
        if contracted or ("heads" in kinds and not convolved):
            return "head_width"
        if ops & _WEIGHTED_ONCE:
            return "channels"
        # A residual stream has many writers, a hidden layer has one (two when gated).
        writers = [producer for producer in producers if producer.op_type in {"MatMul", "Gemm"}]
        return "hidden" if len(writers) > 2 or ops & {"Gather", "constant"} else "ffn"


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


def _slices(members: Iterable[Member], joined: _Joined, keys: frozenset[int]) -> dict[int, list[Slice]]:
    found: dict[int, list[Slice]] = {}
    for member in members:
        atoms = np.unique(member.labels.atoms)
        for key in keys.intersection(np.unique(joined.of_all(atoms[atoms > 0])).tolist()):
            shown = member.labels.atoms.reshape(-1) if not member.labels.rows else member.labels.table()
            part = Slice(member.initializer, member.labels.axis, shown, member.role, member.node)
            found.setdefault(key, []).append(part)
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
        for line in _distinct(table):
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


def _distinct(table: Array) -> Iterable[Array]:
    """Give each different line of a table once."""
    return {line.tobytes(): line for line in table}.values()


def _tables(run: Execution, root: Array) -> list[_Table]:
    seen: set[frozenset[bytes]] = set()
    found: list[_Table] = []
    objects: set[tuple[int, int]] = set()
    for grid in run.grids:
        if (id(grid.atoms), grid.axis) in objects:
            continue
        objects.add((id(grid.atoms), grid.axis))
        distinct = {line.tobytes(): line for line in _distinct(np.sort(root[grid.table()], axis=1))}
        key = frozenset(distinct)
        if len(distinct) < 2 or key in seen:
            continue
        seen.add(key)
        counted = [np.unique(line, return_counts=True) for line in distinct.values()]
        atoms = np.unique(np.concatenate([line for line, _ in counted]))
        counts = np.zeros((len(counted), len(atoms)), np.int32)
        for number, (line, times) in enumerate(counted):
            counts[number, np.searchsorted(atoms, line)] = times
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


def overlapping(runs: Sequence[Execution], root: Array) -> tuple[Array, ...]:
    """List the axes that several layers label, each as a table of layer x line x place."""
    found: dict[bytes, Array] = {}
    seen: set[tuple[int, ...]] = set()
    axes: dict[tuple[str, int], list[Labels]] = {}
    for run in runs:
        values = list(run.labels.items())
        values += [(f"{member.node}/{member.initializer}", member.labels) for member in run.members]
        for name, labels in values:
            axes.setdefault((name, labels.axis), []).append(labels)
    for parts in axes.values():
        key = tuple(id(part.atoms) for part in parts)
        if len(parts) < 2 or key in seen:
            continue
        seen.add(key)
        tables = np.broadcast_arrays(*(root[part.atoms] for part in parts))
        lines = np.stack(
            [np.moveaxis(table, parts[0].axis, -1).reshape(-1, table.shape[parts[0].axis]) for table in tables]
        )
        # Equal lines say the same; what counts is which lines stand beside each other.
        table = np.stack(list({line.tobytes(): line for line in lines.transpose(1, 0, 2)}.values()), axis=1)
        found[table.tobytes()] = table
    return tuple(found.values())
