"""Where a backup lies: in a folder that a later backup brings up to date, or in one tar file."""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from services.backup.manifest import FILE, BlobName, Damage, Manifest
from services.errors import BackupError, CorruptError, NotFoundError
from services.storage import Folder, Store

_CHUNK = 1 << 20
# In every folder that a backup was begun in: a folder without it is somebody else's, such as a live store.
_MARK = "onnxpress-backup"


class Place(Protocol):
    """Somewhere to write a backup to, and to read one from."""

    def add_blobs(self, store: Store, blobs: Sequence[BlobName]) -> list[Damage]:
        """Copy blobs out of a store, each with its digest checked; gives those that it does not have whole."""
        ...

    def add_database(self, name: str, path: Path) -> None:
        """Take the copy of the database."""
        ...

    def complete(self, manifest: Manifest) -> None:
        """Write the manifest: from now on this is a backup."""
        ...

    def manifest(self) -> Manifest:
        """Read the manifest; raises BackupError."""
        ...

    def database(self, name: str, target: Path) -> str:
        """Copy the database's copy to a path, and give the digest of what was copied; raises BackupError."""
        ...

    def read(self, blob: BlobName) -> Iterator[bytes]:
        """Give a blob's bytes; raises BackupError where they are not all there."""
        ...


def open_place(path: Path) -> Place:
    """Give the backup at a path: a tar file where its name says so, else a folder."""
    return TarFile(path) if path.suffix == ".tar" else FolderOfBlobs(path)


class FolderOfBlobs:
    """A folder. A second backup into it copies only what is new, and the first one stays whole until it is replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add_blobs(self, store: Store, blobs: Sequence[BlobName]) -> list[Damage]:
        """Copy what is not here yet; what is here is read again, and copied again where it is damaged."""
        self._claim()
        here = Folder(self._path)
        return [damage for blob in blobs if (damage := _copied(store, here, blob)) is not None]

    def add_database(self, name: str, path: Path) -> None:
        """Take the copy of the database beside an earlier one."""
        self._claim()
        with path.open("rb") as source, _new(self._path / name) as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
            _sync(copy)

    def complete(self, manifest: Manifest) -> None:
        """Write the manifest, and remove what only the backup before needed."""
        temporary = self._path / f".{FILE}"
        with _new(temporary) as file:
            file.write(manifest.to_json().encode())
            _sync(file)
        temporary.replace(self._path / FILE)
        _sync_folder(self._path)
        for path in self._path.glob("database-*"):
            if path.name != manifest.database:
                path.unlink()
        here, named = Folder(self._path), {(blob.tenant_id, blob.sha256) for blob in manifest.blobs}
        here.clean_incoming(older_than_s=0.0)
        for found in list(here.blobs()):
            if (found.tenant_id, found.sha256) not in named:
                here.remove(found.tenant_id, found.sha256)

    def manifest(self) -> Manifest:
        """Read the manifest."""
        try:
            return Manifest.from_json((self._path / FILE).read_bytes())
        except OSError as error:
            raise _no_backup(self._path, error) from error

    def database(self, name: str, target: Path) -> str:
        """Copy the database's copy."""
        try:
            with (self._path / Path(name).name).open("rb") as source:
                return _copy(source, target)
        except OSError as error:
            raise _no_backup(self._path, error) from error

    def read(self, blob: BlobName) -> Iterator[bytes]:
        """Give a blob's bytes."""
        try:
            yield from Folder(self._path).read(blob.tenant_id, blob.sha256)
        except (NotFoundError, CorruptError) as error:
            raise _bad_blob(blob, error.message) from error

    def _claim(self) -> None:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark = self._path / _MARK
        if not mark.is_file() and any(self._path.iterdir()):
            raise BackupError(f"{self._path} has files of something else; name a new folder, or one with a backup.")
        mark.touch(mode=0o600)


