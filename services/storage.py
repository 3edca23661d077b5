"""Where bytes are kept: blobs by digest and tenant, complete or not visible at all."""

import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from services.errors import CorruptError, DigestMismatchError, NotFoundError, TooLargeError, UnavailableError
from settings import Settings

HEAD = 9
_CHUNK = 1 << 20
_DIGEST_LETTERS = frozenset("0123456789abcdef")
# Clone the extents of a whole file (btrfs, xfs): neither file can change the other.
_FICLONE = 0x40049409


def _no_beat() -> None:
    return None


@dataclass(frozen=True)
class Stored:
    """A complete byte string."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Found:
    """A byte string as the store itself lists it, and since when it is there (seconds of the epoch)."""

    tenant_id: str
    sha256: str
    modified_at: float


class Store(Protocol):
    """A blob store: what both kinds can do. Bytes are complete and under their digest, or not there at all."""

    def writer(self, tenant_id: str, *, limit: int, size: int | None = None, sha256: str | None = None) -> "Writer":
        """Open an upload of at most `limit` bytes; `size` and `sha256` are what the sender announced.

        Raises TooLargeError at once where the announced size is over the limit.
        """
        ...

    def put(self, tenant_id: str, chunks: Iterable[bytes], *, limit: int) -> Stored:
        """Store a whole stream."""
        ...

    def read(self, tenant_id: str, sha256: str) -> Iterator[bytes]:
        """Give the blob's bytes, hashing them on the way: the last chunk comes only if all have the digest.

        Raises NotFoundError, or CorruptError before the last chunk, so that no reader ever has a complete, wrong file.
        """
        ...

    def read_part(self, tenant_id: str, sha256: str, first: int, length: int) -> Iterator[bytes]:
        """Give some of the blob's bytes, none of them before it was verified; raises CorruptError."""
        ...

    def head(self, tenant_id: str, sha256: str) -> bytes:
        """Give the blob's first bytes."""
        ...

    def exists(self, tenant_id: str, sha256: str) -> bool:
        """Tell whether the bytes are in place."""
        ...

    def blobs(self) -> "Iterator[Found]":
        """List everything that is in place, named by a row or not."""
        ...

    def remove(self, tenant_id: str, sha256: str) -> None:
        """Forget a blob; call it only while nobody can register the same one (see `artifacts`)."""
        ...

    def materialise(self, tenant_id: str, sha256: str, target: Path, *, beat: Callable[[], None] = _no_beat) -> None:
        """Put a verified copy of the blob at a new path that no job can change the blob through.

        `beat` is called now and then, for whoever has a lease to renew. Raises CorruptError where the bytes do not have
        their digest.
        """
        ...

    def clean_incoming(self, *, older_than_s: float = 86400.0) -> int:
        """Remove what uploads that died left behind; gives the number of files."""
        ...


def open_store(settings: Settings, *, patience_s: float = 3.0) -> Store:
    """Give the store that the settings name.

    A bucket that does not answer is asked again for `patience_s`: less than a client waits, less than a lease lasts.
    """
    if not settings.store_url:
        return Folder(settings.data_dir / "store")
    # Its library is an extra.
    from services.bucket import Bucket  # noqa: PLC0415

    return Bucket.from_settings(settings, patience_s=patience_s)


