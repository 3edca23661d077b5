"""What a deployment needs, instead of how to get there: a goal, what the search may cost, and where it looks."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.gate import Gate

Minimised = Literal["latency", "size", "memory", "macs"]
Effort = Literal["low", "medium", "high"]
# `auto`: the variant library and its solver, and what time is left for the study that it warms up.
Strategy = Literal["auto", "tpe", "nsga2", "random", "gradient", "reinforce"]
Precision = Literal["float32", "float16", "static", "dynamic", "weights8", "weights4"]
Share = Annotated[float, Field(gt=0, le=1)]
NodeName = Annotated[str, Field(min_length=1, max_length=512)]


class _Value(BaseModel):
    # Strict: a JSON number is no boolean, a string no number. JSON has no tuples, so those take arrays.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Goal(_Value):
    """The least of one cost that still holds every limit."""

    minimise: Minimised = Field("latency", description="What the result has least of.")
    subject_to: tuple[Gate, ...] = Field(
        (), max_length=32, strict=False, description="What it has to hold; the verdict is about these."
    )
    effort: Effort = Field(
        "medium", description="What the search may take where no budget says it: about 3, 10 or 30 minutes."
    )


class Budget(_Value):
    """What a search may take; what is not said follows from the goal's effort."""

    max_seconds: float | None = Field(
        None, ge=5, le=7 * 86400, description="From the job's start to its result, without pauses."
    )
    max_trials: int | None = Field(None, ge=1, le=10_000, description="Candidates that are made and measured.")


# Seconds and trials by effort.
BUDGETS: Mapping[Effort, tuple[float, int]] = {"low": (180.0, 16), "medium": (600.0, 60), "high": (1800.0, 240)}


def settled(budget: Budget, effort: Effort) -> tuple[float, int]:
    """Give the seconds and trials that a search may take: what its budget says, else what its effort stands for."""
    seconds, trials = BUDGETS[effort]
    return budget.max_seconds or seconds, budget.max_trials or trials


class Space(_Value):
    """Where a search looks. What is not said is found: every group, block and layer that can change."""

    widths: tuple[Share, ...] = Field(
        (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25),
        max_length=32,
        strict=False,
        description="Shares of channels, heads and hidden neurons that a group may keep.",
    )
    drop_blocks: bool = Field(default=True, description="Whether residual branches may go.")
    ranks: tuple[Share, ...] = Field(
        (0.5, 0.25), max_length=16, strict=False, description="Shares of a layer's multiplications at a lower rank."
    )
    precisions: tuple[Precision, ...] = Field(
        ("float32", "static", "dynamic", "weights8", "weights4", "float16"),
        min_length=1,
        max_length=6,
        strict=False,
        description="What candidates may be stored and computed in.",
    )
    train: bool = Field(default=True, description="Whether the best may be distilled; takes PyTorch.")
    flip: bool = Field(default=False, description="Training may mirror images.")
    exclude: tuple[NodeName, ...] = Field(
        (), max_length=4096, strict=False, description="Names of nodes that stay as they are."
    )
