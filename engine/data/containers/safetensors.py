"""`.safetensors` files: a JSON header of names, types, shapes and places, then the bytes."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.containers import declaration
from engine.data.containers.array import MOST_ARRAYS, Array, Header, check_shape, flat_chunks, nbytes
from engine.data.containers.value_range import ValueRange
from engine.errors import DatasetInvalidError
from engine.inspection import Preprocessing

_LENGTH_BYTES = 8
_HEADER_BYTES = 16 << 20
_NAME_LETTERS = 200
_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


def is_safetensors(path: Path) -> bool:
    """Tell by its first bytes whether a file is one."""
    with path.open("rb") as stream:
        head = stream.read(_LENGTH_BYTES + 1)
    return head[_LENGTH_BYTES:] == b"{" and int.from_bytes(head[:_LENGTH_BYTES], "little") < path.stat().st_size


class Safetensors:
    """A file whose arrays are mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if length > _HEADER_BYTES:
                raise DatasetInvalidError(f"The header has {length} bytes; {_HEADER_BYTES} are the limit.")
            described = _parsed(stream.read(length))
        self._start = _LENGTH_BYTES + length
        metadata = described.pop("__metadata__", None)
        self._declared = metadata.get(declaration.MEMBER) if isinstance(metadata, dict) else None
        if not described:
            raise DatasetInvalidError("The file holds no arrays.")
        if len(described) > MOST_ARRAYS:
            raise DatasetInvalidError(f"The file holds {len(described)} arrays; {MOST_ARRAYS} are the limit.")
        self._places = {name: _place(name, entry) for name, entry in described.items()}
        self._check_places(path.stat().st_size - self._start)

    def preprocessing(self) -> Preprocessing | None:
        """Give what the file's metadata say of its data, under `dataset.json`."""
        if self._declared is None:
            return None
        # What JSON can say and UTF-8 cannot is refused there like any other nonsense.
        return declaration.parse(str(self._declared).encode(errors="surrogatepass"))

    def names(self) -> list[str]:
        """List the arrays."""
        return list(self._places)

    def check(self) -> dict[str, Header]:
        """Read everything once and say what it is."""
        found = {}
        for name, (shape, dtype, _, _) in self._places.items():
            values = ValueRange(name, shape[0] if shape else 1, prod(shape[1:]))
            for some in flat_chunks(self._mapped(name)):
                values.add(some)
            found[name] = Header(shape, dtype, values)
        return found

    def array(self, name: str, scratch: Path) -> Array:
        """Give an array."""
        del scratch
        return self._mapped(name)

    def _mapped(self, name: str) -> Array:
        shape, dtype, begin, end = self._places[name]
        if begin == end:
            return np.zeros(shape, dtype)
        return np.memmap(self._path, dtype, "r", self._start + begin, shape)

    def _check_places(self, size: int) -> None:
        """Refuse arrays that overlap, leave gaps, or do not end with the file."""
        at = 0
        for begin, end in sorted((begin, end) for _, _, begin, end in self._places.values()):
            if begin != at:
                raise DatasetInvalidError("The file's arrays overlap or leave gaps.")
            at = end
        if at != size:
            raise DatasetInvalidError("The file is truncated or has bytes behind its arrays.")


def _parsed(header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise DatasetInvalidError("The header names an array twice.")
        return dict(pairs)

    try:
        found = json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DatasetInvalidError("The header of the .safetensors file cannot be read.") from error
    if not isinstance(found, dict):
        raise DatasetInvalidError("The header of the .safetensors file cannot be read.")
    return found


def _place(name: str, entry: Any) -> tuple[tuple[int, ...], np.dtype[Any], int, int]:
    wrong = DatasetInvalidError("The header of the .safetensors file does not describe its arrays.")
    if not isinstance(entry, Mapping) or not 0 < len(name) <= _NAME_LETTERS or not name.isprintable():
        raise wrong
    shape, places, kind = (entry.get(key, ()) for key in ("shape", "data_offsets", "dtype"))
    if not isinstance(shape, list) or not isinstance(places, list) or len(places) != 2 or not isinstance(kind, str):
        raise wrong
    if not all(type(number) is int and number >= 0 for number in (*shape, *places)):
        raise wrong
    if kind not in _TYPES:
        raise DatasetInvalidError(f"Array `{name}` has a type that is not taken: {', '.join(_TYPES)} are.")
    dtype = np.dtype(_TYPES[kind])
    check_shape(name, tuple(shape), dtype)
    begin, end = places
    if end - begin != nbytes(tuple(shape), dtype):
        raise DatasetInvalidError(f"Array `{name}` does not have the bytes that its shape needs.")
    return tuple(shape), dtype, begin, end
