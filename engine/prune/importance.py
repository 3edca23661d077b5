"""How much the network would miss each channel, by its weights alone or by what the layers that read it see."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.contract import Samples
from engine.graph.coupling import Coupling
from engine.graph.groups import Group, Slice
from engine.graph.walk import Walk
from engine.prune.reconstruct import batches, spare
from engine.prune.refittable import Rows, refittable
from engine.solve.gram import Gram, Moments
from engine.target import Target

Array = npt.NDArray[Any]
Importance = Literal["magnitude", "activation", "reconstruction", "taylor", "fisher"]
Working = Callable[[], AbstractContextManager[None]]

_ROWS_PER_COLUMN = 8
_LEAST_ROWS = 4096
# Layers with more columns are left out of the sums: their matrix would not fit in memory.
_MOST_COLUMNS = 6144
# All sums together; groups that only further layers read are ranked by magnitude.
_MOST_BYTES = 1 << 30
# Relative to the mean variance of a column: keeps the inverse finite where columns depend on each other.
_DAMPING = 1e-2
# A group is ranked in at most so many steps.
_STEPS = 64


@dataclass(frozen=True)
class Seen:
    """What a layer reads over the calibration samples: per group of a convolution the sums over its rows."""

    layer: Rows
    sums: Sequence[Moments]


def observe(
    model: ir.Model, samples: Samples, target: Target, wanted: frozenset[str], *, working: Working = nullcontext
) -> dict[str, Seen]:
    """Sum what the layers with these weights read; by the weights' name. `working` is held for one batch at a time."""
    found: dict[str, Seen] = {}
    taken = 0
    with tempfile.TemporaryDirectory(prefix="importance-") as folder:
        walk = Walk(model, batches(model, samples), target, Path(folder), working=working)
        for layer in refittable(model)[0]:
            name = str(layer.weight.name)
            if name not in wanted or not isinstance(layer, Rows):
                continue
            size = layer.linear.groups * layer.linear.inputs**2 * np.dtype(np.float64).itemsize
            if layer.linear.inputs > _MOST_COLUMNS or taken + size > _MOST_BYTES:
                continue
            taken += size
            walk.advance(walk.place(layer.node))
            spare([walk])
            found[name] = Seen(layer, _sums(walk, layer, working))
    return found


