"""Who is told what happened: webhooks, and what is sent to them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class Webhook(Base):
    """An address that a tenant has events sent to. Its secret is derived and stands in no row."""

    __tablename__ = "webhook"
    __table_args__ = (Index(None, "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    url: Mapped[str]
    description: Mapped[str]
    # Types of events; none: all of them.
    events: Mapped[list[Any]]
    # Names the service's secret that this webhook's own one is derived from.
    signer: Mapped[str]
    # Grows when the secret is exchanged; the one before signs too for a day.
    generation: Mapped[int] = mapped_column(Integer)
    rotated_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    # "owner", "gone" (it answered 410) or "failing" (for days).
    disabled_by: Mapped[str | None]
    # Since when nothing sent to it has arrived.
    failing_since: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookDelivery(Base):
    """One event on its way to one webhook, with every attempt; its row is made with the event, in one transaction."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (Index(None, "webhook_id", "id"), Index(None, "status", "next_at"), Index(None, "created_at"))

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"))
    type: Mapped[str]
    # What the event is about; None for a ping.
    subject_id: Mapped[str | None]
    # As it is sent, the same bytes at each attempt.
    body: Mapped[str]
    # "pending", "delivered" or "failed".
    status: Mapped[str]
    # Of the schedule that is being gone through; a replay begins it anew.
    tries: Mapped[int] = mapped_column(Integer)
    # The last of all attempts: when, outcome, status, seconds.
    attempts: Mapped[list[Any]]
    next_at: Mapped[datetime | None]
    # Whoever sends it now has so long.
    claimed_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
