"""Limits on metrics that a verdict is made of, and the closed set of metrics."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.target import ProviderName

TaskMetric = Literal["top1", "top5", "f1", "mse", "mae", "iou", "edit_distance", "perplexity"]
FidelityMetric = Literal[
    "sqnr_db", "cosine", "top1_agreement", "kl", "neighbours", "r2", "mask_iou", "box_f1", "token_agreement"
]
CostMetric = Literal[
    "latency_mean",
    "latency_p50",
    "latency_p90",
    "latency_p95",
    "latency_p99",
    "size_bytes",
    "peak_memory",
    "parameters",
]
TASK_METRICS: tuple[str, ...] = get_args(TaskMetric)
FIDELITY_METRICS: tuple[str, ...] = get_args(FidelityMetric)
COST_METRICS: tuple[str, ...] = get_args(CostMetric)
# Metrics where less is better; for all others more is better.
LOWER_IS_BETTER = frozenset({"mse", "mae", "edit_distance", "perplexity", "kl", *COST_METRICS})


class Gate(BaseModel):
    """A limit on one metric that the verdict is made of."""

    # Strict: a JSON number is no boolean, a string no number. JSON has no tuples, so those take arrays.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    metric: TaskMetric | FidelityMetric | CostMetric
    rule: Literal["max_drop", "max_ratio", "min", "max"] = Field(
        description=(
            "`max_drop`: how much worse than the original the metric may get, in the metric's unit (top1 0.01 is one"
            " point). `max_ratio`: limit on compressed / original. `min`, `max`: limit on the compressed network's value."
        )
    )
    value: float = Field(ge=-1e12, le=1e12, allow_inf_nan=False)
    confidence: float = Field(0.95, ge=0.5, le=0.999, description="Of the one-sided bound that has to be inside.")
    level: Literal["error", "warn"] = Field("error", description="`warn` is reported but does not fail the verdict.")

    @model_validator(mode="after")
    def _rule_fits_metric(self) -> Self:
        if self.rule == "max_ratio" and self.metric not in COST_METRICS:
            raise ValueError(f"max_ratio compares costs; for the metric {self.metric} use max_drop, min or max")
        if self.rule == "max_drop" and self.metric not in TASK_METRICS:
            raise ValueError(
                f"max_drop compares the task metric of labelled data; for {self.metric} use"
                f" {'max_ratio or max' if self.metric in COST_METRICS else 'min or max'}"
            )
        return self


class ProfileGate(Gate):
    """A limit on one metric, judged on every target or only on those of one provider.

    `max` on a latency is a budget in milliseconds. `max_ratio` and `max_drop` compare with the baseline, so they need one.
    """

    provider: ProviderName | None = Field(None, description="Judge targets of this provider only; by default all.")
