"""The `quantize_dynamic` pass: its parameters and its documentation; the work is in engine.quantize.dynamic."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.quantize.dynamic_plan import DynamicSettings
    from engine.report.values import Change, Refusal


class QuantizeDynamic(Pass):
    """Compute MatMul, Gemm and LSTM in 8-bit integers; ranges of activations are taken anew in every run.

    Needs no data. Weights are stored as int8 with a scale per output; tables of embeddings as int8 rows with a scale each.
    On processors that add up pairs of products in 16 bits, scales are chosen per layer so that no pair of its weights can
    overflow. Convolutions stay in float, because dynamic integer convolutions are several times slower; so do GRU and RNN,
    for which ONNX Runtime has no integer kernels. Made for transformers and recurrent networks on processors.
    """

    streams: ClassVar[bool] = True

    widens: ClassVar[bool] = True

    type: Literal["quantize_dynamic"] = "quantize_dynamic"

    per_channel: Annotated[bool, Searchable(choices=(True, False))] = Field(
        default=True, description="One weight scale per output instead of one per layer."
    )
    weights: Annotated[
        Literal["auto", "int8", "int7", "uint8"], Searchable(choices=("auto", "int8", "int7", "uint8"))
    ] = Field("auto", description="Integer type of weights; `auto` proves per layer what cannot saturate.")
    operators: tuple[Literal["MatMul", "Gemm", "LSTM", "Gather"], ...] = Field(
        ("MatMul", "Gemm", "LSTM", "Gather"),
        max_length=4,
        description="Operators whose weights are quantized.",
        strict=False,
    )
    smallest: int = Field(
        4096, ge=1, le=1 << 30, description="Layers with fewer weights stay in float: they cost more."
    )
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that stay in float.", strict=False
    )

    def settings(self) -> "DynamicSettings":
        """Give the parameters as the method takes them."""
        from engine.quantize.dynamic_plan import DynamicSettings

        return DynamicSettings(
            per_channel=self.per_channel,
            weights=self.weights,
            operators=self.operators,
            smallest=self.smallest,
            exclude=self.exclude,
        )

    def work(self, load: Workload) -> Work:
        """Weights are rounded, no sample is needed."""
        del load
        return Work(networks=2, per_weight_s=2e-8)

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse networks that are quantized already or hold none of the operators."""
        from engine.inspection import CONVOLUTIONS_HINT, hint_without_layers, holds_any
        from engine.report.values import Refusal

        if inspection.quantized == "fully":
            return Refusal(
                code="already_done",
                reason="The network is fully quantized already.",
                hint="Upload the floating-point network that it was made from.",
            )
        if not holds_any(inspection, self.operators):
            return Refusal(
                code="not_applicable",
                reason=f"The network has no {', '.join(self.operators)}.",
                hint=hint_without_layers(inspection, CONVOLUTIONS_HINT if inspection.ops.get("Conv") else None),
            )
        return None

    def prepare(self, model: "ir.Model") -> None:
        """Look for weights in Constant nodes too; convert networks older than the operators that are needed."""
        from engine.quantize.dynamic import prepare

        prepare(model, self.exclude)

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse a network of which no layer can be quantized; name the first and why."""
        from engine.quantize.dynamic import check

        return check(model, self.settings())

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Quantize in place and say per layer which weights and why, and what stayed in float."""
        del observations
        from engine.quantize.dynamic import quantize

        return quantize(model, self.settings(), context)

    def ensures(self, model: "ir.Model") -> None:
        """Check that the weights of every integer product are integers."""
        from engine.quantize.dynamic import ensures

        ensures(model)
