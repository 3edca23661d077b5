"""Limits on metrics that a verdict is made of, and the closed set of metrics."""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.outputs import OutputKind
from engine.target import ProviderName

TaskMetric = Literal["top1", "top5", "f1", "mse", "mae", "iou", "edit_distance", "perplexity", "nats_per_token"]
FidelityMetric = Literal[
    "sqnr_db", "cosine", "top1_agreement", "kl", "neighbours", "r2", "mask_iou", "box_f1", "token_agreement"
]
CostMetric = Literal[
    "latency_mean",
    "latency_p50",
    "latency_p90",
    "latency_p95",
    "latency_p99",
    "latency_decode",
    "size_bytes",
    "peak_memory",
    "parameters",
]
TASK_METRICS: tuple[str, ...] = get_args(TaskMetric)
FIDELITY_METRICS: tuple[str, ...] = get_args(FidelityMetric)
COST_METRICS: tuple[str, ...] = get_args(CostMetric)
# What is measured of an output of each kind: beside the original's, and by labels.
KIND_METRICS: Mapping[OutputKind, tuple[FidelityMetric, ...]] = {
    "classes": ("sqnr_db", "cosine", "top1_agreement", "kl"),
    "embedding": ("cosine", "neighbours", "sqnr_db"),
    "values": ("sqnr_db", "r2", "cosine"),
    "mask": ("mask_iou", "top1_agreement", "sqnr_db", "cosine"),
    "boxes": ("box_f1",),
    "tokens": ("token_agreement", "kl", "sqnr_db", "cosine"),
    "state": ("sqnr_db", "cosine"),
}
KIND_TASKS: Mapping[OutputKind, tuple[TaskMetric, ...]] = {
    "classes": ("top1", "top5", "f1", "perplexity", "nats_per_token", "edit_distance"),
    "embedding": ("mse", "mae"),
    "values": ("mse", "mae"),
    "mask": ("iou", "f1", "top1"),
    "boxes": (),
    "tokens": ("perplexity", "nats_per_token", "edit_distance", "top1", "top5"),
    "state": (),
}
# Metrics that are measured with another one, which is what the labels are declared for.
MEASURED_WITH: Mapping[str, str] = {"nats_per_token": "perplexity"}
# Metrics where less is better; for all others more is better.
LOWER_IS_BETTER = frozenset({"mse", "mae", "edit_distance", "perplexity", "nats_per_token", "kl", *COST_METRICS})


class Gate(BaseModel):
    """A limit on one metric that the verdict is made of."""

    # Strict: a JSON number is no boolean, a string no number. JSON has no tuples, so those take arrays.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    metric: TaskMetric | FidelityMetric | CostMetric = Field(
        description="`top1@logits` is short for the metric `top1` of the output `logits`. `latency_decode` is the median time of"
        " a decoder's run that writes one token; the other latencies are of a run on the data, which reads a prompt."
    )
    output: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description=(
            "The output that a metric of quality is about. Without it a metric of labelled data is that of the output which"
            " the labels fit, and any other metric is held by the worst output that has it, states left out."
        ),
    )
    rule: Literal["max_drop", "max_ratio", "min", "max"] = Field(
        description=(
            "`max_drop`: how much worse than the original the metric may get, in the metric's unit (top1 0.01 is one"
            " point). `max_ratio`: limit on compressed / original. `min`, `max`: limit on the compressed network's value."
        )
    )
    value: float = Field(ge=-1e12, le=1e12, allow_inf_nan=False)
    confidence: float = Field(0.95, ge=0.5, le=0.999, description="Of the one-sided bound that has to be inside.")
    level: Literal["error", "warn"] = Field("error", description="`warn` is reported but does not fail the verdict.")

    @model_validator(mode="before")
    @classmethod
    def _metric_names_output(cls, body: Any) -> Any:
        """Read `top1@logits` as the metric `top1` of the output `logits`."""
        metric = body.get("metric") if isinstance(body, Mapping) else None
        if not isinstance(metric, str) or "@" not in metric:
            return body
        name, _, output = metric.partition("@")
        if body.get("output") not in {None, output}:
            raise ValueError(f"the gate names two outputs: {output} behind the metric and {body['output']}")
        return {**body, "metric": name, "output": output}

    @property
    def label(self) -> str:
        """Give the metric with its output, as a job may write it."""
        return self.metric if self.output is None else f"{self.metric}@{self.output}"

    @model_validator(mode="after")
    def _rule_fits_metric(self) -> Self:
        if self.output is not None and self.metric in COST_METRICS:
            raise ValueError(f"{self.metric} is of the whole network, so that the gate cannot name an output")
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
