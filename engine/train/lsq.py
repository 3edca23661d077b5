"""Learned step size quantization: rounding to a grid whose step is trained beside the numbers that are rounded.

S. K. Esser, J. L. McKinstry, D. Bablani, R. Appuswamy, D. S. Modha: "Learned Step Size Quantization", ICLR 2020.
"""

import math
from typing import Any

from engine.train.framework import Tensor, torch
from engine.train.quantized_graph import DOMAIN
from engine.train.twin.node import Node
from engine.train.twin.table import operator

# A number, or a tensor of them.
Bound = Any


def fake_quantize(x: Tensor, scale: Tensor, low: Bound, high: Bound, *, numbers: int | None = None) -> Tensor:
    """Give clip(round(x / scale), low, high) * scale, with the paper's gradients.

    Straight through for `x` where it is not clipped, none where it is. For the scale, equations 3 and 5 of the paper: the
    code less x / scale where it is not clipped, the bound where it is, times 1 / sqrt(numbers per scale * largest code).

    Args:
        x: of any shape.
        scale: positive, of a shape that broadcasts to that of `x`.
        low: least code, zero point taken off; a tensor that broadcasts to `x` where it differs.
        high: largest code, likewise.
        numbers: how many share a scale, where the shape of `scale` does not say it.
    """
    numbers = max(x.numel() // max(scale.numel(), 1), 1) if numbers is None else numbers
    found: Tensor = _FakeQuantize.apply(x, scale, (low, high), numbers)
    return found


class _FakeQuantize(torch.autograd.Function):  # type: ignore[misc]  # torch is not read by mypy
    """Keeps only what came in: the codes are computed again for the gradient, which costs less than keeping them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bounds: tuple[Bound, Bound], numbers: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.bounds, ctx.numbers = bounds, numbers
        return (x / scale).clamp_(*bounds).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, scale = ctx.saved_tensors
        low, high = ctx.bounds
        exact = x / scale
        clipped = exact.clamp(low, high)
        inside = exact == clipped
        of_x = gradient * inside if ctx.needs_input_grad[0] else None
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope = clipped.round_().sub_(exact * inside)
            largest = float(torch.as_tensor(high).max())
            factor = 1 / math.sqrt(ctx.numbers * max(largest, 1.0))
            of_scale = (gradient * slope).sum_to_size(scale.shape) * factor
        return of_x, of_scale, None, None


@operator("FakeQuantize", domain=DOMAIN)
def fake_quantize_node(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    """An activation that is rounded to integers and restored; `low` and `high` are codes with the zero point taken off."""
    return fake_quantize(x, scale, float(node.integer("low", 0)), float(node.integer("high", 255)))


def pair_bounds(rows: Tensor, scale: Tensor, limit: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Give bounds of codes (outputs, inputs) with which no two neighbours of equal sign add up to more than `limit`.

    The first of two is free, the second one is bounded by the first one's code, as GPTQ rounds under the same rule.
    """
    with torch.no_grad():
        exact = rows / scale
        least, most = torch.full_like(exact, low), torch.full_like(exact, high)
        first = exact[:, 0 : exact.shape[1] // 2 * 2 : 2].clamp(low, high).round()
        least[:, 1::2] = (-limit - first.clamp(max=0)).clamp(min=low)
        most[:, 1::2] = (limit - first.clamp(min=0)).clamp(max=high)
    return least, most
