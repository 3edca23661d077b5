"""What webhooks are told of."""

PING = "webhook.ping"
ALIAS_MOVED = "alias.moved"
EVENT_TYPES = (
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "model.ready",
    "model.rejected",
    "dataset.ready",
    "dataset.rejected",
    ALIAS_MOVED,
)