def _sums(walk: Walk, layer: Rows, working: Working) -> Sequence[Moments]:
    source = walk.look(layer.source)
    per_sample = max(1, len(source(0)))
    rows = max(_LEAST_ROWS, _ROWS_PER_COLUMN * layer.linear.inputs)
    keep = max(1, -(-rows // (walk.batches * per_sample)))
    gram = Gram(layer.linear.inputs, groups=layer.linear.groups, block=256)
    for batch in range(walk.batches):
        with working():
            gram.update(layer.rows(source(batch), batch * per_sample, keep))
    return [gram.moments(group) for group in range(layer.linear.groups)]


def scores(
    model: ir.Model, coupling: Coupling, group: Group, seen: Mapping[str, Seen], importance: Importance
) -> dict[int, float]:
    """Score a group's atoms: what the network would lose, as a share of what the layers involved put out."""
    if importance == "reconstruction":
        problems = [problem for part in group.slices for problem in _problems(part, seen)]
        if problems:
            return _ranked(coupling, group, problems)
    if importance == "activation":
        found = _by_atom(group, [pair for part in group.slices for pair in _activations(part, seen)])
        if any(found.values()):
            return found
    return _by_atom(group, [pair for part in group.slices for pair in _magnitudes(model, part)])


# --- by weights, and by weights times activations --------------------------------------------------------------------


def _by_atom(group: Group, pairs: Sequence[tuple[Array, Array]]) -> dict[int, float]:
    """Add up energies by atom, each tensor's as a share of its own."""
    found = dict.fromkeys(group.atoms, 0.0)
    for atoms, energies in pairs:
        scale = max(float(energies.sum()), 1e-30)
        totals = np.bincount(atoms, energies / scale)
        for atom in np.unique(atoms).tolist():
            if atom in found:
                found[atom] += float(totals[atom])
    return found


def _magnitudes(model: ir.Model, part: Slice) -> list[tuple[Array, Array]]:
    tensor = model.graph.initializers[part.initializer].const_value
    if tensor is None or len(tensor.shape) < 2:
        return []
    lines = np.moveaxis(tensor.numpy().astype(np.float64), part.axis, -1)
    squares = np.square(lines.reshape(-1, lines.shape[-1]))
    if part.atoms.ndim == 1:
        return [(part.atoms, squares.sum(0))]
    if squares.shape[0] % len(part.atoms):
        return []
    grouped = squares.reshape(len(part.atoms), -1, squares.shape[1]).sum(1)
    return [(part.atoms.reshape(-1), grouped.reshape(-1))]


def _activations(part: Slice, seen: Mapping[str, Seen]) -> list[tuple[Array, Array]]:
    found = []
    for problem in _problems(part, seen, invert=False):
        energy = np.square(problem.weights).sum(0) * np.diag(problem.matrix)
        for atom, columns in problem.columns.items():
            found.append((np.full(len(columns), atom), energy[columns]))
    if not found:
        return []
    return [(np.concatenate([atoms for atoms, _ in found]), np.concatenate([energies for _, energies in found]))]


# --- by what is left of the error when the other channels make up for it ---------------------------------------------


@dataclass
class _Problem:
    """A layer that reads channels: its weights, and the inverse of its inputs' covariance (or that itself)."""

    weights: Array  # (outputs, columns)
    matrix: Array
    energy: float
    columns: dict[int, Array]  # by atom

    def cost(self, columns: Array) -> Array:
        """Give for each row of columns what removing them costs, the best compensation by the others included."""
        if columns.shape[1] == 1:
            at = columns[:, 0]
            alone: Array = np.square(self.weights[:, at]).sum(0) / np.diag(self.matrix)[at] / self.energy
            return alone
        blocks = self.matrix[columns[:, :, None], columns[:, None, :]]
        weights = self.weights[:, columns].transpose(1, 2, 0)
        solved = np.linalg.solve(blocks, weights)
        found: Array = (weights * solved).sum((1, 2)) / self.energy
        return found

    def remove(self, columns: Array) -> None:
        """Let the other columns make up for these: the optimal brain surgeon's step for a block."""
        block = self.matrix[np.ix_(columns, columns)]
        gain = np.linalg.solve(block, self.matrix[columns]).T
        self.weights = self.weights - self.weights[:, columns] @ gain.T
        self.matrix = self.matrix - gain @ self.matrix[columns]
        # What is removed costs nothing any more and does not disturb the rest.
        self.weights[:, columns] = 0.0
        self.matrix[columns] = 0.0
        self.matrix[:, columns] = 0.0
        self.matrix[columns, columns] = 1.0


def _problems(part: Slice, seen: Mapping[str, Seen], *, invert: bool = True) -> list[_Problem]:
    """Give the problems that a slice of a layer's input axis stands for: one, or one for each group of a convolution."""
    entry = seen.get(part.initializer)
    if entry is None or part.role != "in" or part.axis == entry.layer.axis:
        return []
    layer = entry.layer.linear
    lines = part.atoms.reshape(1, -1) if part.atoms.ndim == 1 else part.atoms
    if len(lines) % layer.groups and len(lines) != 1:
        return []
    weights = entry.layer.matrix().reshape(layer.groups, -1, layer.inputs)
    found = []
    for group, moments in enumerate(entry.sums):
        line = lines[group * len(lines) // layer.groups] if len(lines) > 1 else lines[0]
        columns = {int(atom): layer.columns(np.flatnonzero(line == atom)) for atom in np.unique(line) if atom > 0}
        if not columns or moments.rows == 0:
            continue
        mean = moments.x_sum / moments.rows
        covariance = moments.xtx / moments.rows - (np.outer(mean, mean) if invert else 0.0)
        energy = float(np.einsum("oi,ij,oj->", weights[group], covariance, weights[group], optimize=True))
        matrix: Array = covariance
        if invert:
            level = max(_DAMPING * float(np.trace(covariance)) / len(covariance), 1e-20)
            matrix = np.linalg.inv(covariance + level * np.eye(len(covariance)))
        found.append(_Problem(weights[group].copy(), matrix, max(energy, 1e-30), columns))
    return found


def _ranked(coupling: Coupling, group: Group, problems: list[_Problem]) -> dict[int, float]:
    """Remove unit after unit, the cheapest first, each time with the others making up; scores rise in that order."""
    first = {atom: sum(_cost(problem, (atom,)) for problem in problems) for atom in group.atoms}
    units = [unit.atoms for unit in coupling.units(group, first)]
    left = list(range(len(units)))
    rank: dict[int, float] = {}
    highest, step = 0.0, max(1, len(units) // _STEPS)
    while left:
        costs = sum(_costs(problem, [units[number] for number in left]) for problem in problems)
        order = np.argsort(costs, kind="stable")[:step]
        for place in order:
            highest = max(highest * (1 + 1e-9), float(np.asarray(costs)[place]), 1e-12)
            for atom in units[left[place]]:
                rank[atom] = highest
        gone = [units[left[place]] for place in order]
        for problem in problems:
            columns = _columns(problem, [atom for unit in gone for atom in unit])
            if len(columns):
                problem.remove(columns)
        dropped = set(order.tolist())
        left = [number for place, number in enumerate(left) if place not in dropped]
    # Atoms that fit into no unit stay.
    return {atom: rank.get(atom, float("inf")) for atom in group.atoms}


def _columns(problem: _Problem, atoms: Sequence[int]) -> Array:
    parts = [problem.columns[atom] for atom in atoms if atom in problem.columns]
    return np.concatenate(parts) if parts else np.zeros(0, np.intp)


def _cost(problem: _Problem, atoms: Sequence[int]) -> float:
    columns = _columns(problem, atoms)
    return float(problem.cost(columns[None])[0]) if len(columns) else 0.0


def _costs(problem: _Problem, units: Sequence[Sequence[int]]) -> Array:
    """Cost of each unit; those with equally many columns are computed together."""
    columns = [_columns(problem, unit) for unit in units]
    sizes = np.array([len(part) for part in columns])
    found = np.zeros(len(units))
    for size in np.unique(sizes):
        if size:
            at = np.flatnonzero(sizes == size)
            found[at] = problem.cost(np.stack([columns[place] for place in at]))
    return found
