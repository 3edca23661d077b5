"""Integer types that fit the target's kernels, and the proof from a layer's weights that its kernel cannot saturate.

x86 kernels without integer dot-product instructions multiply uint8 activations by int8 weights with `vpmaddubsw`: it adds
two neighbouring products in 16 bits and *saturates*. A pair of weights of equal sign can overflow only if
255 * |w0 + w1| > 32767, that is if |w0 + w1| > 128; weights of opposite sign cannot. Neighbours are adjacent along the
contracted axis in the order that the kernel packs it: kernel position first, then input channel.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.errors import SpecInvalidError
from engine.runtime.processor import CpuProfile
from engine.solve.pairs import PAIR_LIMIT, worst_integer_pairs

INT8_MAX = 127
_INT16_MAX = 32767
_UINT8_MAX = 255
# Bias is int32 at scale (activation scale x weight scale); above this it is no longer safe to add to an accumulator.
_BIAS_LIMIT = float(1 << 30)

WeightRule = Literal["int8", "pairs", "int7", "uint8"]
AskedWeights = Literal["auto", "int8", "int7", "uint8"]
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class IntegerTypes:
    """Integer types for one target, and why."""

    activation: Literal["uint8", "int8"]
    rule: WeightRule
    why: str

    @property
    def weight(self) -> Literal["uint8", "int8"]:
        """The type that weights are stored in."""
        return "uint8" if self.rule == "uint8" else "int8"


@dataclass(frozen=True)
class QuantizedWeight:
    """A layer's weights as int8 [channels, contracted], their scales [channels], and how near an accumulator may get."""

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    worst_pair: int
    limited_channels: int

    @property
    def accumulator_load(self) -> float:
        """Largest share of the 16-bit accumulator that any pair can fill; above 1 it saturates."""
        return self.worst_pair * _UINT8_MAX / _INT16_MAX


def choose(
    cpu: CpuProfile,
    *,
    activations: Literal["auto", "uint8", "int8"] = "auto",
    weights: AskedWeights = "auto",
) -> IntegerTypes:
    """Pick the types for a processor; what the recipe fixes stays fixed."""
    arm = cpu.dot in {"neon_dot", "neon_i8mm"}
    activation = ("int8" if arm else "uint8") if activations == "auto" else activations
    if weights == "uint8" and activation == "int8":
        raise SpecInvalidError(
            "There are no kernels for int8 activations with uint8 weights; ask for uint8 activations."
        )
    if weights != "auto":
        return IntegerTypes(activation, weights, "fixed by the recipe")
    if activation == "int8":
        return IntegerTypes(activation, "int8", "int8 x int8 kernels widen before they add, so nothing can saturate")
    if not cpu.saturates_u8s8:
        return IntegerTypes(
            activation, "int8", f"this processor ({cpu.dot}) adds up in 32 bits, so nothing can saturate"
        )
    return IntegerTypes(
        activation,
        "pairs",
        "uint8 x int8 is the fastest kernel on this processor, but it adds pairs of products in 16 bits:"
        " each scale is the finest at which no pair of its weights can overflow",
    )


def quantize_weight(weight: Matrix, rule: WeightRule, *, per_channel: bool) -> QuantizedWeight:
    """Round weights [channels, contracted], in the kernel's order, symmetrically to int8."""
    weight = weight.astype(np.float32)
    largest = np.abs(weight).max(axis=1, initial=0.0)
    top = 64 if rule == "int7" else INT8_MAX
    plain = _scales(largest, top, per_channel=per_channel)
    scale = plain
    if rule == "pairs":
        needed = np.maximum(plain, _scales(worst_pairs(weight), PAIR_LIMIT, per_channel=per_channel))
        scale = _until_pairs_fit(weight, needed)
    values = _round(weight, scale)
    worst = worst_integer_pairs(values)
    return QuantizedWeight(values, scale, int(worst.max(initial=0.0)), int((scale > plain).sum()))


def measured(values: npt.NDArray[np.int8], like: QuantizedWeight) -> QuantizedWeight:
    """Give other codes on the same grid, with how near an accumulator may get."""
    return QuantizedWeight(values, like.scale, int(worst_integer_pairs(values).max(initial=0)), like.limited_channels)


def worst_pairs(weight: Matrix) -> Matrix:
    """Give per channel the largest magnitude of the sum of two paired weights of equal sign."""
    positive, negative = np.maximum(weight, 0), np.maximum(-weight, 0)
    if weight.shape[1] % 2:
        positive, negative = (np.pad(part, ((0, 0), (0, 1))) for part in (positive, negative))
    sums = [part[:, 0::2] + part[:, 1::2] for part in (positive, negative)]
    found = np.maximum(*(part.max(axis=1, initial=0.0) for part in sums))
    return np.asarray(found, dtype=np.float32)


def raise_for_bias(scale: npt.NDArray[np.float32], bias: Matrix, activation_scale: float) -> npt.NDArray[np.float32]:
    """Widen the scales of channels whose bias would not fit int32 (dead channels have next to no weights)."""
    least = np.abs(bias) / (_BIAS_LIMIT * activation_scale)
    return np.maximum(scale, least.astype(np.float32))


def requantize(weight: Matrix, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """Round weights [channels, contracted] at given scales."""
    return _round(weight, scale)


@dataclass(frozen=True)
class Affine:
    """Scale and zero point of an activation; zero is exactly representable, because convolutions pad with it."""

    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def floor(self) -> float:
        """The smallest number that can be represented."""
        return (self.low - self.zero_point) * self.scale

    @property
    def ceiling(self) -> float:
        """The largest number that can be represented."""
        return (self.high - self.zero_point) * self.scale


def affine(low: float, high: float, activation: Literal["uint8", "int8"]) -> Affine:
    """Map a range to 8 bits; a range that holds no negative number gets all steps for the positive ones."""
    low, high = min(low, 0.0), max(high, 0.0)
    bottom, top = (0, 255) if activation == "uint8" else (-128, 127)
    scale = float(np.float32((high - low) / 255)) if high > low else 1.0
    scale = max(scale, float(np.finfo(np.float32).tiny) * (1 << 40))
    zero_point = int(np.clip(round(bottom - low / scale), bottom, top))
    return Affine(scale, zero_point, bottom, top)


def _scales(largest: Matrix, top: int, *, per_channel: bool) -> npt.NDArray[np.float32]:
    if not per_channel:
        largest = np.full_like(largest, largest.max(initial=0.0))
    found = largest / np.float32(top)
    # A channel of zeros: any scale is exact; the layer's largest keeps bias and scales in the usual range.
    found[found < np.finfo(np.float32).tiny * 16] = found.max(initial=0.0) or 1.0
    return np.asarray(found, dtype=np.float32)


def _until_pairs_fit(weight: Matrix, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Widen scales in steps of 0.2 % until rounding no longer lifts any pair over the limit."""
    scale = scale.copy()
    shared = bool((scale == scale[0]).all())
    doubtful = np.arange(len(scale))
    while True:
        over = worst_integer_pairs(_round(weight[doubtful], scale[doubtful])) > PAIR_LIMIT
        if not over.any():
            return scale
        if shared:
            scale *= np.float32(1.002)
        else:
            # Channels that fit once are done: only the others are rounded again.
            doubtful = doubtful[over]
            scale[doubtful] *= np.float32(1.002)


def _round(weight: Matrix, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    rounded: npt.NDArray[np.int8] = np.clip(np.rint(weight / scale[:, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    return rounded
