"""What a job gives back: what changed, what was measured beside the original, what was refused and why."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.spec import Gate, Target

Outcome = Literal["pass", "fail", "inconclusive", "none"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Value):
    """Two-sided interval of a value."""

    low: float
    high: float
    confidence: float = 0.95


class Quality(_Value):
    """One metric of the compressed network beside the original, on the same held-out samples.

    For task metrics `original` and `compressed` are the metric's values and `difference` is compressed - original, paired
    sample by sample. For fidelity metrics (they compare the two networks' outputs) `original` and `difference` are None.
    """

    metric: str
    original: float | None
    compressed: float
    difference: float | None
    interval: Interval = Field(description="Of `difference` where there is one, else of `compressed`.")
    standard_error: float = Field(description="Of what `interval` is about.")
    samples: int
    compressed_interval: Interval | None = Field(None, description="Of `compressed` itself, where `interval` is not.")
    discordant: int | None = Field(
        None, description="For top1 and top5: samples that exactly one of the two networks gets right."
    )


class Latency(_Value):
    """Wall time of one run in milliseconds, from raw samples that no other process disturbed."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    samples: int
    dropped: int = Field(description="Samples left out because the kernel preempted the run.")
    intervals: dict[str, Interval] = Field(
        default_factory=dict, description="Of mean, p50, p90, p95 and p99 in ms, by bootstrap."
    )


class Ratio(_Value):
    """compressed / original with a bootstrap interval; below 1 is better."""

    value: float
    interval: Interval


class LatencyComparison(_Value):
    """Original and compressed, run by run in turn in one process."""

    original: Latency
    compressed: Latency
    ratios: dict[str, Ratio] = Field(description="By statistic: mean, p50, p90, p95, p99.")
    cpu_ratio: Ratio = Field(
        description="The ratio of p50 by CPU time of the process; it should agree with the wall's."
    )
    noise_floor: Interval = Field(description="The ratio of the original to itself, measured in the same turns.")
    stable: bool = Field(description="False: the machine was too disturbed; gates on latency are inconclusive.")
    unstable_because: str | None = None
    nodes_by_provider: dict[str, int] = Field(
        description="Nodes of the compressed network by the provider that ran them."
    )


class Size(_Value):
    """Bytes of the stored network, its external data included."""

    original: int
    compressed: int
    original_download: int | None = Field(
        None, description="Bytes after deflate (zlib, level 6); only measured where weights were set to zero."
    )
    compressed_download: int | None = None


class Memory(_Value):
    """Of a fresh process that loads the network and runs it once."""

    peak_rss_bytes: int
    load_ms: float
    first_run_ms: float


class MemoryComparison(_Value):
    """The same fresh process for the original and for the compressed network."""

    original: Memory
    compressed: Memory


class Refusal(_Value):
    """Why a pass was not applied, in words for the network's owner."""

    code: Literal[
        "not_applicable",
        "already_done",
        "unsupported",
        "needs_data",
        "no_gain",
        "too_lossy",
        "verification_failed",
        "crashed",
    ]
    reason: str
    node: str | None = None
    hint: str | None = None
    details: dict[str, Any] = Field(default_factory=dict, description="What was tried, JSON values only.")


class Change(_Value):
    """What a pass did."""

    summary: str = Field(description="One plain sentence.")
    details: dict[str, Any] = Field(default_factory=dict, description="Pass-specific facts, JSON values only.")
    lossless: bool = Field(default=False, description="True: outputs must agree within float rounding.")
    repair: bool = Field(
        default=False,
        description="True: made for quality alone, and never worse than before; it need not save anything.",
    )
    download: bool = Field(
        default=False, description="True: zeros make the deflated file smaller, not the file; it is judged by that."
    )


class StepReport(_Value):
    """One execution of a pass."""

    index: int
    type: str
    parameters: dict[str, Any]
    status: Literal["applied", "refused"]
    refusal: Refusal | None = None
    change: Change | None = None
    quality: tuple[Quality, ...] = ()
    size: Size | None = None
    latency: LatencyComparison | None = None
    seconds: float


class GateResult(_Value):
    """One gate with the measured value and the bound that was held against the limit."""

    gate: Gate
    measured: float | None
    bound: float | None = Field(description="The one-sided confidence bound on the unfavourable side.")
    outcome: Literal["pass", "fail", "inconclusive"]
    reason: str


class Verdict(_Value):
    """The gates taken together: fail if an error gate fails, else inconclusive if one is, else pass; none without gates."""

    outcome: Outcome
    gates: tuple[GateResult, ...] = ()


class Environment(_Value):
    """Where the numbers were measured."""

    cpu: str
    cpu_flags: tuple[str, ...] = Field(description="Those that change which kernels run.")
    cores: int
    onnxruntime: str
    provider: str
    python: str
    system: str


class ModelFacts(_Value):
    """What the report says of one network."""

    sha256: str
    size_bytes: int
    parameters: int
    nodes: int
    ops: dict[str, int]


class Report(_Value):
    """The whole result of a job."""

    version: Literal[1] = 1
    kind: Literal["compress"] = "compress"
    summary: str = Field(description="One or two plain sentences: what was gained at what cost.")
    unchanged: bool = Field(description="True: nothing helped, the result is the original network.")
    target: Target
    original: ModelFacts
    compressed: ModelFacts
    steps: tuple[StepReport, ...]
    size: Size
    quality: tuple[Quality, ...]
    latency: LatencyComparison | None
    memory: MemoryComparison | None
    verdict: Verdict
    calibration_samples: int
    held_out_samples: int
    environment: Environment
    seconds: float
    warnings: tuple[str, ...] = ()
