"""Energies and cosines of a batch's float outputs, as several kinds count them; rows that vary are compared as sets."""

from collections.abc import Iterator

import numpy as np
from scipy.spatial import KDTree

from engine.measure import metrics
from engine.measure.intervals import Floats
from engine.measure.kinds import closeness
from engine.measure.metrics import Array
from engine.report.values import Quality


class Vectors:
    """Collects signal, noise and cosine per sample of one output."""

    def __init__(self) -> None:
        self._signal: list[Floats] = []
        self._noise: list[Floats] = []
        self._cosine: list[Floats] = []

    def add(self, original: Array, compressed: Array, valid: Array | None = None) -> None:
        """Compare a batch; padded positions do not count."""
        if not original.size:
            return
        original, compressed = unpadded(original, valid), unpadded(compressed, valid)
        signal, noise = metrics.energies(original, compressed)
        self._signal.append(signal)
        self._noise.append(noise)
        self._cosine.append(metrics.cosines(original, compressed))

    def qualities(self) -> Iterator[Quality]:
        """Give sqnr_db and cosine."""
        if self._signal:
            yield closeness.sqnr(np.concatenate(self._signal), np.concatenate(self._noise))
            yield closeness.mean("cosine", np.concatenate(self._cosine))


def unpadded(values: Array, valid: Array | None) -> Array:
    """Set padded positions to zero, where an output has the positions that `valid` speaks of."""
    if valid is None or values.ndim < 3 or values.shape[:2] != valid.shape:
        return values
    return np.where(valid.reshape(*valid.shape, *[1] * (values.ndim - 2)), values, np.zeros((), values.dtype))


def distances_of_sets(left: Array, right: Array) -> tuple[Floats, Floats]:
    """Give for two sets of rows (rows, numbers) how far each row is from the nearest one of the other set.

    A row is as far from an empty set as it is from zero.
    """
    one, other = (np.nan_to_num(np.asarray(each, np.float64)) for each in (left, right))
    return _to_nearest(one, other), _to_nearest(other, one)


def _to_nearest(rows: Floats, others: Floats) -> Floats:
    if not len(rows) or not len(others):
        lengths: Floats = np.linalg.norm(rows, axis=1)
        return lengths
    found, _ = KDTree(others).query(rows)
    return np.asarray(found, np.float64)


def as_rows(values: Array) -> Array:
    """Give one sample's output as rows: the last axis holds a row's numbers, a single axis single numbers."""
    return values.reshape(-1, 1) if values.ndim <= 1 else values.reshape(-1, values.shape[-1])
