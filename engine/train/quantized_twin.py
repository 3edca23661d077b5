"""The twin of a quantized graph: float weights, biases and scales as parameters, rounded in every run as the graph rounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import linear
from engine.graph.linear import LinearLayer, node_name
from engine.solve.pairs import PAIR_LIMIT
from engine.train import lsq
from engine.train.framework import Tensor, torch
from engine.train.quantized_graph import (
    QuantizedGraph,
    StoredBias,
    least_scale,
    rounded_bias,
    training_graph,
    write_activation,
    write_bias,
)
from engine.train.stored_weights import StoredWeight, is_zero
from engine.train.trained_weights import trained_weights
from engine.train.twin.module import Twin, Unsupported

# A float weight starts inside the step of its code, this far from the middle: the network starts as it came in.
_INSIDE = 0.49

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TrainedWeight:
    """Weights in training: floats in the shape of their codes, and what their scales are multiples of."""

    stored: StoredWeight
    master: Tensor
    first_scale: Tensor
    # 1 + log(scale / first_scale): steps are relative ones like those of weights, and no scale can become negative.
    growth: Tensor
    zero: Tensor
    # 0 where a weight is zero and stays so, 1 elsewhere; None: no weight has to.
    mask: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """The weights before they are rounded."""
        return self.master if self.mask is None else self.master * self.mask

    @property
    def scale(self) -> Tensor:
        """The scales in the shape in which they are stored."""
        return self.first_scale * (self.growth - 1).exp()

    def restored(self) -> Tensor:
        """Give the rounded weights as the graph's layer reads them."""
        scale = self.scale
        numbers = max(self.master.numel() // max(scale.numel(), 1), 1)
        rounded = lsq.fake_quantize(self.values, self.along(scale), *self._bounds(scale), numbers=numbers)
        return rounded.t() if self.stored.form == "nbits" else rounded

    def codes(self, scale: Tensor) -> Tensor:
        """Give the codes at these scales, zero points in."""
        low, high = self._bounds(scale)
        return (self.values / self.along(scale)).clamp(low, high).round() + self.along(self.zero)

    def _bounds(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.stored.grid
        zero = self.along(self.zero)
        if self.stored.pairs is None:
            return grid.low - zero, grid.high - zero
        steps = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(1, 1)
        low, high = lsq.pair_bounds(self._rows(self.values), steps, PAIR_LIMIT, grid.low, grid.high)
        return self._from_rows(low), self._from_rows(high)

    def along(self, scale: Tensor) -> Tensor:
        """Give one number per scale in a shape that broadcasts to the codes."""
        axis, block, shape = self.stored.grid.axis, self.stored.grid.block, self.stored.shape
        if axis is None:
            return scale
        if scale.dim() == 1 and len(shape) > 1:
            return scale.reshape([-1 if place == axis else 1 for place in range(len(shape))])
        if block == 1:
            return scale
        return scale.repeat_interleave(block, axis).narrow(axis, 0, shape[axis])

    def _rows(self, array: Tensor) -> Tensor:
        """As `StoredWeight.rows`."""
        if self.stored.pairs == "windows":
            array = array.movedim(1, -1)
        return (array.t() if self.stored.pairs == "columns" else array).reshape(self.stored.outputs, -1)

    def _from_rows(self, rows: Tensor) -> Tensor:
        if self.stored.pairs == "windows":
            outputs, channels, *kernel = self.stored.shape
            return rows.reshape(outputs, *kernel, channels).movedim(-1, 1)
        return rows.t() if self.stored.pairs == "columns" else rows.reshape(self.stored.shape)


class QuantizedTwin:
    """Runs a quantized graph as it will ship, and trains it: weights, biases, scales, and what stays in float."""

    def __init__(self, model: ir.Model, graph: QuantizedGraph, original: ir.Model | None, device: Any = None) -> None:
        """Prepare a model for training.

        Args:
            model: as `quantized_graph.prepare` leaves it.
            graph: what that gave.
            original: float network whose layers of the same names and shapes say where in their steps the weights lie.
            device: where to train; None: the GPU where there is one.
        """
        self.graph = graph
        trained = training_graph(model, graph)
        self.twin = Twin.of(trained, trainable=trained_weights(trained), device=device, channels_last=True)
        self.inputs, self.outputs = self.twin.inputs, self.twin.outputs
        known = {} if original is None else {node_name(node): linear.read(node) for node in original.graph}
        self.weights = tuple(self._weight(model, stored, known.get(stored.node)) for stored in graph.weights)
        self._first = {group.name: self._tensor(np.float32(group.value)) for group in graph.activations}
        self._growth = {name: self._parameter(np.ones((), np.float32)) for name in self._first}
        self._constants = {
            bias.activation: self._tensor(_floats(model, bias.activation))
            for bias in graph.biases
            if bias.activation not in self._first
        }
        self._biases = {bias.codes: self._parameter(_bias(model, bias)) for bias in graph.biases}

    @property
    def masters(self) -> dict[str, Tensor]:
        """Weights and biases in training, by initializer; those that stay floats included."""
        found = {weight.stored.codes: weight.master for weight in self.weights}
        return {**found, **self._biases, **self.twin.parameters}

    @property
    def growths(self) -> dict[str, Tensor]:
        """Logarithms of how much each scale has grown, and 1, by initializer."""
        return {weight.stored.scale: weight.growth for weight in self.weights} | self._growth

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All that is trained."""
        return {**self.masters, **self.growths}

    def feed(self, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
        """Copy arrays to where it runs."""
        return self.twin.feed(arrays)

    def unsupported(self) -> list[Unsupported]:
        """List the nodes that cannot be trained through."""
        return self.twin.unsupported()

    def run(self, feeds: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Give values of the graph as it rounds; see `Twin.run`."""
        return self.twin.run({**feeds, **dict(self._made())}, wanted)

    def write_back(self, model: ir.Model) -> None:
        """Round what was trained into a prepared model: the same nodes and types, other numbers."""
        with torch.no_grad():
            scales = {name: float(value) for name, value in self._activation_scales().items()}
            for group in self.graph.activations:
                write_activation(model, group, scales[group.name])
            by_scale = {bias.weight: bias for bias in self.graph.biases}
            stored: dict[str, Array] = {}
            for weight in self.weights:
                scale = self._final_scale(weight, by_scale.get(weight.stored.scale), scales)
                stored[weight.stored.scale] = scale
                codes = weight.codes(self._tensor(scale))
                weight.stored.write(model, codes.round().to(torch.int32).cpu().numpy(), scale)
            for bias in self.graph.biases:
                combined = (stored[bias.weight].astype(np.float64) * scales[bias.activation]).astype(np.float32)
                found = self._biases[bias.codes].detach().cpu().numpy()
                write_bias(model, bias, rounded_bias(found, combined.reshape(-1)), combined)
            self.twin.write_back(model)

    def _final_scale(self, weight: TrainedWeight, bias: StoredBias | None, scales: Mapping[str, float]) -> Array:
        scale: Array = weight.scale.detach().cpu().numpy()
        if bias is None:
            return scale
        least = least_scale(self._biases[bias.codes].detach().cpu().numpy(), scales[bias.activation])
        return np.maximum(scale, least.reshape(scale.shape) if scale.size == least.size else least.max(initial=0.0))

    def _made(self) -> Iterator[tuple[str, Tensor]]:
        """Give what the graph in training reads in place of integers."""
        scales = self._activation_scales()
        yield from ((group.name, scales[group.name]) for group in self.graph.activations)
        yield from ((weight.stored.restored, weight.restored()) for weight in self.weights)
        yield from ((bias.restored, self._biases[bias.codes]) for bias in self.graph.biases)

    def _activation_scales(self) -> dict[str, Tensor]:
        trained = {name: first * (self._growth[name] - 1).exp() for name, first in self._first.items()}
        return {**trained, **self._constants}

    def _weight(self, model: ir.Model, stored: StoredWeight, layer: LinearLayer | str | None) -> TrainedWeight:
        scale, zero = self._tensor(stored.read_scale(model)), self._tensor(stored.read_zero(model).astype(np.float32))
        codes = self._tensor(stored.read_codes(model).astype(np.float32))
        growth = self._parameter(np.ones(tuple(scale.shape), np.float32))
        weight = TrainedWeight(stored, codes, scale, growth, zero)
        steps = weight.along(scale)
        exact = codes - weight.along(zero)
        array = _like(stored, layer)
        if array is not None:
            wanted = torch.maximum(torch.minimum(self._tensor(array) / steps, exact + _INSIDE), exact - _INSIDE)
            # Beyond the ends of the grid nothing is learned.
            exact = wanted.clamp(stored.grid.low - weight.along(zero), stored.grid.high - weight.along(zero))
        mask = self._tensor(~is_zero(stored, model)) if stored.sparse else None
        master = torch.nn.Parameter(_channels_last(exact * steps))
        return TrainedWeight(stored, master, scale, growth, zero, mask)

    def _tensor(self, array: Any) -> Tensor:
        return torch.tensor(np.asarray(array, np.float32), device=self.twin.device)

    def _parameter(self, array: Array) -> Tensor:
        return torch.nn.Parameter(self._tensor(array))


def _channels_last(weights: Tensor) -> Tensor:
    """Lay out the weights of convolutions so that their results come channels last, as those of the twin."""
    images = weights.dim() == 4
    return weights.contiguous(memory_format=torch.channels_last) if images else weights


def _like(stored: StoredWeight, layer: LinearLayer | str | None) -> Array | None:
    """Give a float layer's weights in the shape of the codes; None where it has another one."""
    if not isinstance(layer, LinearLayer):
        return None
    if stored.form == "nbits":
        matrix = layer.matrix()
        return matrix if matrix.shape == stored.shape else None
    array: Array = layer.tensor.numpy()
    fits = array.size == np.prod(stored.shape) and array.shape[0] == stored.shape[0]
    return array.reshape(stored.shape) if fits else None


def _bias(model: ir.Model, bias: StoredBias) -> Array:
    codes, scale = (_floats(model, name) for name in (bias.codes, bias.scale))
    found: Array = codes * scale.reshape(-1)
    return found.reshape(codes.shape)


def _floats(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().astype(np.float32)
