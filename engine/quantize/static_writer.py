"""Writes a plan into the graph: QuantizeLinear and DequantizeLinear round activations, integer tensors for the weights."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate import Range
from engine.graph import io
from engine.graph.linear import LinearLayer
from engine.quantize import integer_types
from engine.quantize.column_folding import Fold
from engine.quantize.kernel_order import kernel_matrix, stored_weights
from engine.quantize.static_plan import StaticPlan, clamp_bounds, final_output
from engine.report.quantization_details import QuantizedLayer
from engine.solve.pairs import PAIR_LIMIT

_DTYPE = {"uint8": np.uint8, "int8": np.int8}


@dataclass(frozen=True)
class Overrides:
    """What was found to be better than the plain choice. Layers go by the name of their output, tensors by theirs."""

    # Weights that were not rounded to nearest.
    weights: Mapping[str, integer_types.QuantizedWeight] = field(default_factory=dict)
    # What to add to biases so that a layer's mean output stays.
    shifts: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    # Tensors that are laid out channels-last once where they become integers, not by every operator that reads them.
    channels_last: frozenset[str] = frozenset()
    # Means of whole images whose layout makes no difference to the Flatten after them: it is not changed back.
    left_last: frozenset[str] = frozenset()
    # First convolutions that read several columns at a time.
    folded: frozenset[str] = frozenset()

    def but(self, **changes: Any) -> "Overrides":
        """Give it with some parts replaced."""
        return replace(self, **changes)


@dataclass(frozen=True)
class WrittenLayer:
    """What was done to one layer, and its output in the quantized network."""

    told: QuantizedLayer
    output: str


@dataclass(frozen=True)
class _Layout:
    """A change to channels-last (`first`), another shape there, and the change back (`back`).

    `foreign`: what comes of it has another shape than the tensor has in the float network.
    """

    shape: tuple[int, ...] | None
    first: bool = True
    back: bool = True
    foreign: bool = False

    def steps(self, constant: Callable[[Any, str], ir.Value]) -> Iterator[tuple[str, list[ir.Value], dict[str, Any]]]:
        """Yield operator, inputs after the first, and attributes."""
        if self.first:
            yield "Transpose", [], {"perm": [0, 2, 3, 1]}
        if self.shape is not None:
            yield "Reshape", [constant(np.array(self.shape, np.int64), "shape")], {}
        if self.back:
            yield "Transpose", [], {"perm": [0, 3, 1, 2]}


class StaticWriter:
    """Applies a plan to the network that the plan was made of."""

    def __init__(
        self,
        model: ir.Model,
        plan: StaticPlan,
        ranges: Mapping[str, Range],
        types: integer_types.IntegerTypes,
        *,
        per_channel: bool,
        overrides: Overrides | None = None,
    ) -> None:
        self._model = model
        self._graph = model.graph
        self._plan = plan
        self._ranges = ranges
        self._types = types
        self._per_channel = per_channel
        self._overrides = overrides or Overrides()
        self._names = {value: str(value.name) for value in plan.tensors}
        # What consumers read in place of each quantized tensor.
        self.restored: dict[ir.Value, ir.Value] = {}
        self._taken = io.value_names(model)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._folds = {layer.node: self._fold(layer) for layer in plan.layers}
        # How a tensor's integers are laid out between the two nodes that quantize and restore it.
        self._relaid = dict(self._layouts())
        self._affine = {
            root: self._map_range(root) for root in dict.fromkeys(plan.root(value) for value in plan.tensors)
        }

    def run(self) -> list[WrittenLayer]:
        """Insert all nodes and give what was done per layer."""
        inputs = {layer.node: self._affine[self._plan.root(layer.input)] for layer in self._plan.layers}
        outputs = {layer.node: final_output(layer.node)[0] for layer in self._plan.layers}
        left = [(layer, self._affine[self._plan.root(layer.input)]) for layer in self._plan.left]
        for value, produced in self._plan.tensors.items():
            self._quantize_tensor(value, produced=produced)
        done = [self._quantize_layer(layer, inputs[layer.node], outputs[layer.node]) for layer in self._plan.layers]
        done += [self._quantize_left(layer, activation) for layer, activation in left]
        self._remove_unused()
        self._model.opset_imports.setdefault("", 13)
        return done

    def restored_names(self) -> dict[str, str]:
        """Give the names that the float network's tensors have in this one, where they hold the same numbers but for rounding."""
        return {
            name: str(self.restored[value].name)
            for value, name in self._names.items()
            if value not in self._relaid or not self._relaid[value].foreign
        }

    def _fold(self, layer: LinearLayer) -> Fold | None:
        return Fold.of(layer, self._plan) if layer.node.outputs[0].name in self._overrides.folded else None

    def _layouts(self) -> Iterator[tuple[ir.Value, "_Layout"]]:
        for value in self._plan.tensors:
            if value.name in self._overrides.left_last:
                yield value, _Layout(None, back=False, foreign=True)
            shape = spatial_shape(value)
            if shape is not None and value.name in self._overrides.channels_last:
                channels, height, width = shape
                # A Reshape that changes nothing keeps both changes that are written out from cancelling.
                yield value, _Layout((0, height, width, channels))
        for layer in self._plan.layers:
            fold = self._folds[layer.node]
            if fold is not None:
                wide = (fold.width // fold.columns, fold.columns * fold.channels)
                # A single channel is laid out last already.
                yield (
                    layer.input,
                    _Layout((0, -1, *wide), first=False, foreign=True)
                    if fold.channels == 1
                    else _Layout((0, 0, *wide), foreign=True),
                )
                yield final_output(layer.node)[0], _Layout((0, 0, fold.made_width, layer.outputs))

    def _map_range(self, root: ir.Value) -> integer_types.Affine:
        observed = self._ranges[str(root.name)]
        low, high = observed.low, observed.high
        if root in self._plan.absorbed:
            bounds = clamp_bounds(self._plan.absorbed[root])
            low, high = max(low, bounds[0] or 0.0), min(high, np.inf if bounds[1] is None else bounds[1])
        return integer_types.affine(low, high, self._types.activation)

    def _quantize_tensor(self, value: ir.Value, *, produced: bool) -> None:
        affine = self._affine[self._plan.root(value)]
        scale = self._constant(np.float32(affine.scale), "s")
        zero_point = self._constant(_DTYPE[self._types.activation](affine.zero_point), "z")
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point])
        quantize.outputs[0].name = io.unused_name(self._taken, "q")
        restored = dequantize.outputs[0]
        restored.name = io.unused_name(self._taken, "d")
        restored.dtype = ir.DataType.FLOAT
        self.restored[value] = restored
        self._redirect(value, restored, quantize, produced=produced)
        clamp = self._plan.absorbed.get(value)
        if clamp is not None and self._saturates_like(clamp, affine):
            quantize.replace_input_with(0, clamp.inputs[0])
        layout = self._relaid.get(value)
        between = [] if layout is None else self._lay_out(quantize, dequantize, layout)
        producer = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
        if producer is None:
            self._graph.insert_before(self._graph[0], [quantize, *between, dequantize])
        else:
            self._graph.insert_after(producer, [quantize, *between, dequantize])
        if clamp is not None and quantize.inputs[0] is not value:
            self._graph.remove(clamp, safe=True)

    def _lay_out(self, quantize: ir.Node, dequantize: ir.Node, layout: "_Layout") -> list[ir.Node]:
        """Lay a tensor out channels-last, and back.

        Integer convolutions run channels-last. ONNX Runtime lets neighbours share one change of layout, but not an Add that
        also reads a tensor from outside: it then changes back before the Add and forth after it. The second change that is
        written out here cancels with what ONNX Runtime inserts.
        """
        nodes: list[ir.Node] = []
        last = quantize.outputs[0]
        for kind, extra, attributes in layout.steps(self._constant):
            nodes.append(ir.node(kind, [last, *extra], attributes))
            last = nodes[-1].outputs[0]
            last.name = io.unused_name(self._taken, "l")
        dequantize.replace_input_with(0, last)
        return nodes

    def _redirect(self, value: ir.Value, restored: ir.Value, quantize: ir.Node, *, produced: bool) -> None:
        """Let consumers read the restored tensor: all of them where integers are what the producer gives."""
        plan = self._plan
        members = {layer.node for layer in (*plan.layers, *plan.left)} | {*plan.followers, *plan.products}
        for node, index in tuple(value.uses()):
            if node is not quantize and (produced or node in members):
                node.replace_input_with(index, restored)
        if produced and value.is_graph_output():
            restored.type, restored.shape = value.type, value.shape
            restored.name, value.name = value.name, io.unused_name(self._taken, "f")
            outputs = self._graph.outputs
            for position, output in enumerate(outputs):
                if output is value:
                    outputs[position] = restored

    def _saturates_like(self, clamp: ir.Node, affine: integer_types.Affine) -> bool:
        """Say whether rounding to integers cuts off all that the clamp cuts off, to half a step."""
        low, high = clamp_bounds(clamp)
        half = affine.scale / 2
        return (low is None or affine.floor >= low - half) and (high is None or affine.ceiling <= high + half)

    def _quantize_layer(self, layer: LinearLayer, activation: integer_types.Affine, output: ir.Value) -> WrittenLayer:
        matrix = kernel_matrix(layer)
        fold = self._folds[layer.node]
        quantized = self._quantized(layer, matrix)
        matrix = matrix if fold is None else fold.spread(matrix)
        values, scale = quantized.values, quantized.scale
        bias = self._bias(layer, len(scale))
        if bias is not None:
            wider = integer_types.raise_for_bias(scale, bias, activation.scale)
            if not self._per_channel:
                wider = np.full_like(wider, wider.max())
            if (wider > scale).any():
                scale, values = wider, integer_types.requantize(matrix, wider)
            self._store_bias(layer, bias, scale, activation)
        error = matrix - values * scale[:, None]
        if fold is None:
            self._store_weight(layer, stored_weights(layer, values), scale)
        else:
            self._store_weight(layer, fold.weights(values), fold.per_output(scale))
            for key, found in fold.attributes().items():
                layer.node.attributes[key] = ir.AttrInt64s(key, found)
            for value in (layer.node.outputs[0], output):
                value.shape = None  # of the columns one by one
        told = QuantizedLayer(
            node=layer.name,
            op=layer.node.op_type,
            activation=self._types.activation,
            weight=self._types.weight,
            reason=self._types.why,
            accumulator_load=round(quantized.accumulator_load, 3),
            limited_channels=quantized.limited_channels,
            channels=len(scale),
            weight_sqnr_db=round(_decibel(matrix, error), 2),
            activation_scale=float(f"{activation.scale:.6g}"),
            columns_at_a_time=1 if fold is None else fold.columns,
        )
        return WrittenLayer(told, str(self.restored.get(output, layer.node.outputs[0]).name))

    def _quantized(self, layer: LinearLayer, matrix: npt.NDArray[np.float32]) -> integer_types.QuantizedWeight:
        """Give the weights in integers, in the order in which the layer's kernel pairs them."""
        rule, fold = self._types.rule, self._folds[layer.node]
        found = self._overrides.weights.get(str(layer.node.outputs[0].name))
        if fold is None:
            return found or integer_types.quantize_weight(matrix, rule, per_channel=self._per_channel)
        if found is not None:
            spread = integer_types.measured(fold.spread(found.values), found)
            # Other weights become neighbours.
            if rule != "pairs" or spread.worst_pair <= PAIR_LIMIT:
                return spread
        return integer_types.quantize_weight(fold.spread(matrix), rule, per_channel=self._per_channel)

    def _quantize_left(self, layer: LinearLayer, activation: integer_types.Affine) -> WrittenLayer:
        node, matrix = layer.node, layer.matrix()
        quantized = integer_types.quantize_weight(matrix, "uint8", per_channel=False)
        stored = (quantized.values.astype(np.int16) + 128).astype(np.uint8)
        scale, zero_point = quantized.scale[:1], np.array(128, np.uint8)
        node.replace_input_with(
            layer.position, self._dequantized(node, stored, scale, "w", axis=None, zero_point=zero_point)
        )
        told = QuantizedLayer(
            node=layer.name,
            op=node.op_type,
            activation=self._types.activation,
            weight="uint8",
            reason="weights on the left have an integer kernel only as uint8 with one scale, whose sums are in 32 bits",
            accumulator_load=0.0,
            limited_channels=0,
            channels=1,
            weight_sqnr_db=round(_decibel(matrix, matrix - quantized.values * scale), 2),
            activation_scale=float(f"{activation.scale:.6g}"),
        )
        return WrittenLayer(told, str(node.outputs[0].name))

    def _bias(self, layer: LinearLayer, channels: int) -> npt.NDArray[np.float32] | None:
        """Give the bias with what corrects the mean output; a Conv or Gemm without one may get one."""
        shift = self._overrides.shifts.get(str(layer.node.outputs[0].name))
        if layer.bias is not None and layer.bias.const_value is not None:
            bias = layer.bias.const_value.numpy().astype(np.float32).reshape(-1)
            return bias if shift is None else bias + shift
        return None if shift is None or layer.node.op_type == "MatMul" else shift.reshape(channels)

    def _store_weight(self, layer: LinearLayer, values: npt.NDArray[np.int8], scale: npt.NDArray[np.float32]) -> None:
        unsigned = self._types.rule == "uint8"
        stored = (values.astype(np.int16) + 128).astype(np.uint8) if unsigned else values
        zero_point = None
        if unsigned or layer.node.op_type != "Conv":
            # ONNX Runtime fuses a convolution whose weights have no zero point, but not a matrix product.
            shape = scale.shape if self._per_channel else ()
            zero_point = np.full(shape, 128 if unsigned else 0, dtype=stored.dtype)
        restored = self._dequantized(
            layer.node, stored, scale, "w", axis=layer.axis if self._per_channel else None, zero_point=zero_point
        )
        layer.node.replace_input_with(1, restored)

    def _store_bias(
        self,
        layer: LinearLayer,
        bias: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
        activation: integer_types.Affine,
    ) -> None:
        combined = (scale.astype(np.float64) * activation.scale).astype(np.float32)
        stored = np.rint(bias.astype(np.float64) / combined).astype(np.int32)
        fold = self._folds[layer.node]
        if fold is not None:
            combined, stored = fold.per_output(combined), fold.per_output(stored)
        restored = self._dequantized(layer.node, stored, combined, "b", axis=0 if self._per_channel else None)
        if len(layer.node.inputs) < 3:
            layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, restored)

    def _dequantized(
        self,
        before: ir.Node,
        stored: npt.NDArray[Any],
        scale: npt.NDArray[np.float32],
        stem: str,
        *,
        axis: int | None,
        zero_point: npt.NDArray[Any] | None = None,
    ) -> ir.Value:
        inputs: list[ir.Value | None] = [
            self._constant(stored, stem),
            self._constant(scale if axis is not None else scale[0], "s"),
        ]
        if zero_point is not None:
            inputs.append(self._constant(zero_point, "z"))
        # 1 is the default axis; a scalar scale ignores it.
        attributes = {"axis": axis} if axis not in {None, 1} else {}
        node = ir.node("DequantizeLinear", inputs, attributes)
        node.outputs[0].name = io.unused_name(self._taken, "d")
        self._graph.insert_before(before, [node])
        return node.outputs[0]

    def _constant(self, array: Any, stem: str) -> ir.Value:
        """Store a tensor once, whoever needs it, under a short name: names are a large part of a small network's file."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = io.unused_name(self._taken, stem)
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
            self._graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def _remove_unused(self) -> None:
        for name, value in tuple(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self._graph.initializers[name]


def spatial_shape(value: ir.Value) -> tuple[int, int, int] | None:
    """Give channels, height and width of images whose sizes are known."""
    shape = value.shape
    if shape is None or len(shape) != 4:
        return None
    channels, height, width = shape[1], shape[2], shape[3]
    known = isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)
    return (int(channels), int(height), int(width)) if known else None  # type: ignore[arg-type]  # all are integers here


def _decibel(signal: npt.NDArray[Any], error: npt.NDArray[Any]) -> float:
    noise = float(np.square(error, dtype=np.float64).sum())
    power = float(np.square(signal, dtype=np.float64).sum())
    return 10.0 * float(np.log10(power / noise)) if noise > 0 and power > 0 else 200.0
