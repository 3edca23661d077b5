"""Downloads: stored bytes, verified while they are read, as an attachment that cannot be mistaken for a page."""

import hashlib
import re
import unicodedata
import zipfile
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Annotated, cast
from urllib.parse import quote

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Header, Request, Response
from fastapi.responses import StreamingResponse

from api.conditional_requests import ByteRange, etag_matches, requested_range
from api.dependencies import Resources
from api.uploads import repr_digest
from models import Artifact, ArtifactFile

# The oldest time that a zip can hold: the same files give the same bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_ZIP64_FROM = 1 << 31


_LOCAL_HEADER, _DESCRIPTOR, _DESCRIPTOR_64, _LOCAL_EXTRA_64 = 30, 16, 24, 20
_ENTRY, _END, _END_64 = 46, 22, 76

WantReprDigest = Annotated[
    str | None,
    Header(
        max_length=200,
        description="RFC 9530: `sha-256=1` has a zip hashed before it is sent, `sha-256=0` leaves the digest out.",
    ),
]
_WANTED = re.compile(r"(?:^|,)\s*sha-256\s*=\s*(\d+)\s*(?=,|$)")


@dataclass(frozen=True)
class Downloadable:
    """What can be downloaded under a digest: one file, or several as a zip."""

    tenant_id: str
    digest: str
    files: Sequence[ArtifactFile]
    name: str
    # Of files that are not stored, by their digest.
    written: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, artifact: Artifact, name: str) -> "Downloadable":
        """Give an artifact's content; files in another order would be another zip."""
        return cls(artifact.tenant_id, artifact.digest, sorted(artifact.files, key=lambda file: file.path), name)


async def download(request: Request, resources: Resources, content: Downloadable, want: str | None) -> Response:
    """Answer with the content: its file if it has one, else a stored zip of all.

    Bytes that do not have their digest never arrive whole: the connection breaks before the last of them. The last piece
    of a range is sent only when all bytes were verified.
    """
    single = content.files[0] if len(content.files) == 1 else None
    digest = single.sha256 if single else content.digest
    size = single.size if single else zip_size(content.files)
    headers = {
        "ETag": f'"{digest}"',
        "Content-Disposition": _attachment(content.name if single else f"{content.name}.zip"),
    }
    if etag_matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    byte_range = requested_range(request, headers["ETag"], size)
    headers |= {"Accept-Ranges": "bytes", "Content-Length": str(byte_range.length if byte_range else size)}
    if byte_range is not None:
        headers["Content-Range"] = byte_range.content_range
    wanted = _WANTED.search(want or "")
    if single and (wanted is None or int(wanted[1])):
        headers["Repr-Digest"] = repr_digest(single.sha256)
    elif wanted is not None and int(wanted[1]):
        headers["Repr-Digest"] = repr_digest(await run_sync(_sha256, _zip(resources, content), limiter=resources.disk))
    chunks = _file(resources, content, byte_range) if single else _zip_part(resources, content, byte_range)
    # The first chunk is read before anything is sent, so that missing or small damaged bytes are a clean error.
    first = await run_sync(next, chunks, b"", limiter=resources.disk)
    media_type = "application/octet-stream" if single else "application/zip"
    status = 206 if byte_range else 200
    return StreamingResponse(
        _sent(resources, first, chunks), status_code=status, headers=headers, media_type=media_type
    )


def _file(resources: Resources, content: Downloadable, byte_range: ByteRange | None) -> Iterator[bytes]:
    sha256 = content.files[0].sha256
    if byte_range is None:
        return resources.store.read(content.tenant_id, sha256)
    return resources.store.read_part(content.tenant_id, sha256, byte_range.first, byte_range.length)


async def _sent(resources: Resources, first: bytes, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        while chunk := await run_sync(next, chunks, b"", limiter=resources.disk):
            yield chunk
    finally:
        # Whatever ends the answer, the file is closed.
        with CancelScope(shield=True):
            await run_sync(_close, chunks)


def _close(chunks: Iterator[bytes]) -> None:
    if isinstance(chunks, Generator):
        chunks.close()


class _Pending:
    """A file object for zipfile that only takes bytes."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: the bytes are taken when there are enough of them."""

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


def zip_size(files: Sequence[ArtifactFile]) -> int:
    """Give the size of the zip of some files, which follows from their names and sizes alone."""
    size = directory = 0
    end = _END
    for file in files:
        name = len(file.path.encode())
        large, far = file.size >= _ZIP64_FROM, size > zipfile.ZIP64_LIMIT
        directory += _ENTRY + name + (4 + 16 * large + 8 * far if large or far else 0)
        size += _LOCAL_HEADER + name + file.size
        size += _LOCAL_EXTRA_64 + _DESCRIPTOR_64 if large else _DESCRIPTOR
    if max(size, directory) > zipfile.ZIP64_LIMIT or len(files) > zipfile.ZIP_FILECOUNT_LIMIT:
        end += _END_64
    return size + directory + end


def _sha256(chunks: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def _zip_part(resources: Resources, content: Downloadable, byte_range: ByteRange | None) -> Iterator[bytes]:
    """Give the zip, or a part of it: the last piece only when all of the zip was read, and so verified."""
    if byte_range is None:
        yield from _zip(resources, content)
        return
    at, held = 0, b""
    for chunk in _zip(resources, content):
        piece = chunk[max(0, byte_range.first - at) : max(0, byte_range.last + 1 - at)]
        at += len(chunk)
        if piece:
            if held:
                yield held
            held = piece
    yield held


def _zip(resources: Resources, content: Downloadable) -> Iterator[bytes]:
    pending = _Pending()
    # It asks for no more than `write` of a file that cannot seek.
    with zipfile.ZipFile(cast("IO[bytes]", pending), "w", zipfile.ZIP_STORED) as archive:
        for file in content.files:
            info = zipfile.ZipInfo(file.path, _ZIP_TIME)
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=file.size >= _ZIP64_FROM) as member:
                for chunk in _read(resources, content, file.sha256):
                    member.write(chunk)
                    yield pending.take()
    yield pending.take()


def _read(resources: Resources, content: Downloadable, sha256: str) -> Iterator[bytes]:
    written = content.written.get(sha256)
    return resources.store.read(content.tenant_id, sha256) if written is None else iter((written,))


def _attachment(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = "".join(letter if letter.isalnum() or letter in "._- " else "_" for letter in plain).strip() or "artifact"
    value = f'attachment; filename="{plain}"'
    return value if plain == name else f"{value}; filename*=UTF-8''{quote(name, safe='')}"
