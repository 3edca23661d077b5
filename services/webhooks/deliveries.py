"""What is sent: a row for each event and webhook, made in the event's transaction; its attempts, and sending it again."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, CursorResult, func, or_, select, update
from sqlalchemy.orm import Session

from models import Dataset, Job, Model, Webhook, WebhookDelivery, new_id
from services import db
from services.errors import ConflictError, NotFoundError
from services.webhooks.event_types import ALIAS_MOVED, EVENT_TYPES, PING
from services.webhooks.post import Outcome

Status = Literal["pending", "delivered", "failed"]
# After the first attempt, at once: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h; a little more, so that what failed together does
# not come back together.
RETRY_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000)
_SPREAD = 0.1
# Whose messages have all failed for so long is sent no more.
PATIENCE = timedelta(days=5)
# Longer than an attempt takes. Its process died if it is not noted by then, and another one sends it.
_CLAIM = timedelta(seconds=60)
_KEPT_ATTEMPTS = 20


@dataclass(frozen=True)
class Due:
    """A delivery whose time has come."""

    delivery_id: str
    webhook_id: str
    tenant_id: str


def announce(session: Session, subject: Job | Model | Dataset, state: str) -> None:
    """Have every webhook of the subject's tenant told of its new state that wants to be."""
    event = f"{type(subject).__name__.lower()}.{state}"
    if event in EVENT_TYPES:
        _tell(session, subject.tenant_id, event, subject.id, lambda: _about(subject))


def announce_move(session: Session, tenant_id: str, alias: str, model_id: str | None, *, is_rollback: bool) -> None:
    """Have every webhook of a tenant told that an alias names another network, or none, that wants to be."""
    path = {} if model_id is None else {"path": f"/v1/models/{model_id}"}
    about = {"alias": alias, "model": model_id, "rollback": is_rollback, **path}
    _tell(session, tenant_id, ALIAS_MOVED, model_id, lambda: about)


def _tell(
    session: Session, tenant_id: str, event: str, subject_id: str | None, about: Callable[[], dict[str, Any]]
) -> None:
    asked = select(Webhook).where(Webhook.tenant_id == tenant_id, Webhook.disabled_at.is_(None))
    wanting = [one for one in session.scalars(asked) if not one.events or event in one.events]
    if not wanting:
        return
    moment = db.now(session)
    body = _body(event, moment, about())
    for webhook in wanting:
        _add(session, webhook, event, body, at=moment, subject_id=subject_id)


def ping(session: Session, webhook: Webhook) -> WebhookDelivery:
    """Have a message sent that says nothing, once."""
    moment = db.now(session)
    return _add(session, webhook, PING, _body(PING, moment, {"webhook": webhook.id}), at=moment)


def get(session: Session, tenant_id: str, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """Give a delivery; raises NotFoundError."""
    found = session.scalars(
        select(WebhookDelivery).where(*_of(tenant_id, webhook_id), WebhookDelivery.id == delivery_id)
    ).one_or_none()
    if found is None:
        raise NotFoundError("There is no such delivery.")
    return found


def list_deliveries(
    session: Session,
    tenant_id: str,
    webhook_id: str,
    *,
    status: Status | None = None,
    limit: int = 50,
    before: str | None = None,
) -> list[WebhookDelivery]:
    """Give what was and will be sent to a webhook, the newest first, before an id."""
    asked = select(WebhookDelivery).where(*_of(tenant_id, webhook_id))
    if status is not None:
        asked = asked.where(WebhookDelivery.status == status)
    if before is not None:
        asked = asked.where(WebhookDelivery.id < before)
    return list(session.scalars(asked.order_by(WebhookDelivery.id.desc()).limit(limit)))


def replay(session: Session, tenant_id: str, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """Send again what has arrived or was given up, under the same id; raises ConflictError while it is being sent."""
    delivery = get(session, tenant_id, webhook_id, delivery_id)
    if delivery.status == "pending":
        raise ConflictError("This delivery is still being tried.", code="delivery_pending")
    for name, value in _again(db.now(session)).items():
        setattr(delivery, name, value)
    return delivery


def replay_failed(session: Session, tenant_id: str, webhook_id: str, since: datetime) -> int:
    """Send again everything that was given up of events since a time; gives how many these are."""
    lost = (*_of(tenant_id, webhook_id), WebhookDelivery.status == "failed", WebhookDelivery.created_at >= since)
    # However many there are, none of them is read.
    again = update(WebhookDelivery).where(*lost).values(**_again(db.now(session)))
    done = session.execute(again.execution_options(synchronize_session=False))
    assert isinstance(done, CursorResult)
    return done.rowcount


def due(session: Session, signer: str, moment: datetime, busy: Sequence[str], limit: int) -> list[Due]:
    """Give the oldest due delivery of each webhook that is not busy and whose secret is made of the signer's."""
    oldest = (
        select(func.min(WebhookDelivery.id), WebhookDelivery.webhook_id, WebhookDelivery.tenant_id)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(_is_due(moment), Webhook.disabled_at.is_(None), Webhook.signer == signer)
        .group_by(WebhookDelivery.webhook_id, WebhookDelivery.tenant_id)
        .order_by(func.min(WebhookDelivery.next_at))
    )
    if busy:
        oldest = oldest.where(WebhookDelivery.webhook_id.not_in(busy))
    return [Due(*row) for row in session.execute(oldest.limit(limit))]


def claim(session: Session, delivery_id: str) -> WebhookDelivery | None:
    """Have a delivery for as long as an attempt takes; None where another process was faster."""
    moment = db.now(session)
    taken = session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, _is_due(moment))
        .values(claimed_until=moment + _CLAIM)
        .returning(WebhookDelivery.id)
    ).first()
    return None if taken is None else session.get(WebhookDelivery, delivery_id, populate_existing=True)


