"""What every store of blobs promises, and what both kinds are built on: blobs by digest and tenant, complete or not visible."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from services.errors import DigestMismatchError, NotFoundError, TooLargeError, UnavailableError

HEAD = 9
_DIGEST_LETTERS = frozenset("0123456789abcdef")


def no_beat() -> None:
    """Do nothing: for whoever has no lease to renew."""


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


@dataclass(frozen=True)
class FoundUpload:
    """Pieces of a resumable upload as the store itself lists them, and when the last of them came (seconds of the epoch)."""

    tenant_id: str
    upload_id: str
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

    def blobs(self) -> Iterator[Found]:
        """List everything that is in place, named by a row or not."""
        ...

    def remove(self, tenant_id: str, sha256: str) -> None:
        """Forget a blob; call it only while nobody can register the same one (see `artifacts`)."""
        ...

    def materialise(self, tenant_id: str, sha256: str, target: Path, *, beat: Callable[[], None] = no_beat) -> None:
        """Put a verified copy of the blob at a new path that no job can change the blob through.

        `beat` is called now and then, for whoever has a lease to renew. Raises CorruptError where the bytes do not have
        their digest.
        """
        ...

    def part_writer(self, tenant_id: str, upload_id: str, name: str, *, limit: int) -> "Writer":
        """Open a piece of a resumable upload, which every process can read once it is placed."""
        ...

    def read_upload_part(self, tenant_id: str, upload_id: str, name: str) -> Iterator[bytes]:
        """Give a piece's bytes; raises NotFoundError."""
        ...

    def remove_upload_parts(self, tenant_id: str, upload_id: str, name: str | None = None) -> None:
        """Forget all pieces of an upload, or one of them; harmless where there are none."""
        ...

    def uploads(self) -> Iterator[FoundUpload]:
        """List the uploads that have pieces, named by a row or not."""
        ...

    def clean_incoming(self, *, older_than_s: float = 86400.0) -> int:
        """Remove what uploads that died left behind; gives the number of files."""
        ...


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
        with _stored_now():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

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
            with _stored_now():
                left = memoryview(chunk)
                while left:
                    left = left[self._file.write(left) or 0 :]
        except UnavailableError:
            self.abort()
            raise

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
            with _stored_now():
                self._close()
        except UnavailableError:
            self.abort()
            raise
        self._stored = Stored(found, self.size)
        return self._stored

    def place(self) -> None:
        """Make the finished bytes visible under their digest; `artifacts` calls it where nobody can remove the same blob.

        A transaction that is tried again may place again. Raises UnavailableError where the disk is full.
        """
        if self._placed:
            return
        if self._stored is None:
            raise ValueError("only a finished upload can be placed")
        with _stored_now():
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


@contextmanager
def _stored_now() -> Iterator[None]:
    """Say of whatever the disk does not let happen that it may be tried again."""
    try:
        yield
    except OSError as error:
        raise UnavailableError("The upload cannot be stored now.") from error


def blob_path(tenant_id: str, sha256: str) -> Path:
    """Give a blob's place below the root of its store; raises NotFoundError for what is no digest."""
    if len(sha256) != 64 or not set(sha256) <= _DIGEST_LETTERS or "/" in tenant_id or tenant_id.startswith("."):
        raise NotFoundError("There is no such blob.")
    return Path(tenant_id, sha256[:2], sha256)


def upload_path(tenant_id: str, upload_id: str) -> Path:
    """Give the place of an upload's pieces below the root of its store; raises NotFoundError for what is no id."""
    if not re.fullmatch("upl_[0-9a-z]{26}", upload_id) or "/" in tenant_id or tenant_id.startswith("."):
        raise NotFoundError("There is no such upload.")
    return Path(tenant_id, upload_id)


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
