"""The SDK's webhooks: who is told when something ends."""

import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import datetime

from onnxpress.deadline import Deadline
from onnxpress.documents import Delivery, Webhook
from onnxpress.pages import items, pages
from onnxpress.transport import ApiRequest, Transport


class Webhooks:
    """Addresses that events are sent to; for keys with the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, url: str, *, events: Sequence[str] = (), description: str = "") -> Webhook:
        """Have events sent to a URL, all of them unless some are named; its `secret` cannot be had again."""
        body = {"url": url, "events": [*events], "description": description}
        # A repeated request would not show the secret: each one that may have come through makes its own.
        return Webhook.from_document(self._transport.json(ApiRequest("POST", "/webhooks", body=body)))

    def list(self) -> list[Webhook]:
        """Give all webhooks, newest first."""
        return [Webhook.from_document(one) for one in items(self._transport.json(ApiRequest("GET", "/webhooks")))]

    def get(self, webhook_id: str) -> Webhook:
        """Give one webhook."""
        return Webhook.from_document(self._transport.json(ApiRequest("GET", f"/webhooks/{webhook_id}")))

    def change(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """Change what is given; one that is enabled again is sent what waits for it."""
        told = {"url": url, "events": events, "description": description, "enabled": enabled}
        body = {name: value for name, value in told.items() if value is not None}
        return Webhook.from_document(self._transport.json(ApiRequest("PATCH", f"/webhooks/{webhook_id}", body=body)))

    def rotate(self, webhook_id: str) -> Webhook:
        """Give a webhook a new secret; for a day the one before signs too."""
        return Webhook.from_document(self._transport.json(ApiRequest("POST", f"/webhooks/{webhook_id}:rotate")))

    def delete(self, webhook_id: str) -> None:
        """Remove a webhook, what waits for it and what is known of what was sent."""
        self._transport.fetch(ApiRequest("DELETE", f"/webhooks/{webhook_id}"))

    def ping(self, webhook_id: str, *, timeout: float = 15.0) -> Delivery:
        """Have a message sent that says nothing, and give its delivery when the attempt is over.

        Raises WaitTimeoutError after `timeout` seconds.
        """
        deadline = Deadline.after(timeout)
        found = Delivery.from_document(self._transport.json(ApiRequest("POST", f"/webhooks/{webhook_id}:ping")))
        while found.status == "pending":
            time.sleep(deadline.left(0.2))
            found = self.delivery(webhook_id, found.id)
        return found

    def deliveries(self, webhook_id: str, *, status: str | None = None, limit: int | None = None) -> Iterator[Delivery]:
        """Yield what was sent and will be, newest first."""
        query = {"status": status} if status else {}
        found = pages(self._transport, f"/webhooks/{webhook_id}/deliveries", query, limit)
        return (Delivery.from_document(one) for one in found)

    def delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Give one delivery."""
        path = f"/webhooks/{webhook_id}/deliveries/{delivery_id}"
        return Delivery.from_document(self._transport.json(ApiRequest("GET", path)))

    def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send one again, arrived or given up; raises ConflictError while it is being tried."""
        path = f"/webhooks/{webhook_id}/deliveries/{delivery_id}:replay"
        return Delivery.from_document(self._transport.json(ApiRequest("POST", path)))

    def replay_failed(self, webhook_id: str, since: datetime) -> int:
        """Send again what was given up of events since a time; gives how many these are."""
        body = {"since": since.isoformat()}
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        asked = ApiRequest("POST", f"/webhooks/{webhook_id}:replay", body=body, headers=headers)
        return int(self._transport.json(asked)["deliveries"])
