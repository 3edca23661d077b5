"""Who is told what happened: addresses of tenants, what is sent there, and who sends it."""

from services.webhooks.addresses import Policy
from services.webhooks.courier import Courier
from services.webhooks.event_types import EVENT_TYPES, PING

__all__ = ["EVENT_TYPES", "PING", "Courier", "Policy"]