class TarFile:
    """One tar file, written in one go under another name and renamed when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.partial")
        self._members: dict[str, tarfile.TarInfo] | None = None

    def add_blobs(self, store: Store, blobs: Sequence[BlobName]) -> list[Damage]:
        """Append blobs; where bytes turn out to be damaged, what was written stands for nothing: the manifest says so."""
        damaged = []
        with self._appending() as tar:
            for blob in blobs:
                content = _Content(store.read(blob.tenant_id, blob.sha256), blob.size)
                if content.begin():
                    tar.addfile(_member(_blob_path(blob), blob.size), content)
                    content.end()
                if content.problem is not None:
                    damaged.append(Damage(blob.tenant_id, blob.sha256, content.problem))
        return damaged

    def add_database(self, name: str, path: Path) -> None:
        """Append the copy of the database: the first that comes."""
        if self._path.exists():
            raise BackupError(f"{self._path} exists; name a new file.")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.unlink(missing_ok=True)
        with self._appending() as tar, path.open("rb") as source:
            tar.addfile(_member(name, path.stat().st_size), source)

    def complete(self, manifest: Manifest) -> None:
        """Append the manifest, and give the file its name."""
        content = manifest.to_json().encode()
        with self._appending() as tar:
            tar.addfile(_member(FILE, len(content)), io.BytesIO(content))
        with self._temporary.open("rb+") as file:
            _sync(file)
        self._temporary.replace(self._path)
        _sync_folder(self._path.parent)

    def manifest(self) -> Manifest:
        """Read the manifest."""
        return Manifest.from_json(b"".join(self._read(FILE)))

    def database(self, name: str, target: Path) -> str:
        """Copy the database's copy."""
        found = hashlib.sha256()
        with target.open("xb") as copy:
            for chunk in self._read(name):
                found.update(chunk)
                copy.write(chunk)
            _sync(copy)
        return found.hexdigest()

    def read(self, blob: BlobName) -> Iterator[bytes]:
        """Give a blob's bytes."""
        yield from self._read(_blob_path(blob))

    @contextmanager
    def _appending(self) -> Iterator[tarfile.TarFile]:
        is_new = not self._temporary.exists()
        # Names and sizes have no limits in the PAX format.
        options: dict[str, Any] = {"format": tarfile.PAX_FORMAT, "copybufsize": _CHUNK}
        with (
            _new(self._temporary) if is_new else self._temporary.open("rb+") as file,
            tarfile.open(fileobj=file, mode="w:" if is_new else "a:", **options) as tar,
        ):
            yield tar

    def _read(self, name: str) -> Iterator[bytes]:
        try:
            with tarfile.open(self._path, "r:") as tar:
                if self._members is None:
                    self._members = {member.name: member for member in tar.getmembers()}
                member = self._members.get(name)
                file = tar.extractfile(member) if member is not None and member.isreg() else None
                if file is None:
                    raise BackupError(f"{self._path} has no {name}.")
                while chunk := file.read(_CHUNK):
                    yield chunk
        except (OSError, tarfile.TarError) as error:
            raise _no_backup(self._path, error) from error


class _Content(io.RawIOBase):
    """What a store gives of a blob, as a file of exactly its size."""

    def __init__(self, chunks: Iterator[bytes], size: int) -> None:
        self._chunks = chunks
        self._held = b""
        self._left = size
        self.problem: str | None = None

    def begin(self) -> bool:
        """Tell whether there is anything."""
        self._held = self._next()
        return self.problem is None

    def read(self, size: int = -1, /) -> bytes:
        """Give the next bytes; zeros where the store stopped, for a tar's member must have its size."""
        wanted = self._left if size < 0 else min(size, self._left)
        while len(self._held) < wanted and (chunk := self._next()):
            self._held += chunk
        given, self._held = self._held[:wanted], self._held[wanted:]
        self._left -= wanted
        return given.ljust(wanted, b"\0")

    def end(self) -> None:
        """Ask for more than there should be: the store compares the digest when it comes to the end."""
        while self._next():
            pass

    def _next(self) -> bytes:
        try:
            return next(self._chunks, b"")
        except (CorruptError, NotFoundError) as error:
            self.problem = error.message
            self._chunks = iter(())
            return b""


def _copied(store: Store, here: Folder, blob: BlobName) -> Damage | None:
    with suppress(NotFoundError, CorruptError):
        for _ in here.read(blob.tenant_id, blob.sha256):
            pass
        return None
    try:
        with here.writer(blob.tenant_id, limit=blob.size, size=blob.size, sha256=blob.sha256) as writer:
            for chunk in store.read(blob.tenant_id, blob.sha256):
                writer.write(chunk)
            writer.finish()
            writer.place()
    except (NotFoundError, CorruptError) as error:
        return Damage(blob.tenant_id, blob.sha256, error.message)
    return None


def _blob_path(blob: BlobName) -> str:
    return f"blobs/{blob.tenant_id}/{blob.sha256[:2]}/{blob.sha256}"


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _copy(source: BinaryIO, target: Path) -> str:
    found = hashlib.sha256()
    with target.open("xb") as copy:
        while chunk := source.read(_CHUNK):
            found.update(chunk)
            copy.write(chunk)
        _sync(copy)
    return found.hexdigest()


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_backup(path: Path, error: Exception) -> BackupError:
    return BackupError(f"{path} is no complete backup: {error}.")


def _bad_blob(blob: BlobName, reason: str) -> BackupError:
    return BackupError(f"The backup's blob {blob.sha256} of the tenant {blob.tenant_id}: {reason}")
