"""What a job asks for: the validated body, shared by the API, the CLI's recipe file and `python -m engine`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from engine.passes import AnyPass

TaskMetric = Literal["top1", "top5", "f1", "mse", "mae", "iou", "edit_distance", "perplexity"]
FidelityMetric = Literal["sqnr_db", "cosine", "top1_agreement", "kl"]
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

ProviderName = Literal["cpu", "cuda", "tensorrt", "openvino", "directml", "migraphx", "rocm", "coreml", "webgpu", "qnn"]


class _Value(BaseModel):
    # Strict: a JSON number is no boolean, a string no number. JSON has no tuples, so those take arrays.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Target(_Value):
    """The execution provider, device and load that the result is optimised and measured for."""

    provider: ProviderName = Field("cpu", description="ONNX Runtime execution provider.")
    threads: int = Field(1, ge=1, le=256, description="Intra-op threads of the session.")
    batch: int = Field(1, ge=1, le=1024, description="Batch size that latency is measured at.")
    shapes: dict[str, Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...], Field(strict=False)]] = Field(
        default_factory=dict,
        description="Shape of an input where the network leaves it open, batch axis included; by default the dataset's.",
    )


class Gate(_Value):
    """A limit on one metric that the verdict is made of."""

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


class Limits(_Value):
    """What a job may cost before it is ended with a stable reason."""

    max_pending_s: int = Field(3600, ge=1, le=7 * 86400, description="Longest wait for a free worker, in seconds.")
    max_runtime_s: int = Field(1800, ge=5, le=7 * 86400, description="Longest run, in seconds.")
    max_memory_mb: int = Field(4096, ge=256, le=1 << 20, description="Largest resident set of the job's process, MiB.")


class Recipe(_Value):
    """Ordered passes; each is checked, verified and measured before the next one starts."""

    passes: tuple[AnyPass, ...] = Field(min_length=1, max_length=32, strict=False)


class Compress(_Value):
    """Apply a recipe to a network and report what it did, measured beside the original."""

    kind: Literal["compress"] = "compress"
    recipe: Recipe
    target: Target = Field(default_factory=Target)
    gates: tuple[Gate, ...] = Field(default=(), max_length=32, strict=False)
    limits: Limits = Field(default_factory=Limits)


class ProfileGate(Gate):
    """A limit on one metric, judged on every target or only on those of one provider.

    `max` on a latency is a budget in milliseconds. `max_ratio` and `max_drop` compare with the baseline, so they need one.
    """

    provider: ProviderName | None = Field(None, description="Judge targets of this provider only; by default all.")


class Tune(_Value):
    """Look for better session options on each target: threads, execution mode, graph optimisation, spinning."""

    max_threads: int | None = Field(
        None, ge=1, le=256, description="Most intra-op threads to try; by default the machine's cores."
    )
    max_seconds: float = Field(30.0, ge=1, le=3600, description="How long the options of one target are measured.")


class Profile(_Value):
    """Measure a network as it is on one or more targets, beside a baseline where there is one."""

    kind: Literal["profile"]
    targets: Annotated[tuple[Target, ...], Field(strict=False)] = Field(min_length=1, max_length=16)
    gates: tuple[ProfileGate, ...] = Field(default=(), max_length=32, strict=False)
    limits: Limits = Field(default_factory=Limits)
    tune: Tune | None = Field(None, description="Look for better session options too; `{}` for the defaults.")
    measure_seconds: float = Field(10.0, ge=0.1, le=600, description="How long latency is measured on one target.")

    @model_validator(mode="after")
    def _gates_have_targets(self) -> Self:
        providers = {target.provider for target in self.targets}
        for gate in self.gates:
            if gate.provider is not None and gate.provider not in providers:
                raise ValueError(f"a gate on {gate.metric} is for {gate.provider}, which is not among the targets")
        if len(set(map(Target.model_dump_json, self.targets))) < len(self.targets):
            raise ValueError("two of the targets are the same")
        return self


def default_kind(body: Any) -> Any:
    """Read a body without `kind` as a compression: most jobs are."""
    if isinstance(body, Mapping) and "kind" not in body:
        return {**body, "kind": "compress"}
    return body


Spec = Compress | Profile
_SPEC: TypeAdapter[Spec] = TypeAdapter(
    Annotated[Compress | Profile, Field(discriminator="kind"), BeforeValidator(default_kind)]
)


def read_spec(body: Any) -> Spec:
    """Give the spec that a JSON value describes; raises pydantic's ValidationError."""
    return _SPEC.validate_python(body)


def targets_of(spec: Spec) -> tuple[Target, ...]:
    """Give every target that a job is to be done on."""
    return spec.targets if isinstance(spec, Profile) else (spec.target,)


def steps_of(spec: Spec) -> tuple[str, ...]:
    """Name the steps of a job in order: a recipe's passes, or the providers that a profile measures on."""
    if isinstance(spec, Profile):
        return tuple(target.provider for target in spec.targets)
    return tuple(step.type for step in spec.recipe.passes)
