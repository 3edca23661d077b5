"""Idempotency-Key: the same request again gives the same answer, another request under the key is refused."""

import hashlib
import json
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from models import Idempotency
from services import db
from services.errors import ConflictError, RejectedError

# An upload that began so long ago died with its process.
_FLIGHT = timedelta(hours=1)


def digest(request: Any) -> str:
    """Give the digest of a request's body, of JSON values, however it was written."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def begin(session: Session, tenant_id: str, route: str, key: str, request_sha256: str) -> str | None:
    """Give the id that the same request made earlier, or None and hold the key.

    Raises RejectedError where the key came with another request, ConflictError while the first one is in flight. In one
    transaction with what the request makes, nobody ever sees it in flight.
    """
    moment = db.now(session)
    insert = postgresql.insert if db.is_postgres(session) else sqlite.insert
    made = session.execute(
        insert(Idempotency)
        .values(
            tenant_id=tenant_id,
            route=route,
            key=key,
            request_sha256=request_sha256,
            subject_id=None,
            created_at=moment,
        )
        .on_conflict_do_nothing()
        .returning(Idempotency.key)
    ).first()
    if made is not None:
        return None
    row = session.scalars(select(Idempotency).where(*_is(tenant_id, route, key)).with_for_update()).one_or_none()
    if row is None:
        raise ConflictError(
            "A request with this Idempotency-Key was just undone; send it again.", code="idempotency_in_flight"
        )
    if row.request_sha256 != request_sha256:
        raise RejectedError("This Idempotency-Key came with another request before.", code="idempotency_key_reused")
    if row.subject_id is None and row.created_at > moment - _FLIGHT:
        raise ConflictError(
            "The first request with this Idempotency-Key is still in flight.", code="idempotency_in_flight"
        )
    row.created_at = moment if row.subject_id is None else row.created_at
    return row.subject_id


def answer(session: Session, tenant_id: str, route: str, key: str, subject_id: str) -> None:
    """Keep what the request made."""
    session.execute(update(Idempotency).where(*_is(tenant_id, route, key)).values(subject_id=subject_id))


def forget(session: Session, tenant_id: str, route: str, key: str) -> None:
    """Free the key of a request that made nothing."""
    session.execute(delete(Idempotency).where(*_is(tenant_id, route, key), Idempotency.subject_id.is_(None)))


def _is(tenant_id: str, route: str, key: str) -> tuple[Any, ...]:
    return (Idempotency.tenant_id == tenant_id, Idempotency.route == route, Idempotency.key == key)
