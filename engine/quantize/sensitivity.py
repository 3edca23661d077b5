"""How much the outputs suffer from each layer in integers: one network with a switch per layer, loaded once."""

import time
from collections.abc import Mapping, Sequence
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
from engine.runtime import sessions

Feed = Mapping[str, npt.NDArray[Any]]

_SECONDS = 40.0


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
    """
    switched = io.copy(model)
    plan = make_plan(switched, exclude)
    switch = ir.Value(name=io.unused_name(io.value_names(switched), "switch"))
    switch.type, switch.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([len(plan.layers)])
    switched.graph.inputs.append(switch)
    builder = _Switches(switched, switch, ranges, types)
    for number, layer in enumerate(plan.layers):
        builder.add(number, layer)
    session = sessions.session(io.to_bytes(switched), context.target)
    off = np.zeros(len(plan.layers), np.bool_)
    noise = np.zeros(len(plan.layers))
    energy = 0.0
    deadline = time.monotonic() + seconds
    for feed in feeds:
        with context.working():
            reference = _floats(session.run({**feed, str(switch.name): off}))
        energy += sum(float(np.square(array).sum()) for array in reference.values())
        for number in range(len(plan.layers)):
            on = off.copy()
            on[number] = True
            with context.working():
                found = _floats(session.run({**feed, str(switch.name): on}))
            noise[number] += sum(row_sets.noise(array, found[name], name) for name, array in reference.items())
        if time.monotonic() > deadline:
            break
    return {layer.name: float(value) / max(energy, 1e-30) for layer, value in zip(plan.layers, noise, strict=True)}


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
