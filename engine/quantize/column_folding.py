"""First convolutions over several columns at a time.

Integer kernels multiply four input channels at once, and images have one to three: most of the work is padding, or copying
single bytes together. Neighbouring columns of an image that is laid out channels-last lie beside each other in memory, so they
can be read as channels without moving a byte (the space-to-depth stem of Ying et al., "Image Classification at Supercomputer
Scale", 2018, in one direction only). The kernel then holds the same weights once for every output column, and zeros between.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph.attributes import integer, integers, text
from engine.graph.linear import LinearLayer
from engine.quantize.static_plan import StaticPlan, final_output

# Kernels work on this many input channels at a time.
AT_A_TIME = 4


@dataclass(frozen=True)
class Fold:
    """How one convolution reads `columns` input columns as channels, and gives `made` output columns as channels."""

    columns: int
    made: int
    width: int
    made_width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right

    @classmethod
    def of(cls, layer: LinearLayer, plan: StaticPlan) -> "Fold | None":
        """Give the fold of a convolution; None where it cannot be, or where it has channels enough."""
        node = layer.node
        if node.op_type != "Conv" or len(layer.shape) != 4 or not _is_plain(node):
            return None
        channels, height, width = layer.shape[1:]
        shape = layer.input.shape
        wide = shape[3] if shape is not None and len(shape) == 4 else None
        output = final_output(node)[0]
        if channels >= AT_A_TIME or not isinstance(wide, int):
            return None
        if len(layer.input.uses()) != 1 or plan.tensors.get(output) is not True or output in plan.same_as:
            return None
        stride = integers(node, "strides") or [1, 1]
        pads = integers(node, "pads") or [0, 0, 0, 0]
        columns = 2 if channels == 2 else AT_A_TIME
        made_width = (wide + pads[1] + pads[3] - width) // stride[1] + 1
        if columns % stride[1] or wide % columns or made_width <= 0:
            return None
        made = columns // stride[1]
        found = cls(
            columns, made, wide, made_width, channels, (height, width), (stride[0], stride[1]),
            (pads[0], pads[1], pads[2], pads[3]),
        )  # fmt: skip
        return found if made_width % made == 0 and found.right_pad >= 0 else None

    @property
    def _first(self) -> int:
        """The first folded column that the first folded output column reads; below zero in the padding."""
        return -self.pads[1] // self.columns

    @property
    def folded_kernel(self) -> tuple[int, int]:
        """Height and width of the kernel over folded columns."""
        last = (self.stride[1] * (self.made - 1) - self.pads[1] + self.kernel[1] - 1) // self.columns
        return self.kernel[0], last - self._first + 1

    @property
    def right_pad(self) -> int:
        """Folded columns of padding on the right."""
        width, made_width = self.width // self.columns, self.made_width // self.made
        return made_width - 1 + self.folded_kernel[1] - width + self._first

    def attributes(self) -> dict[str, Any]:
        """Give the attributes that change."""
        top, _, bottom, _ = self.pads
        return {
            "kernel_shape": list(self.folded_kernel),
            "strides": [self.stride[0], 1],
            "pads": [top, -self._first, bottom, self.right_pad],
        }

    def spread(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give [outputs, kernel position and channel] as the folded kernel pairs them, for all output columns side by side.

        A row holds all that one output channel's weights meet, so a grid that suits the row suits every copy.
        """
        spread = matrix[:, np.maximum(self._sources, 0)]
        spread[:, self._sources < 0] = 0
        return spread

    def weights(self, spread: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give the weights [folded outputs, folded channels, height, width] of what `spread` gave."""
        outputs = len(spread)
        wide = spread.reshape(outputs, self.made, *self.folded_kernel, self.columns * self.channels)
        return np.ascontiguousarray(wide.transpose(1, 0, 4, 2, 3)).reshape(
            self.made * outputs, self.columns * self.channels, *self.folded_kernel
        )

    def per_output(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Repeat one number per output channel for every output column."""
        return np.tile(values, self.made)

    @cached_property
    def _sources(self) -> npt.NDArray[np.int64]:
        """Where each weight of a spread row comes from in a row of the matrix; -1 for zero."""
        height, width = self.folded_kernel
        place, row, folded, column, channel = np.meshgrid(
            *(np.arange(size) for size in (self.made, height, width, self.columns, self.channels)), indexing="ij"
        )
        at = self.columns * (folded + self._first) + column + self.pads[1] - self.stride[1] * place
        source = (row * self.kernel[1] + at) * self.channels + channel
        return np.where((at >= 0) & (at < self.kernel[1]), source, -1).reshape(-1)


def _is_plain(node: ir.Node) -> bool:
    return (
        text(node, "auto_pad", "NOTSET") == "NOTSET"
        and integer(node, "group", 1) == 1
        and all(step == 1 for step in integers(node, "dilations") or ())
    )
