"""How much one tenant may have at a time."""

import math
from datetime import timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from models import Blob, Job, JobStatus, Unit, is_final
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


def check_cpu(session: Session, tenant_id: str, settings: Settings) -> None:
    """Raise QuotaError where the tenant's units have used up the processor time of the window.

    What ended before the window no longer counts; what has not ended counts with what it has used so far.
    """
    if not settings.quota_cpu_s:
        return
    window = timedelta(seconds=settings.quota_cpu_window_s)
    moment = db.now(session)
    ended = (Unit.tenant_id == tenant_id, Unit.finished_at > moment - window)
    counted = or_(Unit.finished_at.is_(None), Unit.finished_at > moment - window)
    asked = select(func.coalesce(func.sum(Unit.cpu_s), 0.0)).where(Unit.tenant_id == tenant_id, counted)
    used = float(session.scalar(asked) or 0.0)
    if used < settings.quota_cpu_s:
        return
    # The first moment at which enough of it has left the window.
    gone = func.sum(Unit.cpu_s).over(order_by=(Unit.finished_at, Unit.id)).label("gone")
    leaving = select(Unit.finished_at, gone).where(*ended).subquery()
    after = select(leaving.c.finished_at).where(leaving.c.gone > used - settings.quota_cpu_s)
    last = session.scalars(after.order_by(leaving.c.gone).limit(1)).first()
    wait = window if last is None else last + window - moment
    raise QuotaError(
        f"{used:.0f} s of processor time were used in the last {window}; {settings.quota_cpu_s:.0f} s are the quota.",
        code="quota_cpu",
        retry_after_s=max(1, math.ceil(wait.total_seconds())),
        hint="Wait until enough of it is long ago.",
    )
