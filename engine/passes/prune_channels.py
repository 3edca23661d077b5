"""The `prune_channels` pass: its parameters and its documentation; the work is in engine.prune.channels."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.prune.channels import ChannelSettings
    from engine.report.values import Change, Refusal

Kind = Literal["channels", "ffn", "heads", "hidden", "head_width", "conv_groups", "blocks", "recurrent"]
Share = Annotated[float, Field(gt=0, le=0.95)]


class PruneChannels(Pass):
    """Remove whole channels, attention heads and hidden neurons: the network gets smaller and faster on every target.

    Which channels go together is found by executing the graph on labels, so that skips, concatenations, splits and fused
    projections need no special cases. After the cut the layers are refitted in closed form on unlabelled calibration
    samples, so that each gives again what it gave in the original; without data nothing is refitted and the choice is by
    magnitude. Every cut is checked against the original with the same channels silenced.

    `sparsity` is the share that goes. With `max_drop`, `target_size_ratio` or `target_latency_ratio` the share is searched
    by bisection instead, and `sparsity` is the most that is tried. `widths` says of each group by itself how many channels
    it keeps; the others stay whole.
    """

    widens: ClassVar[bool] = True

    type: Literal["prune_channels"] = "prune_channels"

    sparsity: Annotated[Share | None, Searchable(low=0.05, high=0.8)] = Field(
        None, description="Share of each group's channels that goes; by default 0.25, or up to 0.9 for a requirement."
    )
    widths: dict[Annotated[str, Field(min_length=1, max_length=512)], Annotated[int, Field(ge=1, le=1 << 20)]] = Field(
        default_factory=dict,
        max_length=4096,
        description=(
            "Instead: by name of a group, exactly how many channels it keeps. A group is named by its kind and any layer that"
            " makes its channels, such as `channels:conv1`; the layer alone will do where it makes one group."
        ),
    )
    scope: Annotated[Literal["per_group", "global"], Searchable(choices=("per_group", "global"))] = Field(
        "per_group", description="The same share of every group, or the least important channels of the whole network."
    )
    importance: Annotated[
        Literal["auto", "reconstruction", "activation", "magnitude", "taylor", "fisher"],
        Searchable(choices=("reconstruction", "activation", "magnitude", "taylor", "fisher")),
    ] = Field(
        "reconstruction",
        description=(
            "What decides which channels go: the error that is left when the others make up for them as well as they can,"
            " weights times activations, or weights alone. `taylor` and `fisher` go by gradients of the divergence from the"
            " original, of first and of second order, and need PyTorch. `auto` prunes by `reconstruction` and, where PyTorch"
            " is there, by these two as well, and takes what costs least on samples to choose by: three times the work."
        ),
    )
    kinds: tuple[Kind, ...] = Field(
        ("channels", "ffn", "heads"),
        min_length=1,
        max_length=8,
        description="`hidden` is the residual stream of a transformer, `head_width` the channels inside of heads.",
        strict=False,
    )
    round_to: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = Field(
        "auto", description="Widths become multiples of this; `auto` takes what the target's kernels fill."
    )
    min_width: int = Field(1, ge=1, le=65536, description="Least number of channels that a group keeps.")
    reconstruct: bool = Field(default=True, description="Refit the layers on calibration data after the cut.")
    rounds: int | None = Field(
        None,
        ge=1,
        le=16,
        description="In how many cuts, each refitted and ranked anew, the channels go; null: one for each fifth of them. Fewer"
        " take less time.",
    )
    samples: int | None = Field(
        None,
        ge=16,
        le=65536,
        description="At most so many calibration samples rank channels and refit layers; null: all that pay.",
    )
    max_drop: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "Prune as much as costs no more than this of the task's metric; without labels, of the decisions that stay the"
            " same."
        ),
    )
    target_size_ratio: float | None = Field(None, gt=0, lt=1, description="Prune down to this share of the weights.")
    target_latency_ratio: float | None = Field(None, gt=0, lt=1, description="Prune down to this share of the time.")
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that keep all their channels and their weights.", strict=False
    )

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        others = ("sparsity", "max_drop", "target_size_ratio", "target_latency_ratio")
        asked = [name for name in others if getattr(self, name) is not None]
        if self.widths and asked:
            raise ValueError(f"either `widths` or `{asked[0]}` says how much goes")
        return self

    @property
    def trains(self) -> bool:
        """Gradients take PyTorch; `auto` does without where it is not there."""
        return self.importance in {"taylor", "fisher"}

    def work(self, load: Workload) -> Work:
        """Importance is read from the calibration samples, the result refitted; a limit is found by bisection."""
        searches = self.max_drop is not None or self.target_latency_ratio is not None
        calibrate = min(load.calibrate, self.samples or load.calibrate)
        refits = 2 * calibrate if self.reconstruct else 0
        # `auto` prunes three times.
        rounds = (7 if searches else self.rounds or 1) * (3 if self.importance == "auto" else 1)
        return Work(
            runs=calibrate + rounds * (refits + load.select),
            networks=4 * rounds,
            timed_s=5.0 * rounds if self.target_latency_ratio is not None else 0.0,
            per_weight_s=1e-6 * rounds,
        )

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse quantized networks: their weights cannot be refitted."""
        from engine.report.values import Refusal

        if inspection.quantized != "none":
            return Refusal(
                code="not_applicable",
                reason=f"The network is {inspection.quantized} quantized; structure goes before precision.",
                hint="Prune the floating-point network, then quantize.",
            )
        return None

    def skips(self, samples: int, fixed: int | None) -> str | None:
        """Say what cannot be done without data."""
        del fixed
        if samples or not (self.reconstruct or self.importance != "magnitude"):
            return None
        return "channels are chosen by magnitude and no layer is refitted: both need a dataset"

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse names of nodes that do not exist."""
        from engine.prune.channels import check

        return check(model, self.exclude)

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Prune in place and say what each group and each layer became."""
        from engine.prune.channels import prune

        del observations
        return prune(model, self._settings(), context)

    def _settings(self) -> "ChannelSettings":
        from engine.prune.channels import ChannelSettings
        from engine.prune.schedule import Amount

        return ChannelSettings(
            amount=Amount(self.sparsity, self.max_drop, self.target_size_ratio, self.target_latency_ratio),
            scope=self.scope,
            importance=self.importance,
            kinds=self.kinds,
            round_to=self.round_to,
            min_width=self.min_width,
            reconstruct=self.reconstruct,
            exclude=frozenset(self.exclude),
            widths=self.widths,
            rounds=self.rounds,
            samples=self.samples,
        )
