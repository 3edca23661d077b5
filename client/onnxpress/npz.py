"""Writes `.npz` files as numpy does, a sample at a time and without numpy; and reads the headers of `.npy` files."""

import ast
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Literal, Self

Type = Literal["uint8", "float32", "int64"]
_CODES: dict[Type, str] = {"uint8": "|u1", "float32": "<f4", "int64": "<i8"}
_SIZES: dict[Type, int] = {"uint8": 1, "float32": 4, "int64": 8}
# The oldest time that a zip can hold: the same data give the same file.
_TIME = (1980, 1, 1, 0, 0, 0)
_ALIGNED = 64
_CHUNK = 1 << 20
# The member that says what was done to the data, and how long it may be.
DECLARATION = "dataset.json"
DECLARATION_BYTES = 64 << 10


class NpzWriter:
    """An `.npz` being written; use it as a context manager. Where that ends with an error, no file is left behind."""

    def __init__(self, target: Path | IO[bytes]) -> None:
        self._target = target
        self._archive = zipfile.ZipFile(target, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_exc: object) -> None:
        self._archive.close()
        if error is not None and isinstance(self._target, Path):
            self._target.unlink(missing_ok=True)

    def add(self, name: str, kind: Type, shape: Sequence[int], parts: Iterable[bytes]) -> None:
        """Write an array from its values in C order, little-endian, in pieces; raises ValueError if they do not add up."""
        wanted = _SIZES[kind]
        for size in shape:
            wanted *= size
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy", _TIME), "w", force_zip64=True) as member:
            member.write(_header(_CODES[kind], shape))
            for part in parts:
                member.write(part)
                wanted -= len(part)
        if wanted:
            raise ValueError(f"array {name}: {abs(wanted)} bytes too {'few' if wanted > 0 else 'many'}")

    def stack(self, name: str, paths: Sequence[Path], header: "NpyHeader") -> None:
        """Write the arrays of `.npy` files, all of them with that header, behind each other on a new first axis."""
        shape = (len(paths), *header.shape)
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy", _TIME), "w", force_zip64=True) as member:
            member.write(_header(header.descr, shape))
            for path in paths:
                _copy(path, header, member)

    def take(self, name: str, path: Path, header: "NpyHeader") -> None:
        """Write the array of a `.npy` file as it is."""
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy", _TIME), "w", force_zip64=True) as member:
            member.write(_header(header.descr, header.shape, fortran_order=header.fortran_order))
            _copy(path, header, member)

    def sample(self, name: str, content: bytes) -> None:
        """Write a whole `.npz` as a member: a sample of data whose sizes vary."""
        self._archive.writestr(zipfile.ZipInfo(name, _TIME), content)

    def declare(self, document: Mapping[str, Any]) -> None:
        """Write what was done to the data."""
        self._archive.writestr(zipfile.ZipInfo(DECLARATION, _TIME), encoded(document))


def encoded(document: Mapping[str, Any]) -> bytes:
    """Give a declaration as it is stored."""
    return json.dumps(document, ensure_ascii=False, indent=1).encode()


@dataclass(frozen=True)
class NpyHeader:
    """What a `.npy` file says of itself; `start` is where its values begin."""

    descr: str
    fortran_order: bool
    shape: tuple[int, ...]
    start: int


def read_npy_header(path: Path) -> NpyHeader:
    """Read the head of a `.npy` file; raises OSError, and ValueError where it is none, or holds objects."""
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("it is not an array of numpy (.npy)")
        wide = file.read(2)[:1] != b"\x01"
        length = int.from_bytes(file.read(4 if wide else 2), "little")
        text = file.read(min(length, _CHUNK)).decode("latin-1")
        start = file.tell()
    try:
        found = ast.literal_eval(text)
        descr, fortran_order, shape = found["descr"], found["fortran_order"], tuple(map(int, found["shape"]))
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise ValueError("its header is damaged") from error
    if not isinstance(descr, str) or descr[1:2] not in {"b", "i", "u", "f"}:
        raise ValueError("it holds no plain numbers")
    size = prod(shape) * int(descr[2:])
    if path.stat().st_size - start != size:
        raise ValueError("it is truncated, or has bytes behind its values")
    return NpyHeader(descr, bool(fortran_order), shape, start)


def _copy(path: Path, header: NpyHeader, member: IO[bytes]) -> None:
    with path.open("rb") as file:
        file.seek(header.start)
        while piece := file.read(_CHUNK):
            member.write(piece)


def _header(descr: str, shape: Sequence[int], *, fortran_order: bool = False) -> bytes:
    sizes = "".join(f"{size}, " for size in shape)
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran_order}, 'shape': ({sizes}), }}"
    start = len(b"\x93NUMPY\x01\x00") + 2
    padded = text + " " * (-(start + len(text) + 1) % _ALIGNED) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("latin-1")
