"""Tenants: who has objects in a service and how much they may have; for whoever operates it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from onnxpress.documents import Key
from onnxpress.pages import items
from onnxpress.transport import ApiRequest, Transport


@dataclass(frozen=True)
class Tenant:
    """An owner of objects.

    `limits` has its own ones by name, None for the service's. `quotas` and `usage` (bytes, jobs, cpu_s) are what holds for it and what
    it has, 0 for no quota; they are empty in a list.
    """

    id: str
    name: str
    suspended_at: str | None
    limits: Mapping[str, float | None]
    quotas: Mapping[str, float]
    usage: Mapping[str, float]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read the service's JSON."""
        return cls(
            id=str(document["id"]),
            name=str(document["name"]),
            suspended_at=document.get("suspended_at"),
            limits={key: value for key, value in document.items() if key.startswith(("quota_", "rate_"))},
            quotas=document.get("quotas") or {},
            usage=document.get("usage") or {},
            document=document,
        )


class Tenants:
    """All tenants of a service; for keys with the scope `operator`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def own(self) -> Tenant:
        """Give the tenant of the key that asks; any key may."""
        return Tenant.from_document(self._transport.json(ApiRequest("GET", "/tenant")))

    def list(self) -> list[Tenant]:
        """Give all tenants by id, without what they have."""
        return [Tenant.from_document(one) for one in items(self._transport.json(ApiRequest("GET", "/tenants")))]

    def get(self, tenant_id: str) -> Tenant:
        """Give one with its quotas and its usage; raises NotFoundError."""
        return Tenant.from_document(self._transport.json(ApiRequest("GET", f"/tenants/{tenant_id}")))

    def create(
        self, tenant_id: str, *, name: str | None = None, limits: Mapping[str, float | None] | None = None
    ) -> Tenant:
        """Make a tenant; raises ConflictError where there is one of that id.

        `limits` may have quota_bytes, quota_jobs, quota_cpu_s, rate_per_s and rate_burst: 0 for none, None for the service's.
        """
        body = {"id": tenant_id, **(limits or {})} | ({"name": name} if name else {})
        return Tenant.from_document(self._transport.json(ApiRequest("POST", "/tenants", body=body)))

    def change(
        self,
        tenant_id: str,
        *,
        name: str | None = None,
        limits: Mapping[str, float | None] | None = None,
        suspended: bool | None = None,
    ) -> Tenant:
        """Change what is given; the keys of a suspended tenant open nothing, its jobs go on."""
        body: dict[str, Any] = {**(limits or {})}
        body |= {key: value for key, value in {"name": name, "suspended": suspended}.items() if value is not None}
        return Tenant.from_document(self._transport.json(ApiRequest("PATCH", f"/tenants/{tenant_id}", body=body)))

    def create_key(
        self, tenant_id: str, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None
    ) -> Key:
        """Make a key of any tenant, mostly its first one; its `text` cannot be had again."""
        body = {"name": name, "scopes": [*scopes], "expires_at": expires_at.isoformat() if expires_at else None}
        return Key.from_document(self._transport.json(ApiRequest("POST", f"/tenants/{tenant_id}/keys", body=body)))
