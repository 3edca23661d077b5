"""What goes over the wire of tenants: their limits, and what they have of them."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

import models
from api.schemas import NewName
from services import quotas
from services.quotas import Quotas, Usage
from services.tenants import LIMITS, OwnLimits
from settings import Settings

# It is a folder's name in the store.
TenantId = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,62}$", examples=["team-vision"])]


class TenantLimits(BaseModel):
    """A tenant's own limits; null: the service's, 0: none."""

    quota_bytes: int | None = Field(None, ge=0, le=1 << 60, description="Most stored bytes.")
    quota_jobs: int | None = Field(None, ge=0, le=1_000_000, description="Most unfinished jobs.")
    quota_cpu_s: float | None = Field(
        None, ge=0, le=1e9, description="Most seconds of processor time in the service's window."
    )
    rate_per_s: float | None = Field(
        None, ge=0, le=1e6, description="Requests per second of all its keys together, beside the rate of each key."
    )
    rate_burst: int | None = Field(None, ge=1, le=1_000_000, description="Requests of all its keys at once.")

    def limits(self) -> OwnLimits:
        """Give the limits that were named."""
        return {name: getattr(self, name) for name in LIMITS if name in self.model_fields_set}


class NewTenantBody(TenantLimits):
    """A tenant to be made."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"id": "team-vision", "quota_bytes": 50_000_000_000}]}
    )

    id: TenantId
    name: NewName | None = Field(None, description="For people; by default the id.")


class TenantChanges(TenantLimits):
    """What is to change of a tenant; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"quota_jobs": 20, "suspended": False}]})

    name: NewName | None = None
    suspended: bool | None = Field(
        None, description="true: none of its keys opens anything until this is false again; its jobs go on."
    )


class TenantView(TenantLimits):
    """An owner of objects, with its own limits."""

    id: str
    name: str
    suspended_at: datetime | None = Field(description="Since when its keys open nothing.")
    created_at: datetime

    @classmethod
    def of(cls, row: models.Tenant) -> Self:
        """Show a row."""
        return cls.model_validate({name: getattr(row, name) for name in TenantView.model_fields})


class TenantList(BaseModel):
    """Every tenant, by id."""

    items: list[TenantView]


class TenantAmounts(BaseModel):
    """Stored bytes, unfinished jobs, seconds of processor time in the window."""

    bytes: int
    jobs: int
    cpu_s: float

    @classmethod
    def of(cls, found: Quotas | Usage) -> Self:
        """Show amounts."""
        return cls(bytes=found.bytes, jobs=found.jobs, cpu_s=found.cpu_s)


class TenantUsageView(TenantView):
    """A tenant with the quotas that hold for it, its own or the service's, and what it has of them."""

    quotas: TenantAmounts = Field(description="0: no quota.")
    usage: TenantAmounts
    cpu_window_s: float = Field(description="The window that processor time is counted in, in seconds.")

    @classmethod
    def with_usage(cls, row: models.Tenant, usage: Usage, settings: Settings) -> Self:
        """Show a row beside what it has."""
        return cls(
            **TenantView.of(row).model_dump(),
            quotas=TenantAmounts.of(quotas.quotas_of(row, settings)),
            usage=TenantAmounts.of(usage),
            cpu_window_s=settings.quota_cpu_window_s,
        )
