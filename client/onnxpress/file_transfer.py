"""Bytes on their way out and in: hashed before they are sent, checked before they get their name."""

import base64
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from onnxpress.deadline import NEVER, Deadline
from onnxpress.errors import DigestMismatchError, UsageError
from onnxpress.transport import ApiRequest, Backoff, Transport, unreachable

CHUNK = 1 << 18
# (bytes so far, bytes in all), called as they pass; in all is None where the service does not tell.
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Digested:
    """A local file and what it held when it was hashed."""

    path: Path
    sha256: str
    size: int

    @property
    def repr_digest(self) -> str:
        """Give the header that makes the service refuse other bytes (RFC 9530)."""
        return f"sha-256=:{base64.b64encode(bytes.fromhex(self.sha256)).decode()}:"

    def stream(
        self,
        progress: Progress | None = None,
        deadline: Deadline = NEVER,
        *,
        first: int = 0,
        length: int | None = None,
    ) -> Iterator[bytes]:
        """Read the file, or a part of it, in pieces, never more than was hashed; raises UsageError when it has shrunk."""
        sent, end = first, self.size if length is None else first + length
        with self.path.open("rb") as file:
            file.seek(first)
            while piece := file.read(min(CHUNK, end - sent)):
                deadline.left(1)
                yield piece
                sent += len(piece)
                if progress:
                    progress(sent, self.size)
        if sent < end:
            raise UsageError(f"{self.path} changed while it was sent")


def digest(path: str | os.PathLike[str]) -> Digested:
    """Hash a file; raises UsageError when it is not readable or empty."""
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file (`onnxpress dataset` makes one of raw data)")
    sha256, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                sha256.update(piece)
                size += len(piece)
    except OSError as error:
        raise UsageError(f"{path} is not readable: {error.strerror}") from error
    if not size:
        raise UsageError(f"{path} is empty")
    return Digested(path, sha256.hexdigest(), size)


def download(
    transport: Transport,
    source: str,
    sha256: str,
    target: str | os.PathLike[str],
    *,
    several: bool = False,
    progress: Progress | None = None,
    deadline: Deadline = NEVER,
) -> Path:
    """Fetch bytes that are known by their sha256 into `target`, which appears complete and checked or not at all.

    A connection that breaks in the middle is taken up again where it broke, or from the start where the service does
    not serve ranges. `several`: a zip of files is expected, and the digest is that of their manifest.
    """
    target = Path(target)
    # Beside the target, so that the rename stays within one file system; hidden and unguessable until it is done.
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        file = partial.open("xb")
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    try:
        with file:
            _fill(transport, source, sha256, (_ZipSink if several else _Sink)(file, progress, deadline))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        _fsync_folder(target.parent)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


class _Sink:
    """A file that is being filled, hashed as it grows."""

    def __init__(self, file: BinaryIO, progress: Progress | None, deadline: Deadline) -> None:
        self.file = file
        self.size = 0
        self.deadline = deadline
        # Of the representation that the first bytes came from; a weak one does not vouch for bytes.
        self.etag: str | None = None
        self._sha256 = hashlib.sha256()
        self._progress = progress

    def restart(self) -> None:
        """Forget everything."""
        self.file.seek(0)
        self.file.truncate()
        self.size, self._sha256 = 0, hashlib.sha256()

    def take(self, answer: httpx.Response) -> None:
        """Append the body of an answer."""
        length = answer.headers.get("Content-Length")
        total = self.size + int(length) if length else None
        etag = answer.headers.get("ETag", "")
        self.etag = etag if etag.startswith('"') else None
        for piece in answer.iter_raw():
            self.deadline.left(1)
            self.file.write(piece)
            self._sha256.update(piece)
            self.size += len(piece)
            if self._progress:
                self._progress(self.size, total)

    def matches(self, sha256: str) -> bool:
        """Whether these are the bytes that were asked for."""
        return self._sha256.hexdigest() == sha256


class _ZipSink(_Sink):
    """A zip of several files, known by the digest of their manifest: path, sha256 and size of each."""

    def matches(self, sha256: str) -> bool:
        """Whether these are the files that were asked for."""
        self.file.flush()
        lines = []
        try:
            with zipfile.ZipFile(self.file.name) as archive:
                for entry in archive.infolist():
                    with archive.open(entry) as member:
                        found = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]  # it reads into a buffer as files do
                    lines.append({"path": entry.filename, "sha256": found, "size": entry.file_size})
        except (zipfile.BadZipFile, EOFError):
            return False
        text = json.dumps(sorted(lines, key=lambda line: str(line["path"])), separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest() == sha256


def _fill(transport: Transport, source: str, sha256: str, sink: _Sink) -> None:
    backoff = Backoff(transport.patience, sink.deadline, transport.on_retry)
    resumed = False
    while True:
        # Encodings would change the bytes that the digest is about.
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if sink.size and sink.etag:
            headers |= {"Range": f"bytes={sink.size}-", "If-Range": sink.etag}
        before = sink.size
        try:
            with transport.open(ApiRequest("GET", source, headers=headers), sink.deadline) as answer:
                if sink.size and answer.status_code != httpx.codes.PARTIAL_CONTENT:
                    sink.restart()
                resumed = resumed or sink.size > 0
                sink.take(answer)
        except httpx.TransportError as error:
            # Time that brought bytes does not count: only a service that stays silent wears patience out.
            if sink.size > before:
                backoff = Backoff(transport.patience, sink.deadline, transport.on_retry)
            if sink.matches(sha256):
                return
            if not backoff.pause(f"the download broke after {sink.size} bytes"):
                raise unreachable(transport.url, error) from error
            continue
        if sink.matches(sha256):
            return
        if not resumed:
            raise DigestMismatchError(
                f"the service sent other bytes than those with the sha256 {sha256}; nothing was written"
            )
        # The pieces may not belong together; one whole answer decides.
        sink.restart()
        resumed = False


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
