"""The `quantize_weights` pass: its parameters and its documentation; the work is in engine.quantize.weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.quantize.weights_plan import WeightsSettings
    from engine.report.values import Change, Refusal


class QuantizeWeights(Pass):
    """Store weights in 4 or 8 bits, block by block; activations stay in float.

    With calibration data, weights are found by GPTQ: layer after layer, on the inputs that the layer really gets once all
    before it are quantized, aiming at the original layer's output; each candidate (plain rounding, rounding with searched
    ranges, GPTQ) is judged on samples that none was fitted to. Without data, weights are rounded to nearest.

    Large networks whose weights lie in external data are rounded while they are written: one tensor is in memory at a
    time. Made for networks that are bound by memory: MatMul and Gemm run faster where few rows meet large weights.
    Tables of embeddings are stored in blocks too; only the rows that are picked become float. Convolutions get smaller files
    only: their weights are restored to float32 when the network is loaded (with the format
    `qdq` in every run, which is slower). Run `simplify` before this pass, not after: it would restore them for good.
    """

    streams: ClassVar[bool] = True

    widens: ClassVar[bool] = True

    type: Literal["quantize_weights"] = "quantize_weights"

    bits: Annotated[Literal[4, 8], Searchable(choices=(4, 8))] = Field(4, description="Bits per weight.")
    head_bits: Literal[4, 8] | None = Field(
        None,
        description="Bits per weight of the layers that make the outputs, such as the head of a language model, which suffers"
        " most from few; by default as many as `bits`.",
    )
    group: Annotated[Literal[16, 32, 64, 128, 256], Searchable(choices=(32, 64, 128))] = Field(
        32, description="Weights of one output that share a scale."
    )
    method: Literal["auto", "rtn", "gptq"] = Field(
        "auto", description="`rtn` rounds to nearest; `auto` is `gptq` where there are calibration data."
    )
    symmetric: bool = Field(default=False, description="No zero points: half a byte less per group of 4-bit weights.")
    range_search: bool = Field(
        default=False, description="With `rtn`: also try smaller ranges and keep that of the least squared error."
    )
    activation_order: bool = Field(
        default=False,
        description="With `gptq`: round the inputs of largest energy first (grids are then fixed before).",
    )
    format: Literal["matmul_nbits", "qdq"] = Field(
        "matmul_nbits",
        description="`matmul_nbits`: ONNX Runtime's own operators, MatMulNBits and GatherBlockQuantized; `qdq` is standard ONNX (needs opset 21 for blocks).",
    )
    accuracy: Annotated[Literal["auto", "int8", "float32"], Searchable(choices=("int8", "float32"))] = Field(
        "auto",
        description="How MatMulNBits computes (its accuracy_level): `int8` (4) also rounds each block of activations to 8 bits"
        " in passing and is far faster; `float32` (1) does not round them. `auto` runs both on the samples to choose by and"
        " takes the better one; without data it is `int8`.",
    )
    operators: tuple[Literal["MatMul", "Gemm", "Conv", "Gather"], ...] = Field(
        ("MatMul", "Gemm", "Conv", "Gather"),
        max_length=4,
        description="Operators whose weights are quantized.",
        strict=False,
    )
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that stay in float.", strict=False
    )

    def settings(self) -> "WeightsSettings":
        """Give the parameters as the method takes them."""
        from engine.quantize.weights_plan import WeightsSettings

        return WeightsSettings(
            bits=self.bits,
            group=self.group,
            method=self.method,
            symmetric=self.symmetric,
            range_search=self.range_search,
            activation_order=self.activation_order,
            format=self.format,
            accuracy=self.accuracy,
            operators=self.operators,
            exclude=self.exclude,
            head_bits=self.head_bits,
        )

    @property
    def reads_gates(self) -> bool:
        """How products compute is chosen among what the limits allow."""
        return self.accuracy == "auto"

    def work(self, load: Workload) -> Work:
        """GPTQ runs the calibration samples through both networks, stage by stage, and solves for each weight.

        Twelve layers of a BERT-base (85 M weights, 256 samples) took 98 s on two cores, a half of that in runs, and by
        rounding alone 3 s.
        """
        fits = self.method != "rtn" and load.calibrate > 0
        # Two levels are judged on the samples to choose by, and raced.
        chosen = self.accuracy == "auto" and load.calibrate > 0
        return Work(
            runs=2 * load.calibrate * fits + 2 * load.select * chosen,
            networks=4 + 4 * chosen,
            timed_s=5.0 * chosen,
            per_weight_s=6e-7 if fits else 3e-8,
        )

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse networks that are quantized already or hold none of the operators."""
        from engine.inspection import hint_without_layers, holds_any
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
                hint=hint_without_layers(inspection),
            )
        return None

    def skips(self, samples: int, fixed: int | None) -> str | None:
        """Say that GPTQ has no data to work with."""
        del fixed
        if samples or self.method != "auto":
            return None
        return "GPTQ is left out, and weights are rounded to nearest: it needs a dataset"

    def prepare(self, model: "ir.Model") -> None:
        """Look for weights in Constant nodes too; convert networks older than the standard operators that are asked for."""
        from engine.quantize.weights import prepare

        prepare(model, self.settings())

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse a network of which no layer can be quantized; name the first and why."""
        from engine.quantize.weights import check

        return check(model, self.settings())

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Quantize in place and say per layer how, at what held-out error, and what stayed in float."""
        del observations
        from engine.quantize.weights import quantize

        return quantize(model, self.settings(), context)

    def ensures(self, model: "ir.Model") -> None:
        """Check that packed weights have the sizes that their operators state, and scales are finite."""
        from engine.quantize.weights import ensures

        ensures(model)
