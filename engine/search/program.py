"""The choice of variants as an integer program, solved by HiGHS: one variant of everything under limits, exactly.

A layer's cost is a table over the widths of two groups. It is made linear by a share of the layer at each place of its table,
whose margins are the groups' own choices: with whole choices the shares are whole, and without, the bound is the tightest
that a program over single layers can have (the local polytope, https://doi.org/10.1561/2200000001).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from engine.search.choices import COSTS, Array, Choice, LayerChoice, Quantity, Tables

Limits = Mapping[Quantity, float]

# Nodes of the search tree: a limit that does not depend on how fast the machine is, so that a seed says what comes out.
_NODES = 4000
# Programs with more places than this take minutes.
_LARGEST = 60_000
_GAP = 1e-4
# Of choices that cost as much, the one that damages least: in the objective, damage counts so much of its scale.
_TIE = 1e-4
_TIME_LIMIT = 1
_INFEASIBLE = 2


class Infeasible(Exception):  # noqa: N818 not an error: an answer
    """No choice is inside the limits."""


class Unsolved(Exception):  # noqa: N818 not an error: the caller takes another way
    """The program is too large to be solved here."""


def optimum(
    tables: Tables,
    minimise: Quantity,
    limits: Limits,
    *,
    different_from: Sequence[Choice] = (),
    distance: int = 1,
    seconds: float = 30.0,
) -> Choice:
    """Give the choice with the least of a quantity inside the limits.

    Args:
        tables: What can be chosen.
        minimise: What there is to be least of.
        limits: Most of each quantity, in its unit.
        different_from: Choices of which the answer differs in so many groups, blocks and layers at least.
        distance: That many.
        seconds: An emergency brake. What was found when it comes is thrown away: it would depend on the machine.

    Raises:
        Infeasible: nothing is inside the limits.
        Unsolved: the program is too large, or took too long.

    """
    program = _Program(tables)
    if program.places > _LARGEST:
        raise Unsolved(f"the program has {program.places} places")
    for quantity, limit in limits.items():
        program.limit(quantity, limit)
    for choice in different_from:
        program.differ(choice, distance)
    return program.solve(minimise, seconds)


@dataclass
class _Rows:
    """Sparse rows of a matrix with their bounds."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: Iterable[tuple[int, float]], low: float, high: float) -> None:
        for column, value in terms:
            self.rows.append(len(self.low))
            self.columns.append(column)
            self.values.append(value)
        self.low.append(low)
        self.high.append(high)


