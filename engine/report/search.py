"""What a search tells: the points of its space and what is known of them, the story of its trials, and the front that is left."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from engine.gate import Gate
from engine.goal import Budget, Goal, NodeName, Precision, Strategy

# How much is done for a candidate: cut and refitted in closed form; and distilled for a while, or for all that is left.
Level = Literal["refit", "short", "full"]
Option = str | int | float | bool | None
Kept = Annotated[int, Field(ge=1, le=1 << 20)]


# Infinite damage is null in JSON, which has no infinity.
Damage = Annotated[
    float,
    BeforeValidator(lambda damage: math.inf if damage is None else damage, json_schema_input_type=float | None),
    PlainSerializer(
        lambda damage: damage if math.isfinite(damage) else None, return_type=float | None, when_used="json"
    ),
]


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class _Value(BaseModel):
    # What a newer version says besides is left out: during an upgrade both read what the other has stored.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Point(_Asked):
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
    options: dict[str, Option] = Field(
        default_factory=dict,
        description="Parameters of passes that are not at their defaults, as `prune_channels.importance`.",
    )


class Predicted(_Asked):
    """What is expected of a point before it is made."""

    latency_ratio: float = Field(description="Time of a run, as a share of the original's.")
    size_bytes: int
    macs: int
    damage: Damage = Field(
        description="Sum of the damage of its variants on the samples to choose by; 0: none, null: one of them cannot be made."
    )


class MeasuredQuality(_Value):
    """One metric on the samples to choose by; of a fidelity metric the network's value alone."""

    metric: str
    output: str | None = None
    original: float | None = None
    compressed: float
    difference: float | None = Field(None, description="compressed - original.")


class Measured(_Value):
    """What was measured of a candidate, beside the original on the same worker."""

    size_bytes: int
    macs: int
    parameters: int
    latency_ratio: float | None = Field(None, description="p50 as a share of the original's; below 1 is faster.")
    latency_low: float | None = None
    latency_high: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    peak_memory: int | None = None
    quality: tuple[MeasuredQuality, ...] = ()


class StoryLine(_Value):
    """One trial: what was tried and why, what came of it, and what it was good for."""

    trial: int = Field(description="Its number, from 1 in the order of the search.")
    round: int = Field(description="Trials of one round were chosen from what the rounds before had measured.")
    level: Level
    tried: str = Field(description="The candidate in words.")
    because: str = Field(description="Who proposed it, and why.")
    state: Literal["succeeded", "failed", "cancelled"]
    predicted: Predicted | None = None
    measured: Measured | None = None
    holds: bool | None = Field(None, description="Whether it holds every limit on the samples to choose by.")
    kept: bool = Field(description="Whether it is a point of the front, or what the search went on from.")
    why: str = Field(description="Why it was kept or dropped.")
    seconds: float = 0.0


class FrontPoint(_Value):
    """A candidate that no other one beats in everything; it can be made by a job with this recipe."""

    trial: int
    point: Point
    level: Level
    tried: str = Field(description="The candidate in words.")
    recipe: tuple[dict[str, Any], ...] = Field(description="Bodies of the passes that make it.")
    predicted: Predicted | None = None
    measured: Measured
    holds: bool = Field(description="Whether it holds every limit on the samples to choose by.")


class Miss(_Value):
    """A limit that a candidate does not hold."""

    limit: str = Field(description="The limit in words.")
    gate: Gate | None = Field(description="null: nobody asked, but no output may lose so much unasked.")
    measured: float | None
    by: float | None = Field(description="How far it is off, as a share of what is allowed; null: not measured.")


class NearPoint(_Value):
    """A candidate that comes near a goal that none holds, and what it misses."""

    trial: int
    tried: str
    measured: Measured
    misses: tuple[Miss, ...]


class LimitStanding(_Value):
    """One limit of the goal: how many candidates hold it, how near the others came, and what stands against it."""

    gate: Gate
    limit: str = Field(description="The limit in words.")
    held_by: int = Field(description="Candidates that hold it on the samples to choose by.")
    best: float | None = Field(description="The best value that any candidate has.")
    best_trial: int | None = None
    limited_by: str = Field(description="What limits going on, in words.")


class Certificate(_Value):
    """The latency that was predicted of a composed network, beside the measured one; shares of the original's."""

    trial: int
    predicted: float
    measured: float
    error: float = Field(description="|predicted - measured| / measured.")


class Certificates(_Value):
    """Predicted beside measured latency of the networks that were made of measured parts."""

    compared: tuple[Certificate, ...] = ()
    median_error: float | None = None


class Counts(_Value):
    """How trials ended."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class SearchReport(_Value):
    """What a search was to find, what it tried, and what there is to choose from."""

    goal: Goal
    strategy: Strategy
    seed: int
    budget: Budget = Field(description="What it could take, in seconds and trials.")
    seconds: float = Field(description="From its first turn to its last, without pauses.")
    trials: Counts
    stopped: str = Field(description="Why it ended when it did.")
    chosen: int | None = Field(description="The trial that made the result; null: the original is the best there is.")
    met: bool = Field(description="Whether the result holds every limit, on the samples that judge.")
    story: tuple[StoryLine, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    nearest: tuple[NearPoint, ...] = Field((), description="Where nothing holds every limit: what comes nearest.")
    limits: tuple[LimitStanding, ...] = ()
    certificates: Certificates = Field(default_factory=Certificates)
