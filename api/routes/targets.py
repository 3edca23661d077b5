"""What live workers can run on."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.deps import Reading
from api.errors import problems
from services import workers

router = APIRouter(prefix="/v1/targets", tags=["targets"])


class TargetInfo(BaseModel):
    """An execution provider that workers have proven by running a small network on it."""

    model_config = ConfigDict(extra="allow")

    provider: str
    live: bool = Field(description="False: seen in the last days, but no worker has it now.")
    workers: int
    seen_at: datetime


class TargetList(BaseModel):
    """Every target."""

    items: list[TargetInfo]


@router.get("", responses=problems(403))
def list_targets(at: Reading) -> TargetList:
    """List what a job can be optimised for and measured on."""
    return TargetList.model_validate({"items": workers.targets(at.session)})
