"""What goes over the wire of webhooks and of what is sent to them."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

import models
from api.schemas import Moment
from services.server_secret import ServerSecret
from services.webhooks.post import Result

EventType = Literal[
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "model.ready",
    "model.rejected",
    "dataset.ready",
    "dataset.rejected",
    "alias.moved",
]
EventTypes = Annotated[
    list[EventType], Field(max_length=16, description="What it is told of; an empty list: everything.")
]
Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2000,
        description="Where events are posted to: `https://` and a public host, unless the operator allows more.",
        examples=["https://ci.example.com/hooks/onnxpress"],
    ),
]
Description = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$", description="For people.")]


class NewWebhookBody(BaseModel):
    """A webhook to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"url": "https://ci.example.com/hooks/onnxpress", "events": ["job.succeeded", "job.failed"]}]
        },
    )

    url: Url
    events: EventTypes = Field(default_factory=list)
    description: Description = ""


class WebhookChanges(BaseModel):
    """What is to change of a webhook; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"enabled": True}]})

    url: Url | None = None
    events: EventTypes | None = None
    description: Description | None = None
    enabled: bool | None = Field(None, description="true: what waits for it is sent, and what happens from now on.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("Name at least one field to change.")
        return self


class WebhookView(BaseModel):
    """An address that events are sent to, without its secret."""

    id: str
    url: str
    description: str
    events: list[str] = Field(description="Empty: everything.")
    enabled: bool
    disabled_by: Literal["owner", "gone", "failing"] | None = Field(
        description="`gone`: it answered 410; `failing`: nothing arrived for five days."
    )
    disabled_at: datetime | None
    failing_since: datetime | None = Field(description="Since when nothing sent to it has arrived.")
    secret_valid: bool = Field(
        description="false: its secret was made from another secret of the service; nothing is sent before it is rotated."
    )
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: models.Webhook, secret: ServerSecret) -> Self:
        """Show a row."""
        own = ("id", "url", "description", "events", "disabled_by", "disabled_at", "failing_since")
        return cls(
            **{name: getattr(row, name) for name in (*own, "created_at", "updated_at")},
            enabled=row.disabled_at is None,
            secret_valid=row.signer == secret.name,
        )


class NewWebhookView(WebhookView):
    """A webhook whose secret is new."""

    secret: str | None = Field(
        description="`whsec_...`, for any library of Standard Webhooks. Shown once: null where the same Idempotency-Key made it before."
    )


class WebhookList(BaseModel):
    """Every webhook of the tenant, the newest first."""

    items: list[WebhookView]


class DeliveryAttempt(BaseModel):
    """One POST, and what came of it; the answer's body is neither kept nor shown."""

    at: datetime
    result: Result = Field(description="`address_refused`: the host's address is not one that webhooks may be at.")
    status: int | None = Field(description="The answer's, where there was one.")
    seconds: float


class DeliveryView(BaseModel):
    """One event on its way to one webhook."""

    id: str = Field(description="The header `webhook-id`, the same at every attempt.")
    type: str
    subject: str | None = Field(description="What the event is about.")
    status: Literal["pending", "delivered", "failed"]
    attempts: list[DeliveryAttempt] = Field(description="The last twenty.")
    next_at: datetime | None = Field(description="When it is tried next.")
    message: dict[str, Any] = Field(description="What is posted.")
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: models.WebhookDelivery) -> Self:
        """Show a row."""
        own = ("id", "type", "status", "attempts", "next_at", "created_at", "finished_at")
        told = {name: getattr(row, name) for name in own}
        return cls.model_validate({**told, "subject": row.subject_id, "message": json.loads(row.body)})


class ReplayBody(BaseModel):
    """What is to be sent again."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"since": "2040-01-01T00:00:00Z"}]})

    since: Annotated[Moment, Field(description="Of events from this time on: what was given up.")]


class ReplayView(BaseModel):
    """How much is sent again."""

    deliveries: int
