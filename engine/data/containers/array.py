"""What all containers of arrays give."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.data.containers.value_range import ValueRange
from engine.errors import DatasetInvalidError
from engine.inspection import Preprocessing

Array = npt.NDArray[Any]

CHUNK_BYTES = 4 << 20
MOST_BYTES = 64 << 30
MOST_ARRAYS = 256
# An array that holds nothing may still claim any number of samples.
MOST_SAMPLES = 50_000_000
# numpy has no more.
_MOST_AXES = 64
_KINDS = "biuf"


@dataclass(frozen=True)
class Header:
    """Shape, type and numbers of an array; a size is None on an axis where it varies from sample to sample."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    values: ValueRange


class Varying:
    """The samples of an array that have sizes of their own; several of one size can be had as one array."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: np.dtype[Any], read: "ReadSample") -> None:
        self.shapes = shapes
        self.dtype = dtype
        self._read = read

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(self.shapes)

    def __getitem__(self, chosen: npt.NDArray[np.int64]) -> Array:
        """Give samples of one size, behind each other on a new first axis."""
        return np.stack([self._read(int(index)) for index in chosen])


class ReadSample(Protocol):
    """Reads an array of one sample."""

    def __call__(self, index: int) -> Array:
        """Give it, without an axis for samples."""
        ...


class Container(Protocol):
    """Named arrays in a file. Their first axis counts the samples."""

    def check(self) -> dict[str, Header]:
        """Read everything once and say what it is; raises DatasetInvalidError, also for NaN and infinity."""
        ...

    def preprocessing(self) -> Preprocessing | None:
        """Give what the file says of its data; raises DatasetInvalidError where that is not readable."""
        ...

    def names(self) -> list[str]:
        """List the arrays."""
        ...

    def array(self, name: str, scratch: Path) -> Array | Varying:
        """Give an array of a checked file, mapped from it or from a file in `scratch` where it is large."""
        ...


def check_type(name: str, dtype: np.dtype[Any]) -> None:
    """Raise DatasetInvalidError for what is neither a number nor a boolean."""
    if dtype.kind not in _KINDS or dtype.hasobject or dtype.itemsize > 8:
        ragged = (
            f"Samples of their own sizes: a zip of one .npz per sample, or one array filled up to the longest and beside it"
            f" `{name}_length`, a whole number per sample."
        )
        words = (
            "Classes are whole numbers, 0 for the network's first: [classes.index(word) for word in words]. Texts are the numbers"
            " of their tokens: `onnxpress dataset text`."
        )
        is_text = dtype.kind in "US"
        raise DatasetInvalidError(
            f"Array `{name}` {'holds words' if is_text else f'has type {dtype}'}; only numbers and booleans are taken.",
            hint=ragged if dtype.hasobject else words if is_text else None,
        )


def check_shape(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise DatasetInvalidError for sizes that no array here can have, with or without bytes behind them."""
    if len(shape) > _MOST_AXES:
        raise DatasetInvalidError(f"Array `{name}` has {len(shape)} axes; {_MOST_AXES} are the limit.")
    if shape and shape[0] > MOST_SAMPLES:
        raise DatasetInvalidError(f"Array `{name}` has {shape[0]} samples; {MOST_SAMPLES} are the limit.")
    # An empty array takes no bytes whatever its other sizes are, and yet they have to be counted with.
    if nbytes(tuple(size for size in shape if size), dtype) > MOST_BYTES:
        raise DatasetInvalidError(f"Array `{name}` of shape {list(shape)} is larger than {MOST_BYTES} bytes.")


def nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Give the size of an array; Python's integers do not overflow."""
    return prod(shape) * dtype.itemsize


def flat_chunks(array: Array) -> Iterator[Array]:
    """Yield all values of an array, some at a time."""
    flat = array.reshape(-1)
    step = max(1, CHUNK_BYTES // array.dtype.itemsize)
    for start in range(0, len(flat), step):
        yield flat[start : start + step]
