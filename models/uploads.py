"""Files that come in pieces: how far they are, and where the pieces lie."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class Upload(Base):
    """A file on its way, which may be broken off and gone on with; its row says how much of it is safe."""

    __tablename__ = "upload"
    __table_args__ = (Index(None, "tenant_id", "id"), Index(None, "tenant_id", "sha256"), Index(None, "touched_at"))

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    # At the sender.
    name: Mapped[str]
    length: Mapped[int] = mapped_column(BigInteger)
    offset: Mapped[int] = mapped_column(BigInteger)
    # What it takes of the tenant's quota: all of its length from the start, nothing once it is a network or data.
    reserved: Mapped[int] = mapped_column(BigInteger)
    # As announced; once it is used, as found.
    sha256: Mapped[str | None]
    created_at: Mapped[datetime]
    # It expires so long after that.
    touched_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class UploadPart(Base):
    """A piece of an upload, complete and on disk; the rows of one upload follow each other without a gap."""

    __tablename__ = "upload_part"

    upload_id: Mapped[str] = mapped_column(ForeignKey("upload.id", ondelete="CASCADE"), primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    # In the store: two senders of the same piece do not touch each other's.
    name: Mapped[str]
