"""What a search speaks of: points of its space, proposals of them, and what came of a trial. All of it is JSON."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.report.search import Level, Measured, MeasuredQuality, Option, Point, Predicted
from engine.report.values import Quality, Ratio

# The report speaks of points too, so that they lie with its values.
__all__ = ["Level", "Option", "Point", "Predicted", "Proposal", "Stage", "Told", "TrialValues"]

# What a trial is for: a pass by itself, an architecture, a proposal of the study, training, and precisions of what was trained.
Stage = Literal["single", "round", "study", "short", "full", "stored"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Proposal(_Value):
    """A point to be tried."""

    point: Point
    level: Level = "refit"
    train_s: float = Field(0.0, ge=0, description="Seconds of distillation.")
    inherits: int | None = Field(None, description="The trial whose network it goes on from; None: the original.")
    stage: Stage = "round"
    round: int = Field(0, ge=0, description="Trials of a round were chosen from what the rounds before had measured.")
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


def measured(values: TrialValues) -> Measured:
    """Give what a report says of a trial's measurement."""
    ratio = values.latency
    return Measured(
        size_bytes=values.size_bytes,
        macs=values.macs,
        parameters=values.parameters,
        latency_ratio=None if ratio is None else ratio.value,
        latency_low=None if ratio is None else ratio.interval.low,
        latency_high=None if ratio is None else ratio.interval.high,
        p50_ms=values.p50_ms,
        p99_ms=values.p99_ms,
        peak_memory=values.peak_memory,
        quality=tuple(
            MeasuredQuality(
                metric=each.metric,
                output=each.output,
                original=each.original,
                compressed=each.compressed,
                difference=each.difference,
            )
            for each in values.quality
        ),
    )
