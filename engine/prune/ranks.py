"""How thin a layer may become: ranks by the energy of its output or by its multiplications, and what they cost."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from engine.graph.attributes import integers
from engine.graph.linear import LinearLayer
from engine.solve.gptq import damped
from engine.solve.gram import Moments
from engine.solve.lowrank import low_rank

Doubles = npt.NDArray[np.float64]
# Ranks are multiples of this where nobody asks for another one.
RANK_STEP = 8


@dataclass(frozen=True)
class Split:
    """How a layer is split: (rank,) into two, or (rank of the outputs, rank of the channels) into three."""

    layer: LinearLayer
    ranks: tuple[int, ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Layers of one kind take the same time."""
        return (self.layer.node.op_type, self.layer.shape, _strides(self.layer), self.ranks)

    @property
    def cost(self) -> float:
        """Multiplications of the thin layers as a share of the layer's own."""
        layer = self.layer
        if len(self.ranks) == 1:
            return self.ranks[0] * (layer.outputs + layer.inputs) / (layer.outputs * layer.inputs)
        outputs, channels = self.ranks
        # The first 1x1 runs at every place of the input, the others only where the kernel stops.
        first = channels_of(layer) * channels * math.prod(_strides(layer))
        return (first + channels * outputs * _places(layer) + outputs * layer.outputs) / (layer.outputs * layer.inputs)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The thin layers as (outputs, inputs)."""
        layer = self.layer
        if len(self.ranks) == 1:
            return [(self.ranks[0], layer.inputs), (layer.outputs, self.ranks[0])]
        outputs, channels = self.ranks
        return [(channels, channels_of(layer)), (outputs, channels * _places(layer)), (layer.outputs, outputs)]

    def told(self) -> str:
        """Put the ranks into words."""
        return f"rank {self.ranks[0]}" if len(self.ranks) == 1 else f"ranks {self.ranks[0]} and {self.ranks[1]}"


def by_energy(layer: LinearLayer, fit: Moments, energy: float, multiple: int) -> Split:
    """Give the least ranks that keep a share of the layer's output energy on the inputs that were summed up in `fit`."""
    lost = 1 - energy
    if not _is_kernel(layer):
        spectrum = low_rank(values(layer), fit.xtx, 1).lost
        return Split(layer, (_rounded(_least(spectrum, lost), min(layer.outputs, layer.inputs), multiple),))
    # Two subspaces are cut; what they lose adds up.
    by_output, by_channel = _kernel_spectra(layer, fit)
    outputs = _rounded(_least(by_output, lost / 2), layer.outputs, multiple)
    channels = _rounded(_least(by_channel, lost / 2), channels_of(layer), multiple)
    return _fitting(layer, outputs, channels)


def by_cost(layer: LinearLayer, ratio: float, multiple: int) -> Split:
    """Give the largest ranks within a share of the layer's multiplications; a kernel is cut alike on both sides."""
    if not _is_kernel(layer):
        full = min(layer.outputs, layer.inputs)
        most = int(ratio * layer.outputs * layer.inputs / (layer.outputs + layer.inputs))
        return Split(layer, (_rounded(max(1, min(most, full)), full, multiple, down=True),))
    best = _fitting(layer, 1, 1)
    for share in np.linspace(0.02, 1, 99):
        outputs = _rounded(max(1, int(share * layer.outputs)), layer.outputs, multiple, down=True)
        channels = _rounded(max(1, int(share * channels_of(layer))), channels_of(layer), multiple, down=True)
        split = _fitting(layer, outputs, channels)
        if split.cost <= ratio:
            best = split
    return best


def by_rank(layer: LinearLayer, rank: int, multiple: int) -> Split:
    """Give a split of this rank; a kernel has it on the side of its outputs, and the same share of its channels."""
    if not _is_kernel(layer):
        return Split(layer, (min(rank, layer.outputs, layer.inputs),))
    channels = channels_at(rank, channels_of(layer), layer.outputs, multiple)
    return _fitting(layer, min(rank, layer.outputs), channels)


def channels_at(rank: int, channels: int, outputs: int, multiple: int) -> int:
    """Give how many channels a kernel reads at a rank of its outputs: the same share of them."""
    return _rounded(max(1, math.ceil(channels * rank / outputs)), channels, multiple)


def channels_of(layer: LinearLayer) -> int:
    """Give how many channels a layer reads."""
    return layer.shape[1] if layer.is_convolution else layer.inputs


def values(layer: LinearLayer) -> Doubles:
    """Give a layer's weights as (outputs, inputs) in double precision."""
    return np.array(layer.matrix(), np.float64)


def _kernel_spectra(layer: LinearLayer, fit: Moments) -> tuple[Doubles, Doubles]:
    """Give the shares of output energy that are lost at each number of outputs and of channels."""
    channels, places = channels_of(layer), _places(layer)
    metric = damped(fit.xtx, 1e-4)
    lower = linalg.cholesky(metric, lower=True)
    by_output = _lost(linalg.svd(values(layer) @ lower, compute_uv=False))
    per_place = metric.reshape(channels, places, channels, places)
    whiten = linalg.cholesky(np.einsum("apbp->ab", per_place) / places, lower=True)
    white = np.einsum("ocp,cd->dop", values(layer).reshape(-1, channels, places), whiten).reshape(channels, -1)
    by_channel = _lost(np.sqrt(np.maximum(linalg.eigvalsh(white @ white.T)[::-1], 0)))
    return by_output, by_channel


def _lost(singular: Doubles) -> Doubles:
    energy = np.concatenate([np.cumsum((singular**2)[::-1])[::-1], [0.0]])
    shares: Doubles = energy / max(energy[0], np.finfo(float).tiny)
    return shares


def _least(lost: Doubles, allowed: float) -> int:
    return max(1, int(np.argmax(lost <= allowed)))


def _rounded(rank: int, full: int, multiple: int, *, down: bool = False) -> int:
    """Round to the widths that vector units like; never to nothing, never beyond the whole."""
    if rank < multiple:
        return min(rank if down else multiple, full)
    whole = rank // multiple if down else -(-rank // multiple)
    return min(whole * multiple, full)


def _fitting(layer: LinearLayer, outputs: int, channels: int) -> Split:
    return Split(layer, (min(outputs, channels * _places(layer)), channels))


def _is_kernel(layer: LinearLayer) -> bool:
    """Say whether a layer is a convolution of more than one place."""
    return layer.is_convolution and math.prod(layer.shape[2:]) > 1


def _places(layer: LinearLayer) -> int:
    return layer.inputs // channels_of(layer)


def _strides(layer: LinearLayer) -> tuple[int, ...]:
    if not layer.is_convolution:
        return ()
    return tuple(integers(layer.node, "strides") or ()) or (1,) * len(layer.shape[2:])
