"""What the passes of quantization say of each layer, and of the networks that they chose from."""

from typing import Annotated, Literal

from pydantic import Field

from engine.report.detail_parts import Detail, LeftAlone

IntegerType = Literal["uint8", "int8"]

_DEFERRED = "null where the weights were rounded only while the network was written to disk."


class QuantizedLayer(Detail):
    """A layer that computes in integers with fixed ranges. Ratios of signal to noise are in dB."""

    node: str
    op: str
    activation: IntegerType
    weight: IntegerType
    reason: str = Field(description="Why these types.")
    accumulator_load: float = Field(
        description="Largest share of a 16-bit accumulator that a pair of weights can fill."
    )
    limited_channels: int = Field(
        description="Channels whose scale is wider than it need be, so that no pair overflows."
    )
    channels: int
    weight_sqnr_db: float
    activation_scale: float
    columns_at_a_time: int = Field(1, description="Input columns that its kernel reads as channels.")
    output_sqnr_db: float | None = Field(None, description="Of its output beside the original's; null: not measured.")
    time_share_before: float | None = Field(None, description="Of the time of all nodes; null: the profile hides it.")
    time_share_after: float | None = None
    sensitivity: float | None = Field(
        None, description="Noise that it alone adds to the outputs, as a share of their energy."
    )


class RoundedWeights(Detail):
    """How one matrix was rounded to integers with a scale per output."""

    accumulator_load: float
    limited_channels: int
    channels: int
    weight_sqnr_db: float | None


class DynamicProduct(Detail):
    """A MatMul or Gemm that computes in integers, its input rounded in every run."""

    node: str
    op: Literal["MatMul", "Gemm"]
    accumulator_load: float | None = Field(None, description=_DEFERRED)
    limited_channels: int | None = Field(None, description=_DEFERRED)
    channels: int | None = Field(None, description=_DEFERRED)
    weight_sqnr_db: float | None = Field(None, description=_DEFERRED)


class DynamicLstm(Detail):
    """An LSTM that computes in integers, its inputs rounded in every run."""

    node: str
    op: Literal["LSTM"] = "LSTM"
    input: RoundedWeights | None = Field(description=_DEFERRED)
    recurrent: RoundedWeights | None = Field(description=_DEFERRED)


class IntegerTable(Detail):
    """A table of embeddings that is stored as integer rows with a scale each."""

    node: str
    op: Literal["Gather"] = "Gather"
    weight_sqnr_db: float | None = Field(description=_DEFERRED)


DynamicLayer = Annotated[DynamicProduct | DynamicLstm | IntegerTable, Field(discriminator="op")]


class StoredLayer(Detail):
    """A layer whose weights are stored in few bits."""

    node: str
    op: str
    bits: Literal[4, 8]
    group: int | None = Field(description="Weights that share a scale; null: all of an output.")
    method: str = Field(description="The rounding that was kept: the one of the least error on samples to choose by.")
    held_out_error: dict[str, float] | None = Field(
        None, description="By method: mean square error of the outputs, as a share of their energy; null without data."
    )
    rows: int | None = Field(None, description="Of the layer's input that the rounding was fitted to.")
    weight_sqnr_db: float | None = None


class RefinementCandidate(Detail):
    """A change to a quantized network that was tried for its fidelity."""

    candidate: str
    sqnr_db: float = Field(description="Of the outputs with it.")
    gain_db: float = Field(description="Beside the best network before.")
    kept: bool


class Race(Detail):
    """A candidate that was measured in turn with the network that quantizes everything."""

    candidate: str
    time: float = Field(description="Multiple of the other's time per run.")


class ConversionsLeft(Detail):
    """What ONNX Runtime leaves in the graph that it really runs."""

    count: int = Field(description="QuantizeLinear and DequantizeLinear that no integer kernel took in.")
    lonely_pairs: tuple[str, ...] = Field(description="Nodes that quantize what is restored at once.")
    integer_kernels: int


