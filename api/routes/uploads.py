"""Large files in pieces (tus 1.0): what broke off goes on where it was, at any API process."""

import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Annotated, Self

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

import models
from api.dependencies import Context, ReadScope, RequestContext, TenantScope, WriteScope
from api.errors import ApiError, FieldError, problems
from services import resumable_uploads
from services.errors import ServiceError
from services.resumable_uploads import PART_BYTES, NewPart
from services.storage import Writer
from settings import Settings

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
PIECE = "application/offset+octet-stream"
# For each name in the protocol the name in hashlib; SHA-1 because every server must take it.
_ALGORITHMS = {"sha256": "sha256", "sha512": "sha512", "sha1": "sha1"}
_MOST = (1 << 63) - 1
_SPOKEN = {"Tus-Version": VERSION}


async def tus_version(request: Request, _context: Context) -> None:
    """Refuse a version of the protocol that is not spoken here, after a request without a key."""
    if request.headers.get("tus-resumable") != VERSION:
        raise ApiError(412, f"Send the header Tus-Resumable: {VERSION}.", headers=_SPOKEN)


_TUS = [Depends(tus_version)]
_TUS_HEADER = {
    "parameters": [
        {
            "name": "Tus-Resumable",
            "in": "header",
            "required": True,
            "schema": {"type": "string", "const": VERSION},
            "description": "The protocol's version.",
        }
    ]
}
_BODY = {
    "requestBody": {
        "required": False,
        "description": "Bytes from the offset on.",
        "content": {PIECE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_Checksum = Annotated[
    str | None,
    Header(max_length=200, description="`sha256 BASE64` (or sha1, sha512) of the body: other bytes are not kept."),
]
_Metadata = Annotated[
    str | None,
    Header(
        max_length=4096,
        description="`filename BASE64,sha256 BASE64`: the file's name, and the digest of all of it in hex, which is compared at the end.",
    ),
]

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


class UploadView(BaseModel):
    """An upload that can be gone on with, or used."""

    id: str
    name: str
    length: int
    offset: int = Field(description="So many bytes of it are safe.")
    sha256: str | None = Field(description="As announced.")
    created_at: datetime
    expires_at: datetime = Field(description="Unless more of it comes.")

    @classmethod
    def of(cls, row: models.Upload, settings: Settings) -> Self:
        """Show a row."""
        own = ("id", "name", "length", "offset", "sha256", "created_at")
        return cls(**{name: getattr(row, name) for name in own}, expires_at=resumable_uploads.expires_at(row, settings))


class UploadList(BaseModel):
    """Every open upload, the newest first."""

    items: list[UploadView]


@router.options("", status_code=204, responses=problems(403))
async def describe_uploads(response: Response, context: Context) -> None:
    """Tell what of tus is spoken here."""
    await context.read(lambda scope: scope.caller, needs="write")
    most = resumable_uploads.largest(context.resources.settings)
    response.headers.update(_SPOKEN | {"Tus-Extension": EXTENSIONS, "Tus-Max-Size": str(most)})
    response.headers["Tus-Checksum-Algorithm"] = ",".join(_ALGORITHMS)


@router.get("", responses=problems(403))
def list_uploads(
    scope: ReadScope,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="Only of this file.")] = None,
) -> UploadList:
    """List the uploads that can be gone on with, the newest first."""
    settings = scope.resources.settings
    rows = resumable_uploads.list_open(scope.session, scope.tenant_id, settings, sha256=sha256)
    return UploadList(items=[UploadView.of(row, settings) for row in rows])


@router.post(
    "",
    status_code=201,
    dependencies=_TUS,
    responses=problems(403, 408, 409, 410, 412, 413, 415, 460),
    openapi_extra=_TUS_HEADER | _BODY,
)
async def create_upload(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    response: Response,
    context: Context,
    upload_length: Annotated[int, Header(ge=1, le=_MOST, description="Of the whole file.")],
    upload_metadata: _Metadata = None,
    upload_checksum: _Checksum = None,
) -> None:
    """Begin an upload; its first bytes may come with the request. It is at Location, and is used by its id: `{"upload": id}`."""
    metadata = _read_metadata(upload_metadata)
    settings = context.resources.settings
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if has_body:
        _check_type(request)

    def create(scope: TenantScope) -> models.Upload:
        made = resumable_uploads.create(
            scope.session,
            scope.tenant_id,
            upload_length,
            name=metadata.get("filename", ""),
            sha256=metadata.get("sha256"),
            settings=settings,
        )
        scope.subject = made.id
        return made

    upload = await context.write(create)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    if has_body:
        upload = await _Receiver(request, context, upload, upload_checksum).receive()
    _tell(response, upload, settings)


@router.head("/{upload_id}", dependencies=_TUS, responses=problems(403, 404, 410, 412), openapi_extra=_TUS_HEADER)
async def get_upload_offset(upload_id: str, response: Response, context: Context) -> None:
    """Tell how much of an upload is safe: Upload-Offset of Upload-Length bytes."""
    settings = context.resources.settings
    upload = await context.read(
        lambda scope: resumable_uploads.get(scope.session, scope.tenant_id, upload_id, settings), needs="write"
    )
    response.headers["Upload-Length"] = str(upload.length)
    response.headers["Cache-Control"] = "no-store"
    _tell(response, upload, settings)


@router.patch(
    "/{upload_id}",
    status_code=204,
    dependencies=_TUS,
    responses=problems(403, 404, 408, 409, 410, 412, 413, 415, 460),
    openapi_extra=_TUS_HEADER | _BODY,
)
async def append_upload(  # noqa: PLR0917 - FastAPI calls it by name
    upload_id: str,
    request: Request,
    response: Response,
    context: Context,
    upload_offset: Annotated[int, Header(ge=0, le=_MOST, description="Where these bytes begin.")],
    upload_checksum: _Checksum = None,
) -> None:
    """Send more of an upload, from its offset on; what has come stays when the connection breaks, unless it has a checksum."""
    _check_type(request)
    settings = context.resources.settings

    def find(scope: TenantScope) -> models.Upload:
        found = resumable_uploads.get(scope.session, scope.tenant_id, upload_id, settings)
        resumable_uploads.check_offset(found, upload_offset)
        return found

    upload = await context.read(find, needs="write")
    _tell(response, await _Receiver(request, context, upload, upload_checksum).receive(), settings)


@router.delete(
    "/{upload_id}", status_code=204, dependencies=_TUS, responses=problems(403, 404, 412), openapi_extra=_TUS_HEADER
)
def end_upload(upload_id: str, scope: WriteScope) -> None:
    """Forget an upload and what came of it; what it has become stays."""
    resumable_uploads.end(scope.session, scope.resources.store, scope.tenant_id, upload_id)


def _tell(response: Response, upload: models.Upload, settings: Settings) -> None:
    response.headers["Upload-Offset"] = str(upload.offset)
    response.headers["Upload-Expires"] = format_datetime(resumable_uploads.expires_at(upload, settings), usegmt=True)


def _check_type(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != PIECE:
        raise ApiError(415, f"Send the bytes with the Content-Type {PIECE}.")


def _read_metadata(text: str | None) -> dict[str, str]:
    """Give what is known of the metadata: the file's name, and the digest of all of it."""
    found = {}
    for entry in filter(None, (text or "").split(",")):
        name, _, value = entry.strip().partition(" ")
        try:
            told = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeError):
            raise _wrong("Upload-Metadata", "It takes pairs of a name and its value in base64, by comma.") from None
        found["filename" if name == "name" else name] = told
    sha256 = found.get("sha256", "").lower()
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise _wrong("Upload-Metadata", "sha256 takes 64 letters of hex, in base64 as every value.")
    name = "".join(letter for letter in found.get("filename", "") if letter.isprintable())[:200]
    return {"filename": name} | ({"sha256": sha256} if sha256 else {})


def _wrong(header: str, detail: str) -> ApiError:
    said = FieldError(parameter=header, detail=detail)
    return ApiError(400, f"The header {header} cannot be read.", errors=[said])


@dataclass(frozen=True)
class _Expected:
    """The checksum of a body."""

    algorithm: str
    digest: bytes

    @classmethod
    def read(cls, text: str) -> Self:
        name, _, value = text.partition(" ")
        try:
            digest = base64.b64decode(value.strip(), validate=True)
        except binascii.Error:
            digest = b""
        if name not in _ALGORITHMS or len(digest) != hashlib.new(_ALGORITHMS[name], usedforsecurity=False).digest_size:
            raise _wrong("Upload-Checksum", f"It takes one of {', '.join(_ALGORITHMS)} and the digest in base64.")
        return cls(_ALGORITHMS[name], digest)


class _Receiver:
    """Takes a request's body to pieces that are safe one after the other, or with a checksum all at once or not at all."""

    def __init__(self, request: Request, context: RequestContext, upload: models.Upload, checksum: str | None) -> None:
        self._request = request
        self._context = context
        self._upload = upload
        self._expected = None if checksum is None else _Expected.read(checksum)
        self._hash = hashlib.new(self._expected.algorithm, usedforsecurity=False) if self._expected else None
        # In the store, and in no row yet.
        self._placed: list[NewPart] = []
        self._writer: Writer | None = None
        self._name = ""

    async def receive(self) -> models.Upload:
        """Take all of the body; gives the upload as it is then."""
        self._request.state.request_state.take_file(self._upload.length - self._upload.offset)
        try:
            await self._take()
            await self._place()
            if self._hash is not None and self._expected is not None and self._hash.digest() != self._expected.digest:
                raise ApiError(460)
            await self._commit()
        except (ClientDisconnect, HTTPException) as error:
            if self._expected is None and (isinstance(error, ClientDisconnect) or error.status_code == 408):
                # What came is safe, as far as it came.
                with CancelScope(shield=True):
                    await self._place()
                    await self._commit()
            raise
        finally:
            with CancelScope(shield=True):
                await run_sync(self._forget)
        return self._upload

    async def _take(self) -> None:
        disk = self._context.resources.disk
        async for chunk in _pieces(self._request):
            if self._hash is not None:
                self._hash.update(chunk)
            writer = self._writer or await self._open()
            await run_sync(writer.write, chunk, limiter=disk)
            if writer.size >= PART_BYTES:
                await self._place()
                if self._expected is None:
                    await self._commit()

    async def _open(self) -> Writer:
        store, upload = self._context.resources.store, self._upload
        self._name, opened = await run_sync(
            resumable_uploads.part_writer, store, upload, upload.length, limiter=self._context.resources.disk
        )
        self._writer = opened
        return opened

    async def _place(self) -> None:
        writer = self._writer
        if writer is None:
            return

        def place() -> NewPart:
            stored = writer.finish()
            writer.place()
            return NewPart(self._name, stored)

        self._placed.append(await run_sync(place, limiter=self._context.resources.disk))
        self._writer = None

    async def _commit(self) -> None:
        if not self._placed:
            return
        settings, at = self._context.resources.settings, self._upload.offset
        parts, self._placed = self._placed, []

        def append(scope: TenantScope) -> models.Upload:
            return resumable_uploads.append(
                scope.session, scope.tenant_id, self._upload.id, at, parts=parts, settings=settings
            )

        try:
            self._upload = await self._context.write(append)
        except ServiceError:
            # Of other errors nobody knows whether the rows are there.
            self._placed = parts
            raise

    def _forget(self) -> None:
        if self._writer is not None:
            self._writer.abort()
        for part in self._placed:
            self._context.resources.store.remove_upload_parts(self._upload.tenant_id, self._upload.id, part.name)


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in chunks of about a megabyte; what has come is yielded before a broken connection is told."""
    pending = bytearray()
    broken: Exception | None = None
    try:
        async for chunk in request.stream():
            pending += chunk
            if len(pending) >= _CHUNK:
                yield bytes(pending)
                pending.clear()
    except (ClientDisconnect, HTTPException) as error:
        broken = error
    if pending:
        yield bytes(pending)
    if broken is not None:
        raise broken


_CHUNK = 1 << 20
