"""Writes integer layers whose inputs are rounded in every run, and tables of integer rows, into the network."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.derived import Derivation, Form, is_stored, transposed
from engine.graph.folded_constants import tied_to
from engine.graph.linear import LinearLayer
from engine.quantize import integer_types
from engine.quantize.dynamic_plan import IntegerNode
from engine.report.quantization_details import DynamicLayer, DynamicLstm, DynamicProduct, IntegerTable, RoundedWeights

# Weights that are rounded at once.
_CHUNK = 1 << 22

Floats = npt.NDArray[np.floating[Any]]


def _scales_fit_half(tensor: ir.TensorProtocol) -> bool:
    """Say whether float16 holds the scales of a table's rows in full precision; tables on disk are not read for that."""
    if is_stored(tensor):
        return False
    scales = np.abs(tensor.numpy()).max(axis=1) / integer_types.INT8_MAX
    limits = np.finfo(np.float16)
    return bool(scales.min() > float(limits.smallest_normal) and scales.max() < float(limits.max))


@dataclass
class _Rounded:
    """Integer weights (outputs, inputs), their scales, and what the report tells of them."""

    values: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    told: RoundedWeights


def _round(name: str, weights: Floats, rule: integer_types.WeightRule, *, by_row: bool, per_channel: bool) -> _Rounded:
    """Round weights, (outputs, inputs) if `by_row`, some outputs at a time where each has its own scale."""
    outputs, inputs = weights.shape if by_row else weights.shape[::-1]
    step = max(1, _CHUNK // inputs) if per_channel else outputs
    parts = []
    noise = energy = 0.0
    for start in range(0, outputs, step):
        chosen = slice(start, start + step)
        rows = np.ascontiguousarray(weights[chosen] if by_row else transposed(weights[:, chosen]), np.float32)
        energy += float(np.vdot(rows, rows))
        if not math.isfinite(energy):
            raise VerificationFailedError("The weights hold NaN or infinity, or numbers near it.", node=name)
        part = integer_types.quantize_weight(rows, rule, per_channel=per_channel)
        parts.append(part)
        off = part.values * part.scale[:, None]
        off -= rows
        noise += float(np.vdot(off, off))
    values, scale = np.concatenate([part.values for part in parts]), np.concatenate([part.scale for part in parts])
    told = RoundedWeights(
        accumulator_load=round(max(part.accumulator_load for part in parts), 3),
        limited_channels=sum(part.limited_channels for part in parts),
        channels=len(scale),
        weight_sqnr_db=round(10 * math.log10(energy / noise), 2) if noise > 0 and energy > 0 else None,
    )
    return _Rounded(values, scale, told)


class DynamicWriter:
    """Writes integer layers into the network."""

    def __init__(
        self,
        model: ir.Model,
        types: integer_types.IntegerTypes,
        *,
        per_channel: bool,
        tables: Collection[ir.Value] = (),
    ) -> None:
        """`tables`: those that `replace` will be given, so that products that are tied to one share its integers."""
        self._model = model
        self._tables = tables
        self._types = types
        self._per_channel = per_channel
        self._unsigned = types.rule == "uint8"
        self._kind = ir.DataType.UINT8 if self._unsigned else ir.DataType.INT8
        self._taken = io.all_names(model)
        self._owner = {value: graph for graph, value in io.initializers(model)}
        self._derivation = Derivation()
        self._activations: dict[tuple[ir.Value, ir.Graph], ir.Node] = {}
        self._made: dict[tuple[ir.Value, str, bool, float], tuple[list[ir.Value], RoundedWeights | None]] = {}
        self._zero_points: dict[tuple[int, ...], ir.Value] = {}
        self._replaced: set[ir.Value] = set()

    def replace(self, layer: IntegerNode) -> DynamicLayer:
        """Put the integer form in the layer's place and say what it is."""
        self._replaced.update(layer.weights)
        if layer.linear is not None:
            return self._product(layer, layer.linear)
        return self._lstm(layer) if layer.node.op_type == "LSTM" else self._gather(layer)

    def finish(self) -> None:
        """Drop float weights that nothing reads any more."""
        for weight in self._replaced:
            if not weight.uses():
                self._owner[weight].initializers.pop(str(weight.name))
        if any(node.op_type == "DynamicQuantizeLSTM" for node in self._model.graph.all_nodes()):
            self._model.opset_imports.setdefault("com.microsoft", 1)

    def _product(self, layer: IntegerNode, linear: LinearLayer) -> DynamicProduct:
        """MatMul or Gemm: DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Add, which ONNX Runtime fuses into one kernel."""
        node, graph = layer.node, cast("ir.Graph", layer.node.graph)
        (integers, scale, zero), rounded = self._matrix(linear)
        activation = self._activation(linear.input, graph, node)
        product = self._node(
            "MatMulInteger", [activation.outputs[0], integers, activation.outputs[2], zero], ir.DataType.INT32, layer
        )
        cast_node = self._node("Cast", [product.outputs[0]], ir.DataType.FLOAT, layer, to=ir.DataType.FLOAT)
        scales = self._node("Mul", [activation.outputs[1], scale], ir.DataType.FLOAT, layer)
        nodes = [
            product,
            cast_node,
            scales,
            self._node("Mul", [cast_node.outputs[0], scales.outputs[0]], ir.DataType.FLOAT, layer),
        ]
        bias = self._bias(linear)
        if bias is not None:
            nodes.append(self._node("Add", [nodes[-1].outputs[0], bias], ir.DataType.FLOAT, layer))
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
        told = DynamicProduct(node=layer.name, op="Gemm" if node.op_type == "Gemm" else "MatMul")
        return told if rounded is None else told.model_copy(update=rounded.model_dump())

    def _matrix(self, layer: LinearLayer) -> tuple[list[ir.Value], RoundedWeights | None]:
        weight, by_row, alpha = layer.weight, layer.axis == 0, layer.alpha
        key = (weight, "product", by_row, alpha)
        if key in self._made:
            return self._made[key]
        table = self._shared_table(layer)
        if table is not None:
            self._made[key] = self._turned_rows(table, layer)
            return self._made[key]
        inputs, outputs = layer.inputs, layer.outputs
        count = outputs if self._per_channel else 1
        told: list[RoundedWeights] = []

        def compute(array: Floats) -> Sequence[npt.NDArray[Any]]:
            rounded = _round(layer.name, array, self._types.rule, by_row=by_row, per_channel=self._per_channel)
            told.append(rounded.told)
            # The scale alone takes alpha; a negative one turns the integers' signs, which are symmetric.
            integers = rounded.values if alpha >= 0 else -rounded.values
            return [transposed(self._stored(integers)), rounded.scale[:count] * np.float32(abs(alpha))]

        forms = [
            Form(self._free(f"{weight.name}_q8_"), self._kind, (inputs, outputs)),
            Form(self._free(f"{weight.name}_scale_"), ir.DataType.FLOAT, (count,) if self._per_channel else ()),
        ]
        values = self._register(weight, layer.tensor, compute, forms)
        values.append(self._zeros(weight, (count,) if self._per_channel else ()))
        # Weights on disk are rounded while the network is written.
        self._made[key] = (values, told[0] if told else None)
        return self._made[key]

    def _gather(self, layer: IntegerNode) -> IntegerTable:
        """An embedding: integer rows and their scales are picked, and only what was picked becomes float."""
        node, graph = layer.node, cast("ir.Graph", layer.node.graph)
        (integers, scale), rows_told = self._rows(layer.weights[0], layer.name)
        half = scale.dtype == ir.DataType.FLOAT16
        ids = node.inputs[1]
        picked = self._node("Gather", [integers, ids], ir.DataType.INT8, layer)
        scales = self._node("Gather", [scale, ids], ir.DataType.FLOAT16 if half else ir.DataType.FLOAT, layer)
        nodes = [picked, scales]
        if half:
            scales = self._node("Cast", [scales.outputs[0]], ir.DataType.FLOAT, layer, to=ir.DataType.FLOAT)
            nodes.append(scales)
        wide = self._node("Cast", [picked.outputs[0]], ir.DataType.FLOAT, layer, to=ir.DataType.FLOAT)
        restored = self._node("Mul", [wide.outputs[0], scales.outputs[0]], ir.DataType.FLOAT, layer)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [*nodes, wide, restored], node.outputs, restored.outputs
        )
        return IntegerTable(node=layer.name, weight_sqnr_db=None if rows_told is None else rows_told.weight_sqnr_db)

    def _rows(self, table: ir.Value, name: str) -> tuple[list[ir.Value], RoundedWeights | None]:
        """Give a table's integer rows and their scales, in 16 bits where those hold them."""
        tensor = cast("ir.TensorProtocol", table.const_value)
        rows, columns = (int(size) for size in tensor.shape.numpy())
        key = (table, "rows", True, 1.0)
        if key in self._made:
            return self._made[key]
        half = _scales_fit_half(tensor)
        told: list[RoundedWeights] = []

        def compute(array: Floats) -> Sequence[npt.NDArray[Any]]:
            # Nothing is multiplied in integers here, so nothing can saturate.
            rounded = _round(name, array, "int8", by_row=True, per_channel=True)
            told.append(rounded.told)
            if not half:
                return [rounded.values, rounded.scale]
            scale = rounded.scale.astype(np.float16)
            return [integer_types.requantize(array.astype(np.float32), scale.astype(np.float32)), scale]

        scale_type = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
        forms = [
            Form(self._free(f"{table.name}_rows_"), ir.DataType.INT8, (rows, columns)),
            Form(self._free(f"{table.name}_row_scale_"), scale_type, (rows, 1)),
        ]
        self._made[key] = (self._register(table, tensor, compute, forms), told[0] if told else None)
        return self._made[key]

    def _shared_table(self, layer: LinearLayer) -> ir.Value | None:
        """Give the table whose integer rows a product can read turned: one that its weights are tied to, on the same grid."""
        table = tied_to(layer.weight, self._tables)
        if table is None or self._types.rule != "int8" or not self._per_channel or layer.alpha != 1:
            return None
        return table if layer.node.graph is self._owner[table] and layer.node.op_type == "MatMul" else None

    def _turned_rows(self, table: ir.Value, layer: LinearLayer) -> tuple[list[ir.Value], RoundedWeights | None]:
        """Let a product read a table's rows as its columns: all of it constant, so ONNX Runtime turns them once."""
        (integers, scale), told = self._rows(table, layer.name)
        whole = IntegerNode(layer.node, (layer.position,), layer)
        turned = self._node("Transpose", [integers], ir.DataType.INT8, whole)
        turned.attributes["perm"] = ir.AttrInt64s("perm", [1, 0])
        nodes, factor = [turned], scale
        if scale.dtype == ir.DataType.FLOAT16:
            nodes.append(self._node("Cast", [scale], ir.DataType.FLOAT, whole, to=ir.DataType.FLOAT))
            factor = nodes[-1].outputs[0]
        flat = self._constant(f"{table.name}_flat_", np.array([-1], np.int64))
        nodes.append(self._node("Reshape", [factor, flat], ir.DataType.FLOAT, whole))
        self._owner[table].insert_before(layer.node, nodes)
        return [turned.outputs[0], nodes[-1].outputs[0], self._zeros(table, (layer.outputs,))], told

    def _lstm(self, layer: IntegerNode) -> DynamicLstm:
        node = layer.node
        ((w, w_scale, w_zero), inputs), ((r, r_scale, r_zero), recurrent) = (
            self._gates(layer, weight) for weight in layer.weights
        )
        rest = [node.inputs[index] if index < len(node.inputs) else None for index in range(3, 8)]
        integer = ir.Node(
            "com.microsoft",
            "DynamicQuantizeLSTM",
            [node.inputs[0], w, r, *rest, w_scale, w_zero, r_scale, r_zero],
            [attribute for name, attribute in node.attributes.items() if name != "layout"],
            num_outputs=len(node.outputs),
            name=node.name,
        )
        ir.convenience.replace_nodes_and_values(
            cast("ir.Graph", node.graph), node, [node], [integer], node.outputs, integer.outputs
        )
        return DynamicLstm(node=layer.name, input=inputs, recurrent=recurrent)

    def _gates(self, layer: IntegerNode, weight: ir.Value) -> tuple[list[ir.Value], RoundedWeights | None]:
        """An LSTM's weights [directions, gates * hidden, inputs], turned as the kernel takes them."""
        tensor = cast("ir.TensorProtocol", weight.const_value)
        directions, outputs, inputs = (int(size) for size in tensor.shape.numpy())
        told: list[RoundedWeights] = []
        scales = (directions, outputs) if self._per_channel else (directions,)

        def compute(array: Floats) -> Sequence[npt.NDArray[Any]]:
            parts = [
                _round(layer.name, part, self._types.rule, by_row=True, per_channel=self._per_channel) for part in array
            ]
            load = max(part.told.accumulator_load for part in parts)
            told.append(parts[0].told.model_copy(update={"accumulator_load": load}))
            integers = np.stack([self._stored(part.values).T for part in parts])
            return [integers, np.stack([part.scale[: scales[-1] if self._per_channel else 1] for part in parts])]

        forms = [
            Form(self._free(f"{weight.name}_q8_"), self._kind, (directions, inputs, outputs)),
            Form(self._free(f"{weight.name}_scale_"), ir.DataType.FLOAT, scales),
        ]
        values = self._register(weight, tensor, compute, forms)
        values.append(self._zeros(weight, scales))
        return values, told[0] if told else None

    def _activation(self, value: ir.Value, graph: ir.Graph, before: ir.Node) -> ir.Node:
        """Give the node that rounds an activation; layers with the same input share it."""
        key = (value, graph)
        if key not in self._activations:
            node = ir.Node(
                "", "DynamicQuantizeLinear", [value], num_outputs=3, name=self._free(f"{value.name}_rounding_")
            )
            for output, suffix, kind in zip(
                node.outputs,
                ("q", "scale", "zero"),
                (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8),
                strict=True,
            ):
                output.name, output.type = self._free(f"{value.name}_{suffix}_"), ir.TensorType(kind)
            graph.insert_before(before, [node])
            self._activations[key] = node
        return self._activations[key]

    def _bias(self, layer: LinearLayer) -> ir.Value | None:
        bias = layer.bias
        if bias is None or layer.beta == 1:
            return bias
        constant = cast("ir.TensorProtocol", bias.const_value)
        return self._constant(f"{bias.name}_scaled_", constant.numpy() * np.float32(layer.beta))

    def _zeros(self, weight: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """Give zero points; layers with as many outputs share them."""
        if shape not in self._zero_points:
            kind = np.uint8 if self._unsigned else np.int8
            zeros = np.full(shape, 128 if self._unsigned else 0, kind)
            self._zero_points[shape] = self._constant(f"{weight.name}_zero_", zeros)
        return self._zero_points[shape]

    def _constant(self, stem: str, array: npt.NDArray[Any]) -> ir.Value:
        name = self._free(stem)
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        self._model.graph.register_initializer(value)
        return value

    def _register(
        self, weight: ir.Value, tensor: ir.TensorProtocol, compute: Any, forms: Sequence[Form]
    ) -> list[ir.Value]:
        made = self._derivation.make(tensor, compute, forms)
        values = []
        for form, part in zip(forms, made, strict=True):
            value = ir.Value(
                name=form.name, type=ir.TensorType(form.dtype), shape=ir.Shape(form.shape), const_value=part
            )
            self._owner[weight].register_initializer(value)
            values.append(value)
        return values

    def _node(
        self, kind: str, inputs: Sequence[ir.Value | None], dtype: ir.DataType, layer: IntegerNode, **attributes: int
    ) -> ir.Node:
        node = ir.Node(
            "",
            kind,
            inputs,
            [ir.AttrInt64(name, int(value)) for name, value in attributes.items()],
            num_outputs=1,
            name=self._free(f"{layer.name}_{kind}_"),
        )
        node.outputs[0].name = self._free(f"{layer.name}_{kind}_out_")
        node.outputs[0].type = ir.TensorType(dtype)
        return node

    def _stored(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return (values.astype(np.int16) + 128).astype(np.uint8) if self._unsigned else values

    def _free(self, stem: str) -> str:
        return io.unused_name(self._taken, stem)
