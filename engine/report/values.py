"""What a job gives back: what changed, what was measured, what was refused and why."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter

from engine.gate import Gate, ProfileGate
from engine.inspection import Estimate, Preprocessing, TensorInfo
from engine.outputs import OutputKind
from engine.report.byte_account import ByteAccount
from engine.report.details import AnyDetails
from engine.report.layer_cost import LayerCost
from engine.report.run_facts import Memory, NodePlacement, OpCost, SessionOptions, Value
from engine.report.search import SearchReport
from engine.target import Target

Outcome = Literal["pass", "fail", "inconclusive", "none"]


class Interval(Value):
    """Two-sided interval of a value."""

    low: float
    high: float
    confidence: float = 0.95


class Quality(Value):
    """One metric of the compressed network beside the original, on the same samples.

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
    output: str | None = Field(None, description="The output that it is about.")
    kind: OutputKind | None = Field(None, description="What that output was taken for.")
    weight: float = Field(1.0, description="How much the output counts where several are taken together.")


class OutputReport(Value):
    """What an output of the network was taken for, and why."""

    name: str
    kind: OutputKind | None = Field(description="null: it cannot be compared.")
    reason: str = Field(description="Why it was taken for that, in one sentence.")
    weight: float = Field(description="How much it counts where outputs are taken together.")
    ignored: bool = Field(description="True: the owner declared that nobody reads it.")
    main: bool = Field(description="True: it speaks for the network; labels belong to it where there are any.")
    judged_with: str | None = Field(None, description="The output whose rows this one belongs to.")
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = Field(None, description="Of one sample; null where it varies.")


# Raw samples of a network that a report keeps.
MOST_RUNS = 1000


class Latency(Value):
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
    max_ms: float | None = Field(None, description="The slowest run of all, those included that were left out above.")
    runs_ms: tuple[float, ...] = Field(
        (),
        description=f"Raw samples in the order of the runs, without those left out; of more than {MOST_RUNS} evenly"
        " chosen ones.",
    )


class Ratio(Value):
    """compressed / original with a bootstrap interval; below 1 is better."""

    value: float
    interval: Interval


class DataParts(Value):
    """How many samples did what. What is chosen on some samples looks better there than it is; those that judge never chose."""

    calibrate: int = Field(description="For statistics, fits and training.")
    select: int = Field(description="For whatever was chosen: candidates, and steps kept or rolled back.")
    judge: int = Field(description="For the report's quality and the gates on quality, and for nothing else.")
    select_is_judge: bool = Field(description="True: the same samples did both, so the figures may flatter the result.")
    reason: str = Field(description="By which rule the samples were parted, in words.")


# `wall`: what a user waits for. `cpu`: time of the processor, which stands still while other programs run.
Clock = Literal["wall", "cpu"]


class LatencyComparison(Value):
    """Original and compressed, run by run in turn in one process."""

    original: Latency
    compressed: Latency
    ratios: dict[str, Ratio] = Field(description="By statistic: mean, p50, p90, p95, p99.")
    cpu_ratio: Ratio | None = Field(
        description="The ratio of p50 by CPU time of the process; it should agree with the wall's. null where the processor does"
        " not do the work: beside a GPU its clock says nothing."
    )
    noise_floor: Interval = Field(description="The ratio of the original to itself, measured in the same turns.")
    cpu_noise_floor: Interval | None = Field(None, description="The same by CPU time.")
    stable: bool = Field(
        description="False: the machine was too disturbed for the wall's clock; gates on latency are only decided where the"
        " effect is far larger than the noise."
    )
    unstable_because: str | None = None
    counts: Clock = Field(
        "wall",
        description="The clock that the headline, gates and decisions about steps go by: `ratios` or `cpu_ratio`.",
    )
    nodes_by_provider: dict[str, int] = Field(
        description="Nodes of the compressed network by the provider that ran them."
    )


class TokenRate(Value):
    """Tokens per second of a decoder under one load, original and compressed in turn."""

    original_ms: float = Field(description="Median of one run.")
    compressed_ms: float
    original_tokens_per_s: float
    compressed_tokens_per_s: float
    ratio: Ratio = Field(description="Of the medians' times by the clock that counts: below 1 is faster.")
    clock: Clock = Field("wall", description="`cpu` where the machine was too busy for the wall's clock to say much.")
    stable: bool
    unstable_because: str | None = None


