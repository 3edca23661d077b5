"""How much one tenant may have at a time."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models import Blob, Job, JobStatus, is_final
from services import db
from services.errors import QuotaError
from settings import Settings

_ACTIVE = tuple(status for status in JobStatus if not is_final(status))


def check_bytes(session: Session, tenant_id: str, more: int, settings: Settings) -> None:
    """Raise QuotaError where the tenant's stored bytes and `more` are over the quota."""
    if not settings.quota_bytes:
        return
    # Two uploads at once would each see the room that only one of them has.
    db.lock(session, f"bytes {tenant_id}")
    stored = session.scalar(select(func.coalesce(func.sum(Blob.size), 0)).where(Blob.tenant_id == tenant_id)) or 0
    if int(stored) + more > settings.quota_bytes:
        raise QuotaError(
            f"{int(stored)} bytes are stored; with {more} more they are over the quota of {settings.quota_bytes}.",
            code="quota_bytes",
            retry_after_s=3600,
            hint="Delete models or datasets that are no longer needed.",
        )


def check_jobs(session: Session, tenant_id: str, settings: Settings) -> None:
    """Raise QuotaError where the tenant has as many unfinished jobs as it may."""
    if not settings.quota_jobs:
        return
    db.lock(session, f"jobs {tenant_id}")
    asked = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, Job.status.in_(_ACTIVE))
    active = session.scalar(asked) or 0
    if active >= settings.quota_jobs:
        raise QuotaError(
            f"{active} jobs are unfinished; {settings.quota_jobs} are the quota.",
            code="quota_jobs",
            retry_after_s=30,
            hint="Wait until some have ended, or cancel some.",
        )
