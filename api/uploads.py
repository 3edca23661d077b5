"""Uploads: a body streamed to disk, hashed on the way, gone without trace when it is refused or cut off."""

import base64
import binascii
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.dependencies import RequestContext, TenantScope
from api.errors import ApiError, FieldError
from api.multipart import FileForm
from services import resumable_uploads
from services.artifacts import Source, known_blob
from services.errors import TooLargeError
from services.quotas import Room
from services.storage import Writer

# Few large writes instead of many small ones: each costs a hop to a thread.
CHUNK = 2 << 20

FORM = "multipart/form-data"
JSON = "application/json"
# What a form may say besides the file.
FORM_WORDS = 64 << 10
RAW_TYPES = ("application/octet-stream", "application/onnx", "application/x-npz", "application/zip")
BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes, with their digest in Repr-Digest.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    206: {
        "description": "With Range: a part of them.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "With If-None-Match: the client has them."},
}
# A dictionary of byte sequences (RFC 9651), as RFC 9530 has it: the algorithm, its digest, perhaps parameters.
_DIGEST = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):(?:;[^,]*)?")


class NewBlob(BaseModel):
    """Bytes that are stored already, to be had again under a new name."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"blob": "0" * 64}]})

    blob: Annotated[
        str, Field(pattern="^[0-9a-f]{64}$", description="Their SHA-256; HEAD /v1/blobs tells if they are there.")
    ]


class UploadedFile(BaseModel):
    """A resumable upload that is complete."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"upload": "upl_01jc3f9w3e8q4m2y7d5t6v8xbn"}]}
    )

    upload: Annotated[
        str, Field(pattern="^upl_[0-9a-hjkmnp-tv-z]{26}$", description="Its id, the end of its Location.")
    ]


@dataclass(frozen=True)
class ReceivedUpload:
    """The bytes of an upload, finished but not placed, and the name that the file had at the sender."""

    source: Source
    filename: str | None = None
    # The resumable upload that they came by.
    upload_id: str | None = None

    def use(self, scope: TenantScope) -> None:
        """Note of a resumable upload that it has become something."""
        if self.upload_id is not None:
            store, sha256 = scope.resources.store, self.source.finish().sha256
            resumable_uploads.use(scope.session, store, scope.tenant_id, self.upload_id, sha256)

    def named(self, name: str | None, default: str) -> str:
        """Give the name that was asked for, else the file's without its ending."""
        own = PurePosixPath((self.filename or "").replace("\\", "/")).stem
        plain = "".join(letter for letter in own if letter.isprintable())[:200].strip()
        return name or plain or default


def upload_body(description: str) -> dict[str, Any]:
    """Describe an upload's body for OpenAPI: raw, as a form's file, or the digest of what is stored."""
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["file"], "properties": {"file": binary}, "additionalProperties": False}
    return {
        "requestBody": {
            "required": True,
            "description": description,
            "content": {
                RAW_TYPES[0]: {"schema": binary},
                FORM: {"schema": form},
                JSON: {
                    "schema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/NewBlob"},
                            {"$ref": "#/components/schemas/UploadedFile"},
                        ]
                    }
                },
            },
        },
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


def _media_type(request: Request) -> str:
    """Give the body's type; raises 415 for what is neither a file's bytes nor a form nor JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {*RAW_TYPES, FORM, JSON}:
        raise ApiError(415, f"Send the file's bytes as the body, with the Content-Type {RAW_TYPES[0]}, or as {FORM}.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "A body with a Content-Encoding is not taken; send the file as it is.")
    return kind


def expected_sha256(request: Request) -> str | None:
    """Give the digest that the client announced (RFC 9530), as hex.

    Without a content coding, Content-Digest and Repr-Digest are the same. Digests by other algorithms are left alone; raises 400
    for what is no digest, and for two that differ: whoever sends one means to have it checked.
    """
    found = {
        digest
        for name in ("repr-digest", "content-digest")
        for header in request.headers.getlist(name)
        for digest in _sha256_in(name, header)
    }
    if len(found) > 1:
        raise ApiError(400, "The headers Repr-Digest and Content-Digest name different digests of the same bytes.")
    return next(iter(found), None)


def _sha256_in(name: str, header: str) -> Iterator[str]:
    for entry in header.split(","):
        said = _DIGEST.fullmatch(entry.strip())
        if said is None:
            raise _no_digest(name, "It takes digests like `sha-256=:BASE64:`, by comma.")
        if said[1] == "sha-256":
            yield _hex(name, said[2])


def _hex(name: str, text: str) -> str:
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise _no_digest(name, "sha-256 takes 32 bytes in base64 between colons.")
    return digest.hex()


def _no_digest(name: str, detail: str) -> ApiError:
    wrong = FieldError(parameter=name.title(), detail=detail)
    return ApiError(400, f"The header {name.title()} cannot be read.", errors=[wrong])


def repr_digest(sha256: str) -> str:
    """Give the value of the header Repr-Digest for a hex digest."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


