"""The `reconstruct` pass: its parameters and its documentation; the work is in engine.prune.reconstruct."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.report.values import Change, Refusal


class Reconstruct(Pass):
    """Refit weights in closed form so that each layer gives again what it gave in the original; no labels, no gradients.

    Layers are refitted one after the other by least squares on what they read now, with the output of the original's layer
    of the same name as the target; in front of a residual sum the layer also makes up for what the other operand lost. A
    fit is taken only where the error on held-out calibration samples drops. Pruning does this by itself; as a pass of its
    own it repairs what other passes changed.
    """

    widens: ClassVar[bool] = True

    type: Literal["reconstruct"] = "reconstruct"
    needs_data: ClassVar[bool] = True

    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that keep their weights.", strict=False
    )

    samples: int | None = Field(
        None, ge=16, le=65536, description="At most so many calibration samples refit layers; null: all that pay."
    )

    def work(self, load: Workload) -> Work:
        """Network and original run side by side, and each layer is refitted."""
        return Work(
            runs=2 * min(load.calibrate, self.samples or load.calibrate), networks=2 + load.layers, per_weight_s=1e-6
        )

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse quantized networks: their weights cannot be refitted."""
        from engine.report.values import Refusal

        if inspection.quantized != "none":
            return Refusal(
                code="not_applicable",
                reason=f"The network is {inspection.quantized} quantized: its weights cannot be refitted.",
                hint="Reconstruct before you quantize.",
            )
        return None

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse names of nodes that do not exist."""
        from engine.prune.channels import check

        return check(model, self.exclude)

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Refit in place and say what each layer gained."""
        from engine.prune.reconstruct import reconstruct

        del observations
        return reconstruct(model, frozenset(self.exclude), context, samples=self.samples)
