"""A zip of one `.npz` per sample: for networks whose inputs have another size each time (text, lines, key-value caches).

In each the same arrays stand, without an axis for samples; the members' names, sorted, are the samples' order.
"""

import io
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from engine.data.containers import declaration, npz
from engine.data.containers.array import MOST_BYTES, Array, Header, Varying
from engine.data.containers.value_range import ValueRange
from engine.data.containers.zips import check_members, opened
from engine.errors import DatasetInvalidError
from engine.inspection import Preprocessing

MOST_SAMPLES = 100_000
_SAMPLE_BYTES = 256 << 20
_CACHE_AXES = 3


class SampleZip:
    """The open archive."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        everything = archive.infolist()
        entries = declaration.without(everything)
        if any(not entry.filename.endswith(".npz") for entry in entries):
            raise DatasetInvalidError("The archive holds samples (.npz) and something else.")
        check_members(everything, path.stat().st_size, most_members=MOST_SAMPLES, most_bytes=MOST_BYTES)
        self._archive = archive
        self._path = path
        self._samples = sorted(entry.filename for entry in entries)

    def names(self) -> list[str]:
        """List the arrays."""
        with opened(self._bytes(self._archive, self._samples[0])) as inner:
            return list(self._one(inner, self._samples[0]))

    def preprocessing(self) -> Preprocessing | None:
        """Give what the file says of its data."""
        return declaration.read(self._archive)

    def check(self) -> dict[str, Header]:
        """Read everything once and say what it is."""
        shapes: dict[str, list[tuple[int, ...]]] = {}
        values: dict[str, ValueRange] = {}
        dtypes: dict[str, np.dtype[np.generic]] = {}
        for number, sample in enumerate(self._samples):
            with opened(self._bytes(self._archive, sample)) as inner:
                for name, found in self._one(inner, sample).items():
                    if dtypes.setdefault(name, found.dtype) != found.dtype:
                        raise DatasetInvalidError(f"Array `{name}` has another type in `{_told(sample)}`.")
                    shapes.setdefault(name, []).append(tuple(size or 0 for size in found.shape))
                    values.setdefault(name, ValueRange(name, len(self._samples), 1)).join(found.values, number)
            if any(len(seen) != number + 1 for seen in shapes.values()):
                raise DatasetInvalidError(f"`{_told(sample)}` does not hold the same arrays as the samples before it.")
        return {name: Header(_common(name, seen), dtypes[name], values[name]) for name, seen in shapes.items()}

    def array(self, name: str, scratch: Path) -> Array | Varying:
        """Give an array: one where all samples have the same size."""
        del scratch
        # Of its own: it is read from as long as the samples are used.
        archive = zipfile.ZipFile(self._path)
        first = self._read(archive, name, 0)
        shapes = [self._shape(archive, name, index) for index in range(len(self._samples))]
        varying = Varying(shapes, first.dtype, partial(self._read, archive, name))
        return varying if len(set(shapes)) > 1 else varying[np.arange(len(shapes))]

    @staticmethod
    def _one(inner: zipfile.ZipFile, sample: str) -> dict[str, Header]:
        size = sum(entry.compress_size for entry in inner.infolist())
        found = {name: npz.checked(inner, name) for name in npz.members(inner, max(1, size))}
        # A cache of keys and values (heads, positions, size) has no positions yet.
        empty = [name for name, array in found.items() if 0 in array.shape and len(array.shape) < _CACHE_AXES]
        if empty:
            raise DatasetInvalidError(f"Array `{empty[0]}` is empty in `{_told(sample)}`.")
        return found

    def _shape(self, archive: zipfile.ZipFile, name: str, index: int) -> tuple[int, ...]:
        return self._read(archive, name, index).shape

    def _read(self, archive: zipfile.ZipFile, name: str, index: int) -> Array:
        with zipfile.ZipFile(self._bytes(archive, self._samples[index])) as inner:
            return npz.read(inner, name)

    @staticmethod
    def _bytes(archive: zipfile.ZipFile, sample: str) -> io.BytesIO:
        with archive.open(sample) as stream:
            data = stream.read(_SAMPLE_BYTES + 1)
        if len(data) > _SAMPLE_BYTES:
            raise DatasetInvalidError(f"`{_told(sample)}` is larger than {_SAMPLE_BYTES} bytes.")
        return io.BytesIO(data)


def _common(name: str, shapes: list[tuple[int, ...]]) -> tuple[int | None, ...]:
    if len({len(shape) for shape in shapes}) > 1:
        raise DatasetInvalidError(f"Array `{name}` has another number of axes in some samples.")
    sizes = [set(axis) for axis in zip(*shapes, strict=True)]
    return (len(shapes), *(axis.pop() if len(axis) == 1 else None for axis in sizes))


def _told(sample: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in sample)[:100]
