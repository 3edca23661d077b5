"""What a search speaks of: points of its space, proposals of them, and what came of a trial. All of it is JSON."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.goal import NodeName, Precision
from engine.report.values import Quality, Ratio

# How much is done for a candidate: cut and refitted in closed form; and distilled for a while, or for all that is left.
Level = Literal["refit", "short", "full"]
Kept = Annotated[int, Field(ge=1, le=1 << 20)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Value):
    """One architecture: what of the given network is left, and in which precision. Empty: the network as it is."""

    dropped: tuple[NodeName, ...] = Field((), description="Sums whose residual branch is gone, in the graph's order.")
    widths: dict[str, Kept] = Field(
        default_factory=dict, description="By name of a group: channels, heads or neurons it keeps. Others keep all."
    )
    ranks: dict[NodeName, Kept] = Field(
        default_factory=dict, description="By name of a layer: its rank. Others stay whole."
    )
    precision: Precision = "float32"
    in_float: tuple[NodeName, ...] = Field((), description="Layers that stay in float where others are quantized.")


class Predicted(_Value):
    """What is expected of a point before it is made."""

    latency_ratio: float = Field(description="Time of a run, as a share of the original's.")
    size_bytes: int
    macs: int
    damage: float = Field(description="Sum of the damage of its variants on the samples to choose by; 0: none.")


class Proposal(_Value):
    """A point to be tried."""

    point: Point
    level: Level = "refit"
    train_s: float = Field(0.0, ge=0, description="Seconds of distillation.")
    inherits: int | None = Field(None, description="The trial whose network it goes on from; None: the original.")
    because: str = Field(max_length=300, description="Who proposes it, and why, in words.")
    predicted: Predicted | None = None


class TrialValues(_Value):
    """What was measured of a candidate. Quality is on the samples to choose by: no trial sees those that judge."""

    size_bytes: int
    macs: int
    parameters: int
    # Of the median, beside the original on the same worker. None where networks cannot be timed.
    latency: Ratio | None
    latency_stable: bool = True
    p99: Ratio | None = None
    # Median of a run in ms on that worker.
    p50_ms: float | None = None
    p99_ms: float | None = None
    peak_memory: int | None = None
    quality: tuple[Quality, ...] = ()
    seconds: float = Field(description="That the trial took.")
    # What of the recipe could not be done, in words.
    left_out: tuple[str, ...] = ()


class Told(_Value):
    """A trial that has ended, as its search is told of it."""

    number: int
    proposal: Proposal
    state: Literal["succeeded", "failed", "cancelled"]
    values: TrialValues | None = None
    problem: dict[str, Any] | None = None
    seconds: float = 0.0
