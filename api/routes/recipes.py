"""Recipes that have a name."""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.dependencies import ReadScope
from api.errors import Problem, problem_of, problems
from api.schemas import DatasetId, ModelId
from engine import Estimate, LeftOut, ProviderName
from services import recipes

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])


class RecipeInfo(BaseModel):
    """A chain of passes that a job asks for by its name: `"recipe": "fast"`."""

    name: str
    summary: str
    documentation: str
    needs_data: bool = Field(description="True: the job has to name a dataset.")
    trains: bool = Field(
        description="True: some of its passes take a worker with PyTorch, and are left out without one."
    )
    passes: list[dict[str, Any]] = Field(description="With every default filled in.")
    left_out: list[LeftOut] = Field(
        description="What a job would do without now, and why: for the network, if one is named."
    )
    problem: Problem | None = Field(description="Why nothing of it could be done for the network.")
    estimate: Estimate | None = Field(description="What it would take for the network; null without one.")

    @classmethod
    def of(cls, offer: recipes.Offer) -> Self:
        """Show a recipe."""
        return cls(
            **offer.described,
            left_out=[LeftOut.model_validate(each) for each in offer.left_out],
            problem=None if offer.problem is None else problem_of(offer.problem),
            estimate=offer.estimate,
        )


class RecipeList(BaseModel):
    """Every recipe that has a name."""

    items: list[RecipeInfo]


@router.get("", responses=problems(403, 404, 409))
def list_recipes(
    scope: ReadScope,
    model: Annotated[ModelId | None, Query(description="Say what each would be for this network, and take.")] = None,
    dataset: Annotated[DatasetId | None, Query(description="The data that a job would have.")] = None,
    provider: Annotated[ProviderName, Query(description="The execution provider that a job would be for.")] = "cpu",
) -> RecipeList:
    """List the recipes that a job may ask for by name, each with its passes; for a network also with the time that it takes."""
    found = recipes.offers(
        scope.session, scope.tenant_id, model_id=model, dataset_id=dataset, target={"provider": provider}
    )
    return RecipeList(items=[RecipeInfo.of(offer) for offer in found])
