"""Signatures as Standard Webhooks has them (standardwebhooks.com, version 1 of the scheme)."""

import base64
import hashlib
import hmac
from datetime import datetime, timedelta

from models import Webhook
from services.server_secret import ServerSecret

PREFIX = "whsec_"
# After an exchange both secrets sign for so long.
OVERLAP = timedelta(days=1)


def secret_text(secret: ServerSecret, webhook: Webhook) -> str:
    """Give a webhook's secret as its owner keeps it."""
    return PREFIX + base64.b64encode(_key(secret, webhook.id, webhook.generation)).decode()


def headers(secret: ServerSecret, webhook: Webhook, message_id: str, moment: datetime, body: str) -> dict[str, str]:
    """Give the headers of one attempt: the message's id, the time, and a signature of each secret that holds."""
    timestamp = str(int(moment.timestamp()))
    generations = [webhook.generation]
    if webhook.rotated_at is not None and moment < webhook.rotated_at + OVERLAP:
        generations.append(webhook.generation - 1)
    signed = f"{message_id}.{timestamp}.{body}".encode()
    signatures = [
        hmac.digest(_key(secret, webhook.id, generation), signed, hashlib.sha256) for generation in generations
    ]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in signatures),
    }


def _key(secret: ServerSecret, webhook_id: str, generation: int) -> bytes:
    return secret.derive(f"webhook {webhook_id} {generation}")
