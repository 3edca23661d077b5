"""What a network and a dataset are: the values that are stored. They are light, so that a web process may read them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from engine.gate import TaskMetric

# As JSON: it is stored with each upload, even of bytes that are there already.
INSPECTION_BYTES = 256 << 10
# Of inputs, outputs, axes, operators and arrays: names stand in lists, errors and reports.
NAME_LETTERS = 1024


class _Value(BaseModel):
    # What a newer version says besides is left out: during an upgrade both read what the other has stored.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class TensorInfo(_Value):
    """An input or output of a network."""

    name: str
    dtype: str = Field(description="As numpy names it: float32, int64, bool, ...")
    shape: tuple[int | str | None, ...] | None = Field(description="A name or null where open; null: rank unknown.")


class NetworkCost(_Value):
    """What one sample costs, by shapes; open sizes have stand-ins, and `input_elements` tells how large an input was."""

    macs: int = Field(description="Multiply-accumulates.")
    live_bytes: int = Field(description="The most bytes of activations that are alive at the same time.")
    input_elements: int


class Inspection(_Value):
    """What a network is."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: dict[str, int] = Field(
        description="Operator set version by domain; the standard domain is the empty string."
    )
    ir_version: int
    producer: str
    parameters: int = Field(description="Elements of all initializers and constants.")
    size_bytes: int = Field(description="Of the file and its external data.")
    nodes: int
    ops: dict[str, int] = Field(description="Nodes by operator, those in subgraphs and functions included.")
    quantized: Literal["none", "partly", "fully"]
    float_type: Literal["float32", "float16", "bfloat16", "float64", "none"] = Field(
        description="That of most floating-point weights."
    )
    external_data: bool
    tables: dict[str, int] = Field(
        default_factory=dict,
        description="By input: rows of the table that its whole numbers, such as tokens, are looked up in.",
    )
    cost: NetworkCost | None = Field(
        None, description="Null where shapes do not tell it, and for networks that an older version checked."
    )
    warnings: tuple[str, ...] = ()


# Operators that are one of these with something fused in, or in other words; passes spell them out.
_SPELLED_OUT = {
    "FusedMatMul": "MatMul",
    "Einsum": "MatMul",
    "Attention": "MatMul",
    "FusedGemm": "Gemm",
    "FusedConv": "Conv",
    "EmbedLayerNormalization": "Gather",
}


def holds_any(inspection: Inspection, operators: Sequence[str]) -> bool:
    """Say whether a network has any of these operators, as they are or in a form that passes spell out as one of them."""
    return any(
        kind in operators or _SPELLED_OUT.get(kind) in operators for kind, count in inspection.ops.items() if count
    )


CONVOLUTIONS_HINT = "Convolutions gain from quantize_static."
TREES_HINT = "Tree ensembles have no weights that are multiplied; `simplify` stores them in fewer bytes."
_TREES = ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")


def hint_without_layers(inspection: Inspection, otherwise: str | None = None) -> str | None:
    """Give the way out for who asked for a pass of layers on a network that has none: trees have another pass."""
    if any(inspection.ops.get(kind) for kind in _TREES):
        return TREES_HINT
    return otherwise


class ArrayInfo(_Value):
    """An array of a dataset; its first axis counts the samples."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] = Field(description="null where the size varies from sample to sample.")
    low: float | None = Field(None, description="The smallest number; null where that was not looked at.")
    high: float | None = Field(None, description="The largest number.")
    misfits: dict[str, str] = Field(
        default_factory=dict,
        description="By type that does not hold all numbers: the first one that it does not hold, in words.",
    )


class DeclaredParts(_Value):
    """What a dataset's array `part` says: how many samples calibrate (0), select (1) and judge (2)."""

    calibrate: int = 0
    select: int = 0
    judge: int = 0
    select_labelled: int = 0
    judge_labelled: int = 0
    problem: str | None = Field(None, description="Why the array says nothing of the kind.")


class Preprocessing(_Value):
    """What was done to raw data so that they became the arrays, as whoever did it says; a deployment has to do the same."""

    kind: str = Field(max_length=40, description="`images`, `audio`, `text`, `table`, `arrays`, or a word of its own.")
    summary: str = Field(max_length=4000, description="In words, every number stated.")
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="What repeats it.")
    classes: tuple[str, ...] = Field((), description="Names of the label's numbers, from 0.")
    made_by: str | None = Field(None, max_length=100)


class DatasetInspection(_Value):
    """What a dataset is."""

    arrays: tuple[ArrayInfo, ...] = Field(description="The label is not among them.")
    label: ArrayInfo | None = None
    samples: int
    labelled: int
    unlabelled: int
    declared: DeclaredParts | None = Field(
        None, description="By an array `part`; it counts unless the network has an input of that name."
    )
    metric: TaskMetric | None = Field(description="Declared with the data, or top1 where labels are class numbers.")
    preprocessing: Preprocessing | None = Field(None, description="As the file says it, in a member `dataset.json`.")


class StepEstimate(_Value):
    """What a step will take, before it is done."""

    index: int
    type: str
    seconds: float


class Estimate(_Value):
    """What a job will take, before it is done: the likely time, and the range in which it will most likely be."""

    seconds: float
    low: float
    high: float
    memory_bytes: int = Field(description="Of the job's process at its peak.")
    basis: Literal["measured", "shapes"] = Field(
        description="`measured`: runs of the network were timed when the job began. `shapes`: only its arithmetic is known."
    )
    steps: tuple[StepEstimate, ...] = ()
    summary: str = Field(description="The same in words.")


class PrunableMember(_Value):
    """One axis of one weight that loses its part with a group's channels."""

    node: str
    initializer: str
    axis: int
    width: int = Field(description="Size of the axis as it is.")


class PrunableGroup(_Value):
    """Channels that are alternatives to each other: what goes of one member goes of all."""

    name: str
    kind: str = Field(description="`channels`, `heads`, ...")
    channels: int = Field(description="How many there are to choose from.")
    lossy: bool = Field(description="True: a normalisation counts them, so that its statistics change when some go.")
    producers: tuple[str, ...] = Field(description="Nodes that make the channels.")
    members: tuple[PrunableMember, ...]
    members_total: int = Field(description="More than are listed, where they are many.")


class FrozenNode(_Value):
    """A node that keeps channels, and why."""

    node: str
    op: str
    reason: str
    channels: int


class Prunability(_Value):
    """What of a network could be pruned, the largest groups and the nodes that keep most first."""

    prunable_parameters: float = Field(description="Share of the parameters that lies in groups.")
    prunable_macs: float = Field(description="Share of the multiply-accumulates that lies in groups.")
    parameters: int
    macs: int = Field(description="Multiply-accumulates at batch 1.")
    kinds: dict[str, int] = Field(description="Groups by kind.")
    groups: tuple[PrunableGroup, ...]
    groups_total: int = Field(description="More than are listed, where they are many.")
    frozen: tuple[FrozenNode, ...]
    frozen_total: int = Field(description="More than are listed, where they are many.")
