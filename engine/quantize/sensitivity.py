"""How much the outputs suffer from each layer in integers: one network with a switch per layer, loaded once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate import Range
from engine.contract import Context
from engine.graph import io, row_sets
from engine.graph.linear import LinearLayer
from engine.quantize import integer_types
from engine.quantize.kernel_order import kernel_matrix, stored_weights
from engine.quantize.static_plan import make_plan
from engine.runtime import heap, sessions
from engine.runtime.sessions import Session

Feed = Mapping[str, npt.NDArray[Any]]

_SECONDS = 40.0
# Of the seconds: how much longer the first batch may take.
_LATEST = 3.0


def sensitivities(
    model: ir.Model,
    ranges: Mapping[str, Range],
    types: integer_types.IntegerTypes,
    feeds: Sequence[Feed],
    context: Context,
    *,
    exclude: frozenset[str] = frozenset(),
    seconds: float = _SECONDS,
) -> dict[str, float]:
    """Give per layer the noise that it alone adds to the outputs, as a share of their energy.

    Rounding is simulated in float: what a layer reads and its weights go through the grid that its kernel would use. A
    layer's noise is measured where it matters, at the network's outputs, so what later layers amplify or forget is counted.

    After `seconds` no further batch begins. The first one is finished, because layers are only compared on the same samples,
    unless even that takes three times as long: the layers that are left then are missing.
    """
    network, switch, names = _switched(model, ranges, types, exclude)
    session = sessions.session(network, context.untimed)
    # The graph that it was written from takes as much again.
    del network
    heap.give_back(io.weight_bytes(model))
    measure = _Measuring(session, switch, len(names), context)
    started = time.monotonic()
    noise, energy = np.zeros(len(names)), 0.0
    for number, feed in enumerate(feeds):
        found, of_outputs = measure.batch(feed, started + seconds * (1 if number else _LATEST))
        if number and len(found) < len(noise):
            break
        noise[: len(found)] += found
        energy += of_outputs
        if len(found) < len(noise):
            return dict(zip(names, _shares(found, energy), strict=False))
    return dict(zip(names, _shares(noise, energy), strict=True))


def _switched(
    model: ir.Model, ranges: Mapping[str, Range], types: integer_types.IntegerTypes, exclude: frozenset[str]
) -> tuple[bytes, str, list[str]]:
    """Give a network with a switch per layer, the name of the input that sets them, and the layers' names in its order."""
    switched = io.copy(model)
    plan = make_plan(switched, exclude)
    switch = ir.Value(name=io.unused_name(io.value_names(switched), "switch"))
    switch.type, switch.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([len(plan.layers)])
    switched.graph.inputs.append(switch)
    builder = _Switches(switched, switch, ranges, types)
    for number, layer in enumerate(plan.layers):
        builder.add(number, layer)
    return io.to_bytes(switched), str(switch.name), [layer.name for layer in plan.layers]


def _shares(noise: npt.NDArray[np.float64], energy: float) -> list[float]:
    return [float(each) for each in noise / max(energy, 1e-30)]


@dataclass(frozen=True)
class _Measuring:
    """The network with its switches, loaded."""

    session: Session
    switch: str
    layers: int
    context: Context

    def batch(self, feed: Feed, ends: float) -> tuple[npt.NDArray[np.float64], float]:
        """Give the noise that each layer adds to the outputs on a batch, of as many as there is time for, and their energy."""
        reference = self._run(feed, None)
        noise = []
        for number in range(self.layers):
            if time.monotonic() > ends:
                break
            found = self._run(feed, number)
            noise.append(sum(row_sets.noise(array, found[name], name) for name, array in reference.items()))
        return np.asarray(noise, np.float64), sum(row_sets.energy(array) for array in reference.values())

    def _run(self, feed: Feed, rounded: int | None) -> dict[str, npt.NDArray[np.float64]]:
        on = np.zeros(self.layers, np.bool_)
        if rounded is not None:
            on[rounded] = True
        with self.context.working():
            return _floats(self.session.run({**feed, self.switch: on}))


class _Switches:
    """Puts rounding behind a switch before each layer."""

    def __init__(
        self, model: ir.Model, switch: ir.Value, ranges: Mapping[str, Range], types: integer_types.IntegerTypes
    ) -> None:
        self._graph, self._switch, self._ranges, self._types = model.graph, switch, ranges, types
        self._taken = io.value_names(model)

    def add(self, number: int, layer: LinearLayer) -> None:
        quantized = integer_types.quantize_weight(kernel_matrix(layer), self._types.rule, per_channel=True)
        values = stored_weights(layer, quantized.values).astype(np.float32)
        along = [1] * values.ndim
        along[layer.axis] = -1
        observed = self._ranges[str(layer.input.name)]
        affine = integer_types.affine(observed.low, observed.high, self._types.activation)
        kind = np.uint8 if self._types.activation == "uint8" else np.int8
        grid = [self._constant(np.float32(affine.scale)), self._constant(kind(affine.zero_point))]
        chosen = self._node("Gather", [self._switch, self._constant(np.int64(number))])
        rounded = self._node("QuantizeLinear", [layer.input, *grid])
        restored = self._node("DequantizeLinear", [rounded.outputs[0], *grid])
        read = self._node("Where", [chosen.outputs[0], restored.outputs[0], layer.input])
        coarse = self._constant(values * quantized.scale.reshape(along))
        weights = self._node("Where", [chosen.outputs[0], coarse, layer.node.inputs[1]])
        self._graph.insert_before(layer.node, [chosen, rounded, restored, read, weights])
        layer.node.replace_input_with(0, read.outputs[0])
        layer.node.replace_input_with(1, weights.outputs[0])

    def _node(self, kind: str, inputs: Sequence[ir.Value | None]) -> ir.Node:
        node = ir.node(kind, inputs)
        node.outputs[0].name = io.unused_name(self._taken, "switched_")
        return node

    def _constant(self, array: Any) -> ir.Value:
        name = io.unused_name(self._taken, "switched_")
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(np.shape(array))
        )
        self._graph.register_initializer(value)
        return value


def _floats(outputs: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    tensors = {name: array for name, array in outputs.items() if isinstance(array, np.ndarray)}
    return {name: array.astype(np.float64) for name, array in tensors.items() if array.dtype.kind == "f"}
