"""Files that hold named arrays: `.npz`, `.safetensors`, and a zip of one `.npz` per sample where sizes vary.

All of them are untrusted: what is not exactly what numpy or safetensors write is refused.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.data.containers.array import Container, Header, Varying
from engine.data.containers.npz import Npz
from engine.data.containers.safetensors import Safetensors, is_safetensors
from engine.data.containers.samples import SampleZip
from engine.data.containers.zips import opened
from engine.errors import DatasetInvalidError

__all__ = ["FILES", "Container", "Header", "Varying", "find", "open_container"]

# The names that a stored dataset may have.
FILES = ("data.npz", "data.safetensors")


def find(folder: Path) -> Path | None:
    """Give the dataset in a folder, if there is one."""
    return next((folder / name for name in FILES if (folder / name).exists()), None)


@contextmanager
def open_container(path: Path) -> Iterator[Container]:
    """Open a file by what it holds, whatever its name; raises DatasetInvalidError."""
    if is_safetensors(path):
        yield Safetensors(path)
        return
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            alone = stream.read(6) == b"\x93NUMPY"
        raise DatasetInvalidError(
            "The file is one array (.npy), which does not say for which input."
            if alone
            else "The file is not an .npz archive, nor .safetensors.",
            hint="Write it with numpy.savez(FILE, INPUT=array); `onnxpress dataset` makes it of .npy, tables, images, recordings and texts.",
        )
    with opened(path) as archive:
        if any(entry.filename.endswith(".npz") for entry in archive.infolist()):
            yield SampleZip(archive, path)
        else:
            yield Npz(archive, path)
