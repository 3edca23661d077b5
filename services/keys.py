"""API keys: made once, shown once, stored as a digest, and looked up in one statement."""

import hashlib
import hmac
import math
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, or_, select
from sqlalchemy.orm import Session

from models import ApiKey, Tenant, new_id
from services import db, idempotency
from services.errors import ConflictError, NotFoundError, UnauthorizedError
from services.scopes import DEFAULT_TENANT, SCOPES
from settings import Settings

_PREFIX = "opk"
_ROUTE = "POST /v1/keys"
_SECRET_BYTES = 24
# Of a tenant: its list is shown whole.
MOST = 1000
# Built once: every request asks it.
_FIND = (
    select(
        ApiKey.tenant_id,
        ApiKey.id,
        ApiKey.scopes,
        ApiKey.secret_sha256,
        ApiKey.expires_at,
        ApiKey.revoked_at,
        Tenant.suspended_at,
        Tenant.rate_per_s,
        Tenant.rate_burst,
    )
    .join(Tenant, Tenant.id == ApiKey.tenant_id)
    .where(ApiKey.id == bindparam("id"))
)


@dataclass(frozen=True)
class NewKey:
    """A key that was just made; its text cannot be had again."""

    row: ApiKey
    text: str | None


@dataclass(frozen=True)
class Rate:
    """How often somebody may ask: `burst` at once, and `per_s` more each second."""

    per_s: float
    burst: int


@dataclass(frozen=True)
class Caller:
    """Who a request comes from; `rate` is what all keys of the tenant share, where it has one of its own."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    rate: Rate | None = None


def ensure_tenant(session: Session, tenant_id: str, name: str | None = None) -> Tenant:
    """Give the tenant, making it where it does not exist."""
    db.lock(session, f"tenant {tenant_id}")
    tenant = session.get(Tenant, tenant_id)
    if tenant is None:
        tenant = Tenant(id=tenant_id, name=name or tenant_id, created_at=db.now(session))
        session.add(tenant)
        session.flush()
    return tenant


def create(
    session: Session, tenant_id: str, name: str, scopes: tuple[str, ...], expires_at: datetime | None = None
) -> NewKey:
    """Make a key of a tenant; raises ConflictError where as many are valid as it may have.

    Of those that have ended, as many are forgotten as there is no room for, the oldest first; what they did stays in the audit.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        raise ValueError(f"no such scope: {', '.join(unknown)}")
    _make_room(session, tenant_id)
    secret = secrets.token_hex(_SECRET_BYTES)
    row = ApiKey(
        id=new_id("key"),
        tenant_id=tenant_id,
        name=name,
        secret_sha256=_digest(secret),
        scopes=list(scopes),
        created_at=db.now(session),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return NewKey(row, f"{_PREFIX}_{row.id.removeprefix('key_')}_{secret}")


def _make_room(session: Session, tenant_id: str) -> None:
    db.lock(session, f"keys {tenant_id}")
    own = ApiKey.tenant_id == tenant_id
    over = (session.scalar(select(func.count()).select_from(ApiKey).where(own)) or 0) - MOST + 1
    if over <= 0:
        return
    has_ended = or_(ApiKey.revoked_at.is_not(None), ApiKey.expires_at <= db.now(session))
    ended = session.scalars(select(ApiKey.id).where(own, has_ended).order_by(ApiKey.id).limit(over)).all()
    if len(ended) < over:
        raise ConflictError(
            f"The tenant has {MOST} valid keys, which is the most.",
            code="too_many_keys",
            hint="Revoke one that is not needed.",
        )
    session.execute(delete(ApiKey).where(ApiKey.id.in_(ended)))


def authenticate(session: Session, text: str) -> Caller:
    """Give the caller behind a key's text; raises UnauthorizedError, the same for every reason."""
    refusal = UnauthorizedError("The API key is unknown, expired or revoked.")
    parts = text.split("_")
    if len(parts) != 3 or parts[0] != _PREFIX:
        raise refusal
    row = session.execute(_FIND, {"id": f"key_{parts[1]}"}).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_sha256, _digest(parts[2])):
        raise refusal
    caller = _caller(row)
    if caller is None:
        raise refusal
    return caller


def valid_caller(session: Session, key_id: str) -> Caller | None:
    """Give the caller behind a key's id, of whom something else vouches; None where the key is no longer valid."""
    row = session.execute(_FIND, {"id": key_id}).one_or_none()
    return None if row is None else _caller(row)


def _caller(row: Row[Any]) -> Caller | None:
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= datetime.now(UTC)):
        return None
    if row.suspended_at is not None:
        return None
    # A rate without a burst lets a second's requests come at once.
    rate = Rate(row.rate_per_s, row.rate_burst or math.ceil(row.rate_per_s)) if row.rate_per_s else None
    return Caller(row.tenant_id, row.id, frozenset(row.scopes), rate)


def list_keys(session: Session, tenant_id: str) -> list[ApiKey]:
    """Give the tenant's keys, the newest first."""
    return list(session.scalars(select(ApiKey).where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.id.desc())))


def get_key(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """Give the tenant's key; raises NotFoundError."""
    row = session.scalars(select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)).one_or_none()
    if row is None:
        raise NotFoundError("There is no such key.")
    return row


def expire(session: Session, tenant_id: str, key_id: str, expires_at: datetime | None) -> ApiKey:
    """Set the end of a key's validity, None for no end; a revoked one stays revoked. Raises NotFoundError."""
    row = get_key(session, tenant_id, key_id)
    row.expires_at = expires_at
    return row


def create_once(
    session: Session,
    tenant_id: str,
    name: str,
    scopes: tuple[str, ...],
    *,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> NewKey:
    """Make a key, or give the one that the same request made before: without its text, which is shown once."""
    if idempotency_key is None:
        return create(session, tenant_id, name, scopes, expires_at)
    body = {"name": name, "scopes": sorted(scopes), "expires_at": expires_at.isoformat() if expires_at else None}
    earlier = idempotency.begin(session, tenant_id, _ROUTE, idempotency_key, idempotency.digest(body))
    if earlier is not None:
        return NewKey(get_key(session, tenant_id, earlier), None)
    made = create(session, tenant_id, name, scopes, expires_at)
    idempotency.answer(session, tenant_id, _ROUTE, idempotency_key, made.row.id)
    return made


def revoke(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """End a key's validity; raises NotFoundError."""
    row = get_key(session, tenant_id, key_id)
    if row.revoked_at is None:
        row.revoked_at = db.now(session)
    return row


def ensure_admin_key(settings: Settings, path: Path) -> None:
    """Have a file, readable by its owner only, with a valid key of the default tenant for everything.

    An existing valid one stays, and is given the scopes that are newer than it: whoever has the file has the database too.
    """
    database = db.Database.from_settings(settings)
    try:
        with database.transaction() as session:
            ensure_tenant(session, DEFAULT_TENANT)
            found = _valid_key(session, path.read_text().strip()) if path.exists() else None
            if found is not None:
                found.scopes = list(SCOPES)
                return
            new = create(session, DEFAULT_TENANT, "admin", SCOPES)
            _write_private(path, f"{new.text}\n")
    finally:
        database.dispose()


def _valid_key(session: Session, text: str) -> ApiKey | None:
    try:
        return session.get(ApiKey, authenticate(session, text).key_id)
    except UnauthorizedError:
        return None


def _write_private(path: Path, text: str) -> None:
    # A new file beside it, so that no older, wider permissions remain.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _digest(secret: str) -> str:
    # The secret is 192 random bits: a slow hash would only slow every request down.
    return hashlib.sha256(secret.encode()).hexdigest()
