"""Label tensors: which channel each element of a value belongs to, kept small, and the union of channels that go together.

An element's label is an *atom*, a positive integer that a prunable axis was given; 0 is no atom. Labels rarely vary over
space or time, so the array keeps size 1 on every axis along which they do not: a value of 1x64x512x512 costs 64 integers.
Movement ops run on this form at full size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]

# Beyond this many labels that really vary, the analysis gives up on the value instead of filling memory.
MOST_LABELS = 1 << 24


class UnfollowableError(Exception):
    """Labels cannot be followed through a node, for the reason in the message: all channels that it touches stay.

    The only way in which a rule says so after it began; any other error out of a rule is a fault of ours and goes through.
    """


class TooManyLabelsError(UnfollowableError):
    """Labels of one value vary over more elements than the analysis may hold."""

    def __init__(self) -> None:
        super().__init__("its labels vary over too many elements to analyse")


@dataclass(frozen=True, slots=True)
class Labels:
    """Atoms of a value's elements; `axis` is the one that gets shorter when atoms are removed."""

    shape: Shape
    atoms: Array
    axis: int

    @property
    def varying(self) -> tuple[int, ...]:
        """List the axes along which labels differ."""
        return tuple(axis for axis, size in enumerate(self.atoms.shape) if size > 1)

    @property
    def rows(self) -> tuple[int, ...]:
        """List the varying axes other than the one that shrinks."""
        return tuple(axis for axis in self.varying if axis != self.axis)

    def vector(self) -> Array:
        """Give the labels along `axis`; they must not vary on another one."""
        assert not self.rows
        return self.atoms.reshape(-1)

    def table(self) -> Array:
        """Give the labels with one line for each place outside `axis` and one column for each place on it."""
        return np.moveaxis(self.atoms, self.axis, -1).reshape(-1, self.atoms.shape[self.axis])


def along(shape: Sequence[int], axis: int, atoms: Array) -> Labels:
    """Label one axis of a shape by a vector."""
    axis %= len(shape)
    spread = [1] * len(shape)
    spread[axis] = len(atoms)
    assert shape[axis] == len(atoms), (shape, axis, len(atoms))
    return Labels(tuple(shape), atoms.reshape(spread), axis)


class Union:
    """Disjoint sets of atoms, united by whole arrays at a time."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int32)

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Array:
        """Give `count` new atoms."""
        start = len(self._parent)
        atoms = np.arange(start, start + count, dtype=np.int32)
        self._parent = np.concatenate([self._parent, atoms])
        return atoms

    def find(self, atoms: Array) -> Array:
        """Give each atom's representative: the smallest atom that it was united with."""
        found: Array = self._parent[atoms]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[atoms] = found
        return found

    def unite(self, left: Array, right: Array) -> None:
        """Unite atoms element by element; neither side may hold 0."""
        left, right = left.reshape(-1), right.reshape(-1)
        while True:
            left, right = self.find(left), self.find(right)
            differs = left != right
            if not differs.any():
                return
            left, right = left[differs], right[differs]
            # Of several unions into one root the last is stored; the others come again in the next round.
            self._parent[np.maximum(left, right)] = np.minimum(left, right)


# --- movement ops on labels ------------------------------------------------------------------------------------------


def transpose(labels: Labels, permutation: Sequence[int]) -> Labels:
    """Run Transpose on the labels."""
    shape = tuple(labels.shape[axis] for axis in permutation)
    return Labels(shape, labels.atoms.transpose(permutation), list(permutation).index(labels.axis))


def unsqueeze(labels: Labels, axes: Sequence[int]) -> Labels:
    """Run Unsqueeze; `axes` count in the result."""
    rank = len(labels.shape) + len(axes)
    added = {axis % rank for axis in axes}
    kept = [axis for axis in range(rank) if axis not in added]
    shape = [1] * rank
    for old, new in enumerate(kept):
        shape[new] = labels.shape[old]
    return Labels(tuple(shape), np.expand_dims(labels.atoms, tuple(sorted(added))), kept[labels.axis])


