"""Who uses the service: tenants and their API keys."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class Tenant(Base):
    """An owner of objects; nobody sees another tenant's."""

    __tablename__ = "tenant"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime]
    # Its own limits; None: the service's, 0: none.
    quota_bytes: Mapped[int | None] = mapped_column(BigInteger)
    quota_jobs: Mapped[int | None] = mapped_column(Integer)
    quota_cpu_s: Mapped[float | None] = mapped_column(Float)
    # Requests of all its keys together.
    rate_per_s: Mapped[float | None] = mapped_column(Float)
    rate_burst: Mapped[int | None] = mapped_column(Integer)
    # Since when none of its keys opens anything.
    suspended_at: Mapped[datetime | None]


class ApiKey(Base):
    """A key; only the digest of its secret is stored."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[str]
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Audit(Base):
    """Who changed what: a row of the same transaction as the change."""

    __tablename__ = "audit"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "subject_id", "id"),
        Index(None, "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    key_id: Mapped[str]
    # The operation's id in the API's description.
    action: Mapped[str]
    subject_id: Mapped[str | None]
    request_id: Mapped[str]
    created_at: Mapped[datetime]
