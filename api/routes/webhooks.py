"""Who is told when something ends: webhooks, for keys with the scope `admin`."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from api.dependencies import AdminReadScope, AdminWriteScope, TenantScope
from api.errors import problems
from api.json_body import JSON_BODY
from api.schemas import Cursor, IdempotencyKey, Page, PageSize, page, read_cursor
from api.webhook_schemas import (
    DeliveryView,
    NewWebhookBody,
    NewWebhookView,
    ReplayBody,
    ReplayView,
    WebhookChanges,
    WebhookList,
    WebhookView,
)
from services.webhooks import Policy, deliveries, subscriptions

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


@router.post("", status_code=201, dependencies=JSON_BODY, responses=problems(403, 404, 408, 409, 413, 415))
def create_webhook(
    body: NewWebhookBody, response: Response, scope: AdminWriteScope, idempotency_key: IdempotencyKey = None
) -> NewWebhookView:
    """Have events of your tenant posted to a URL. The secret that they are signed with is in this answer and nowhere else."""
    made = subscriptions.create(
        scope.session,
        scope.tenant_id,
        body.url,
        secret=scope.resources.secret,
        policy=_policy(scope),
        events=list(dict.fromkeys(body.events)),
        description=body.description,
        idempotency_key=idempotency_key,
    )
    scope.subject = made.row.id
    response.headers["Location"] = f"/v1/webhooks/{made.row.id}"
    return _new(scope, made)


@router.get("", responses=problems(403))
def list_webhooks(scope: AdminReadScope) -> WebhookList:
    """List the tenant's webhooks, the newest first."""
    rows = subscriptions.list_webhooks(scope.session, scope.tenant_id)
    return WebhookList(items=[WebhookView.of(row, scope.resources.secret) for row in rows])


@router.get("/{webhook_id}", responses=problems(403, 404))
def get_webhook(webhook_id: str, scope: AdminReadScope) -> WebhookView:
    """Give one webhook, without its secret."""
    return WebhookView.of(subscriptions.get(scope.session, scope.tenant_id, webhook_id), scope.resources.secret)


@router.patch("/{webhook_id}", dependencies=JSON_BODY, responses=problems(403, 404, 408, 413, 415))
def change_webhook(webhook_id: str, body: WebhookChanges, scope: AdminWriteScope) -> WebhookView:
    """Change a webhook, or switch it off or on."""
    row = subscriptions.change(
        scope.session,
        scope.tenant_id,
        webhook_id,
        policy=_policy(scope),
        url=body.url,
        events=body.events,
        description=body.description,
        enabled=body.enabled,
    )
    return WebhookView.of(row, scope.resources.secret)


@router.delete("/{webhook_id}", status_code=204, responses=problems(403, 404))
def delete_webhook(webhook_id: str, scope: AdminWriteScope) -> None:
    """Remove a webhook, with what waits for it and what is known of what was sent."""
    subscriptions.delete(scope.session, scope.tenant_id, webhook_id)


@router.post("/{webhook_id}:rotate", responses=problems(403, 404))
def rotate_webhook(webhook_id: str, scope: AdminWriteScope) -> NewWebhookView:
    """Give a webhook a new secret; for a day the one before signs too."""
    return _new(scope, subscriptions.rotate(scope.session, scope.tenant_id, webhook_id, scope.resources.secret))


@router.post("/{webhook_id}:ping", status_code=202, responses=problems(403, 404))
def ping_webhook(webhook_id: str, scope: AdminWriteScope) -> DeliveryView:
    """Have a message sent that says nothing, once: its delivery tells whether it arrived."""
    scope.check_room()
    webhook = subscriptions.get(scope.session, scope.tenant_id, webhook_id)
    return DeliveryView.of(deliveries.ping(scope.session, webhook))


@router.post(
    "/{webhook_id}:replay", status_code=202, dependencies=JSON_BODY, responses=problems(403, 404, 408, 413, 415)
)
def replay_webhook(webhook_id: str, body: ReplayBody, scope: AdminWriteScope) -> ReplayView:
    """Send again everything that was given up of events since a time."""
    subscriptions.get(scope.session, scope.tenant_id, webhook_id)
    return ReplayView(deliveries=deliveries.replay_failed(scope.session, scope.tenant_id, webhook_id, body.since))


@router.get("/{webhook_id}/deliveries", responses=problems(403, 404))
def list_deliveries(
    webhook_id: str,
    scope: AdminReadScope,
    status: Annotated[
        Literal["pending", "delivered", "failed"] | None, Query(description="Only deliveries in this state.")
    ] = None,
    limit: PageSize = 50,
    cursor: Cursor = None,
) -> Page[DeliveryView]:
    """List what was sent and will be, with every attempt, the newest first."""
    subscriptions.get(scope.session, scope.tenant_id, webhook_id)
    rows = deliveries.list_deliveries(
        scope.session, scope.tenant_id, webhook_id, status=status, limit=limit + 1, before=read_cursor(cursor)
    )
    return page(DeliveryView.of, rows, limit)


@router.get("/{webhook_id}/deliveries/{delivery_id}", responses=problems(403, 404))
def get_delivery(webhook_id: str, delivery_id: str, scope: AdminReadScope) -> DeliveryView:
    """Give one delivery."""
    return DeliveryView.of(deliveries.get(scope.session, scope.tenant_id, webhook_id, delivery_id))


@router.post("/{webhook_id}/deliveries/{delivery_id}:replay", status_code=202, responses=problems(403, 404, 409))
def replay_delivery(webhook_id: str, delivery_id: str, scope: AdminWriteScope) -> DeliveryView:
    """Send one again under the same id, arrived or given up; 409 while it is being tried."""
    return DeliveryView.of(deliveries.replay(scope.session, scope.tenant_id, webhook_id, delivery_id))


def _policy(scope: TenantScope) -> Policy:
    return Policy.from_settings(scope.resources.settings)


def _new(scope: TenantScope, made: subscriptions.NewWebhook) -> NewWebhookView:
    view = WebhookView.of(made.row, scope.resources.secret)
    return NewWebhookView(**view.model_dump(), secret=made.secret)
