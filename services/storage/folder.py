"""Blobs in a local folder: written beside, synced, renamed under their digest."""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from services.errors import CorruptError, NotFoundError, TooLargeError
from services.storage.contract import (
    HEAD,
    Found,
    FoundUpload,
    Stored,
    Writer,
    blob_path,
    clean_folder,
    no_beat,
    store_stream,
    upload_path,
)

_CHUNK = 1 << 20
# Clone the extents of a whole file (btrfs, xfs): neither file can change the other.
_FICLONE = 0x40049409


class Folder:
    """A blob store in a local folder.

    Bytes come in through a `Writer` under `incoming/`, and are renamed under their digest when they are complete and on disk.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)

    def writer(self, tenant_id: str, *, limit: int, size: int | None = None, sha256: str | None = None) -> Writer:
        """Open an upload of at most `limit` bytes; `size` and `sha256` are what the sender announced.

        Raises TooLargeError at once where the announced size is over the limit.
        """
        if size is not None and size > limit:
            raise TooLargeError(f"{size} bytes are over the limit of {limit}.")
        path = self._incoming / secrets.token_hex(16)
        return _FolderWriter(self, path, tenant_id, limit=limit, size=size, sha256=sha256)

    def put(self, tenant_id: str, chunks: Iterable[bytes], *, limit: int) -> Stored:
        """Store a whole stream."""
        return store_stream(self.writer(tenant_id, limit=limit), chunks)

    def open(self, tenant_id: str, sha256: str) -> BinaryIO:
        """Open a blob; raises NotFoundError."""
        try:
            descriptor = os.open(self.path(tenant_id, sha256), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError("The stored bytes are missing.") from None
        return os.fdopen(descriptor, "rb")

    def read(self, tenant_id: str, sha256: str) -> Iterator[bytes]:
        """Give the blob's bytes, hashing them on the way: the last chunk comes only if all have the digest.

        Raises CorruptError before the last chunk otherwise, so that no reader ever has a complete, wrong file.
        """
        with self.open(tenant_id, sha256) as file:
            found = hashlib.sha256()
            held = file.read(_CHUNK)
            found.update(held)
            while chunk := file.read(_CHUNK):
                yield held
                found.update(chunk)
                held = chunk
            if found.hexdigest() != sha256:
                raise CorruptError("The stored bytes are damaged.")
            yield held

    def head(self, tenant_id: str, sha256: str) -> bytes:
        """Give the blob's first bytes."""
        with self.open(tenant_id, sha256) as file:
            return file.read(HEAD)

    def read_part(self, tenant_id: str, sha256: str, first: int, length: int) -> Iterator[bytes]:
        """Give some of the blob's bytes, after all of them were hashed; raises CorruptError before the first otherwise."""
        with self.open(tenant_id, sha256) as file:
            found = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                found.update(chunk)
            if found.hexdigest() != sha256:
                raise CorruptError("The stored bytes are damaged.")
            # Of the same open file: nothing can come in between.
            file.seek(first)
            left = length
            while left and (chunk := file.read(min(_CHUNK, left))):
                yield chunk
                left -= len(chunk)

    def exists(self, tenant_id: str, sha256: str) -> bool:
        """Tell whether the bytes are in place."""
        return self.path(tenant_id, sha256).is_file()

    def blobs(self) -> Iterator[Found]:
        """List everything that is in place, named by a row or not."""
        for path in (self._root / "blobs").glob("*/??/*"):
            with suppress(FileNotFoundError):
                yield Found(path.parent.parent.name, path.name, path.lstat().st_mtime)

    def path(self, tenant_id: str, sha256: str) -> Path:
        """Give the blob's place."""
        return self._root / "blobs" / blob_path(tenant_id, sha256)

    def remove(self, tenant_id: str, sha256: str) -> None:
        """Forget a blob; call it only while nobody can register the same one (see `artifacts`)."""
        path = self.path(tenant_id, sha256)
        path.unlink(missing_ok=True)
        if path.parent.exists():
            _sync_folder(path.parent)

    def materialise(self, tenant_id: str, sha256: str, target: Path, *, beat: Callable[[], None] = no_beat) -> None:
        """Put a verified copy of the blob at a new path: by reflink or copy, never by link, so that no job can change it.

        `beat` is called now and then, for whoever has a lease to renew. Raises CorruptError where the bytes do not have
        their digest.
        """
        with self.open(tenant_id, sha256) as source, target.open("xb+") as copy:
            found = _copy(source, copy, beat)
        if found != sha256:
            target.unlink()
            raise CorruptError("The stored bytes are damaged.")

    def part_writer(self, tenant_id: str, upload_id: str, name: str, *, limit: int) -> Writer:
        """Open a piece of a resumable upload; see `Store`."""
        target = self._upload(tenant_id, upload_id) / name
        return _PartWriter(target, self._incoming / secrets.token_hex(16), tenant_id, limit=limit)

    def read_upload_part(self, tenant_id: str, upload_id: str, name: str) -> Iterator[bytes]:
        """Give a piece's bytes; raises NotFoundError."""
        try:
            file = (self._upload(tenant_id, upload_id) / name).open("rb")
        except FileNotFoundError:
            raise NotFoundError("The stored bytes are missing.") from None
        with file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def remove_upload_parts(self, tenant_id: str, upload_id: str, name: str | None = None) -> None:
        """Forget all pieces of an upload, or one of them; see `Store`."""
        folder = self._upload(tenant_id, upload_id)
        if name is not None:
            (folder / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def uploads(self) -> Iterator[FoundUpload]:
        """List the uploads that have pieces, named by a row or not."""
        for path in (self._root / "uploads").glob("*/upl_*"):
            with suppress(FileNotFoundError):
                yield FoundUpload(path.parent.name, path.name, path.lstat().st_mtime)

    def _upload(self, tenant_id: str, upload_id: str) -> Path:
        return self._root / "uploads" / upload_path(tenant_id, upload_id)

    def clean_incoming(self, *, older_than_s: float = 86400.0) -> int:
        """Remove what uploads that died left behind; gives the number of files."""
        return clean_folder(self._incoming, older_than_s)


class _FolderWriter(Writer):
    def __init__(
        self, folder: Folder, path: Path, tenant_id: str, *, limit: int, size: int | None, sha256: str | None
    ) -> None:
        super().__init__(path, tenant_id, limit=limit, size=size, sha256=sha256)
        self._folder = folder

    def _close(self) -> None:
        os.fsync(self._file.fileno())
        super()._close()

    def _place(self, stored: Stored) -> None:
        _move(self._path, self._folder.path(self.tenant_id, stored.sha256))


class _PartWriter(Writer):
    def __init__(self, target: Path, path: Path, tenant_id: str, *, limit: int) -> None:
        super().__init__(path, tenant_id, limit=limit, size=None, sha256=None)
        self._target = target

    def _close(self) -> None:
        os.fsync(self._file.fileno())
        super()._close()

    def _place(self, stored: Stored) -> None:
        del stored
        _move(self._path, self._target)


def _move(path: Path, target: Path) -> None:
    """Have a file on disk under another name of the same store."""
    if not target.parent.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync_folder(target.parent.parent)
        _sync_folder(target.parent.parent.parent)
    path.rename(target)
    _sync_folder(target.parent)


def _copy(source: BinaryIO, copy: BinaryIO, beat: Callable[[], None]) -> str:
    found = hashlib.sha256()
    try:
        fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
    except OSError:
        while chunk := source.read(_CHUNK):
            found.update(chunk)
            copy.write(chunk)
            beat()
        return found.hexdigest()
    # The clone is what the job will read, so it is what is hashed.
    while chunk := copy.read(_CHUNK):
        found.update(chunk)
        beat()
    return found.hexdigest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
