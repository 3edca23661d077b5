"""What the numbers of an array are like, looked at once as they lie in a file: whether they are finite, and what types hold them."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import DatasetInvalidError

Array = npt.NDArray[Any]

# Stands for all types of integers where a number is not whole.
WHOLE = "integers"
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_LIMITS: dict[str, tuple[int | float, int | float]] = {
    "bool": (0, 1),
    **{name: (int(np.iinfo(name).min), int(np.iinfo(name).max)) for name in _INTEGERS},
    **{name: (float(np.finfo(name).min), float(np.finfo(name).max)) for name in ("float16", "float32")},
}


@dataclass(frozen=True)
class Misfit:
    """A number that a type does not hold, and its sample."""

    value: str
    sample: int


@dataclass
class ValueRange:
    """Smallest and largest number of an array, and the first number that each of the other types does not hold.

    Numbers come in the order of the file; `row` counts those of a sample. In a Fortran array the samples come in turns.
    """

    name: str
    samples: int
    row: int
    fortran_order: bool = False
    low: int | float | None = None
    high: int | float | None = None
    misfits: dict[str, Misfit] = field(default_factory=dict)
    _at: int = 0

    def add(self, values: Array) -> None:
        """Look at some numbers; raises DatasetInvalidError for NaN and infinity."""
        if not values.size:
            return
        is_float = values.dtype.kind == "f"
        # NaN comes out of both.
        low, high = (each.item() for each in (values.min(), values.max()))
        if is_float and not (isfinite(low) and isfinite(high)):
            raise DatasetInvalidError(f"Array `{self.name}` holds NaN or infinity.")
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        if is_float and WHOLE not in self.misfits:
            self._note(values, values != np.floor(values), WHOLE)
        for name, (least, most) in _LIMITS.items():
            if name not in self.misfits and (low < least or high > most):
                self._note(values, _outside(values, least, most), name)
        self._at += values.size

    def told(self) -> dict[str, str]:
        """Give the misfits in words, by type; `integers` says it of all types of integers."""
        left_out = ("bool", *_INTEGERS) if WHOLE in self.misfits else ()
        return {
            name: f"{each.value} in sample {each.sample}" for name, each in self.misfits.items() if name not in left_out
        }

    def join(self, other: "ValueRange", sample: int) -> None:
        """Take in what was seen of the next sample."""
        if other.low is None or other.high is None:
            return
        self.low = other.low if self.low is None else min(self.low, other.low)
        self.high = other.high if self.high is None else max(self.high, other.high)
        for name, found in other.misfits.items():
            self.misfits.setdefault(name, Misfit(found.value, sample))

    def _note(self, values: Array, wrong: npt.NDArray[np.bool_], kind: str) -> None:
        if not wrong.any():
            return
        place = int(np.argmax(wrong.reshape(-1)))
        at = self._at + place
        sample = at % self.samples if self.fortran_order else at // max(self.row, 1)
        self.misfits[kind] = Misfit(str(values.reshape(-1)[place].item()), sample)


def _outside(values: Array, least: float, most: float) -> npt.NDArray[np.bool_]:
    if values.dtype.kind != "f":
        return np.asarray((values < least) | (values > most))
    # The largest integers are no floats: the next float is above them.
    numbers = values.astype(np.float64)
    return np.asarray((numbers < least) | ((numbers >= float(most)) if float(most) > most else (numbers > most)))
