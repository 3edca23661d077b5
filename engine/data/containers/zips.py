"""Zip archives of strangers, opened only if they are what they seem."""

import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO

from engine.errors import DatasetInvalidError, EngineError

# Small archives may be packed as tightly as they like: masks of ones are.
UNPACKED_FREE_BYTES = 256 << 20
MOST_RATIO = 100


@contextmanager
def opened(source: Path | IO[bytes], error: type[EngineError] = DatasetInvalidError) -> Iterator[zipfile.ZipFile]:
    """Open an archive; what is damaged in it is told as an `error`."""
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as cause:
        raise error("The archive is damaged or truncated.") from cause
    with archive:
        try:
            yield archive
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, OSError) as cause:
            raise error("The archive is damaged or truncated.") from cause
        except zlib.error as cause:
            raise error("The archive's compressed data are damaged.") from cause


def check_members(
    entries: Sequence[zipfile.ZipInfo],
    packed: int,
    *,
    most_members: int,
    most_bytes: int,
    error: type[EngineError] = DatasetInvalidError,
) -> None:
    """Refuse, and do not repair, an archive that could be meant to harm.

    `packed` is the archive's own size. Sizes are those that the archive declares: count again while reading.
    """
    if len(entries) > most_members:
        raise error(f"The archive holds {len(entries)} members; {most_members} are the limit.")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise error("The archive names a member twice.")
    for entry in entries:
        _check_entry(entry, error)
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > most_bytes:
        raise error(f"The archive unpacks to {unpacked} bytes; {most_bytes} are the limit.")
    if unpacked > max(UNPACKED_FREE_BYTES, MOST_RATIO * packed):
        raise error("The archive unpacks to more than 100 times its size.")
    spans = sorted((entry.header_offset, entry.header_offset + entry.compress_size) for entry in entries)
    if any(start < end for (_, end), (start, _) in pairwise(spans)):
        raise error("Members of the archive overlap.")


def _check_entry(entry: zipfile.ZipInfo, error: type[EngineError]) -> None:
    # As it stands in the archive: zipfile itself cuts a name at a NUL.
    name = entry.orig_filename
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name:
        raise error("The archive holds a member with a name that leaves the archive.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise error("The archive holds a symbolic link.")
    if entry.flag_bits & 1:
        raise error("The archive is encrypted.")
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise error("The archive is compressed by a method that is not taken; use deflate or none.")
