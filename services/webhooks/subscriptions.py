"""Addresses that tenants have events sent to: made, changed, given a new secret, removed."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models import Webhook, new_id
from services import db, idempotency
from services.errors import ConflictError, NotFoundError
from services.server_secret import ServerSecret
from services.webhooks.addresses import Policy
from services.webhooks.signature import secret_text

MOST = 20
_ROUTE = "POST /v1/webhooks"


@dataclass(frozen=True)
class NewWebhook:
    """A webhook whose secret is new; its text cannot be had again. None where the same request made it before."""

    row: Webhook
    secret: str | None


def create(
    session: Session,
    tenant_id: str,
    url: str,
    *,
    secret: ServerSecret,
    policy: Policy,
    events: Sequence[str] = (),
    description: str = "",
    idempotency_key: str | None = None,
) -> NewWebhook:
    """Have a tenant's events sent to a URL; no event named means all.

    Raises InvalidError for a URL that could never be sent to, ConflictError where the tenant has as many as it may.
    """
    policy.check_url(url)
    if idempotency_key is not None:
        body = {"url": url, "events": sorted(events), "description": description}
        earlier = idempotency.begin(session, tenant_id, _ROUTE, idempotency_key, idempotency.digest(body))
        if earlier is not None:
            return NewWebhook(get(session, tenant_id, earlier), None)
    _check_number(session, tenant_id)
    moment = db.now(session)
    row = Webhook(
        id=new_id("whk"),
        tenant_id=tenant_id,
        url=url,
        description=description,
        events=[*events],
        signer=secret.name,
        generation=1,
        created_at=moment,
        updated_at=moment,
    )
    session.add(row)
    session.flush()
    if idempotency_key is not None:
        idempotency.answer(session, tenant_id, _ROUTE, idempotency_key, row.id)
    return NewWebhook(row, secret_text(secret, row))


def _check_number(session: Session, tenant_id: str) -> None:
    db.lock(session, f"webhooks {tenant_id}")
    number = session.scalar(select(func.count()).select_from(Webhook).where(Webhook.tenant_id == tenant_id)) or 0
    if number >= MOST:
        raise ConflictError(
            f"The tenant has {number} webhooks, which is the most.",
            code="too_many_webhooks",
            hint="Delete one that is not needed.",
        )


def get(session: Session, tenant_id: str, webhook_id: str) -> Webhook:
    """Give a tenant's webhook; raises NotFoundError."""
    asked = select(Webhook).where(Webhook.tenant_id == tenant_id, Webhook.id == webhook_id)
    found = session.scalars(asked).one_or_none()
    if found is None:
        raise NotFoundError("There is no such webhook.")
    return found


def list_webhooks(session: Session, tenant_id: str) -> list[Webhook]:
    """Give a tenant's webhooks, the newest first."""
    return list(session.scalars(select(Webhook).where(Webhook.tenant_id == tenant_id).order_by(Webhook.id.desc())))


def change(
    session: Session,
    tenant_id: str,
    webhook_id: str,
    *,
    policy: Policy,
    url: str | None = None,
    events: Sequence[str] | None = None,
    description: str | None = None,
    enabled: bool | None = None,
) -> Webhook:
    """Change what is given of a webhook; one that is enabled again goes on with what waits for it."""
    row = get(session, tenant_id, webhook_id)
    moment = db.now(session)
    if url is not None:
        policy.check_url(url)
        row.url = url
    row.events = row.events if events is None else [*events]
    row.description = row.description if description is None else description
    if enabled:
        row.disabled_at, row.disabled_by, row.failing_since = None, None, None
    elif enabled is not None and row.disabled_at is None:
        row.disabled_at, row.disabled_by = moment, "owner"
    row.updated_at = moment
    return row


def rotate(session: Session, tenant_id: str, webhook_id: str, secret: ServerSecret) -> NewWebhook:
    """Give a webhook a new secret; the one before signs too for a day, unless another service's secret had made it."""
    row = get(session, tenant_id, webhook_id)
    moment = db.now(session)
    row.generation += 1
    row.rotated_at = moment if row.signer == secret.name else None
    row.signer, row.updated_at = secret.name, moment
    return NewWebhook(row, secret_text(secret, row))


def delete(session: Session, tenant_id: str, webhook_id: str) -> None:
    """Remove a webhook, what waits for it and what was sent to it."""
    session.delete(get(session, tenant_id, webhook_id))
