"""Writes `.npz` files as numpy does, a sample at a time and without numpy."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

Type = Literal["uint8", "float32", "int64"]
_CODES: dict[Type, str] = {"uint8": "|u1", "float32": "<f4", "int64": "<i8"}
_SIZES: dict[Type, int] = {"uint8": 1, "float32": 4, "int64": 8}
# The oldest time that a zip can hold: the same data give the same file.
_TIME = (1980, 1, 1, 0, 0, 0)
_ALIGNED = 64


class NpzWriter:
    """An `.npz` being written; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._archive.close()

    def add(self, name: str, kind: Type, shape: Sequence[int], parts: Iterable[bytes]) -> None:
        """Write an array from its values in C order, little-endian, in pieces; raises ValueError if they do not add up."""
        wanted = _SIZES[kind]
        for size in shape:
            wanted *= size
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy", _TIME), "w", force_zip64=True) as member:
            member.write(_header(kind, shape))
            for part in parts:
                member.write(part)
                wanted -= len(part)
        if wanted:
            raise ValueError(f"array {name}: {abs(wanted)} bytes too {'few' if wanted > 0 else 'many'}")


def _header(kind: Type, shape: Sequence[int]) -> bytes:
    sizes = "".join(f"{size}, " for size in shape)
    text = f"{{'descr': '{_CODES[kind]}', 'fortran_order': False, 'shape': ({sizes}), }}"
    start = len(b"\x93NUMPY\x01\x00") + 2
    padded = text + " " * (-(start + len(text) + 1) % _ALIGNED) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("latin-1")
