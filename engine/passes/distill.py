"""The `distill` pass: its parameters and its documentation; the work is in engine.train.distill."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Searchable
from engine.passes.training import TrainingPass

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.report.values import Change, Refusal


class Distill(TrainingPass):
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

    type: Literal["distill"] = "distill"

    learning_rate: Annotated[float | None, Searchable(low=1e-3, high=1e-1, log=True)] = Field(
        None,
        gt=0,
        le=1,
        description=(
            "The highest, as a share of the size of each tensor's numbers; by default 0.01, or for a network that has lost more"
            " than 5 points the best of 0.01, 0.03 and 0.1 in a short trial."
        ),
    )
    noise: float = Field(
        0.0, ge=0, le=10, description="Standard deviation of noise on float inputs, as a share of the input's own."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="Of AdamW, on weights with more than one axis.")

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
        return distill(model, self.settings(weight_decay=self.weight_decay, noise=self.noise), context)
