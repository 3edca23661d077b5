"""Convolutions of any number of spatial axes."""

import itertools
import math

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.named_activations import activation
from engine.train.twin.operators.windows import Windows, padding, windows
from engine.train.twin.table import operator


@operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve `x` (N, C, sizes...) with `weight` (M, C / group, kernel...)."""
    window = windows(node, x.shape[2:], weight.shape[2:])
    pads = window.begins
    if not window.symmetric or min(pads) < 0:
        x, pads = functional.pad(x, padding(window.begins, window.ends)), (0,) * len(pads)
    return torch.convolution(
        x, weight, bias, window.strides, pads, window.dilations, False, (0,) * len(pads), node.integer("group", 1)
    )


@operator("FusedConv", domain="com.microsoft")
def fused_conv(
    node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Give the activation of a convolution to which `residual` was added."""
    result = conv(node, x, weight, bias)
    if residual is not None:
        result = result + residual
    name = node.text("activation", "")
    return activation(name, *(node.numbers("activation_params") or [])[:2])(result) if name else result


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give the transpose of a convolution with `weight` (C, M / group, kernel...) applied to `x` (N, C, sizes...)."""
    window = windows(node, x.shape[2:], weight.shape[2:])
    rank, group = len(window.kernel), node.integer("group", 1)
    begins, sizes = _placement(node, x, window)
    natural = [
        (size - 1) * stride + extent
        for size, stride, extent in zip(x.shape[2:], window.strides, window.extents, strict=True)
    ]
    # What PyTorch calls output_padding is what the output has beyond equal padding on both sides.
    beyond = [size - (full - 2 * begin) for size, full, begin in zip(sizes, natural, begins, strict=True)]
    limits = [max(stride, gap) for stride, gap in zip(window.strides, window.dilations, strict=True)]
    if all(0 <= each < limit for each, limit in zip(beyond, limits, strict=True)) and min(begins) >= 0:
        return torch.convolution(x, weight, bias, window.strides, begins, window.dilations, True, beyond, group)
    full = torch.convolution(x, weight, None, window.strides, (0,) * rank, window.dilations, True, (0,) * rank, group)
    ends = [size + begin - each for size, begin, each in zip(sizes, begins, natural, strict=True)]
    full = functional.pad(full, padding([-begin for begin in begins], ends))
    return full if bias is None else full + bias.reshape(-1, *[1] * rank)


def _placement(node: Node, x: Tensor, window: Windows) -> tuple[list[int], list[int]]:
    """Give for each axis how much is cut off before the output, and the output's size."""
    auto_pad = node.text("auto_pad", "NOTSET")
    extra = node.integers("output_padding") or [0] * len(window.kernel)
    asked = node.integers("output_shape")
    full = [
        (size - 1) * stride + extent + more
        for size, stride, extent, more in zip(x.shape[2:], window.strides, window.extents, extra, strict=True)
    ]
    if asked is not None:
        sizes = asked[-len(full) :]
    elif auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        sizes = [size * stride for size, stride in zip(x.shape[2:], window.strides, strict=True)]
    else:
        cuts = zip(full, window.begins, window.ends, strict=True)
        return list(window.begins), [size - begin - end for size, begin, end in cuts]
    totals = [max(each - size, 0) for each, size in zip(full, sizes, strict=True)]
    # The standard gives the odd element to the end only for SAME_UPPER.
    return [total // 2 if auto_pad == "SAME_UPPER" else total - total // 2 for total in totals], list(sizes)


@operator("CausalConvWithState")
def causal_conv(
    node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve each channel of `x` (N, C, length) with what is not later; gives the end of the input too, for the next part."""
    kept = weight.shape[-1] - 1
    x = functional.pad(x, (kept, 0)) if past is None else torch.cat((past, x), dim=2)
    result = functional.conv1d(x, weight, bias, groups=len(weight))
    named = node.text("activation", "none")
    return result if named == "none" else functional.silu(result), x[..., x.shape[-1] - kept :]


@operator("Col2Im", host=(1, 2))
def col2im(node: Node, x: Tensor, image_shape: Tensor, block_shape: Tensor) -> Tensor:
    """Add blocks (N, C * elements of a block, blocks) up where they lie in the image."""
    sizes, block = image_shape.tolist(), block_shape.tolist()
    window = windows(node, sizes, block)
    padded = [size + begin + end for size, begin, end in zip(sizes, window.begins, window.ends, strict=True)]
    counts = [
        (size - extent) // stride + 1
        for size, extent, stride in zip(padded, window.extents, window.strides, strict=True)
    ]
    parts = x.reshape(len(x), -1, math.prod(block), *counts)
    image = x.new_zeros(*parts.shape[:2], *padded)
    for index, place in enumerate(itertools.product(*(range(size) for size in block))):
        spans = [
            slice(step * gap, step * gap + (count - 1) * stride + 1, stride)
            for step, gap, count, stride in zip(place, window.dilations, counts, window.strides, strict=True)
        ]
        image[(..., *spans)] += parts[:, :, index]
    return functional.pad(image, padding([-each for each in window.begins], [-each for each in window.ends]))
