"""The `quantize_aware_train` pass: its parameters and its documentation; the work is in engine.train.quantize_aware."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.report.values import Change, Refusal
    from engine.train.distill import DistillSettings


class QuantizeAwareTrain(Pass):
    """Train a quantized network as it will ship: weights, biases and scales, rounded in every run as its kernels round.

    It comes after a step that quantizes (`quantize_static`, `quantize_weights`, `mixed_precision`), in 8 or 4 bits. Each
    weight becomes a float again, which begins where the original has it inside of its step, and is rounded on the way
    forward; the scales of weights and activations learn beside it (LSQ: Esser et al. 2020), zero points stay. Scales that are
    one number only because equal numbers are stored once become several; those that kernels need equal stay one. Biases are
    trained as floats and rounded to the new grids. What stays in float is trained too.

    The result is the same integer graph with other numbers: the same operators, types and speed, and weights that kept to
    fewer bits so that no kernel saturates still do. The teacher is the original, or the network that the job names as
    `teacher`; samples need no labels. The step is refused where the network comes no closer to its teacher, or is not as
    good as before, on the samples to choose on.

    It needs PyTorch (the extra `train`).
    """

    needs_data: ClassVar[bool] = True
    resumable: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    type: Literal["quantize_aware_train"] = "quantize_aware_train"

    seconds: Annotated[float, Searchable(low=30, high=600, log=True)] = Field(
        120.0, ge=1, le=86400, description="Most time that training takes, without waiting and judging."
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Most steps; with it the result follows from the seed. By default as many as there is time for.",
    )
    learning_rate: Annotated[float | None, Searchable(low=1e-3, high=1e-1, log=True)] = Field(
        0.01,
        gt=0,
        le=1,
        description=(
            "The highest, as a share of the size of each tensor's numbers; null: the best of 0.003, 0.01 and 0.03 in a short"
            " trial."
        ),
    )
    scale_rate: Annotated[float, Searchable(low=0.1, high=10, log=True)] = Field(
        1.0, ge=0, le=100, description="Of scales, as a multiple of the learning rate; 0: they stay as they are."
    )
    batch: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Samples of a step; by default 8 to 64, by what there is time for. Memory decides how many run at once.",
    )
    temperature: Annotated[float, Searchable(low=1, high=8)] = Field(
        2.0, ge=0.1, le=20, description="That softens distributions before they are compared."
    )
    boundaries: Annotated[float, Searchable(low=0, high=10)] = Field(
        1.0,
        ge=0,
        le=100,
        description="How much tensors inside count that both networks have by name and shape; 0: not at all.",
    )
    labels: float = Field(
        0.1,
        ge=0,
        le=100,
        description="How much labels of the calibration samples count beside the teacher, if there are any.",
    )
    shift: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="Most pixels that images move by; by default a fourteenth of their shorter side.",
    )
    flip: bool = Field(default=False, description="Mirror half of the images left to right.")
    mixup: bool | None = Field(
        None, description="Mix half of the samples with another one; by default where the input is an image."
    )
    patience: float = Field(
        0.4, gt=0, le=1, description="Share of the budget without a better network after which it ends early."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="What all that is drawn follows from.")

    @property
    def trains(self) -> bool:
        """It always does."""
        return True

    def work(self, load: Workload) -> Work:
        """It takes the seconds that it is given, and judges on the way."""
        return Work(runs=2 * 1024 + 25.0 * load.select, networks=26, timed_s=self.seconds)

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse a network that holds no integers that could be trained."""
        from engine.train.quantized_graph import refusal

        return refusal(model)

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Train in place and say how it went."""
        from engine.train.quantize_aware import quantize_aware_train

        del observations
        return quantize_aware_train(model, self.settings(), context, scale_rate=self.scale_rate)

    def ensures(self, model: "ir.Model") -> None:
        """Check that every scale is still a positive number."""
        from engine.train.quantized_graph import ensures

        ensures(model)

    def settings(self) -> "DistillSettings":
        """Give the parameters as the method takes them."""
        from engine.train import loop
        from engine.train.distill import DistillSettings
        from engine.train.lesson import LessonSettings

        return DistillSettings(
            training=loop.Settings(
                seconds=self.seconds,
                steps=self.steps,
                learning_rate=self.learning_rate,
                # Weights that are pulled towards zero cross steps for nothing.
                weight_decay=0.0,
                patience=self.patience,
                seed=self.seed,
            ),
            lesson=LessonSettings(
                temperature=self.temperature,
                boundaries=self.boundaries,
                labels=self.labels,
                shift=self.shift,
                flip=self.flip,
                mixup=self.mixup,
                seed=self.seed,
            ),
            batch=self.batch,
        )
