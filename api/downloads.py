"""Downloads: stored bytes, verified while they are read, as an attachment that cannot be mistaken for a page."""

import unicodedata
import zipfile
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, cast
from urllib.parse import quote

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from api.conditions import Part, asked_part, etag_matches
from api.deps import Parts
from api.uploads import repr_digest
from models import Artifact, ArtifactFile

# The oldest time that a zip can hold: the same files give the same bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_ZIP64_FROM = 1 << 31


@dataclass(frozen=True)
class Content:
    """What can be downloaded under a digest: one file, or several as a zip."""

    tenant_id: str
    digest: str
    files: Sequence[ArtifactFile]
    name: str

    @classmethod
    def of(cls, artifact: Artifact, name: str) -> "Content":
        """Give an artifact's content; files in another order would be another zip."""
        return cls(artifact.tenant_id, artifact.digest, sorted(artifact.files, key=lambda file: file.path), name)


async def download(request: Request, parts: Parts, content: Content) -> Response:
    """Answer with the content: its file if it has one, else a stored zip of all.

    Bytes that do not have their digest never arrive whole: the connection breaks before the last of them. A part is sent
    only of bytes that were verified as a whole just before.
    """
    single = content.files[0] if len(content.files) == 1 else None
    digest = single.sha256 if single else content.digest
    headers = {
        "ETag": f'"{digest}"',
        "Content-Disposition": _attachment(content.name if single else f"{content.name}.zip"),
    }
    if etag_matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    part = None
    if single:
        headers |= {"Accept-Ranges": "bytes", "Repr-Digest": repr_digest(single.sha256)}
        part = asked_part(request, headers["ETag"], single.size)
        headers["Content-Length"] = str(part.length if part else single.size)
        if part is not None:
            headers["Content-Range"] = part.content_range
        chunks = _file(parts, content, part)
    else:
        headers["Accept-Ranges"] = "none"
        chunks = _zip(parts, content)
    # The first chunk is read before anything is sent, so that missing or small damaged bytes are a clean error.
    first = await run_sync(next, chunks, b"", limiter=parts.disk)
    media_type = "application/octet-stream" if single else "application/zip"
    status = 206 if part else 200
    return StreamingResponse(_sent(parts, first, chunks), status_code=status, headers=headers, media_type=media_type)


def _file(parts: Parts, content: Content, part: Part | None) -> Iterator[bytes]:
    sha256 = content.files[0].sha256
    if part is None:
        return parts.folder.read(content.tenant_id, sha256)
    return parts.folder.read_part(content.tenant_id, sha256, part.first, part.length)


async def _sent(parts: Parts, first: bytes, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        while chunk := await run_sync(next, chunks, b"", limiter=parts.disk):
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


def _zip(parts: Parts, content: Content) -> Iterator[bytes]:
    pending = _Pending()
    # It asks for no more than `write` of a file that cannot seek.
    with zipfile.ZipFile(cast("IO[bytes]", pending), "w", zipfile.ZIP_STORED) as archive:
        for file in content.files:
            info = zipfile.ZipInfo(file.path, _ZIP_TIME)
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=file.size >= _ZIP64_FROM) as member:
                for chunk in parts.folder.read(content.tenant_id, file.sha256):
                    member.write(chunk)
                    yield pending.take()
    yield pending.take()


def _attachment(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = "".join(letter if letter.isalnum() or letter in "._- " else "_" for letter in plain).strip() or "artifact"
    value = f'attachment; filename="{plain}"'
    return value if plain == name else f"{value}; filename*=UTF-8''{quote(name, safe='')}"
