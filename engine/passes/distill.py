"""The `distill` pass: its parameters and its documentation; the work is in engine.train.distill."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.report.values import Change, Refusal
    from engine.train.distill import DistillSettings


class Distill(Pass):
    """Train the network's weights until it says what its teacher says; unlabelled samples are enough.

    The teacher is the original, or the network that the job names as `teacher`. What is trained is the graph that ships:
    its initializers change, and nothing else. Each output is learnt as what it is: distributions over classes or tokens by
    their KL divergence at a temperature (Hinton, Vinyals, Dean 2015), decisions one by one, vectors by cosine, all else by
    squared error as a share of the teacher's variance; tensors inside that both networks have by name and shape are held to
    the teacher's, and labels of the calibration samples add their cross-entropy. Images are shifted and mixed, and the
    teacher is asked anew what it says of them.

    AdamW with warm-up and cosine runs until its seconds or steps are done; the rate of each tensor is a share of the size of
    its numbers, so it fits layers with normalisations folded in. Every twentieth of the way the moving average of
    the weights is judged on the samples to choose on; the best one is kept, and the step is refused where none is better
    than what came in. A training that dies with its process goes on from its last checkpoint.

    It needs PyTorch (the extra `train`). Prune and reconstruct before it, quantize after it.
    """

    widens: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True
    resumable: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    type: Literal["distill"] = "distill"

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
        None,
        gt=0,
        le=1,
        description=(
            "The highest, as a share of the size of each tensor's numbers; by default 0.01, or for a network that has lost more"
            " than 5 points the best of 0.01, 0.03 and 0.1 in a short trial."
        ),
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
    noise: float = Field(
        0.0, ge=0, le=10, description="Standard deviation of noise on float inputs, as a share of the input's own."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="Of AdamW, on weights with more than one axis.")
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
        return Work(runs=2 * 1024 + 25.0 * load.select, networks=26, timed_s=self.seconds, most_s=float("inf"))

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse quantized networks: integers have no gradient."""
        from engine.report.values import Refusal

        if inspection.quantized != "none":
            return Refusal(
                code="not_applicable",
                reason=f"The network is {inspection.quantized} quantized: integers have no gradient.",
                hint="Distill the floating-point network and quantize it then, or train the quantized one by"
                " quantize_aware_train.",
            )
        return None

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse integers in the graph that an earlier step made."""
        from engine.graph.quantized import first_quantized
        from engine.report.values import Refusal

        node = first_quantized(model)
        if node is None:
            return None
        return Refusal(
            code="not_applicable",
            reason="An earlier step quantized the network: integers have no gradient.",
            node=node.name,
            hint="Put distill before the step that quantizes, or use quantize_aware_train.",
        )

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Train in place and say how it went."""
        from engine.train.distill import distill

        del observations
        return distill(model, self.settings(), context)

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
                weight_decay=self.weight_decay,
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
                noise=self.noise,
                seed=self.seed,
            ),
            batch=self.batch,
        )
