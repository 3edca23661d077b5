"""Sliding windows of convolutions and pools: what padding, dilation and ceil_mode mean on each spatial axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.train.twin.node import Node


@dataclass(frozen=True)
class Windows:
    """Where the windows lie, one number for each spatial axis; `begins` and `ends` are the padding before and after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Give how many elements a window spans, its gaps included."""
        return tuple((size - 1) * gap + 1 for size, gap in zip(self.kernel, self.dilations, strict=True))

    @property
    def symmetric(self) -> bool:
        """Say whether as much is padded before as after, as PyTorch's own padding does."""
        return self.begins == self.ends

    def surplus(self, sizes: Sequence[int], *, ceil_mode: bool) -> tuple[int, ...]:
        """Give how far the last window of each axis reaches beyond the padded input.

        A window that would begin in the padding behind the input is left out, as onnxruntime and PyTorch do.
        """
        return tuple(
            _surplus(size, begin, end, extent, stride) if ceil_mode else 0
            for size, begin, end, extent, stride in zip(
                sizes, self.begins, self.ends, self.extents, self.strides, strict=True
            )
        )


def windows(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Read a node's windows over an input of these spatial sizes."""
    rank = len(kernel)
    strides = tuple(node.integers("strides") or [1] * rank)
    dilations = tuple(node.integers("dilations") or [1] * rank)
    auto_pad = node.text("auto_pad", "NOTSET")
    if auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        totals = [
            max((-(-size // stride) - 1) * stride + (taps - 1) * gap + 1 - size, 0)
            for size, stride, taps, gap in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        begins = tuple(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2 for total in totals)
        ends = tuple(total - begin for total, begin in zip(totals, begins, strict=True))
    else:
        pads = (node.integers("pads") if auto_pad == "NOTSET" else None) or [0] * (2 * rank)
        begins, ends = tuple(pads[:rank]), tuple(pads[rank:])
    return Windows(tuple(kernel), strides, dilations, begins, ends)


def padding(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Arrange padding as torch.nn.functional.pad takes it: the last axis first."""
    return [amount for pair in zip(reversed(begins), reversed(ends), strict=True) for amount in pair]


def _surplus(size: int, begin: int, end: int, extent: int, stride: int) -> int:
    count = -(-(size + begin + end - extent) // stride) + 1
    if (count - 1) * stride >= size + begin:
        count -= 1
    return max((count - 1) * stride + extent - (size + begin + end), 0)