class Generation(Value):
    """A decoder's two loads: `prefill` reads a prompt at once, `decode` writes one token behind it, with the prompt in the cache."""

    texts: int = Field(description="At the same time, as the target's batch says.")
    prompt_tokens: int = Field(description="Of each text, on average.")
    prefill: TokenRate = Field(description="Its time is that to the first token.")
    decode: TokenRate


class Size(Value):
    """Bytes of the stored network, its external data included."""

    original: int
    compressed: int
    original_download: int | None = Field(
        None, description="Bytes after deflate (zlib, level 6); only measured where weights were set to zero."
    )
    compressed_download: int | None = None


class MemoryComparison(Value):
    """The same fresh process for the original and for the compressed network."""

    original: Memory
    compressed: Memory


class Refusal(Value):
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
        "not_measured",
        "too_large",
    ]
    reason: str
    node: str | None = None
    hint: str | None = None
    details: AnyDetails | dict[str, Any] = Field(
        default_factory=dict,
        union_mode="left_to_right",
        description="What was tried, by the pass (`of`); without `of` where an older worker wrote it.",
    )


class Change(Value):
    """What a pass did."""

    summary: str = Field(description="One plain sentence.")
    details: AnyDetails | dict[str, Any] = Field(
        default_factory=dict,
        union_mode="left_to_right",
        description="What the pass says of its work, by the pass (`of`); without `of` where an older worker wrote it.",
    )
    lossless: bool = Field(default=False, description="True: outputs must agree within float rounding.")
    repair: bool = Field(
        default=False,
        description="True: made for quality alone, and never worse than before; it need not save anything.",
    )
    download: bool = Field(
        default=False, description="True: zeros make the deflated file smaller, not the file; it is judged by that."
    )


class Credit(Value):
    """More loss than is allowed, which a step was granted because a later one teaches the network."""

    reason: str = Field(description="What was lost.")
    won_back: bool = Field(
        default=False, description="True: the network lost no more than is allowed after it was taught."
    )


class StepReport(Value):
    """One execution of a pass."""

    index: int
    type: str
    parameters: dict[str, Any]
    status: Literal["applied", "refused"]
    refusal: Refusal | None = None
    change: Change | None = None
    quality: tuple[Quality, ...] = Field((), description="On the samples that steps are chosen on.")
    size: Size | None = None
    latency: LatencyComparison | None = None
    credit: Credit | None = Field(None, description="null: it lost no more than is allowed.")
    seconds: float

    @property
    def number(self) -> int:
        """Which step it is as people count: the first one is 1."""
        return self.index + 1


class GateResult(Value):
    """One gate with the measured value and the bound that was held against the limit."""

    gate: Gate | ProfileGate
    target: int | None = Field(None, description="Index of the target that it was judged on, in profiles.")
    measured: float | None
    bound: float | None = Field(description="The one-sided confidence bound on the unfavourable side.")
    outcome: Literal["pass", "fail", "inconclusive"]
    reason: str


class Verdict(Value):
    """The gates taken together: fail if an error gate fails, else inconclusive if one is, else pass; none without gates."""

    outcome: Outcome
    gates: tuple[GateResult, ...] = ()

    @classmethod
    def of(cls, gates: Sequence[GateResult]) -> Self:
        """Take judged gates together; those of level `warn` are told, but do not decide."""
        outcomes = {result.outcome for result in gates if result.gate.level == "error"}
        if not gates:
            return cls(outcome="none")
        found: Outcome = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
        return cls(outcome=found, gates=tuple(gates))


class Environment(Value):
    """Where the numbers were measured."""

    cpu: str
    cpu_flags: tuple[str, ...] = Field(description="Those that change which kernels run.")
    cores: int
    onnxruntime: str
    provider: str
    python: str
    system: str
    distribution: str | None = Field(
        None, description="The package that onnxruntime came in; it decides the providers."
    )
    ep_version: str | None = Field(None, description="Of an execution provider that is a plugin, and of TensorRT.")
    gpu: str | None = Field(None, description="Name of the GPU, where the provider runs on one.")
    gpu_memory_bytes: int | None = Field(None, description="Of the GPU, as its driver tells it.")
    driver: str | None = Field(None, description="Version of the GPU's driver.")
    cuda: str | None = Field(None, description="Version of the CUDA runtime.")
    cudnn: str | None = None
    tf32: bool | None = Field(
        None,
        description="Whether products of float32 numbers were measured in TF32 (10 bits of mantissa). What lossless steps change"
        " is always compared without it. null: there is no TF32.",
    )
    provider_options: dict[str, str] = Field(
        default_factory=dict, description="Those that the job set for its execution provider."
    )


