"""A network as it lies on disk: what the file is, and the external data that have to go with it."""

import hashlib
import mmap
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnxpress.deadline import NEVER, Deadline
from onnxpress.errors import UsageError
from onnxpress.file_transfer import CHUNK, Digested, Progress, digest
from onnxpress.foreign_formats import ForeignFormat, recognise

# What the service takes as a name beside the network.
_NAME = re.compile(r"\w[\w.:+=@,~-]{0,200}")
# The oldest time that a zip can hold: the same files give the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


def digest_network(path: str | os.PathLike[str]) -> Digested:
    """Hash a network, an `.onnx` or a zip of one; with external data beside it, as a zip of both that is made while it is sent.

    Symbolic links are followed where they stay with the network: into its own folder, or the folder that the link of the network
    itself leads to, as in the cache of a Hugging Face hub. Raises UsageError for what is no network, or whose data are missing.
    """
    path = Path(path)
    if path.is_dir() or path.is_file():
        _refuse_foreign(path)
    hashed = digest(path)
    names = sorted(_external_locations(path))
    if not names:
        return hashed
    files = {"model.onnx": path} | {name: _followed(path, name) for name in names}
    return Bundle.of(path, files)


def _refuse_foreign(path: Path) -> None:
    foreign: ForeignFormat | None = recognise(path)
    if foreign is not None:
        what = foreign.sentence.replace("The file is", f"{path} is", 1)
        raise UsageError(f"{what} {foreign.way_out}")
    if path.is_dir():
        networks = sorted(file.name for file in path.glob("*.onnx"))
        raise UsageError(
            f"{path} is a folder; name the network in it{': ' if networks else ''}{', '.join(networks[:5])}"
        )


@dataclass(frozen=True)
class Bundle(Digested):
    """A network and its external data as one zip, which is never on disk: it is made anew each time it is read."""

    files: tuple[tuple[str, Path, int], ...]

    @classmethod
    def of(cls, path: Path, files: dict[str, Path]) -> "Bundle":
        """Hash the zip of some files by their names in it."""
        members = tuple((name, file, file.stat().st_size) for name, file in files.items())
        sha256, size = hashlib.sha256(), 0
        for piece in _zipped(members):
            sha256.update(piece)
            size += len(piece)
        return cls(path, sha256.hexdigest(), size, members)

    def stream(
        self,
        progress: Progress | None = None,
        deadline: Deadline = NEVER,
        *,
        first: int = 0,
        length: int | None = None,
    ) -> Iterator[bytes]:
        """Give the zip, or a part of it, in pieces; raises UsageError when one of the files changed its size."""
        at, end = 0, self.size if length is None else first + length
        for made in _zipped(self.files):
            deadline.left(1)
            # It is written anew from its start, and what was sent is left out.
            piece = made[max(0, first - at) : max(0, end - at)]
            at += len(made)
            if piece:
                yield piece
            if progress:
                progress(min(at, end), self.size)
            if at >= end:
                return


class _Pieces:
    """A file that a zip is written to, and that is emptied after each write."""

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def write(self, data: bytes | memoryview) -> int:
        """Keep bytes until they are taken."""
        self._held.append(bytes(data))
        return len(self._held[-1])

    def flush(self) -> None:
        """Do nothing: whoever takes the bytes does it."""

    def taken(self) -> bytes:
        """Give what was written since."""
        found = b"".join(self._held)
        self._held.clear()
        return found


def _zipped(members: tuple[tuple[str, Path, int], ...]) -> Iterator[bytes]:
    pieces = _Pieces()
    # It cannot be sought in, so sizes and checksums follow each member's bytes.
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]  # all it needs are these two methods
        for name, path, size in members:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.file_size = size
            read = 0
            with path.open("rb") as file, archive.open(entry, "w") as member:
                while piece := file.read(CHUNK):
                    member.write(piece)
                    read += len(piece)
                    yield pieces.taken()
            if read != size:
                raise UsageError(f"{path} changed while it was sent")
    yield pieces.taken()


def _followed(model: Path, name: str) -> Path:
    location = PurePosixPath(name)
    if location.is_absolute() or ".." in location.parts or not location.name:
        raise UsageError(f"{model} names external data outside its folder: {name}")
    file = model.parent / location
    if not file.is_file():
        broken = " (a symbolic link that leads nowhere)" if file.is_symlink() else ""
        raise UsageError(f"{model} has data in {name}, which is not beside it{broken}")
    if len(location.parts) > 1 or not _NAME.fullmatch(name) or name == "model.onnx":
        raise UsageError(
            f"{model} has data in {name!r}; the service takes files beside the network with plain names only:"
            " store it again with onnx.save(..., save_as_external_data=True, location='model.onnx.data')"
        )
    found = file.resolve()
    if not any(found.is_relative_to(home) for home in (model.parent.resolve(), model.resolve().parent)):
        raise UsageError(
            f"{file} is a symbolic link that leads away from the network, to {found}; copy both: cp -L {model} {file} FOLDER"
        )
    return found


# The fields of onnx.proto that lead to tensors, by message: field -> the message in it.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 64


def _external_locations(path: Path) -> set[str]:
    """List the files of external data that a network names; empty where it is not readable, which the service says better."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:1] != b"\x08":
            return set()
        try:
            return set(_locations(data, 0, len(data), "model", 0))
        except (IndexError, ValueError):
            return set()


def _locations(data: mmap.mmap, start: int, stop: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    fields = _FIELDS[message]
    for field, begin, end in _submessages(data, start, stop):
        inner = fields.get(field)
        if inner == "entry":
            pair = {key: data[one:other].decode(errors="replace") for key, one, other in _submessages(data, begin, end)}
            if pair.get(1) == "location":
                yield pair.get(2, "")
        elif inner is not None:
            yield from _locations(data, begin, end, inner, depth + 1)


def _submessages(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the fields that have a length; the others are passed over (protobuf's wire format)."""
    while start < stop:
        tag, start = _varint(data, start)
        wire = tag & 7
        if wire == 0:
            _, start = _varint(data, start)
        elif wire in {1, 5}:
            start += 8 if wire == 1 else 4
        elif wire == 2:
            length, start = _varint(data, start)
            if start + length > stop:
                raise ValueError("a field ends behind its message")
            yield tag >> 3, start, start + length
            start += length
        else:
            raise ValueError("not protobuf")


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise ValueError("not protobuf")
