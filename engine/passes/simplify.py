"""The `simplify` pass: its parameters and its documentation; the work is in engine.graph.simplify."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from engine.contract import Context, Observe, Pass, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.report.values import Change, Refusal


class Simplify(Pass):
    """Fold constants, remove what has no effect, fuse batch normalisation into convolutions, store tree ensembles smaller.

    Lossless: after each stage the outputs are compared with those of the network that was given; a stage that changes
    them beyond float rounding is dropped and named in the report. Names of inputs and outputs stay. Ensembles of
    decision trees lose branches that no sample takes and lists that say nothing, and become the operator of ai.onnx.ml
    version 5 where it can hold them; where not, the report says why.
    """

    type: Literal["simplify"] = "simplify"
    lossless: ClassVar[bool] = True

    def work(self, load: Workload) -> Work:
        """Every stage is compared with the network on a few samples."""
        del load
        return Work(runs=100, networks=14)

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Simplify in place and list the stages that helped."""
        del observations
        from engine.graph.simplify import simplify

        return simplify(model, context)
