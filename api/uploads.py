"""Raw uploads: a body streamed to disk, hashed on the way, gone without trace when it is refused or cut off."""

import base64
import binascii
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request

from api.deps import Parts
from api.errors import ApiError, FieldError
from services.storage import Writer

# Few large writes instead of many small ones: each costs a hop to a thread.
CHUNK = 1 << 20

RAW_TYPES = ("application/octet-stream", "application/onnx", "application/x-npz", "application/zip")
BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes, with their digest in Repr-Digest.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "With If-None-Match: the client has them."},
}
_SHA256 = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):")


def upload_body(description: str) -> dict[str, Any]:
    """Describe a raw body for OpenAPI."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "requestBody": {"required": True, "description": description, "content": {RAW_TYPES[0]: binary}},
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": "RFC 9530, e.g. `sha-256=:base64:`; other bytes are refused.",
            }
            for name in ("Repr-Digest", "Content-Digest")
        ],
    }


def check_raw(request: Request) -> None:
    """Refuse a body that is not the bare bytes of a file."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in RAW_TYPES:
        raise ApiError(415, f"Send the file's bytes as the body, with the Content-Type {RAW_TYPES[0]}.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "A body with a Content-Encoding is not taken; send the file as it is.")


def expected_sha256(request: Request) -> str | None:
    """Give the digest that the client announced (RFC 9530), as hex.

    Without a content coding, Content-Digest and Repr-Digest are the same.
    """
    for name in ("repr-digest", "content-digest"):
        found = _SHA256.search(request.headers.get(name, ""))
        if found:
            return _hex(name, found[1])
    return None


def _hex(header: str, text: str) -> str:
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        wrong = FieldError(parameter=header.title(), detail="sha-256 takes 32 bytes in base64 between colons.")
        raise ApiError(400, f"The header {header.title()} cannot be read.", errors=[wrong])
    return digest.hex()


def repr_digest(sha256: str) -> str:
    """Give the value of the header Repr-Digest for a hex digest."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


@asynccontextmanager
async def received(request: Request, parts: Parts, tenant_id: str, *, limit: int) -> AsyncIterator[Writer]:
    """Take the body to disk and give the finished, not yet placed upload; whatever goes wrong, no file stays behind."""
    check_raw(request)
    expected = expected_sha256(request)
    request.state.passage.body_limit = limit
    declared = request.headers.get("content-length")

    def start() -> Writer:
        return parts.folder.writer(tenant_id, limit=limit, size=int(declared) if declared else None, sha256=expected)

    writer = await run_sync(start, limiter=parts.disk)
    try:
        async for chunks in _chunks(request):
            await run_sync(_write, writer, chunks, limiter=parts.disk)
        if not writer.size:
            raise ApiError(400, "The body is empty.", code="empty_body")
        await run_sync(writer.finish, limiter=parts.disk)
        yield writer
    finally:
        # Also when the request is cancelled in the middle.
        with CancelScope(shield=True):
            await run_sync(writer.abort)


async def _chunks(request: Request) -> AsyncIterator[list[bytes]]:
    """Yield the body as lists of chunks that make about 1 MiB.

    The chunks are neither joined nor copied: at this size, copies are what an upload costs.
    """
    pending: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        pending.append(chunk)
        size += len(chunk)
        if size >= CHUNK:
            yield pending
            pending, size = [], 0
    yield pending


def _write(writer: Writer, chunks: list[bytes]) -> None:
    for chunk in chunks:
        writer.write(chunk)
