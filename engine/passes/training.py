"""What the passes that train have in common: their budget, what is learnt, and how samples are varied."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from engine.contract import Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    from engine.train.distill import DistillSettings


class TrainingPass(Pass):
    """A pass that trains. Subclasses say what, and may set other defaults."""

    needs_data: ClassVar[bool] = True
    resumable: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    seconds: Annotated[float, Searchable(low=30, high=600, log=True)] = Field(
        120.0, ge=1, le=86400, description="Most time that training takes, without waiting and judging."
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Most steps; with it the result follows from the seed. By default as many as there is time for.",
    )
    # The highest, as a share of the size of each tensor's numbers; subclasses declare it with their default.
    learning_rate: float | None
    batch: int | None = Field(
        None,
        ge=1,
        le=4096,
        description=(
            "Samples of a step; by default 8 to 64, by what there is time for, and as few as 2 where outputs are masks."
            " Memory decides how many run at once."
        ),
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
        None,
        description=(
            "Mix half of the samples with another one; by default where the input is an image and no output is boxes or a mask."
        ),
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

    def settings(self, *, weight_decay: float = 0.0, noise: float = 0.0) -> "DistillSettings":
        """Give the parameters as the method takes them."""
        from engine.train import loop
        from engine.train.distill import DistillSettings
        from engine.train.lesson import LessonSettings

        return DistillSettings(
            training=loop.Settings(
                seconds=self.seconds,
                steps=self.steps,
                learning_rate=self.learning_rate,
                weight_decay=weight_decay,
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
                noise=noise,
                seed=self.seed,
            ),
            batch=self.batch,
        )
