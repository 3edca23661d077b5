"""How much one tenant may have at a time: what its own row says, else the settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from models import (
    DELIVERY_BYTES,
    Blob,
    Dataset,
    Job,
    JobStatus,
    Model,
    Tenant,
    Trial,
    Unit,
    Upload,
    Webhook,
    WebhookDelivery,
    is_final,
)
from services import db
from services.errors import QuotaError
from services.storage import Stored
from settings import Settings

_ACTIVE = tuple(status for status in JobStatus if not is_final(status))
_COUNTED = (
    (Blob.size, Blob.tenant_id),
    # Of uploads in pieces all that they have announced, until they are stored.
    (Upload.reserved, Upload.tenant_id),
    *((table.row_bytes, table.tenant_id) for table in (Model, Dataset, Job, Trial)),
)


@dataclass(frozen=True)
class Quotas:
    """The most that a tenant may have; 0: no quota."""

    bytes: int
    jobs: int
    cpu_s: float


@dataclass(frozen=True)
class Usage:
    """What a tenant has: stored bytes, unfinished jobs, seconds of processor time in the window."""

    bytes: int
    jobs: int
    cpu_s: float


@dataclass(frozen=True)
class Room:
    """What a tenant has stored, and the most that it may, in bytes."""

    stored: int
    quota: int

    @property
    def left(self) -> int:
        """What it may store yet."""
        return max(0, self.quota - self.stored)

    def check(self, more: int) -> None:
        """Raise QuotaError where so many more are too many."""
        if more > self.left:
            raise QuotaError(
                f"{self.stored} bytes are stored; with {more} more they are over the quota of {self.quota}.",
                code="quota_bytes",
                retry_after_s=3600,
                hint="Delete models or datasets that are no longer needed.",
            )


def quotas_of(tenant: Tenant | None, settings: Settings) -> Quotas:
    """Give what holds for a tenant."""
    if tenant is None:
        return Quotas(settings.quota_bytes, settings.quota_jobs, settings.quota_cpu_s)
    return Quotas(
        settings.quota_bytes if tenant.quota_bytes is None else tenant.quota_bytes,
        settings.quota_jobs if tenant.quota_jobs is None else tenant.quota_jobs,
        settings.quota_cpu_s if tenant.quota_cpu_s is None else tenant.quota_cpu_s,
    )


def usage(session: Session, tenant_id: str, settings: Settings) -> Usage:
    """Give what a tenant has now."""
    return Usage(
        stored_bytes(session, tenant_id), _unfinished_jobs(session, tenant_id), _used_cpu(session, tenant_id, settings)
    )


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Give what counts against a tenant's quota.

    Files, also announced ones; rows of networks, data, jobs and trials, with their events and units; what was sent to webhooks.
    """
    session.flush()
    hooks = select(Webhook.id).where(Webhook.tenant_id == tenant_id)
    sent = select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.webhook_id.in_(hooks))
    found = DELIVERY_BYTES * (session.scalar(sent) or 0)
    for column, owner in _COUNTED:
        found += int(session.scalar(select(func.coalesce(func.sum(column), 0)).where(owner == tenant_id)) or 0)
    return found


def check_bytes(session: Session, tenant_id: str, more: int, settings: Settings) -> None:
    """Raise QuotaError where the tenant's stored bytes and `more` are over the quota."""
    quota = _quotas(session, tenant_id, settings).bytes
    if not quota:
        return
    # Two uploads at once would each see the room that only one of them has.
    db.lock(session, f"bytes {tenant_id}")
    Room(stored_bytes(session, tenant_id), quota).check(more)


def room(session: Session, tenant_id: str, settings: Settings) -> Room | None:
    """Give what the tenant may store yet, None for as much as it likes."""
    quota = _quotas(session, tenant_id, settings).bytes
    if not quota:
        return None
    return Room(stored_bytes(session, tenant_id), quota)


def check_files(
    session: Session, tenant_id: str, files: Sequence[Stored], settings: Settings, *, instead_of: int = 0
) -> None:
    """Raise QuotaError where files that a unit has left are over the quota; those with bytes that are stored are free.

    `instead_of`: bytes that go when these come, of an archive that was unpacked.
    """
    if not files or not _quotas(session, tenant_id, settings).bytes:
        return
    sizes = {file.sha256: file.size for file in files}
    known = select(Blob.sha256).where(Blob.tenant_id == tenant_id, Blob.sha256.in_(list(sizes)))
    new = sizes.keys() - set(session.scalars(known))
    check_bytes(session, tenant_id, sum(sizes[sha256] for sha256 in new) - instead_of, settings)


def check_jobs(session: Session, tenant_id: str, settings: Settings) -> None:
    """Raise QuotaError where the tenant has as many unfinished jobs as it may."""
    quota = _quotas(session, tenant_id, settings).jobs
    if not quota:
        return
    db.lock(session, f"jobs {tenant_id}")
    active = _unfinished_jobs(session, tenant_id)
    if active >= quota:
        raise QuotaError(
            f"{active} jobs are unfinished; {quota} are the quota.",
            code="quota_jobs",
            retry_after_s=30,
            hint="Wait until some have ended, or cancel some.",
        )


def check_cpu(session: Session, tenant_id: str, settings: Settings) -> None:
    """Raise QuotaError where the tenant's units have used up the processor time of the window.

    What ended before the window no longer counts; what has not ended counts with what it has used so far.
    """
    quota = _quotas(session, tenant_id, settings).cpu_s
    if not quota:
        return
    used = _used_cpu(session, tenant_id, settings)
    if used < quota:
        return
    window = timedelta(seconds=settings.quota_cpu_window_s)
    moment = db.now(session)
    ended = (Unit.tenant_id == tenant_id, Unit.finished_at > moment - window)
    # The first moment at which enough of it has left the window.
    gone = func.sum(Unit.cpu_s).over(order_by=(Unit.finished_at, Unit.id)).label("gone")
    leaving = select(Unit.finished_at, gone).where(*ended).subquery()
    after = select(leaving.c.finished_at).where(leaving.c.gone > used - quota)
    last = session.scalars(after.order_by(leaving.c.gone).limit(1)).first()
    wait = window if last is None else last + window - moment
    raise QuotaError(
        f"{used:.0f} s of processor time were used in the last {window}; {quota:.0f} s are the quota.",
        code="quota_cpu",
        retry_after_s=max(1, math.ceil(wait.total_seconds())),
        hint="Wait until enough of it is long ago.",
    )


def _quotas(session: Session, tenant_id: str, settings: Settings) -> Quotas:
    return quotas_of(session.get(Tenant, tenant_id), settings)


def _unfinished_jobs(session: Session, tenant_id: str) -> int:
    asked = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, Job.status.in_(_ACTIVE))
    return session.scalar(asked) or 0


def _used_cpu(session: Session, tenant_id: str, settings: Settings) -> float:
    since = db.now(session) - timedelta(seconds=settings.quota_cpu_window_s)
    counted = or_(Unit.finished_at.is_(None), Unit.finished_at > since)
    asked = select(func.coalesce(func.sum(Unit.cpu_s), 0.0)).where(Unit.tenant_id == tenant_id, counted)
    return float(session.scalar(asked) or 0.0)