@asynccontextmanager
async def receive_upload(
    request: Request, context: RequestContext, tenant_id: str, *, limit: int, room: Room | None = None
) -> AsyncIterator[ReceivedUpload]:
    """Take the body to disk and give the finished, not yet placed upload; whatever goes wrong, no file stays behind.

    `room` is what the tenant's quota leaves: who announces more is told so before it is sent, who does not when it is over.
    """
    resources = context.resources
    kind = _media_type(request)
    if kind == JSON:
        async with _named(request, context, tenant_id, limit) as found:
            yield found
        return
    form = FileForm(request.headers["content-type"]) if kind == FORM else None
    # A form's own words come on top of the file, and its digest is not the file's.
    expected = None if form else expected_sha256(request)
    request.state.request_state.take_file(limit + (FORM_WORDS if form else 0))
    length = request.headers.get("content-length") if form is None else None
    declared = int(length) if length else None
    if room is not None:
        # What is named above takes no more room: it is here.
        room.check(declared if declared is not None and declared <= limit else 1)

    def start() -> Writer:
        most = limit if room is None or declared is not None else min(limit, room.left)
        return resources.store.writer(tenant_id, limit=most, size=declared, sha256=expected)

    writer = await run_sync(start, limiter=resources.disk)
    try:
        async for chunks in _chunks(request, None if form else writer):
            await run_sync(_write, writer, chunks, form, limiter=resources.disk)
        filename = form.finish() if form else None
        if not writer.size:
            raise ApiError(400, "The body is empty.", code="empty_body")
        await run_sync(writer.finish, limiter=resources.disk)
        yield ReceivedUpload(writer, filename)
    except TooLargeError:
        if room is not None and writer.size <= limit:
            room.check(writer.size)
        raise
    finally:
        # Also when the request is cancelled in the middle.
        with CancelScope(shield=True):
            await run_sync(writer.abort)


@asynccontextmanager
async def _named(
    request: Request, context: RequestContext, tenant_id: str, limit: int
) -> AsyncIterator[ReceivedUpload]:
    """Give bytes that are here already: a stored blob's, or a complete resumable upload's."""
    store, disk = context.resources.store, context.resources.disk
    wanted = await _wanted(request)
    if isinstance(wanted, NewBlob):
        sha256 = wanted.blob
        source = await context.read(lambda scope: known_blob(scope.session, store, tenant_id, sha256), needs="write")
        yield ReceivedUpload(source)
        return

    def find(scope: TenantScope) -> ReceivedUpload | resumable_uploads.Assembly:
        settings = scope.resources.settings
        found = resumable_uploads.assembly(scope.session, tenant_id, wanted.upload, settings, limit=limit)
        if found.upload.used_at is None:
            return found
        # By an earlier request, whose answer may have been lost.
        source = known_blob(scope.session, store, tenant_id, str(found.upload.sha256))
        return ReceivedUpload(source, found.upload.name)

    found = await context.read(find, needs="write")
    if isinstance(found, ReceivedUpload):
        yield found
        return
    writer = await run_sync(resumable_uploads.assemble, store, found, limiter=disk)
    try:
        yield ReceivedUpload(writer, found.upload.name, found.upload.id)
    finally:
        with CancelScope(shield=True):
            await run_sync(writer.abort)


async def _wanted(request: Request) -> NewBlob | UploadedFile:
    body = await request.body()
    kind: type[NewBlob | UploadedFile] = UploadedFile if b'"upload"' in body else NewBlob
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(found, body=body) from None


async def _chunks(request: Request, counting: Writer | None) -> AsyncIterator[list[bytes]]:
    """Yield the body as lists of chunks that make about 2 MiB.

    The chunks are neither joined nor copied: at this size, copies are what an upload costs. They are hashed where they
    arrive, a millisecond or two for each, and not in the thread that writes them: another core would have to fetch them.
    """
    pending: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        if counting is not None:
            counting.count(chunk)
        pending.append(chunk)
        size += len(chunk)
        if size >= CHUNK:
            yield pending
            pending, size = [], 0
    yield pending


def _write(writer: Writer, chunks: list[bytes], form: FileForm | None) -> None:
    if form is None:
        for chunk in chunks:
            writer.append(chunk)
        return
    for chunk in form.take(chunks):
        writer.write(chunk)