class ModelFacts(Value):
    """What the report says of one network."""

    sha256: str
    size_bytes: int
    parameters: int
    nodes: int
    ops: dict[str, int]


class Learner(Value):
    """A network that took part in learning besides the job's: what was started from, or learnt from."""

    name: str | None = Field(description="What its owner calls it.")
    facts: ModelFacts
    quality: tuple[Quality, ...] = Field(
        (), description="Of a student as it came, on the samples that steps are chosen on; beside the original."
    )


class OptionTrial(Value):
    """Options that were tried, in turn with the target's own."""

    options: SessionOptions
    p50_ms: float
    ratio: Ratio = Field(description="p50 with these options / p50 with the target's own; below 1 is better.")
    stable: bool


class ImpossibleOptions(Value):
    """Options with which the network does not run, or gives other numbers."""

    options: SessionOptions
    reason: str


class Tuning(Value):
    """The search for better session options on a target."""

    default: SessionOptions = Field(description="The target's own.")
    trials: tuple[OptionTrial, ...]
    chosen: SessionOptions | None = Field(description="None: no options are better than the target's beyond noise.")
    gain: Ratio | None = Field(description="Of the chosen ones, measured again after they were chosen.")
    reason: str
    impossible: tuple[ImpossibleOptions, ...] = ()
    usage: str = Field("", description="Python that makes a session with the chosen options, or the target's own.")


class TuningComparison(Value):
    """The best session options of the original and of the compressed network."""

    original: Tuning
    compressed: Tuning


class Loading(Value):
    """How to load the result so that it runs as it was measured."""

    provider: str = Field(description="Execution provider, as onnxruntime names it.")
    options: SessionOptions = Field(description="Of the session: those found by `tune`, else the target's own.")
    tuned: bool = Field(description="True: `tune` found options that are faster than the target's own.")
    opset: dict[str, int] = Field(
        description="Operator set version by domain; the standard domain is the empty string."
    )
    ir_version: int
    onnxruntime: str | None = Field(
        description="The first release of ONNX Runtime that takes these versions, none older than 1.17; null: one that we do not know."
    )
    measured_with: str = Field(description="The release of ONNX Runtime that it was measured with.")
    beyond_onnx: tuple[str, ...] = Field((), description="Operators that are ONNX Runtime's own.")
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    usage: str = Field(description="Python that makes the session.")


class SelfDifference(Value):
    """How far the original differs from itself: what no step can be blamed for."""

    outputs: dict[str, float] = Field(
        description="The largest difference that was seen, as a share of the output's largest value."
    )
    words: str = Field(description="The same as a sentence, with what was compared.")


class Report(Value):
    """The whole result of a job."""

    version: Literal[1] = 1
    kind: Literal["compress", "search"] = "compress"
    summary: str = Field(description="One or two plain sentences: what was gained at what cost.")
    unchanged: bool = Field(description="True: nothing helped, the result is the original network.")
    target: Target
    original: ModelFacts
    compressed: ModelFacts
    student: Learner | None = Field(
        None,
        description="What the recipe worked on instead of the original, which everything is measured beside all the same.",
    )
    teacher: Learner | None = Field(None, description="What was learnt from; null: the original.")
    bytes: ByteAccount | None = Field(
        None, description="Where the bytes of the compressed network are. Null in reports of older workers."
    )
    layers: tuple[LayerCost, ...] = Field(
        (), description="What each layer holds and takes. Empty in reports of older workers."
    )
    steps: tuple[StepReport, ...]
    size: Size
    quality: tuple[Quality, ...] = Field(
        description="On samples that judge only: the labels' metric, if there is one, then the main output's, then the others'."
    )
    selected_quality: tuple[Quality, ...] = Field(
        (), description="The same network on the samples that its steps were chosen on, where those are others."
    )
    outputs: tuple[OutputReport, ...] = ()
    latency: LatencyComparison | None
    generation: Generation | None = Field(None, description="Of decoders with a cache only.")
    tuning: TuningComparison | None = Field(
        None,
        description="Where the job asked for it; `latency` is then of each network with its best options.",
    )
    memory: MemoryComparison | None
    verdict: Verdict
    parts: DataParts | None = Field(
        None, description="How the data were parted. Null without data, and in reports of older workers."
    )
    preprocessing: Preprocessing | None = Field(
        None, description="What was done to raw data before, as the dataset says it; a deployment has to do the same."
    )
    loading: Loading | None = Field(
        None, description="How to load the result as it was measured. Null in reports of older workers."
    )
    self_difference: SelfDifference | None = Field(
        None, description="From which lossless steps take their tolerance. Null in reports of older workers."
    )
    calibration_samples: int
    held_out_samples: int = Field(description="Those that `quality` is of.")
    environment: Environment
    seconds: float
    estimate: Estimate | None = Field(None, description="What the job was expected to take when it began.")
    more_parameters: str | None = Field(
        None, description="What the parameters are that there are more of; null: no more."
    )
    search: SearchReport | None = Field(
        None, description="What was tried, and what else there is to choose from. Null for a recipe."
    )
    warnings: tuple[str, ...] = ()


