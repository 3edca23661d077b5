"""A network with external data in a zip: unpacked into a folder, or refused. Runs in the sandbox."""

import re
import zipfile
from pathlib import Path, PurePosixPath

from engine.data.containers.zips import check_members, opened
from engine.errors import ModelInvalidError
from engine.graph.foreign_formats import recognise
from engine.graph.validate import inspect_model
from engine.inspection import Inspection

# Exporters write a file for each tensor at worst.
MOST_FILES = 2048
MODEL_FILE = "model.onnx"
# Plain names: no folder of a tensor's own, nothing that a shell or a header has to quote. The worker takes the same.
_NAME = re.compile(r"\w[\w.:+=@,~-]{0,200}")
_ZIP = b"PK\x03\x04"
_CHUNK = 1 << 20


def inspect_archive(archive: Path, folder: Path, *, limit: int) -> Inspection:
    """Unpack a zip of a network and its external data into an empty folder, as `model.onnx` and the others' own names.

    At most `limit` bytes; raises as `inspect_model` does, also for what does not belong to the network.
    """
    return inspect_model(unpack(archive, folder, limit=limit), alone=True, mend=True)


def unpack(archive: Path, folder: Path, *, limit: int) -> Path:
    """Unpack one `.onnx` and the files beside it, at most `limit` bytes, and give the network's path.

    Raises ModelInvalidError for whatever is not exactly that; nothing is sanitised.
    """
    foreign = recognise(archive)
    if foreign is not None:
        raise ModelInvalidError(foreign.sentence, hint=foreign.way_out)
    with opened(archive, ModelInvalidError) as opened_archive:
        entries = [entry for entry in opened_archive.infolist() if not _is_folder(entry)]
        check_members(
            opened_archive.infolist(),
            archive.stat().st_size,
            most_members=MOST_FILES,
            most_bytes=limit,
            error=ModelInvalidError,
        )
        left = limit
        for entry, name in _named(entries).items():
            left -= _write(opened_archive, entry, folder / name, left)
    return folder / MODEL_FILE


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    return entry.is_dir() and entry.file_size == 0


def _named(entries: list[zipfile.ZipInfo]) -> dict[zipfile.ZipInfo, str]:
    """Give each member its name beside the network, which itself is called `model.onnx`."""
    networks = [entry for entry in entries if entry.filename.lower().endswith(".onnx")]
    if len(networks) != 1:
        raise ModelInvalidError(
            f"The archive holds {len(networks)} .onnx files; it has to be one, with its external data beside it."
        )
    home = PurePosixPath(networks[0].filename).parent
    names = {}
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if path.parent != home or not _NAME.fullmatch(path.name):
            raise ModelInvalidError(
                "The archive holds a file that does not lie beside the network, or has an unusual name.",
                hint="External data lie in the same folder as the .onnx file.",
            )
        names[entry] = MODEL_FILE if entry is networks[0] else path.name
    if len(set(names.values())) != len(names):
        raise ModelInvalidError(f"The archive's external data are called {MODEL_FILE}.")
    return names


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, limit: int) -> int:
    """Unpack a member, counting for ourselves."""
    written = 0
    with archive.open(entry) as member, path.open("xb") as file:
        while chunk := member.read(_CHUNK):
            if not written and chunk.startswith(_ZIP):
                raise ModelInvalidError("The archive holds another archive.")
            written += len(chunk)
            if written > min(limit, entry.file_size):
                raise ModelInvalidError("The archive holds more than it declares.")
            file.write(chunk)
    return written
