"""Who changed what: a row in the transaction of the change, so that neither is there without the other."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import Audit, new_id
from services import db
from services.keys import Caller


def record(session: Session, caller: Caller, *, action: str, subject_id: str | None, request_id: str) -> None:
    """Note what a caller does."""
    session.add(
        Audit(
            id=new_id("aud"),
            tenant_id=caller.tenant_id,
            key_id=caller.key_id,
            action=action,
            subject_id=subject_id,
            request_id=request_id,
            created_at=db.now(session),
        )
    )


def list_changes(
    session: Session,
    tenant_id: str,
    *,
    subject_id: str | None = None,
    key_id: str | None = None,
    action: str | None = None,
    limit: int = 50,
    before: str | None = None,
) -> list[Audit]:
    """Give what the tenant's keys have done, the newest first, before an id."""
    asked = select(Audit).where(Audit.tenant_id == tenant_id)
    for column, value in ((Audit.subject_id, subject_id), (Audit.key_id, key_id), (Audit.action, action)):
        if value is not None:
            asked = asked.where(column == value)
    if before is not None:
        asked = asked.where(Audit.id < before)
    return list(session.scalars(asked.order_by(Audit.id.desc()).limit(limit)))
