"""X^T X of a tensor, as one of the statistics that passes may ask for."""

from typing import Any

import numpy.typing as npt

from engine.solve.gram import Gram, Moments


class SecondMoment:
    """X^T X of a tensor whose last axis counts a layer's inputs, with its sums: all rows, in float64."""

    def __init__(self) -> None:
        self._gram: Gram | None = None

    def update(self, batch: npt.NDArray[Any]) -> None:
        """Add the rows of one batch."""
        rows = batch.reshape(-1, batch.shape[-1])
        self._gram = self._gram or Gram(rows.shape[1])
        self._gram.update(rows)

    def result(self) -> Moments | None:
        """Give the sums so far; None if there never was a batch."""
        return None if self._gram is None else self._gram.moments()