class Folder:
    """A blob store in a local folder.

    Bytes come in through a `Writer` under `incoming/`, and are renamed under their digest when they are complete and on disk.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)

    def writer(self, tenant_id: str, *, limit: int, size: int | None = None, sha256: str | None = None) -> "Writer":
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

    def materialise(self, tenant_id: str, sha256: str, target: Path, *, beat: Callable[[], None] = _no_beat) -> None:
        """Put a verified copy of the blob at a new path: by reflink or copy, never by link, so that no job can change it.

        `beat` is called now and then, for whoever has a lease to renew. Raises CorruptError where the bytes do not have
        their digest.
        """
        with self.open(tenant_id, sha256) as source, target.open("xb+") as copy:
            found = _copy(source, copy, beat)
        if found != sha256:
            target.unlink()
            raise CorruptError("The stored bytes are damaged.")

    def clean_incoming(self, *, older_than_s: float = 86400.0) -> int:
        """Remove what uploads that died left behind; gives the number of files."""
        return clean_folder(self._incoming, older_than_s)


class Writer:
    """One upload: write chunks, finish, place. As a context manager it leaves nothing behind unless it was placed.

    The bytes come to a local file first, whatever the store: their digest, and so their name, is known at the end.
    """

    def __init__(self, path: Path, tenant_id: str, *, limit: int, size: int | None, sha256: str | None) -> None:
        self.tenant_id = tenant_id
        self.size = 0
        # The first bytes: they tell an archive from a network.
        self.head = b""
        self._path = path
        self._limit = limit
        self._expected_size = size
        self._expected = sha256.lower() if sha256 is not None else None
        self._hash = hashlib.sha256()
        self._stored: Stored | None = None
        self._placed = False
        self._file = os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb", buffering=0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.abort()

    def write(self, chunk: bytes) -> None:
        """Append; raises TooLargeError, or UnavailableError where the disk is full. The file is removed then."""
        self.count(chunk)
        self.append(chunk)

    def count(self, chunk: bytes) -> None:
        """Take note of bytes that `append` will write, here where they are still in the processor's cache."""
        if self.size < HEAD:
            self.head += bytes(chunk[: HEAD - self.size])
        self.size += len(chunk)
        if self.size > self._limit:
            self.abort()
            raise TooLargeError(f"The upload is over the limit of {self._limit} bytes.")
        self._hash.update(chunk)

    def append(self, chunk: bytes) -> None:
        """Write bytes that were counted."""
        try:
            left = memoryview(chunk)
            while left:
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            self.abort()
            raise UnavailableError("The upload cannot be stored now.") from error

    def finish(self) -> Stored:
        """Have all bytes on disk and compare them with what was announced; raises DigestMismatchError."""
        if self._stored is not None:
            return self._stored
        found = self._hash.hexdigest()
        if self._expected_size is not None and self.size != self._expected_size:
            self.abort()
            raise DigestMismatchError(f"{self._expected_size} bytes were announced, {self.size} came.")
        if self._expected is not None and found != self._expected:
            self.abort()
            raise DigestMismatchError("The bytes that came do not have the announced sha256.")
        try:
            self._close()
        except OSError as error:
            self.abort()
            raise UnavailableError("The upload cannot be stored now.") from error
        self._stored = Stored(found, self.size)
        return self._stored

    def place(self) -> None:
        """Make the finished bytes visible under their digest; `artifacts` calls it where nobody can remove the same blob.

        A transaction that is tried again may place again.
        """
        if self._placed:
            return
        if self._stored is None:
            raise ValueError("only a finished upload can be placed")
        self._place(self._stored)
        self._placed = True

    def abort(self) -> None:
        """Remove what came so far; harmless after `place`."""
        self._file.close()
        if not self._placed:
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        """End the local file."""
        self._file.close()

    def _place(self, stored: Stored) -> None:
        raise NotImplementedError


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
        target = self._folder.path(self.tenant_id, stored.sha256)
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(target.parent.parent)
            _sync_folder(target.parent.parent.parent)
        self._path.rename(target)
        _sync_folder(target.parent)


def blob_path(tenant_id: str, sha256: str) -> Path:
    """Give a blob's place below the root of its store; raises NotFoundError for what is no digest."""
    if len(sha256) != 64 or not set(sha256) <= _DIGEST_LETTERS or "/" in tenant_id or tenant_id.startswith("."):
        raise NotFoundError("There is no such blob.")
    return Path(tenant_id, sha256[:2], sha256)


def store_stream(writer: Writer, chunks: Iterable[bytes]) -> Stored:
    """Store a whole stream through a writer."""
    with writer:
        for chunk in chunks:
            writer.write(chunk)
        stored = writer.finish()
        writer.place()
    return stored


def clean_folder(folder: Path, older_than_s: float) -> int:
    """Remove old files of a folder, for any number of processes at once; gives their number."""
    removed = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime < time.time() - older_than_s:
                path.unlink()
                removed += 1
    return removed


def open_output(folder_fd: int, name: str, *, limit: int) -> int:
    """Open a file that an untrusted process left, by its plain name in an open folder; gives the descriptor.

    Raises ValueError unless it is a regular file with one name and within the limit: no link, no pipe, no device.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder_fd)
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1 or seen.st_size > limit:
        os.close(descriptor)
        raise ValueError("an output must be a regular file within its size limit")
    return descriptor


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