def squeeze(labels: Labels, axes: Sequence[int]) -> Labels:
    """Run Squeeze; the axis that carries the labels must stay."""
    gone = {axis % len(labels.shape) for axis in axes}
    assert labels.axis not in gone
    shape = tuple(size for axis, size in enumerate(labels.shape) if axis not in gone)
    return Labels(shape, labels.atoms.squeeze(tuple(gone)), labels.axis - sum(axis < labels.axis for axis in gone))


def blocks(old: Shape, new: Shape) -> list[tuple[range, range]]:
    """Pair the runs of axes that a reshape merges or splits with each other, as short as they can be."""
    found = []
    i = j = 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        found.append((range(first_i, i), range(first_j, j)))
    return found


def reshape(labels: Labels, shape: Shape, align: Callable[[Array, tuple[int, ...]], Array]) -> Labels | None:
    """Run Reshape on the labels.

    Where the shrinking axis is merged with faster-running axes on which labels differ too, removed elements keep their
    order only if they stand at the same place in each line: `align(atoms, axes)` unites them over those axes.
    Gives None where no axis of the result tells the atoms apart.
    """
    atoms = labels.atoms
    pairs = blocks(labels.shape, shape)
    for old, new in pairs:
        inner = tuple(axis for axis in old if axis > labels.axis and atoms.shape[axis] > 1)
        if labels.axis in old and inner and not (len(old) == len(new) == 1):
            atoms = align(atoms, inner)
    spread: list[int] = []
    result_sizes: list[int] = []
    candidates: list[int] = []
    trailing: list[int] = []
    for old, new in pairs:
        varies = any(atoms.shape[axis] > 1 for axis in old)
        spread.extend(labels.shape[axis] if varies else 1 for axis in old)
        sizes = [shape[axis] if varies else 1 for axis in new]
        result_sizes.extend(sizes)
        if labels.axis in old:
            candidates = list(new)
        trailing.extend(new if varies else ())
    if math.prod(spread) > MOST_LABELS:
        raise TooManyLabelsError
    full = np.broadcast_to(atoms, spread).reshape(result_sizes)
    for axis in trailing:
        full = _compressed(full, axis)
    kept = [axis for axis in candidates if full.shape[axis] > 1]
    return Labels(shape, full, kept[-1]) if kept else None


def _compressed(atoms: Array, axis: int) -> Array:
    if atoms.shape[axis] == 1:
        return atoms
    first = atoms.take([0], axis=axis)
    return first if np.array_equal(np.broadcast_to(first, atoms.shape), atoms) else atoms


def expand(labels: Labels, shape: Shape) -> Labels:
    """Run Expand: broadcast to a shape of the same or a higher rank."""
    missing = len(shape) - len(labels.shape)
    atoms = labels.atoms.reshape((1,) * missing + labels.atoms.shape)
    return Labels(shape, atoms, labels.axis + missing)


def take(labels: Labels, axis: int, where: Array | slice, size: int) -> Labels:
    """Select places on one axis; `size` is that axis' new length."""
    shape = (*labels.shape[:axis], size, *labels.shape[axis + 1 :])
    if labels.atoms.shape[axis] == 1:
        return Labels(shape, labels.atoms, labels.axis)
    index = (slice(None),) * axis + (where,)
    return Labels(shape, labels.atoms[index], labels.axis)


def tile(labels: Labels, repeats: Sequence[int]) -> Labels:
    """Run Tile on the labels."""
    shape = tuple(size * times for size, times in zip(labels.shape, repeats, strict=True))
    effective = [times if size > 1 else 1 for size, times in zip(labels.atoms.shape, repeats, strict=True)]
    return Labels(shape, np.tile(labels.atoms, effective), labels.axis)


def full_on(labels: Labels, axis: int) -> Array:
    """Give the atoms with one axis written out at its full length."""
    spread = list(labels.atoms.shape)
    spread[axis] = labels.shape[axis]
    if math.prod(spread) > MOST_LABELS:
        raise TooManyLabelsError
    return np.broadcast_to(labels.atoms, spread)
