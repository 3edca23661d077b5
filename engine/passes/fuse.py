"""The `fuse` pass: its parameters and its documentation; the work is in engine.graph.fusing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.report.values import Change, Refusal


class Fuse(Pass):
    """Write operators that exporters take apart as the one operator that kernels are made for.

    Factors and offsets behind and before convolutions go into their weights; hard-swish, hard-sigmoid and GELU that come as
    four or five operators become one. Lossless up to float rounding. Run it before quantization: what is left between two
    convolutions decides whether integers pay there.
    """

    type: Literal["fuse"] = "fuse"
    lossless: ClassVar[bool] = True

    attention: bool = Field(
        default=False,
        description=(
            "Also make attention without a mask one MultiHeadAttention of ONNX Runtime, for the CPU and CUDA; after pruning"
            " and training. Other runtimes do not know it."
        ),
    )

    def work(self, load: Workload) -> Work:
        """The result is compared with the network on a few samples."""
        del load
        return Work(runs=20, networks=3)

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Fuse in place and count what was fused."""
        del observations
        from engine.graph.fusing import fuse

        with context.working():
            return fuse(model, attention=self.attention and context.target.provider in {"cpu", "cuda"})
