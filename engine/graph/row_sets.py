"""Outputs whose rows the data decide, compared as sets: how far each row is from the nearest one of the other set."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import VerificationFailedError

Array = NDArray[np.generic]
Floats = NDArray[np.float64]

# Numbers that are widened at a time: as doubles, with what is made of them, those of a whole activation take eight times its bytes.
_AT_A_TIME = 1 << 19


def paired_rows(left: Array, right: Array, name: str) -> tuple[Floats, Floats]:
    """Give two arrays as rows (rows, numbers): along the one axis whose size differs, else of the last axis.

    Raises VerificationFailedError where more differs than the number of rows.
    """
    same_rank = left.ndim == right.ndim
    differing = [axis for axis in range(left.ndim) if left.shape[axis] != right.shape[axis]] if same_rank else []
    if not same_rank or len(differing) > 1:
        raise VerificationFailedError(
            f"Output `{name}` is {right.dtype}{list(right.shape)}, but was {left.dtype}{list(left.shape)}."
        )
    return _rows(left, differing), _rows(right, differing)


def _finite(values: Array) -> Floats:
    return np.nan_to_num(np.asarray(values, np.float64), posinf=0, neginf=0)


def _rows(values: Array, differing: list[int]) -> Floats:
    numbers = _finite(values)
    if differing:
        ordered = np.moveaxis(numbers, differing[0], 0)
        return ordered.reshape(len(ordered), int(np.prod(ordered.shape[1:])))
    return numbers.reshape(-1, 1) if numbers.ndim <= 1 else numbers.reshape(-1, numbers.shape[-1])


def energy(values: Array) -> float:
    """Give the energy of what is finite: masked places of an output are infinite in every network."""
    flat = values.reshape(-1)
    return _sum(lambda part: np.square(_finite(flat[part])), 0, flat.size)


def noise(wanted: Array, found: Array, name: str) -> float:
    """Give the energy of the difference; where the data decide the number of rows, that to each row's nearest."""
    if wanted.shape == found.shape:
        left, right = found.reshape(-1), wanted.reshape(-1)
        return _sum(lambda part: np.square(_finite(left[part]) - _finite(right[part])), 0, left.size)
    there, back = distances(*paired_rows(wanted, found, name))
    return max(float(np.square(there).sum()), float(np.square(back).sum()))


def _sum(squares: Callable[[slice], Floats], start: int, stop: int) -> float:
    """Add up what `squares` gives from `start` to `stop`, halved as numpy halves sums: to the last bit as it adds up all at once."""
    count = stop - start
    if count <= _AT_A_TIME:
        return float(squares(slice(start, stop)).sum())
    half = start + count // 2 - count // 2 % 8
    return _sum(squares, start, half) + _sum(squares, half, stop)


def distances(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Give how far each row of either set is from the nearest of the other; from an empty set as far as from zero."""
    return _to_nearest(left, right), _to_nearest(right, left)


def _to_nearest(rows: Floats, others: Floats) -> Floats:
    if not len(rows) or not len(others):
        lengths: Floats = np.linalg.norm(rows, axis=1)
        return lengths
    # Loaded late: it is slow, and the outputs of most networks are no sets.
    spatial: Any = import_module("scipy.spatial")
    found, _ = spatial.KDTree(others).query(rows)
    return np.asarray(found, np.float64)
