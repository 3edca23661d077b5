"""The `drop_blocks` pass: its parameters and its documentation; the work is in engine.prune.blocks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.prune.blocks import BlockSettings
    from engine.report.values import Change, Refusal


class DropBlocks(Pass):
    """Drop whole residual branches: Add(x, f(x)) becomes x, and Add(conv(x), f(x)) becomes conv(x).

    Every branch is scored by itself: the network runs without it on the samples to choose by, and what it says is compared
    with what the original says (KL divergence where the outputs score classes, else the share of noise in them). Then the
    branches of least damage go one after another, each scored beside those that are gone, until `count` or `share` is
    reached or the damage would pass the limit. No labels are needed. The scores of all branches are in the report.
    `only` names the branches that may go, say the ones that take most of the time: damage before anything was restored is
    no measure of what is left after `reconstruct` and `distill`. `exactly` names the branches that go, whatever they cost;
    nothing is scored then.
    """

    type: Literal["drop_blocks"] = "drop_blocks"
    needs_data: ClassVar[bool] = True

    count: Annotated[int | None, Searchable(low=1, high=32)] = Field(
        None, ge=1, le=4096, description="At most so many branches go; null: as many as the limit allows."
    )
    share: Annotated[float | None, Searchable(low=0.05, high=0.5)] = Field(
        None, gt=0, lt=1, description="At most this share of the branches goes, rounded down, at least one."
    )
    max_kl: float | None = Field(
        0.05,
        gt=0,
        le=100,
        description="Largest KL divergence (nats) from the original where outputs score classes; null: no limit.",
    )
    min_sqnr_db: float | None = Field(
        15.0,
        ge=-20,
        le=200,
        description="Least signal-to-noise ratio (dB) of the outputs where they do not; null: no limit.",
    )
    only: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of the sums whose branches may go; empty: all.", strict=False
    )
    exactly: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Instead: names of the sums whose branches go, without limit.", strict=False
    )
    samples: int = Field(128, ge=2, le=4096, description="At most so many samples score every candidate.")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.exactly and (self.only or self.count is not None or self.share is not None):
            raise ValueError("`exactly` says which branches go: leave out `only`, `count` and `share`")
        return self

    def work(self, load: Workload) -> Work:
        """Every branch is left out once, on the samples that score; none where they are named."""
        if self.exactly:
            return Work()
        branches = max(load.layers // 3, 1)
        return Work(runs=2 * branches * min(load.select, self.samples), networks=2 * branches)

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse networks without a sum."""
        from engine.report.values import Refusal

        if not inspection.ops.get("Add"):
            return Refusal(code="not_applicable", reason="The network has no Add, so it has no residual branch.")
        return None

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse a network without a branch that can go; name the first sum that looked like one, and why it stays."""
        from engine.prune.blocks import find_blocks
        from engine.report.values import Refusal

        blocks = find_blocks(model)
        names = [block.name for block in blocks.found]
        field, asked = ("exactly", self.exactly) if self.exactly else ("only", self.only)
        strange = next((name for name in asked if name not in names), None)
        if strange is not None and blocks.found:
            return Refusal(
                code="not_applicable",
                reason=f"`{field}` names `{strange}`: {blocks.refused.get(strange, 'it is no sum of a residual branch')}.",
                node=strange,
                hint=f"Sums whose branch can go: {', '.join(names[:20])}.",
            )
        if blocks.found:
            return None
        if blocks.refused:
            node, reason = next(iter(blocks.refused.items()))
            return Refusal(
                code="not_applicable",
                reason=f"No residual branch can go; the first, `{node}`, stays because {reason}.",
                node=node,
            )
        return Refusal(code="not_applicable", reason="The network has no residual branch with weights of its own.")

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Drop branches in place and say what each one was worth."""
        del observations
        from engine.prune.blocks import drop_blocks

        return drop_blocks(model, self._settings(), context)

    def _settings(self) -> "BlockSettings":
        from engine.prune.blocks import BlockSettings

        return BlockSettings(
            count=self.count,
            share=self.share,
            max_kl=self.max_kl,
            min_sqnr_db=self.min_sqnr_db,
            only=frozenset(self.only),
            exactly=frozenset(self.exactly),
            samples=self.samples,
        )
