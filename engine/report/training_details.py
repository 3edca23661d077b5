"""What the passes say that train: how the training went, what was learnt from, and what stopped it."""

from typing import Literal

from pydantic import Field

from engine.report.detail_parts import Detail, LeftAlone


class TrainingPoint(Detail):
    """Where a training stood when the averaged weights were judged on the samples that things are chosen on."""

    step: int
    seconds: float = Field(description="Of training alone, without waiting and judging.")
    train_loss: float | None = Field(None, description="Mean since the point before; null at the start.")
    select_loss: float | None = Field(description="null: it was no number.")
    quality: float | None = Field(None, description="In the training's metric.")
    learning_rate: float | None = None


class TrainedOutput(Detail):
    """An output of the network in training."""

    output: str
    loss: str | None = Field(None, description="What was measured of it; null: it is not learnt.")
    reason: str | None = Field(None, description="Why it is not learnt.")


class TrainingRecord(Detail):
    """How a training went."""

    device: str = Field(description="Where it ran: the processor, or the GPU's name.")
    threads: int
    parameters: int = Field(description="Numbers that were trained.")
    samples: int
    batch: int = Field(description="Samples of a step.")
    parts: int = Field(description="Parts that a batch was cut into so that it fits into memory.")
    planned_bytes: int = Field(
        description="Memory that the training was planned with, beside what the job held already."
    )
    learning_rate: float
    tried_rates: dict[str, float] = Field(
        default_factory=dict, description="By learning rate: the loss on `select` after the short trial that chose."
    )
    augmentation: tuple[str, ...] = ()
    outputs: tuple[TrainedOutput, ...] = ()
    boundaries: tuple[str, ...] = Field((), description="Tensors inside that were to be as in the teacher.")
    labels: str | None = Field(None, description="How labels were used, or why not; null: there are none.")
    metric: str | None = Field(None, description="What `quality` of the points is.")
    points: tuple[TrainingPoint, ...]
    best_step: int = Field(description="The step whose averaged weights were kept.")
    steps: int
    seconds: float
    stopped: Literal["seconds", "steps", "no_improvement", "deadline", "diverged"]
    resumed_from: int | None = Field(None, description="The step that an earlier attempt had come to.")


class DistillDetails(Detail):
    """What `distill` did."""

    of: Literal["distill"] = "distill"
    drop_before: float | None = Field(description="Quality lost by the network as it was given.")
    drop_after: float | None
    not_trained_through: tuple[LeftAlone, ...] = Field(
        (), description="Nodes that ONNX Runtime ran in the training: no gradient goes through them."
    )
    training: TrainingRecord


class TrainedInteger(Detail):
    """A layer whose weights are integers, and how far training moved them."""

    node: str
    op: str
    bits: int
    codes_changed: float = Field(description="Share of its integers that are others now.")
    scale_change: float = Field(description="Share by which its scales changed, up or down, on average.")


class QuantizeAwareDetails(Detail):
    """What `quantize_aware_train` did."""

    of: Literal["quantize_aware_train"] = "quantize_aware_train"
    drop_before: float | None = Field(description="Quality lost by the quantized network as it was given.")
    drop_after: float | None
    weights: tuple[TrainedInteger, ...]
    activation_scales: int = Field(description="Scales of activations that were trained.")
    biases: int = Field(description="Biases in 32-bit integers that were trained.")
    left: tuple[LeftAlone, ...] = Field(description="Layers whose integers stay as they were.")
    training: TrainingRecord