class Placement(Value):
    """Which provider runs what, as onnxruntime tells it."""

    nodes_by_provider: dict[str, int] = Field(
        description="Kernels of one run; a provider may fuse many nodes into one."
    )
    nodes: tuple[NodePlacement, ...] = Field(
        description="Every node, after the optimisations that come before nodes are given out."
    )
    fallbacks: tuple[NodePlacement, ...] = Field(description="Those that another provider than the target's runs.")
    fallback_share: float = Field(description="The fallbacks' share of the time of all kernels.")


class Throughput(Value):
    """Runs per second with so many callers of one session at the same time."""

    concurrency: int
    runs_per_s: float
    samples_per_s: float = Field(description="Runs times the batch size.")
    p50_ms: float = Field(description="Of one run, as its caller waits for it.")
    p99_ms: float
    runs: int


class TargetMeasurement(Value):
    """What a network costs on one target."""

    environment: Environment
    latency: Latency
    noise_floor: Interval = Field(description="The ratio of a network to itself, measured in the same turns.")
    stable: bool = Field(
        description="False: the machine was too disturbed; gates on latency are only decided where the effect is far larger"
        " than the noise."
    )
    unstable_because: str | None = None
    comparison: LatencyComparison | None = Field(
        description="The baseline (`original`) and the network (`compressed`), run by run in turn; None without a baseline."
    )
    throughput: tuple[Throughput, ...]
    memory: Memory
    baseline_memory: Memory | None
    by_type: tuple[OpCost, ...] = Field(description="Time by operator type, most expensive first.")
    slowest: tuple[OpCost, ...] = Field(description="The most expensive nodes.")
    placement: Placement
    quality: tuple[Quality, ...] = Field(default=(), description="Beside the baseline, on the job's dataset.")
    outputs: tuple[OutputReport, ...] = ()
    tuning: Tuning | None = None


class TargetProfile(Value):
    """One target of a profile: measured, or the reason why the network does not run there."""

    index: int = Field(description="Of the target in the job's spec.")
    target: Target
    measured: TargetMeasurement | None
    refusal: Refusal | None = None
    seconds: float


class ProfileReport(Value):
    """The whole result of a profile."""

    version: Literal[1] = 1
    kind: Literal["profile"] = "profile"
    summary: str = Field(description="A sentence for each target.")
    model: ModelFacts
    baseline: ModelFacts | None
    targets: tuple[TargetProfile, ...]
    verdict: Verdict
    samples: int = Field(description="Of the dataset that quality was judged on; 0 where it was not.")
    parts: DataParts | None = Field(
        None,
        description="How the data were parted: runs take their inputs from what calibrates, quality is on what judges, and nothing"
        " is chosen. Null without data, and in reports of older workers.",
    )
    preprocessing: Preprocessing | None = Field(
        None, description="What was done to raw data before, as the dataset says it; a deployment has to do the same."
    )
    seconds: float
    estimate: Estimate | None = Field(None, description="What the job was expected to take when it began.")
    warnings: tuple[str, ...] = ()


AnyReport = Report | ProfileReport
_REPORT: TypeAdapter[AnyReport] = TypeAdapter(
    Annotated[Report | ProfileReport, Field(discriminator="kind")], config=ConfigDict(defer_build=True)
)


def read_report(body: Any) -> AnyReport:
    """Give the report that a JSON value describes; raises pydantic's ValidationError."""
    return _REPORT.validate_python(body)
