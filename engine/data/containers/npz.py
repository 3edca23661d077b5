"""`.npz` archives, as numpy writes them."""

import tempfile
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from engine.data.containers import declaration
from engine.data.containers.array import (
    CHUNK_BYTES,
    MOST_ARRAYS,
    MOST_BYTES,
    Array,
    Header,
    check_shape,
    check_type,
    nbytes,
)
from engine.data.containers.value_range import ValueRange
from engine.data.containers.zips import UNPACKED_FREE_BYTES, check_members
from engine.errors import DatasetInvalidError
from engine.inspection import Preprocessing


@dataclass(frozen=True)
class _Npy:
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def nbytes(self) -> int:
        return nbytes(self.shape, self.dtype)


class Npz:
    """An open archive of arrays; stored ones are mapped from it, packed large ones unpacked beside it."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self._path = path
        self._names = members(archive, path.stat().st_size)

    def names(self) -> list[str]:
        """List the arrays."""
        return self._names

    def preprocessing(self) -> Preprocessing | None:
        """Give what the file says of its data."""
        return declaration.read(self._archive)

    def check(self) -> dict[str, Header]:
        """Read everything once and say what it is."""
        return {name: checked(self._archive, name) for name in self._names}

    def array(self, name: str, scratch: Path) -> Array:
        """Give an array."""
        entry = self._archive.getinfo(name + ".npy")
        with self._archive.open(entry) as stream:
            npy = _read_header(stream, name)
            order: Literal["F", "C"] = "F" if npy.fortran_order else "C"
            if entry.compress_type == zipfile.ZIP_STORED and npy.nbytes:
                place = _data_offset(self._path, entry) + npy.offset
                return np.memmap(self._path, npy.dtype, "r", place, npy.shape, order)
            if npy.nbytes <= UNPACKED_FREE_BYTES // 4:
                return np.frombuffer(stream.read(npy.nbytes), npy.dtype).reshape(npy.shape, order=order)
            with tempfile.NamedTemporaryFile(dir=scratch, prefix="array-", delete=False) as unpacked:
                while data := stream.read(CHUNK_BYTES):
                    unpacked.write(data)
        return np.memmap(unpacked.name, npy.dtype, "r", 0, npy.shape, order)


def members(archive: zipfile.ZipFile, packed: int) -> list[str]:
    """Give the names of the arrays, or refuse an archive that is not what numpy writes."""
    everything = archive.infolist()
    entries = declaration.without(everything)
    if not entries:
        raise DatasetInvalidError("The archive holds no arrays.")
    for entry in entries:
        if not entry.filename.endswith(".npy") or entry.filename == ".npy":
            raise DatasetInvalidError("The archive holds a member that is not an array (.npy).")
    check_members(everything, packed, most_members=MOST_ARRAYS, most_bytes=MOST_BYTES)
    return [entry.filename.removesuffix(".npy") for entry in entries]


def checked(archive: zipfile.ZipFile, name: str) -> Header:
    """Read an array once from end to end: its length, its checksum, and what its numbers are."""
    entry = archive.getinfo(name + ".npy")
    with archive.open(entry) as stream:
        npy = _read_header(stream, name)
        if npy.offset + npy.nbytes != entry.file_size:
            raise DatasetInvalidError(f"Array `{name}` is truncated or has bytes behind it.")
        chunk = max(1, CHUNK_BYTES // npy.dtype.itemsize) * npy.dtype.itemsize
        values = ValueRange(name, npy.shape[0] if npy.shape else 1, prod(npy.shape[1:]), npy.fortran_order)
        while data := stream.read(chunk):
            values.add(np.frombuffer(data, npy.dtype))
    return Header(npy.shape, npy.dtype, values)


def read(archive: zipfile.ZipFile, name: str) -> Array:
    """Give a small array, read into memory."""
    with archive.open(name + ".npy") as stream:
        npy = _read_header(stream, name)
        order: Literal["F", "C"] = "F" if npy.fortran_order else "C"
        return np.frombuffer(stream.read(npy.nbytes), npy.dtype).reshape(npy.shape, order=order)


def _read_header(stream: IO[bytes], name: str) -> _Npy:
    try:
        version = np.lib.format.read_magic(stream)
        parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = parse(stream)
    except (ValueError, KeyError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise DatasetInvalidError(f"`{name}` is not a numpy array.") from error
    check_type(name, dtype)
    if any(size < 0 for size in shape):
        raise DatasetInvalidError(f"Array `{name}` has a negative size.")
    check_shape(name, shape, dtype)
    return _Npy(tuple(int(size) for size in shape), fortran_order, dtype, stream.tell())


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Find where a stored member's bytes start: after its local header, whose two lengths may differ from the directory's."""
    with path.open("rb") as stream:
        stream.seek(entry.header_offset + 26)
        lengths = stream.read(4)
    return entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