def note(session: Session, delivery_id: str, outcome: Outcome) -> None:
    """Keep what came of an attempt, and say when the next one is."""
    row = session.scalars(
        select(WebhookDelivery).where(WebhookDelivery.id == delivery_id).with_for_update()
    ).one_or_none()
    if row is None or row.status != "pending":
        # Its webhook was deleted meanwhile, or another attempt has ended it.
        return
    moment = db.now(session)
    webhook = session.scalars(select(Webhook).where(Webhook.id == row.webhook_id).with_for_update()).one()
    told = {"at": moment.isoformat(), "result": outcome.result, "status": outcome.status, "seconds": outcome.seconds}
    row.attempts = [*row.attempts, told][-_KEPT_ATTEMPTS:]
    row.claimed_until = None
    wait = _wait(row, outcome)
    row.tries += 1
    if wait is not None:
        row.next_at = moment + wait
    else:
        row.status, row.next_at, row.finished_at = ("delivered" if outcome.delivered else "failed"), None, moment
    webhook.failing_since = None if outcome.delivered else webhook.failing_since or moment
    reason = _reason_to_stop(webhook, outcome, moment)
    if reason is not None and webhook.disabled_at is None:
        webhook.disabled_at, webhook.disabled_by, webhook.updated_at = moment, reason, moment


def _wait(row: WebhookDelivery, outcome: Outcome) -> timedelta | None:
    """Give the time until the next attempt; None: there is none."""
    if outcome.delivered or outcome.result == "gone" or row.type == PING or row.tries >= len(RETRY_S):
        return None
    return timedelta(seconds=RETRY_S[row.tries] * random.uniform(1, 1 + _SPREAD))  # noqa: S311 - no secret


def _reason_to_stop(webhook: Webhook, outcome: Outcome, moment: datetime) -> str | None:
    if outcome.result == "gone":
        return "gone"
    is_lost = webhook.failing_since is not None and webhook.failing_since < moment - PATIENCE
    return "failing" if is_lost else None


def _is_due(moment: datetime) -> ColumnElement[bool]:
    free = or_(WebhookDelivery.claimed_until.is_(None), WebhookDelivery.claimed_until < moment)
    return (WebhookDelivery.status == "pending") & (WebhookDelivery.next_at <= moment) & free


def _of(tenant_id: str, webhook_id: str) -> tuple[ColumnElement[bool], ...]:
    return (WebhookDelivery.tenant_id == tenant_id, WebhookDelivery.webhook_id == webhook_id)


def _again(moment: datetime) -> dict[str, Any]:
    """Give what is to stand in the row of a delivery that is tried from the start."""
    return {"status": "pending", "tries": 0, "next_at": moment, "finished_at": None}


def _add(
    session: Session, webhook: Webhook, event: str, body: str, *, at: datetime, subject_id: str | None = None
) -> WebhookDelivery:
    row = WebhookDelivery(
        id=new_id("msg"),
        tenant_id=webhook.tenant_id,
        webhook_id=webhook.id,
        type=event,
        subject_id=subject_id,
        body=body,
        status="pending",
        tries=0,
        attempts=[],
        next_at=at,
        created_at=at,
    )
    session.add(row)
    session.flush()
    return row


def _body(event: str, moment: datetime, data: dict[str, Any]) -> str:
    message = {"type": event, "timestamp": moment.isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(message, separators=(",", ":"))


def _about(subject: Job | Model | Dataset) -> dict[str, Any]:
    """Say what it is and how it ended; whoever wants more asks for it with a key."""
    found = subject.problem
    problem = {"problem": {name: found.get(name) for name in ("code", "class", "retryable")}} if found else {}
    if isinstance(subject, Job):
        return {
            "id": subject.id,
            "kind": subject.kind,
            "status": subject.status,
            "verdict": subject.verdict,
            "model": subject.model_id,
            "output_model": subject.output_model_id,
            "labels": subject.labels,
            "path": f"/v1/jobs/{subject.id}",
            **problem,
        }
    kind = "models" if isinstance(subject, Model) else "datasets"
    job = {"job": subject.job_id} if isinstance(subject, Model) and subject.job_id else {}
    about = {"id": subject.id, "name": subject.name, "state": subject.state}
    return {**about, **job, "path": f"/v1/{kind}/{subject.id}", **problem}
