"""The `quantize_aware_train` pass: its parameters and its documentation; the work is in engine.train.quantize_aware."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from engine.contract import Context, Observe, Searchable
from engine.passes.training import TrainingPass

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.report.values import Change, Refusal


class QuantizeAwareTrain(TrainingPass):
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

    type: Literal["quantize_aware_train"] = "quantize_aware_train"

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

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse a network that holds no integers that could be trained."""
        from engine.train.quantized_graph import refusal

        return refusal(model)

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Train in place and say how it went."""
        from engine.train.quantize_aware import quantize_aware_train

        del observations
        # Weights that are pulled towards zero cross steps for nothing: no decay.
        return quantize_aware_train(model, self.settings(), context, scale_rate=self.scale_rate)

    def ensures(self, model: "ir.Model") -> None:
        """Check that every scale is still a positive number."""
        from engine.train.quantized_graph import ensures

        ensures(model)
