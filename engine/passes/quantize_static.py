"""The `quantize_static` pass: its parameters and its documentation; the work is in engine.quantize.static."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload
from engine.data.parts import FEWEST_TO_REFINE

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.quantize.static import StaticSettings
    from engine.report.values import Change, Refusal


def fidelity_skips(samples: int, fixed: int | None) -> str | None:
    """Say what static quantization leaves out where so few samples are there to choose by."""
    needed = max(FEWEST_TO_REFINE, fixed or 1)
    if not 0 < samples < needed:
        return None
    return (
        "range search, equalisation, SmoothQuant, GPTQ rounding, bias correction and the explanation of each layer are left"
        f" out: they need {needed} samples to choose by, and {samples} are there"
    )


class QuantizeStatic(Pass):
    """Store weights and compute activations in 8-bit integers (QDQ), with ranges from calibration data.

    Scales come from one streaming run over the calibration samples. The integer types are chosen per layer for the
    target's processor: without integer dot-product instructions, a kernel adds pairs of 8 x 8 bit products in 16 bits, so a
    layer keeps 8-bit weights only where its own weights prove that no pair can overflow, and gets 7-bit weights elsewhere.
    A first convolution of one to three channels reads several columns of the image at a time where that is measured to be
    faster: the same integers, less padding in the kernel.
    """

    widens: ClassVar[bool] = True

    type: Literal["quantize_static"] = "quantize_static"
    needs_data: ClassVar[bool] = True

    per_channel: Annotated[bool, Searchable(choices=(True, False))] = Field(
        default=True, description="One weight scale per output channel instead of one per layer."
    )
    activations: Annotated[Literal["auto", "uint8", "int8"], Searchable(choices=("auto", "uint8", "int8"))] = Field(
        "auto", description="Integer type of activations; `auto` takes what the target's kernels run fastest."
    )
    weights: Annotated[
        Literal["auto", "int8", "int7", "uint8"], Searchable(choices=("auto", "int8", "int7", "uint8"))
    ] = Field("auto", description="Integer type of weights; `auto` proves per layer what cannot saturate.")
    ranges: Annotated[
        Literal["auto", "min_max", "moving_average", "percentile", "entropy", "mse"],
        Searchable(choices=("min_max", "moving_average", "percentile", "entropy", "mse")),
    ] = Field("auto", description="How activations' ranges are cut; `auto` takes what is best on samples to choose by.")
    improve: bool = Field(
        default=True,
        description="Try range search, equalisation, SmoothQuant, GPTQ rounding and bias correction; keep what gains on"
        " samples to choose by.",
    )
    embeddings: bool = Field(default=True, description="Store tables of embeddings as int8 rows with a scale each.")
    measure_layers: bool = Field(
        default=True, description="Leave kinds of layers in float that the target measurably runs faster so."
    )
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that stay in float.", strict=False
    )

    def settings(self) -> "StaticSettings":
        """Give the parameters as the method takes them."""
        from engine.quantize.static import StaticSettings

        return StaticSettings(
            per_channel=self.per_channel,
            activations=self.activations,
            weights=self.weights,
            ranges=self.ranges,
            improve=self.improve,
            embeddings=self.embeddings,
            measure_layers=self.measure_layers,
            exclude=self.exclude,
        )

    def work(self, load: Workload) -> Work:
        """Statistics come from all calibration samples; each try to improve is scored."""
        # Twelve scores on at most 128 samples, equalisation calibrates three times, GPTQ's fits, and noise layer by layer.
        tried = 12 * min(load.select, 128) + 3 * load.calibrate + 200 + 8 * load.layers if self.improve else 0
        timed = 12.0 if self.measure_layers else 0.0
        return Work(
            runs=load.calibrate + tried, networks=16, timed_s=timed, per_weight_s=5e-7 if self.improve else 5e-8
        )

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse networks that are quantized already or hold nothing to quantize."""
        from engine.report.values import Refusal

        if inspection.quantized != "none":
            return Refusal(
                code="already_done",
                reason=f"The network is {inspection.quantized} quantized already.",
                hint="Upload the floating-point network that it was made from.",
            )
        return None

    def skips(self, samples: int, fixed: int | None) -> str | None:
        """Say that too few samples are there to try what may make the network more faithful."""
        return fidelity_skips(samples, fixed) if self.improve else None

    def prepare(self, model: "ir.Model") -> None:
        """Un-share weights, and convert old operator sets."""
        from engine.quantize.static import prepare

        prepare(model, self.exclude)

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse with the graph in hand: quantized already, or no layer that can be quantized."""
        from engine.quantize.static import check

        return check(model, self.settings())

    def observes(self, model: "ir.Model") -> Sequence[Observe]:
        """Ask for the range of every tensor that will be quantized."""
        from engine.quantize.static import observes

        return observes(model, self.settings())

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Insert quantization in place and say per layer which types were chosen and why."""
        from engine.quantize.static import quantize

        return quantize(model, self.settings(), observations, context)

    def ensures(self, model: "ir.Model") -> None:
        """Check that every scale is positive and finite and every quantized layer reads quantized weights."""
        from engine.quantize.static import ensures

        ensures(model)
