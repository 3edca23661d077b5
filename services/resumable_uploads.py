"""Files that come in pieces, to any process: what has arrived is a row, and stays until it is used or expires."""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from models import Upload, UploadPart, new_id
from services import db, quotas
from services.errors import ConflictError, CorruptError, GoneError, NotFoundError, QuotaError, TooLargeError
from services.storage import Store, Stored, Writer
from settings import Settings

# A piece is safe when so much of it is there, or its request has ended.
PART_BYTES = 64 << 20
MOST_OPEN = 100
# Of one upload: each is a row and an object of its own in the store, however few bytes it brings.
MOST_PARTS = 10_000


@dataclass(frozen=True)
class NewPart:
    """A piece that lies in the store under its name, in no row yet."""

    name: str
    stored: Stored


@dataclass(frozen=True)
class Assembly:
    """What a complete upload is put together from."""

    upload: Upload
    parts: list[UploadPart]


def largest(settings: Settings) -> int:
    """Give the most bytes that an upload may have, whatever becomes of it."""
    return max(settings.max_model_bytes, settings.max_dataset_bytes)


def expires_at(upload: Upload, settings: Settings) -> datetime:
    """Give the time when an upload expires unless more of it comes."""
    return upload.touched_at + timedelta(hours=settings.upload_expires_hours)


def create(
    session: Session, tenant_id: str, length: int, *, name: str = "", sha256: str | None = None, settings: Settings
) -> Upload:
    """Begin an upload; its whole length is taken from the tenant's quota. Raises TooLargeError, QuotaError."""
    if length > largest(settings):
        raise TooLargeError(f"{length} bytes are over the limit of {largest(settings)}.")
    quotas.check_bytes(session, tenant_id, length, settings)
    db.lock(session, f"uploads {tenant_id}")
    asked = select(func.count()).select_from(Upload).where(Upload.tenant_id == tenant_id, Upload.used_at.is_(None))
    if (session.scalar(asked) or 0) >= MOST_OPEN:
        raise QuotaError(
            f"{MOST_OPEN} uploads are open, which is the most.",
            code="quota_uploads",
            retry_after_s=60,
            hint="End some of them (DELETE), or wait until they expire.",
        )
    moment = db.now(session)
    upload = Upload(
        id=new_id("upl"),
        tenant_id=tenant_id,
        name=name,
        length=length,
        offset=0,
        reserved=length,
        sha256=sha256,
        created_at=moment,
        touched_at=moment,
    )
    session.add(upload)
    session.flush()
    return upload


def get(session: Session, tenant_id: str, upload_id: str, settings: Settings) -> Upload:
    """Give a tenant's upload; raises NotFoundError, or GoneError where it has expired."""
    asked = select(Upload).where(Upload.tenant_id == tenant_id, Upload.id == upload_id)
    found = session.scalars(asked.execution_options(populate_existing=True)).one_or_none()
    if found is None:
        raise NotFoundError("There is no such upload.")
    if expires_at(found, settings) <= db.now(session):
        raise GoneError("The upload has expired; begin a new one.", code="upload_expired")
    return found


def list_open(session: Session, tenant_id: str, settings: Settings, *, sha256: str | None = None) -> list[Upload]:
    """Give a tenant's uploads that can be gone on with, the newest first."""
    since = db.now(session) - timedelta(hours=settings.upload_expires_hours)
    asked = select(Upload).where(Upload.tenant_id == tenant_id, Upload.used_at.is_(None), Upload.touched_at > since)
    if sha256 is not None:
        asked = asked.where(Upload.sha256 == sha256)
    return list(session.scalars(asked.order_by(Upload.id.desc())))


def check_offset(upload: Upload, offset: int) -> None:
    """Raise ConflictError where a piece does not begin where the upload ends."""
    if upload.used_at is not None or upload.offset != offset:
        raise ConflictError(
            f"The upload is at {upload.offset} of {upload.length} bytes; the piece begins at {offset}.",
            code="upload_offset",
            hint="Ask for the offset (HEAD) and go on from there.",
        )


def part_writer(store: Store, upload: Upload, limit: int) -> tuple[str, Writer]:
    """Open a piece; gives its name in the store too."""
    name = secrets.token_hex(16)
    return name, store.part_writer(upload.tenant_id, upload.id, name, limit=limit)


