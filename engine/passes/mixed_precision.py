"""The `mixed_precision` pass: its parameters and its documentation; the work is in engine.quantize.mixed_precision."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.quantize.mixed_precision import MixedSettings
    from engine.report.values import Change, Refusal

Candidate = Literal["static", "regions", "dynamic", "weights8", "weights4", "float16"]


class MixedPrecision(Pass):
    """Find per layer what pays on the target: float32, 8-bit integers with fixed or fresh ranges, or weights in few bits.

    Networks are made that quantize all layers, all but the most sensitive, only the regions that the target's profile says
    are worth their conversions, only the matrix products, or only the stored weights. They run in turn on the target, and
    their outputs are compared with the original's on the samples to choose by, which set no range. The best one within the allowed
    loss is the result; the report shows the front of all of them: quality, latency and size. Where none of them pays, the
    network stays as it is, and the report says so.

    Run `simplify` and `fuse` before it.
    """

    widens: ClassVar[bool] = True

    type: Literal["mixed_precision"] = "mixed_precision"
    needs_data: ClassVar[bool] = True

    max_drop: Annotated[float, Searchable(low=0.001, high=0.05, log=True)] | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Largest loss of the dataset's metric, 0.01 is one point; by default what the job's gates allow.",
    )
    minimise: Literal["latency", "size"] = Field(
        "latency", description="What the best network has least of; `size` still refuses what is slower than float."
    )
    candidates: tuple[Candidate, ...] = Field(
        ("static", "regions", "dynamic", "weights8", "weights4", "float16"),
        min_length=1,
        max_length=6,
        description="Kinds of networks that may be made.",
        strict=False,
    )
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that stay in float.", strict=False
    )

    def settings(self) -> "MixedSettings":
        """Give the parameters as the method takes them."""
        from engine.quantize.mixed_precision import MixedSettings

        return MixedSettings(
            max_drop=self.max_drop,
            minimise=self.minimise,
            candidates=self.candidates,
            exclude=self.exclude,
        )

    @property
    def reads_gates(self) -> bool:
        """Layers stay in float until the limits hold."""
        return True

    def work(self, load: Workload) -> Work:
        """Many networks are made; how much they are run is bounded by time."""
        networks = 3 * len(self.candidates)
        return Work(
            runs=load.calibrate + networks * (4 * load.calibrate + 2000 + 8 * load.layers),
            networks=5 * networks,
            timed_s=5.0 + networks,
            # Static and 4-bit candidates solve for each weight, some of them more than once.
            per_weight_s=1.5e-6,
            most_s=150.0,
        )

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse networks that are quantized already."""
        from engine.report.values import Refusal

        if inspection.quantized != "none":
            return Refusal(
                code="already_done",
                reason=f"The network is {inspection.quantized} quantized already.",
                hint="Upload the floating-point network that it was made from.",
            )
        return None

    def skips(self, samples: int, fixed: int | None) -> str | None:
        """Say that too few samples are there to refine the candidates with fixed ranges."""
        from engine.passes.quantize_static import fidelity_skips

        return fidelity_skips(samples, fixed) if {"static", "regions"} & set(self.candidates) else None

    def prepare(self, model: "ir.Model") -> None:
        """Un-share weights, convert old operator sets, and give every operator a name."""
        from engine.quantize.mixed_precision import prepare

        prepare(model, self.exclude)

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse with the graph in hand: quantized already, too large to hold several of, or nothing to quantize."""
        from engine.quantize.mixed_precision import check

        return check(model, self.settings())

    def observes(self, model: "ir.Model") -> Sequence[Observe]:
        """Ask for what `quantize_static` asks for, and the plain range of every tensor in question."""
        from engine.quantize.mixed_precision import observes

        return observes(model, self.settings())

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Put the best network in the model's place and show the front that it was chosen from."""
        from engine.quantize.mixed_precision import mix

        return mix(model, self.settings(), observations, context)