class StaticDetails(Detail):
    """What `quantize_static` did."""

    of: Literal["quantize_static"] = "quantize_static"
    activations: IntegerType
    weights: IntegerType
    why: str
    per_channel: bool
    processor: str = Field(description="Its integer dot products; they decide the types.")
    integer_operators: int
    clamps_absorbed: int = Field(description="Relu and Clip that saturation replaces.")
    channels_with_wider_scale: int
    layers: tuple[QuantizedLayer, ...]
    tables: tuple[DynamicLayer, ...]
    in_float: tuple[LeftAlone, ...]
    races: tuple[Race, ...]
    candidates: tuple[RefinementCandidate, ...]
    conversions_left: ConversionsLeft | None = Field(description="null: not known for this target or size.")
    effort: str | None = Field(None, description="What was left out because a sample takes long; null: nothing was.")


class DynamicDetails(Detail):
    """What `quantize_dynamic` did."""

    of: Literal["quantize_dynamic"] = "quantize_dynamic"
    weights: IntegerType
    why: str
    per_channel: bool
    processor: str
    layers: tuple[DynamicLayer, ...]
    in_float: tuple[LeftAlone, ...]


class AccuracyLevel(Detail):
    """The network with one way of MatMulNBits to compute."""

    level: Literal["int8", "float32"]
    accuracy_level: int = Field(description="The operator's attribute.")
    noise: float = Field(description="Of the outputs, as a share of their energy, on samples to choose by.")
    relative_time: float = Field(description="Multiple of the time per run with `int8`.")
    chosen: bool


class AccuracyChoice(Detail):
    """Which way of MatMulNBits to compute was taken, and what the other one gives."""

    levels: tuple[AccuracyLevel, ...]
    loss_share: float = Field(
        description="Share of the noise with `int8` that comes from rounding activations, and not from the weights."
    )
    reason: str


class WeightsDetails(Detail):
    """What `quantize_weights` did."""

    of: Literal["quantize_weights"] = "quantize_weights"
    method: Literal["rtn", "gptq"]
    weight_bytes_before: int
    weight_bytes_after: int
    accuracy: AccuracyChoice | None = Field(
        None,
        description="null: the recipe names the level, or both could not be measured (no data, or runs of minutes).",
    )
    layers: tuple[StoredLayer, ...]
    in_float: tuple[LeftAlone, ...]


class Float16Details(Detail):
    """What `float16` did."""

    of: Literal["float16"] = "float16"
    dtype: Literal["float16", "bfloat16"]
    compute: Literal["half", "float32"] = Field(description="`float32`: only the weights have 16 bits.")
    overflow_checked: bool = Field(description="Whether calibration data, or the type, rule out that numbers overflow.")
    casts: int
    weight_bytes_before: int
    weight_bytes_after: int
    in_float32: tuple[LeftAlone, ...] = Field(description="Nodes; with compute `float32` the names of weights.")


MethodDetails = Annotated[
    StaticDetails | DynamicDetails | WeightsDetails | Float16Details,
    Field(discriminator="of"),
]


class MetricFound(Detail):
    """One metric of a candidate."""

    compressed: float
    difference: float | None = Field(description="From the original's; null for metrics that compare the two.")


class FrontCandidate(Detail):
    """A network that `mixed_precision` made and compared; the first is the one that it was given."""

    name: str
    what: str
    size_bytes: int
    relative_time: float = Field(description="Multiple of the given network's time per run.")
    fidelity: dict[str, float] = Field(description="By metric, beside the given network, on samples to choose by.")
    quality: dict[str, MetricFound] = Field(
        description="By metric, on samples to choose by; of those candidates that came near enough to be chosen."
    )
    chosen: bool
    on_front: bool = Field(description="Whether no other one is as fast, small and near, and better in one of these.")
    why_not: str | None


class NotMade(Detail):
    """A kind of network that could not be made."""

    what: str
    reason: str


class SameAs(Detail):
    """Candidates that came out as the very same network: only the first was compared."""

    name: str
    same_as: str


class MixedDetails(Detail):
    """What `mixed_precision` chose from, and how the chosen network was made."""

    of: Literal["mixed_precision"] = "mixed_precision"
    front: tuple[FrontCandidate, ...]
    sensitivity: dict[str, float] = Field(
        description="By node, largest first: noise that it alone adds to the outputs."
    )
    processor: str
    not_made: tuple[NotMade, ...]
    duplicates: tuple[SameAs, ...] = Field(description="Networks that are another candidate once more.")
    steps: tuple[MethodDetails, ...] = Field(description="What each method did that made the chosen network.")
    effort: str | None = Field(None, description="What was saved because a run is slow, in words; null: nothing.")
