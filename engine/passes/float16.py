"""The `float16` pass: its parameters and its documentation; the work is in engine.quantize.float16."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.contract import Context, Observe, Pass, Searchable, Work, Workload

if TYPE_CHECKING:
    import onnx_ir as ir

    from engine.inspection import Inspection
    from engine.quantize.float16 import Float16Settings
    from engine.report.values import Change, Refusal


class Float16(Pass):
    """Store weights in 16-bit floats, and compute in them where the target has kernels for it.

    On graphics processors the network itself becomes 16-bit: operators that know no such type, whose inputs are fixed to
    float32, or whose values left the range of float16 on the calibration data stay in float32 behind casts. On ordinary
    processors ONNX Runtime has few 16-bit kernels, so there weights are stored in 16 bits, are widened when the network is
    loaded, and compute in float32: half the size at the same speed.

    On CUDA, at batches of 8 and more, convolutional networks are put into the form that its 16-bit kernels run fast: a first
    convolution with strides of 2 on an image of even size reads blocks of 2x2 pixels, the sum of two 1x1 convolutions is one
    convolution, and Relu comes after MaxPool.
    """

    streams: ClassVar[bool] = True

    type: Literal["float16"] = "float16"

    dtype: Annotated[Literal["float16", "bfloat16"], Searchable(choices=("float16", "bfloat16"))] = Field(
        "float16", description="`bfloat16` has the range of float32 and 8 bits of precision."
    )
    compute: Literal["auto", "half", "float32"] = Field(
        "auto",
        description="`float32` stores weights in 16 bits only; `auto` does that where the target is a processor.",
    )
    keep_io: bool = Field(default=True, description="Inputs and outputs of the network stay float32.")
    margin: float = Field(
        2.0, ge=1.0, le=1e4, description="Values this many times larger than any that was seen must still fit float16."
    )
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        (), max_length=4096, description="Names of nodes that stay in float32.", strict=False
    )

    @property
    def widths_may_change(self) -> bool:
        """Whether inputs and outputs become 16-bit too."""
        return not self.keep_io

    def settings(self) -> "Float16Settings":
        """Give the parameters as the method takes them."""
        from engine.quantize.float16 import Float16Settings

        return Float16Settings(
            dtype=self.dtype,
            compute=self.compute,
            keep_io=self.keep_io,
            margin=self.margin,
            exclude=self.exclude,
        )

    def work(self, load: Workload) -> Work:
        """Where 16 bits are computed in, candidates are compared."""
        del load
        return Work(runs=60, networks=4)

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse networks whose weights are 16-bit floats already, or integers alone."""
        from engine.report.values import Refusal

        if inspection.float_type in {"float16", "bfloat16"}:
            return Refusal(code="already_done", reason=f"Most weights are {inspection.float_type} already.")
        return None

    def prepare(self, model: "ir.Model") -> None:
        """Look for weights in Constant nodes too."""
        from engine.graph.weights import lift_weights

        lift_weights(model)

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse a network without float32 weights, or with operators whose types are not known."""
        from engine.quantize.float16 import check

        return check(model, self.settings())

    def observes(self, model: "ir.Model") -> Sequence[Observe]:
        """Ask for the range of every float32 activation: none may overflow."""
        from engine.quantize.float16 import observes

        return observes(model, self.settings())

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Convert in place and say which nodes stay in float32 and why."""
        from engine.quantize.float16 import convert

        return convert(model, self.settings(), observations, context)
