"""What goes over the wire of searches: their trials, their front, and points that are picked."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

import models
from api.schemas import Fault, Labels
from engine import Gate, Point, Predicted, Proposal, TrialValues
from services import fronts, trials


class TrialView(BaseModel):
    """A candidate of a search, and what came of it."""

    number: int = Field(description="From 1, in the order in which they were proposed.")
    state: models.TrialState = Field(description="A `failed` one is a result too: `problem` says why.")
    proposal: Proposal
    values: TrialValues | None = Field(description="What was measured, on samples that do not judge.")
    problem: Fault | None
    stored: bool = Field(description="Whether its network is kept.")
    model: str | None = Field(description="The network under an id of its own, once it was picked.")
    seconds: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: models.Trial) -> Self:
        """Show a row."""
        return cls(
            number=row.number,
            state=row.in_state,
            proposal=Proposal.model_validate(row.proposal),
            values=TrialValues.model_validate(row.values) if row.values else None,
            problem=Fault.model_validate(row.problem) if row.problem else None,
            stored=row.artifact_digest is not None,
            model=row.model_id,
            seconds=trials.seconds(row),
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )


class TrialPage(BaseModel):
    """A part of a search's trials, in the order in which they were proposed."""

    items: list[TrialView]
    next_after: int | None = Field(description="Give it as `after` for the next page; null: this is the last one.")


class FrontPointView(BaseModel):
    """A candidate that no other one of its search beats in everything."""

    number: int = Field(description="Of its trial: what `:pick` takes.")
    point: Point
    level: Literal["refit", "short", "full"] = Field(description="How much was done for it.")
    because: str = Field(description="Who proposed it, and why.")
    recipe: list[dict[str, Any]] | None = Field(
        description="The passes that make it again; null: they come with the search's end."
    )
    predicted: Predicted | None
    measured: TrialValues = Field(description="On samples that do not judge.")
    stored: bool = Field(description="Whether its network is kept, so that picking it makes nothing anew.")
    model: str | None = Field(description="The network under an id of its own, once it was picked.")

    @classmethod
    def of(cls, row: models.Trial) -> Self:
        """Show a row."""
        proposal = Proposal.model_validate(row.proposal)
        return cls(
            number=row.number,
            point=proposal.point,
            level=proposal.level,
            because=proposal.because,
            recipe=row.recipe,
            predicted=proposal.predicted,
            measured=TrialValues.model_validate(row.values),
            stored=row.artifact_digest is not None,
            model=row.model_id,
        )


class FrontView(BaseModel):
    """What there is to choose from of a search: while it goes on, as it is now."""

    job: str
    status: models.JobStatus
    final: bool = Field(description="Whether the search has ended, so that the front stays as it is.")
    minimise: Literal["latency", "size", "memory", "macs"]
    chosen: int | None = Field(
        description="The trial that made the result; null: none yet, or the original is the best."
    )
    points: list[FrontPointView] = Field(description="The least of what is minimised first.")

    @classmethod
    def of(cls, front: fronts.Front) -> Self:
        """Show a front."""
        return cls.model_validate(
            {
                "job": front.job.id,
                "status": front.job.in_status,
                "final": front.is_final,
                "minimise": front.minimise,
                "chosen": front.chosen,
                "points": [FrontPointView.of(trial) for trial in front.trials],
            }
        )


class PickBody(BaseModel):
    """What is to hold of the point that is made real."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"gates": [{"metric": "top1", "rule": "max_drop", "value": 0.01}]}]},
    )

    gates: list[Gate] | None = Field(None, max_length=32, description="Instead of the goal's limits; null: those.")
    labels: Labels | None = Field(None, description="Instead of the search's.")
    priority: int = Field(0, ge=-100, le=100, description="The higher, the sooner among your own jobs.")
