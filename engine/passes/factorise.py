"""The `factorise` pass: its parameters and its documentation; the work is in engine.prune.low_rank."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.prune.low_rank import FactoriseSettings
    from engine.report.values import Change, Refusal


class Factorise(Pass):
    """Split layers into thinner ones: a matrix into two, a convolution into 1x1, a thin kernel, and 1x1.

    Ranks are chosen on the inputs that a layer really gets: the share of its output's energy that is kept counts, not that
    of its weights. A layer is split only where it pays: the thin layers take at most `break_even` of its multiplications,
    and the network with all layers of that kind split is faster in a race on the target. Then layer after layer is solved
    on the inputs that it gets once all before it are split, aiming at the original's output. Biases stay as they are.
    Every layer that stays whole is named with the reason.
    """

    widens: ClassVar[bool] = True

    type: Literal["factorise"] = "factorise"
    needs_data: ClassVar[bool] = True

    energy: Annotated[float, Searchable(low=0.9, high=0.999)] = Field(
        0.99, gt=0, lt=1, description="Share of a layer's output energy that is kept."
    )
    ratio: Annotated[float | None, Searchable(low=0.2, high=0.7)] = Field(
        None, gt=0, lt=1, description="Instead: the share of each layer's multiplications that is left."
    )
    break_even: float = Field(
        0.7, gt=0, le=1, description="A layer stays whole if the thin ones take more of its multiplications than this."
    )
    ranks: dict[Annotated[str, Field(min_length=1, max_length=512)], Annotated[int, Field(ge=1, le=65536)]] = Field(
        default_factory=dict,
        max_length=4096,
        description="Instead: by name of a layer its rank; these layers are split whatever they cost, and no others. A kernel"
        " has it on the side of its outputs, and keeps the same share of its channels.",
    )
    race: bool = Field(
        default=True,
        description="Keep only what is faster on the target; false: go by multiplications alone, for size.",
    )
    multiple: Literal[1, 4, 8, 16, 32] = Field(8, description="Ranks are rounded to multiples of this.")
    operators: tuple[Literal["MatMul", "Gemm", "Conv"], ...] = Field(
        ("MatMul", "Gemm", "Conv"), max_length=3, description="Operators that are split.", strict=False
    )
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that stay whole.", strict=False
    )

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.ratio is not None and self.ratio > self.break_even:
            raise ValueError(f"a ratio of {self.ratio:g} is beyond the break-even of {self.break_even:g}")
        if self.ratio is not None and self.ranks:
            raise ValueError("either `ratio` or `ranks` says how thin layers become")
        return self

    def work(self, load: Workload) -> Work:
        """Sums over what layers read, and a decomposition of each weight; ranks that are given need no race."""
        share = min(1.0, len(self.ranks) / max(load.layers, 1)) if self.ranks else 1.0
        timed = 5.0 if self.race and not self.ranks else 0.0
        return Work(runs=2 * load.calibrate, networks=4, timed_s=timed, per_weight_s=3e-6 * share)

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse networks that are quantized, or hold none of the operators."""
        from engine.inspection import hint_without_layers
        from engine.report.values import Refusal

        if inspection.quantized == "fully":
            return Refusal(
                code="not_applicable",
                reason="The network is quantized; thin layers are made of float weights.",
                hint="Factorise first, then quantize.",
            )
        if not any(inspection.ops.get(operator) for operator in self.operators):
            return Refusal(
                code="not_applicable",
                reason=f"The network has no {', '.join(self.operators)}.",
                hint=hint_without_layers(inspection),
            )
        return None

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse a network of which no layer can be split; name the first and why."""
        from engine.prune.low_rank import check

        return check(model, self._settings())

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Split in place and say per layer at which ranks, at what held-out error, and what stayed whole."""
        del observations
        from engine.prune.low_rank import factorise

        return factorise(model, self._settings(), context)

    def _settings(self) -> "FactoriseSettings":
        from engine.prune.low_rank import FactoriseSettings

        return FactoriseSettings(
            energy=self.energy,
            ratio=self.ratio,
            break_even=self.break_even,
            race=self.race,
            multiple=self.multiple,
            operators=self.operators,
            exclude=self.exclude,
            ranks=self.ranks,
        )