def append(
    session: Session, tenant_id: str, upload_id: str, offset: int, *, parts: Sequence[NewPart], settings: Settings
) -> Upload:
    """Make pieces that lie in the store part of an upload; raises ConflictError where others came first, or too many."""
    get(session, tenant_id, upload_id, settings)
    locked = select(Upload).where(Upload.id == upload_id).with_for_update()
    upload = session.scalars(locked.execution_options(populate_existing=True)).one_or_none()
    if upload is None:
        raise NotFoundError("There is no such upload.")
    check_offset(upload, offset)
    _check_number(session, upload, len(parts))
    for part in parts:
        row = UploadPart(
            upload_id=upload.id, start=upload.offset, size=part.stored.size, sha256=part.stored.sha256, name=part.name
        )
        session.add(row)
        upload.offset += part.stored.size
    upload.touched_at = db.now(session)
    session.flush()
    return upload


def _check_number(session: Session, upload: Upload, more: int) -> None:
    asked = select(func.count()).select_from(UploadPart).where(UploadPart.upload_id == upload.id)
    if (session.scalar(asked) or 0) + more > MOST_PARTS:
        raise ConflictError(
            f"The upload came in {MOST_PARTS} pieces, which is the most.",
            code="too_many_pieces",
            hint="Begin it again and send more with each request.",
        )


def assembly(session: Session, tenant_id: str, upload_id: str, settings: Settings, *, limit: int) -> Assembly:
    """Give what a complete upload is put together from; raises ConflictError while some of it is missing."""
    upload = get(session, tenant_id, upload_id, settings)
    if upload.offset < upload.length:
        raise ConflictError(
            f"The upload is at {upload.offset} of {upload.length} bytes; send the rest first.", code="upload_incomplete"
        )
    if upload.length > limit:
        raise TooLargeError(f"{upload.length} bytes are over the limit of {limit}.")
    parts = select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.start)
    return Assembly(upload, list(session.scalars(parts)))


def assemble(store: Store, found: Assembly) -> Writer:
    """Put the pieces together, each compared with its digest, and all with the one that was announced.

    Raises ConflictError where pieces are lost, as after a restored backup; CorruptError, DigestMismatchError.
    """
    upload = found.upload
    writer = store.writer(upload.tenant_id, limit=upload.length, size=upload.length, sha256=upload.sha256)
    try:
        for part in found.parts:
            for chunk in _verified(store, upload, part):
                writer.write(chunk)
        writer.finish()
    except NotFoundError:
        writer.abort()
        raise ConflictError("Pieces of the upload are lost; send it again.", code="upload_lost") from None
    except BaseException:
        writer.abort()
        raise
    return writer


def _verified(store: Store, upload: Upload, part: UploadPart) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for chunk in store.read_upload_part(upload.tenant_id, upload.id, part.name):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != part.sha256:
        raise CorruptError("A stored piece of the upload is damaged.")


def use(session: Session, store: Store, tenant_id: str, upload_id: str, sha256: str) -> None:
    """Note that an upload has become a network or data: its pieces go, and the same request again gives the same answer."""
    locked = select(Upload).where(Upload.tenant_id == tenant_id, Upload.id == upload_id).with_for_update()
    upload = session.scalars(locked).one_or_none()
    if upload is None:
        raise NotFoundError("There is no such upload.")
    upload.used_at = upload.used_at or db.now(session)
    upload.sha256, upload.reserved = sha256, 0
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))
    session.flush()
    db.after_commit(session, lambda: store.remove_upload_parts(tenant_id, upload_id))


def end(session: Session, store: Store, tenant_id: str, upload_id: str) -> None:
    """Forget an upload and its pieces; raises NotFoundError."""
    asked = select(Upload).where(Upload.tenant_id == tenant_id, Upload.id == upload_id).with_for_update()
    upload = session.scalars(asked).one_or_none()
    if upload is None:
        raise NotFoundError("There is no such upload.")
    session.delete(upload)
    session.flush()
    db.after_commit(session, lambda: store.remove_upload_parts(tenant_id, upload_id))


def expired(session: Session, before: datetime, limit: int) -> list[tuple[str, str]]:
    """Give tenants and ids of uploads of which nothing came since a time."""
    asked = select(Upload.tenant_id, Upload.id).where(Upload.touched_at < before).limit(limit)
    return [(row[0], row[1]) for row in session.execute(asked)]


def is_known(session: Session, upload_id: str) -> bool:
    """Tell whether a row names the pieces of an upload."""
    return session.get(Upload, upload_id) is not None