class _Program:
    """Columns: the widths of groups, whether blocks stay, the variants of layers, and each layer's places in its tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._rows = _Rows()
        self.places = 0
        self._widths = [self._columns(len(group.widths)) for group in tables.groups]
        self._stays = self._columns(len(tables.blocks))
        self._variants = [self._columns(len(layer.variants)) for layer in tables.layers]
        self._whole = self.places
        # By layer and variant: columns in the shape of its table.
        self._shares: list[list[Any]] = [
            [self._share(layer, place, variant) for variant in range(len(layer.variants))]
            for place, layer in enumerate(tables.layers)
        ]
        self._epigraph: int | None = None
        for place, group in enumerate(tables.groups):
            self._sum_to(self._widths[place], group.block)
        for place, block in enumerate(tables.blocks):
            if block.inside is not None:
                self._rows.add([(self._stays[place], 1), (self._stay(block.inside), -1)], -np.inf, 0)
        for place, layer in enumerate(tables.layers):
            self._sum_to(self._variants[place], layer.block)
            self._margins(place, layer)

    def _columns(self, count: int) -> Any:
        columns = np.arange(self.places, self.places + count)
        self.places += count
        return columns

    def _share(self, layer: LayerChoice, place: int, variant: int) -> Any:
        shape = layer.variants[variant].costs.shape[1:]
        if shape == (1, 1):
            return self._variants[place][variant].reshape(1, 1)
        return self._columns(shape[0] * shape[1]).reshape(shape)

    def _stay(self, block: str) -> int:
        return int(self._stays[self._tables.block_at[block]])

    def _sum_to(self, columns: Any, block: str | None) -> None:
        """Let exactly one be chosen; none where the block is dropped."""
        terms = [(int(column), 1.0) for column in columns]
        if block is None:
            self._rows.add(terms, 1, 1)
        else:
            self._rows.add([*terms, (self._stay(block), -1.0)], 0, 0)

    def _margins(self, place: int, layer: LayerChoice) -> None:
        for variant, shares in enumerate(self._shares[place]):
            if shares.size > 1:
                terms = [(int(column), 1.0) for column in shares.ravel()]
                self._rows.add([*terms, (int(self._variants[place][variant]), -1.0)], 0, 0)
        for axis, group in enumerate(layer.axes):
            if group is None:
                continue
            at = self._tables.group_at[group]
            # A layer in a block may be gone while the group is not.
            low = 0.0 if self._tables.groups[at].block == layer.block else -np.inf
            for width, column in enumerate(self._widths[at]):
                terms = [
                    (int(share), 1.0)
                    for shares in self._shares[place]
                    for share in np.take(shares, width, axis).ravel()
                ]
                self._rows.add([*terms, (int(column), -1.0)], low, 0)

    def limit(self, quantity: Quantity, limit: float) -> None:
        """Allow no more than this."""
        if quantity == "memory":
            for row, constant in self._memories():
                self._limit(row, constant, limit)
        else:
            row, constant = self._quantities[quantity]
            self._limit(row, constant, limit)

    def _limit(self, row: Array, constant: float, limit: float) -> None:
        scale = max(abs(constant) + np.abs(row).max(initial=0.0), 1e-30)
        used = np.flatnonzero(row)
        self._rows.add(
            zip(used.tolist(), (row[used] / scale).tolist(), strict=True), -np.inf, (limit - constant) / scale
        )

    def differ(self, choice: Choice, distance: int) -> None:
        """Cut off what differs from a choice in fewer places than this, counted as in `coordinate_descent.distance`."""
        tables = self._tables
        terms: dict[int, float] = defaultdict(float)
        constant = 0
        chosen = [
            (group.block, self._widths[place][choice.widths[place]]) for place, group in enumerate(tables.groups)
        ] + [
            (layer.block, self._variants[place][choice.variants[place]])
            for place, layer in enumerate(tables.layers)
            if len(layer.variants) > 1
        ]
        for block, column in chosen:
            if tables.is_gone(block, choice.dropped):
                continue
            # It differs where it is there, and is not this.
            terms[int(column)] -= 1.0
            if block is None:
                constant += 1
            else:
                terms[self._stay(block)] += 1.0
        for each in tables.blocks:
            stayed = not tables.is_gone(each.name, choice.dropped)
            terms[self._stay(each.name)] += -1.0 if stayed else 1.0
            constant += stayed
        self._rows.add(terms.items(), distance - constant, np.inf)

    @cached_property
    def _quantities(self) -> dict[Quantity, tuple[Array, float]]:
        """Give the coefficients of each quantity and what it has without any column."""
        tables = self._tables
        found: dict[Quantity, tuple[Array, float]] = {}
        for number, quantity in enumerate(COSTS):
            row = np.zeros(self.places)
            for place, layer in enumerate(tables.layers):
                for variant, shares in zip(layer.variants, self._shares[place], strict=True):
                    np.add.at(row, shares.ravel(), variant.costs[number].ravel())
            found[quantity] = (row, tables.rest[number])
        damage, constant = np.zeros(self.places), tables.rest_damage
        for place, group in enumerate(tables.groups):
            damage[self._widths[place]] += group.damages
        for place, layer in enumerate(tables.layers):
            damage[self._variants[place]] += [variant.damage for variant in layer.variants]
        for place, block in enumerate(tables.blocks):
            damage[self._stays[place]] -= block.damage
            if block.inside is None:
                constant += block.damage
            else:
                damage[self._stay(block.inside)] += block.damage
        return {**found, "damage": (damage, constant)}

    def _memories(self) -> list[tuple[Array, float]]:
        """Give the coefficients of the memory at each moment: the weights and what is alive."""
        weights, fixed = self._quantities["size"]
        found = []
        for moment in self._tables.moments:
            row = weights.copy()
            for name, each in moment.per_channel.items():
                place = self._tables.group_at[name]
                row[self._widths[place]] += each * np.array(self._tables.groups[place].widths)
            found.append((row, fixed + moment.fixed))
        return found or [(weights, fixed)]

    def _objective(self, minimise: Quantity) -> Array:
        damage, constant = self._quantities["damage"]
        finite = np.abs(damage)
        tie = damage * (_TIE / max(float(finite.sum()) + abs(constant), 1e-30))
        if minimise == "damage":
            return np.asarray(damage / max(float(finite.max(initial=0.0)), 1e-30))
        if minimise != "memory":
            row, fixed = self._quantities[minimise]
            return np.asarray(row / max(self._of_whole(row) + fixed, 1e-30) + tie)
        rows = self._memories()
        scale = max(self._of_whole(row) + fixed for row, fixed in rows)
        self._epigraph = self.places
        self.places += 1
        for row, fixed in rows:
            used = np.flatnonzero(row)
            terms = [*zip(used.tolist(), (row[used] / scale).tolist(), strict=True), (self._epigraph, -1.0)]
            self._rows.add(terms, -np.inf, -fixed / scale)
        return np.asarray(np.append(tie, 1.0))

    def _of_whole(self, row: Array) -> float:
        """Give what a row of coefficients comes to for the whole network."""
        places = [columns[0] for columns in self._widths] + list(self._stays) + [each[0] for each in self._variants]
        places += [shares[0][0, 0] for shares in self._shares if shares[0].size > 1]
        return float(row[places].sum())

    def solve(self, minimise: Quantity, seconds: float) -> Choice:
        """Solve it and read the choice."""
        if not self.places:
            return self._only_choice()
        objective = self._objective(minimise)
        # Loaded late: it is slow.
        optimize: Any = import_module("scipy.optimize")
        sparse: Any = import_module("scipy.sparse")
        rows = self._rows
        matrix = sparse.csr_array((rows.values, (rows.rows, rows.columns)), shape=(len(rows.low), self.places))
        integral = (np.arange(self.places) < self._whole).astype(np.int64)
        high = np.where(np.arange(self.places) == self._epigraph, np.inf, 1.0)
        result = optimize.milp(
            objective,
            integrality=integral,
            bounds=optimize.Bounds(0, high),
            constraints=optimize.LinearConstraint(matrix, rows.low, rows.high),
            options={"time_limit": seconds, "node_limit": _NODES, "mip_rel_gap": _GAP, "presolve": True},
        )
        if result.status == _INFEASIBLE:
            raise Infeasible
        if result.x is None or (result.status == _TIME_LIMIT and "ime limit" in result.message):
            raise Unsolved(result.message)
        return self._read(result.x)

    def _only_choice(self) -> Choice:
        """Give the choice of nothing, where there is nothing to choose from: only limits and other choices may rule it out."""
        if any(low > 0 or high < 0 for low, high in zip(self._rows.low, self._rows.high, strict=True)):
            raise Infeasible
        return Choice((), (), ())

    def _read(self, found: Array) -> Choice:
        return Choice(
            tuple(int(np.argmax(found[columns])) for columns in self._widths),
            tuple(bool(value < 0.5) for value in found[self._stays]),
            tuple(int(np.argmax(found[columns])) for columns in self._variants),
        )
