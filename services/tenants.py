"""Who has objects here: tenants, their own limits, and what they have of them. For whoever operates the service."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import Tenant
from services import db
from services.errors import ConflictError, NotFoundError

# What a tenant may have of its own; None: the service's, 0: none.
LIMITS = ("quota_bytes", "quota_jobs", "quota_cpu_s", "rate_per_s", "rate_burst")
OwnLimits = Mapping[str, float | int | None]


def create(session: Session, tenant_id: str, *, name: str | None = None, limits: OwnLimits | None = None) -> Tenant:
    """Make a tenant; raises ConflictError where there is one of that id."""
    db.lock(session, f"tenant {tenant_id}")
    if session.get(Tenant, tenant_id) is not None:
        raise ConflictError(f"There is a tenant {tenant_id} already.", code="tenant_exists")
    tenant = Tenant(id=tenant_id, name=name or tenant_id, created_at=db.now(session))
    _set_limits(tenant, limits or {})
    session.add(tenant)
    session.flush()
    return tenant


def get(session: Session, tenant_id: str) -> Tenant:
    """Give a tenant; raises NotFoundError."""
    found = session.get(Tenant, tenant_id)
    if found is None:
        raise NotFoundError("There is no such tenant.")
    return found


def list_tenants(session: Session) -> list[Tenant]:
    """Give all tenants by id."""
    return list(session.scalars(select(Tenant).order_by(Tenant.id)))


def change(
    session: Session,
    tenant_id: str,
    *,
    name: str | None = None,
    limits: OwnLimits | None = None,
    suspended: bool | None = None,
) -> Tenant:
    """Change what is given of a tenant; a limit of None is the service's again. Raises NotFoundError.

    The keys of a suspended one open nothing; its jobs go on, and nothing of it is removed.
    """
    tenant = get(session, tenant_id)
    tenant.name = name or tenant.name
    _set_limits(tenant, limits or {})
    if suspended is not None:
        tenant.suspended_at = _since(tenant, db.now(session)) if suspended else None
    return tenant


def _set_limits(tenant: Tenant, limits: OwnLimits) -> None:
    for limit, value in limits.items():
        if limit not in LIMITS:
            raise ValueError(f"no such limit: {limit}")
        setattr(tenant, limit, value)


def _since(tenant: Tenant, moment: datetime) -> datetime:
    return moment if tenant.suspended_at is None else tenant.suspended_at
