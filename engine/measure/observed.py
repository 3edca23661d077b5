"""What the numbers of an output are like, seen over many samples in constant memory."""

import numpy as np
import numpy.typing as npt

from engine.measure import metrics
from engine.measure.metrics import Array

# Samples' outputs that are kept to look at rows.
_KEPT_BYTES = 4 << 20
_KEPT = 64
_CLOSE = 1e-3


class Observed:
    """Collects what recognition asks of an output's values; samples are on the first axis."""

    def __init__(self) -> None:
        self.samples = 0
        self.is_float = True
        self.dtype: npt.DTypeLike = np.float32
        self.shapes: set[tuple[int, ...]] = set()
        self.low, self.high = np.inf, -np.inf
        # Whether the last axis, and axis 1, add up to one; whether rows of the last axis have length one.
        self.adds_up = self.adds_up_on_1 = self.unit_length = True
        self.above_half = self.above_zero = self.numbers = self.near_ends = 0
        self.kept: list[Array] = []
        self._kept_bytes = 0

    def add(self, values: Array) -> None:
        """Look at a batch."""
        self.samples += len(values)
        self.is_float, self.dtype = metrics.is_float(values), values.dtype
        if len(self.shapes) < 4:
            self.shapes.add(values.shape[1:])
        if not values.size:
            return
        self._keep(values)
        numbers = np.asarray(values, np.float64)
        finite = np.nan_to_num(numbers, posinf=0, neginf=0)
        self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        self.numbers += values.size
        self.above_half += int((numbers > 0.5).sum())
        self.above_zero += int((numbers > 0).sum())
        self.near_ends += int(((np.abs(numbers) < 0.2) | (np.abs(numbers - 1) < 0.2)).sum())
        self.adds_up = self.adds_up and values.ndim > 1 and _is_one(finite.sum(axis=-1))
        self.adds_up_on_1 = self.adds_up_on_1 and values.ndim > 2 and _is_one(finite.sum(axis=1))
        self.unit_length = self.unit_length and values.ndim > 1 and _is_one(np.linalg.norm(finite, axis=-1))

    def _keep(self, values: Array) -> None:
        for each in values:
            if len(self.kept) >= _KEPT or self._kept_bytes > _KEPT_BYTES:
                return
            self.kept.append(np.array(each))
            self._kept_bytes += each.nbytes

    @property
    def dtype_name(self) -> str:
        """Name the type of the numbers as numpy does."""
        return np.dtype(self.dtype).name

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Give the shape of one sample, None where it varies."""
        ranks = {len(shape) for shape in self.shapes}
        if len(ranks) != 1:
            return ()
        return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*self.shapes, strict=True))

    @property
    def ndim(self) -> int:
        """Give the number of axes, that of the samples included; of a single shape."""
        return 1 + max((len(shape) for shape in self.shapes), default=0)

    @property
    def width(self) -> int:
        """Give the size of the last axis; 1 where there is none but that of the samples."""
        return next(iter(self.shapes))[-1] if self.shapes and all(self.shapes) else 1

    @property
    def unit_range(self) -> bool:
        """Say whether all numbers lie between 0 and 1."""
        return self.numbers > 0 and self.low >= 0 and self.high <= 1

    @property
    def decided_both_ways(self) -> bool:
        """Say whether numbers lie on both sides of the threshold (half, or zero where they are no shares)."""
        above = self.above_half if self.unit_range else self.above_zero
        return min(above, self.numbers - above) >= max(2, 0.01 * self.numbers)

    @property
    def bimodal(self) -> bool:
        """Say whether most numbers are near 0 or near 1."""
        return self.numbers > 0 and self.near_ends >= 0.7 * self.numbers


def _is_one(values: Array) -> bool:
    return bool(np.allclose(values, 1, atol=_CLOSE))
