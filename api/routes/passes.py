"""What a recipe can be made of."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

import engine
from api.dependencies import ReadScope
from api.errors import ApiError, problems

router = APIRouter(prefix="/v1/passes", tags=["passes"])


class PassInfo(BaseModel):
    """One pass: what it does, what it takes."""

    model_config = ConfigDict(populate_by_name=True)

    type: str
    summary: str
    documentation: str
    lossless: bool
    needs_data: bool = Field(description="True: the job has to name a dataset.")
    trains: bool = Field(
        description="True: with these defaults it takes a worker with PyTorch; GET /v1/targets says which has it."
    )
    reads_gates: bool = Field(
        description="True: with these defaults it works towards the limits on quality, so a job with other ones is other work."
        " Where no pass of a recipe does, figures of an earlier job are held against them."
    )
    json_schema: dict[str, Any] = Field(alias="schema", description="JSON schema of the pass in a recipe.")
    defaults: dict[str, Any]
    search_space: dict[str, Any] = Field(description="Parameters that a search may turn, with range or choices.")


class PassList(BaseModel):
    """Every pass."""

    items: list[PassInfo]


@router.get("", responses=problems(403))
def list_passes(_scope: ReadScope) -> PassList:
    """List every pass with its parameters, their bounds and defaults."""
    return PassList.model_validate({"items": engine.list_passes()})


@router.get("/{type}", responses=problems(403, 404))
def get_pass(type: str, _scope: ReadScope) -> PassInfo:  # noqa: A002 - the word that recipes use
    """Describe one pass."""
    for described in engine.list_passes():
        if described["type"] == type:
            return PassInfo.model_validate(described)
    raise ApiError(404, "There is no pass of this type; GET /v1/passes lists them.")
