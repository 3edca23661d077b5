"""Energies and cosines of a batch's float outputs, as several kinds count them."""

from collections.abc import Iterator

import numpy as np

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
