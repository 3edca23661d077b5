"""Groups of channels that are alternatives to each other, and the least sets of them that can go."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from engine.graph.labels import Array

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


def balanced(order: list[int], group: Group) -> Iterator[list[int]]:
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
        alone: Array = np.eye(len(available), dtype=np.int64)[first]
        return alone
    kinds = columns.shape[1]
    if available.all() and not columns.sum(axis=1).any() and np.linalg.matrix_rank(columns) == kinds - 1:
        # All balanced sets are multiples of one, and one of each kind is such a set.
        return np.ones(kinds, np.int64)
    # Loaded late: it is slow, and most graphs need no search.
    optimize: Any = import_module("scipy.optimize")
    low = np.zeros(len(available))
    low[first] = 1
    result = optimize.milp(
        np.ones(len(available)),
        constraints=optimize.LinearConstraint(columns, 0, 0),
        bounds=optimize.Bounds(low, np.minimum(available, _LARGEST_UNIT)),
        integrality=np.ones(len(available)),
        options={"time_limit": _SEARCH_SECONDS, "mip_rel_gap": 0.0},
    )
    return None if result.x is None else np.rint(result.x).astype(np.int64)


def stuck(group: Group) -> str | None:
    """Say why no unit of a group can go, None if one can."""
    units = 0
    for unit in balanced(list(group.atoms), group):
        units += 1
        if not any(line <= set(unit) for line in group.lines):
            return None
    return (
        "removing any of its channels would leave width 0"
        if units
        else "no set of its channels keeps every shape rectangular"
    )
