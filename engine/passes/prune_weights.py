"""The `prune_weights` pass: its parameters and its documentation; the work is in engine.prune.sparsity."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.prune.sparsity import SparsitySettings
    from engine.report.values import Change, Refusal


class PruneWeights(Pass):
    """Set single weights to zero, so that the network compresses better on its way to the device.

    ONNX Runtime has no kernels for sparse weights: the file keeps its size and a run keeps its time. What shrinks is the
    download, measured as the deflated file (the compression of HTTP and zip), and that is what this pass is judged by.
    `2:4` also prepares the network for TensorRT on GPUs with sparse tensor cores.

    With calibration data, each layer is thinned out on the inputs that it really gets once all before it are (SparseGPT
    and Wanda; the weights that stay make up for those that go), and the best candidate on held-out rows is kept. Without
    data, or with a `threshold` or the scope `global`, the smallest weights go. Rows and channels that are zero as a whole
    are removed for good: that does make the network smaller and faster, and changes no result.
    """

    widens: ClassVar[bool] = True

    type: Literal["prune_weights"] = "prune_weights"

    method: Literal["auto", "magnitude", "wanda", "sparsegpt"] = Field(
        "auto", description="`auto`: the best of all three in each layer where there are data, else `magnitude`."
    )
    share: Annotated[float | None, Searchable(low=0.2, high=0.9)] = Field(
        None, gt=0, lt=1, description="Share of each layer's weights that becomes zero; 0.5 where nothing is given."
    )
    threshold: float | None = Field(
        None, gt=0, le=1e6, description="Instead: all weights of smaller absolute value become zero."
    )
    pattern: Annotated[Literal["2:4", "1:4", "4:8", "1:2"] | None, Searchable(choices=("2:4", "4:8"))] = Field(
        None,
        description="Instead: so many of so many neighbouring inputs stay, the others become zero (TensorRT: 2:4).",
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="`global`: the share is of all layers together, so that some lose more; magnitude only."
    )
    remove_channels: bool = Field(
        default=True, description="Remove channels that are zero as a whole; results stay the same."
    )
    operators: tuple[Literal["MatMul", "Gemm", "Conv"], ...] = Field(
        ("MatMul", "Gemm", "Conv"), max_length=3, description="Operators whose weights are thinned out.", strict=False
    )
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that stay as they are.", strict=False
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = [name for name in ("share", "threshold", "pattern") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of share, threshold and pattern, not {' and '.join(given)}")
        if self.threshold is not None and self.method in {"wanda", "sparsegpt"}:
            raise ValueError("a threshold is compared with the weights themselves: it needs the method magnitude")
        if self.scope == "global" and (self.method in {"wanda", "sparsegpt"} or self.pattern is not None):
            raise ValueError("the scope global needs the method magnitude and no pattern")
        return self

    def work(self, load: Workload) -> Work:
        """Sums over what layers read, and a solution for each weight."""
        by_data = self.method != "magnitude" and load.calibrate > 0
        return Work(runs=2 * load.calibrate if by_data else 0, networks=3, per_weight_s=1e-6 if by_data else 5e-8)

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse networks without float weights of these operators."""
        from engine.inspection import hint_without_layers
        from engine.report.values import Refusal

        if inspection.quantized == "fully":
            return Refusal(
                code="not_applicable",
                reason="The network is quantized: zeros in integer weights would be lost on its scales.",
                hint="Prune first, then quantize.",
            )
        if not any(inspection.ops.get(operator) for operator in self.operators):
            return Refusal(
                code="not_applicable",
                reason=f"The network has no {', '.join(self.operators)}.",
                hint=hint_without_layers(inspection),
            )
        return None

    def skips(self, samples: int, fixed: int | None) -> str | None:
        """Say what cannot be done without data."""
        del fixed
        if samples or self.method != "auto" or self.threshold is not None or self.scope != "layer":
            return None
        return "weights are chosen by magnitude and none is repaired: both need a dataset"

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse a network without a layer that can get zeros, or where all have theirs."""
        from engine.prune.sparsity import check

        return check(model, self._settings())

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Thin out in place and say per layer how, at what held-out error, and what stayed."""
        del observations
        from engine.prune.sparsity import prune_weights

        return prune_weights(model, self._settings(), context)

    def _settings(self) -> "SparsitySettings":
        from engine.prune.sparsity import SparsitySettings

        return SparsitySettings(
            method=self.method,
            share=self.share,
            threshold=self.threshold,
            pattern=self.pattern,
            scope=self.scope,
            remove_channels=self.remove_channels,
            operators=self.operators,
            exclude=self.exclude,
        )
