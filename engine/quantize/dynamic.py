"""The work of the `quantize_dynamic` pass."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.contract import Context
from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.derived import Derivation, Form, is_stored, transposed
from engine.graph.names import require_nodes
from engine.graph.quantized import first_quantized
from engine.quantize import types
from engine.report.values import Change, Refusal
from engine.runtime import processor

if TYPE_CHECKING:
    from engine.passes.quantize_dynamic import QuantizeDynamic

# The operator set in which DynamicQuantizeLinear came.
OLDEST_OPSET = 11
_INTEGERS = {ir.DataType.INT8, ir.DataType.UINT8}
_NO_KERNEL = {
    "Conv": "integer convolutions with ranges taken in every run are several times slower than float",
    "GRU": "ONNX Runtime has no integer kernel for it",
    "RNN": "ONNX Runtime has no integer kernel for it",
}
# Weights that are rounded at once.
_CHUNK = 1 << 22

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Layer:
    """A node that will compute in integers, or a table that will be stored in them."""

    node: ir.Node
    # Positions of the weights among the node's inputs.
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.node.name or str(self.node.outputs[0].name)

    @property
    def weights(self) -> tuple[ir.Value, ...]:
        """The float weights."""
        return tuple(cast("ir.Value", self.node.inputs[position]) for position in self.positions)


@dataclass
class Plan:
    """Layers in topological order, and what stays in float with the reason."""

    layers: list[Layer] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def check(model: ir.Model, step: "QuantizeDynamic") -> Refusal | None:
    """Refuse a network of which no layer can be quantized."""
    require_nodes(model, step.exclude)
    if io.opset(model) < OLDEST_OPSET:
        return Refusal(
            code="unsupported",
            reason=f"DynamicQuantizeLinear needs operator set {OLDEST_OPSET}, and the network, which uses"
            f" {io.opset(model)}, cannot be converted.",
            hint="Export the network again with a later opset.",
        )
    plan = make_plan(model, step)
    if plan.layers:
        return None
    done = first_quantized(model)
    if done is not None:
        return Refusal(
            code="already_done",
            reason=f"No float layer is left that could be quantized: the network holds {done.op_type} already.",
            node=done.name,
        )
    if plan.refused:
        node, reason = next(iter(plan.refused.items()))
        return Refusal(
            code="not_applicable",
            reason=f"No layer can be quantized; the first, `{node}`, stays in float because {reason}.",
            node=node,
            hint="Convolutions gain from quantize_static.",
        )
    return Refusal(code="not_applicable", reason=f"The network has no {', '.join(step.operators)} with weights.")


def make_plan(model: ir.Model, step: "QuantizeDynamic") -> Plan:
    """Decide what is quantized; nothing is changed. Bodies of If and Loop count like the main graph."""
    plan = Plan()
    found: list[Layer] = []
    for node in model.graph.all_nodes():
        if node.domain not in {"", "ai.onnx"}:
            continue
        if node.op_type in _NO_KERNEL:
            plan.refused[_name(node)] = _NO_KERNEL[node.op_type]
        elif node.op_type in step.operators:
            layer = _LAYERS[node.op_type](node)
            reason = next(_objections(layer, step), None) if isinstance(layer, Layer) else layer
            if reason is not None:
                plan.refused[_name(node)] = reason
            else:
                found.append(cast("Layer", layer))
    quantized = {layer.node for layer in found}
    for layer in found:
        if all(use.node in quantized for weight in layer.weights for use in weight.uses()):
            plan.layers.append(layer)
        else:
            plan.refused[layer.name] = "its weights are shared with an operator that needs them in float"
    return plan


def quantize(model: ir.Model, step: "QuantizeDynamic", context: Context) -> Change | Refusal:
    """Quantize in place."""
    plan = make_plan(model, step)
    if context.target.provider != "cpu":
        for layer in [layer for layer in plan.layers if layer.node.op_type == "LSTM"]:
            plan.layers.remove(layer)
            plan.refused[layer.name] = (
                f"only the processor's provider has an integer kernel for it, not {context.target.provider}"
            )
    if not plan.layers:
        return Refusal(code="not_applicable", reason="The target has no integer kernel for any of the layers.")
    choice = types.choose(processor.cpu_profile(), activations="uint8", weights=step.weights)
    writer = _Writer(model, choice, per_channel=step.per_channel)
    facts = []
    for number, layer in enumerate(plan.layers):
        facts.append({"node": layer.name, "op": layer.node.op_type, **writer.replace(layer)})
        context.progress(0.8 * (number + 1) / len(plan.layers), f"quantized {number + 1} of {len(plan.layers)} layers")
    writer.finish()
    return Change(
        summary=(
            f"{len(plan.layers)} layers compute with 8-bit weights and activations whose ranges are taken in every run"
            + (f"; {len(plan.refused)} stay in float." if plan.refused else ".")
        ),
        details={
            "weights": "uint8" if choice.rule == "uint8" else "int8",
            "why": choice.why,
            "per_channel": step.per_channel,
            "processor": processor.cpu_profile().dot,
            "layers": facts,
            "in_float": [{"node": node, "reason": reason} for node, reason in plan.refused.items()],
        },
    )


def ensures(model: ir.Model) -> None:
    """Check that the weights of every integer product are constant integers, and scales in memory are positive."""
    for node in model.graph.all_nodes():
        positions = {"MatMulInteger": (1,), "DynamicQuantizeLSTM": (1, 2)}.get(node.op_type, ())
        for position in positions:
            weight = node.inputs[position]
            if weight is None or weight.const_value is None or weight.const_value.dtype not in _INTEGERS:
                raise VerificationFailedError(
                    "The weights of an integer product are no constant integers.", node=node.name
                )


def _matmul(node: ir.Node) -> Layer | str:
    if node.inputs[1] is None or not node.inputs[1].is_initializer():
        return "both operands are activations, or the weights are on the left"
    return Layer(node, (1,))


def _gemm(node: ir.Node) -> Layer | str:
    if _integer(node, "transA"):
        return "its input is transposed"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and _number(node, "beta") != 1 and bias.const_value is None:
        return "beta is not 1 and the bias is not constant"
    return Layer(node, (1,))


def _lstm(node: ir.Node) -> Layer | str:
    if _integer(node, "layout"):
        return "the kernel knows no batch-first layout"
    return Layer(node, (1, 2))


def _gather(node: ir.Node) -> Layer | str:
    table = node.inputs[0]
    if table is None or not table.is_initializer() or _integer(node, "axis") != 0:
        return "it does not pick rows of a constant table"
    return Layer(node, (0,))


_LAYERS = {"MatMul": _matmul, "Gemm": _gemm, "LSTM": _lstm, "Gather": _gather}
_RANK = {"MatMul": 2, "Gemm": 2, "LSTM": 3, "Gather": 2}


def _objections(layer: Layer, step: "QuantizeDynamic") -> Iterator[str]:
    if layer.node.name in step.exclude:
        yield "the recipe excludes it"
    size = 0
    for weight in layer.weights:
        constant = weight.const_value
        if constant is None or not weight.is_initializer() or weight.is_graph_input():
            yield "its weights are not constant"
            return
        if constant.dtype != ir.DataType.FLOAT:
            yield f"its weights are {constant.dtype.name.lower()}, not float32"
        if len(constant.shape) != _RANK[layer.node.op_type]:
            yield "its weights are not one matrix"
        if weight.is_graph_output():
            yield "its weights are also an output of the network"
        size += constant.size
    if size < step.smallest:
        yield f"it has fewer than {step.smallest} weights"
    if layer.node.op_type != "Gather" and (layer.node.inputs[0] is None or layer.node.inputs[0].is_initializer()):
        yield "its input is a constant"


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _integer(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _scales_fit_half(tensor: ir.TensorProtocol) -> bool:
    """Say whether float16 holds the scales of a table's rows in full precision; tables on disk are not read for that."""
    if is_stored(tensor):
        return False
    scales = np.abs(tensor.numpy()).max(axis=1) / types.INT8_MAX
    limits = np.finfo(np.float16)
    return bool(scales.min() > float(limits.smallest_normal) and scales.max() < float(limits.max))


def _number(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0


@dataclass
class _Rounded:
    """Integer weights (outputs, inputs), their scales, and what the report says of them."""

    values: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    facts: dict[str, Any]


def _round(name: str, weights: Floats, rule: types.WeightRule, *, by_row: bool, per_channel: bool) -> _Rounded:
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
        part = types.quantize_weight(rows, rule, per_channel=per_channel)
        parts.append(part)
        off = part.values * part.scale[:, None]
        off -= rows
        noise += float(np.vdot(off, off))
    values, scale = np.concatenate([part.values for part in parts]), np.concatenate([part.scale for part in parts])
    facts = {
        "accumulator_load": round(max(part.accumulator_load for part in parts), 3),
        "limited_channels": sum(part.limited_channels for part in parts),
        "channels": len(scale),
        "weight_sqnr_db": round(10 * math.log10(energy / noise), 2) if noise > 0 and energy > 0 else None,
    }
    return _Rounded(values, scale, facts)


class _Writer:
    """Writes integer layers into the network."""

    def __init__(self, model: ir.Model, choice: types.Choice, *, per_channel: bool) -> None:
        self._model = model
        self._choice = choice
        self._per_channel = per_channel
        self._unsigned = choice.rule == "uint8"
        self._kind = ir.DataType.UINT8 if self._unsigned else ir.DataType.INT8
        self._taken = io.value_names(model)
        self._owner = {value: graph for graph, value in io.initializers(model)}
        self._derivation = Derivation()
        self._activations: dict[tuple[ir.Value, ir.Graph], ir.Node] = {}
        self._made: dict[tuple[ir.Value, str, bool, float], tuple[list[ir.Value], dict[str, Any]]] = {}
        self._zero_points: dict[tuple[int, ...], ir.Value] = {}
        self._replaced: set[ir.Value] = set()

    def replace(self, layer: Layer) -> dict[str, Any]:
        """Put the integer form in the layer's place and say what it is."""
        self._replaced.update(layer.weights)
        if layer.node.op_type == "LSTM":
            return self._lstm(layer)
        return self._gather(layer) if layer.node.op_type == "Gather" else self._product(layer)

    def finish(self) -> None:
        """Drop float weights that nothing reads any more."""
        for weight in self._replaced:
            if not weight.uses():
                self._owner[weight].initializers.pop(str(weight.name))
        if any(node.op_type == "DynamicQuantizeLSTM" for node in self._model.graph.all_nodes()):
            self._model.opset_imports.setdefault("com.microsoft", 1)

    def _product(self, layer: Layer) -> dict[str, Any]:
        """MatMul or Gemm: DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Add, which ONNX Runtime fuses into one kernel."""
        node, graph = layer.node, cast("ir.Graph", layer.node.graph)
        weight = layer.weights[0]
        by_row = node.op_type == "Gemm" and _integer(node, "transB") == 1
        alpha = _number(node, "alpha") if node.op_type == "Gemm" else 1.0
        (integers, scale, zero), facts = self._matrix(layer, weight, by_row=by_row, alpha=alpha)
        activation = self._activation(cast("ir.Value", node.inputs[0]), graph, node)
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
        bias = self._bias(node) if node.op_type == "Gemm" else None
        if bias is not None:
            nodes.append(self._node("Add", [nodes[-1].outputs[0], bias], ir.DataType.FLOAT, layer))
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
        return facts

    def _matrix(
        self, layer: Layer, weight: ir.Value, *, by_row: bool, alpha: float
    ) -> tuple[list[ir.Value], dict[str, Any]]:
        key = (weight, "product", by_row, alpha)
        if key in self._made:
            return self._made[key]
        tensor = cast("ir.TensorProtocol", weight.const_value)
        sizes = tuple(int(size) for size in tensor.shape.numpy())
        inputs, outputs = sizes[::-1] if by_row else sizes
        count = outputs if self._per_channel else 1
        facts: dict[str, Any] = {}

        def compute(array: Floats) -> Sequence[npt.NDArray[Any]]:
            rounded = _round(layer.name, array, self._choice.rule, by_row=by_row, per_channel=self._per_channel)
            facts.update(rounded.facts)
            # The scale alone takes alpha; a negative one turns the integers' signs, which are symmetric.
            integers = rounded.values if alpha >= 0 else -rounded.values
            return [transposed(self._stored(integers)), rounded.scale[:count] * np.float32(abs(alpha))]

        forms = [
            Form(self._free(f"{weight.name}_q8_"), self._kind, (inputs, outputs)),
            Form(self._free(f"{weight.name}_scale_"), ir.DataType.FLOAT, (count,) if self._per_channel else ()),
        ]
        values = self._register(weight, tensor, compute, forms)
        values.append(self._zeros(weight, (count,) if self._per_channel else ()))
        if is_stored(tensor):
            facts["deferred"] = True
        self._made[key] = (values, facts)
        return self._made[key]

    def _gather(self, layer: Layer) -> dict[str, Any]:
        """An embedding: integer rows and their scales are picked, and only what was picked becomes float."""
        node, graph = layer.node, cast("ir.Graph", layer.node.graph)
        table = layer.weights[0]
        tensor = cast("ir.TensorProtocol", table.const_value)
        rows, columns = (int(size) for size in tensor.shape.numpy())
        key = (table, "rows", True, 1.0)
        half = _scales_fit_half(tensor)
        if key not in self._made:
            facts: dict[str, Any] = {}

            def compute(array: Floats) -> Sequence[npt.NDArray[Any]]:
                # Nothing is multiplied in integers here, so nothing can saturate.
                rounded = _round(layer.name, array, "int8", by_row=True, per_channel=True)
                facts["weight_sqnr_db"] = rounded.facts["weight_sqnr_db"]
                if not half:
                    return [rounded.values, rounded.scale]
                scale = rounded.scale.astype(np.float16)
                return [types.requantize(array.astype(np.float32), scale.astype(np.float32)), scale]

            scale_type = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
            forms = [
                Form(self._free(f"{table.name}_rows_"), ir.DataType.INT8, (rows, columns)),
                Form(self._free(f"{table.name}_row_scale_"), scale_type, (rows, 1)),
            ]
            self._made[key] = (self._register(table, tensor, compute, forms), facts)
        (integers, scale), facts = self._made[key]
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
        return facts

    def _lstm(self, layer: Layer) -> dict[str, Any]:
        node = layer.node
        made, facts = [], []
        for weight in layer.weights:
            values, fact = self._gates(layer, weight)
            made.append(values)
            facts.append(fact)
        (w, w_scale, w_zero), (r, r_scale, r_zero) = made
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
        return {"input": facts[0], "recurrent": facts[1]}

    def _gates(self, layer: Layer, weight: ir.Value) -> tuple[list[ir.Value], dict[str, Any]]:
        """An LSTM's weights [directions, gates * hidden, inputs], turned as the kernel takes them."""
        tensor = cast("ir.TensorProtocol", weight.const_value)
        directions, outputs, inputs = (int(size) for size in tensor.shape.numpy())
        facts: dict[str, Any] = {}
        scales = (directions, outputs) if self._per_channel else (directions,)

        def compute(array: Floats) -> Sequence[npt.NDArray[Any]]:
            parts = [
                _round(layer.name, part, self._choice.rule, by_row=True, per_channel=self._per_channel)
                for part in array
            ]
            facts.update(parts[0].facts)
            facts["accumulator_load"] = max(part.facts["accumulator_load"] for part in parts)
            integers = np.stack([self._stored(part.values).T for part in parts])
            return [integers, np.stack([part.scale[: scales[-1] if self._per_channel else 1] for part in parts])]

        forms = [
            Form(self._free(f"{weight.name}_q8_"), self._kind, (directions, inputs, outputs)),
            Form(self._free(f"{weight.name}_scale_"), ir.DataType.FLOAT, scales),
        ]
        values = self._register(weight, tensor, compute, forms)
        values.append(self._zeros(weight, scales))
        return values, facts

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

    def _bias(self, node: ir.Node) -> ir.Value | None:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        beta = _number(node, "beta")
        if bias is None or beta == 1:
            return bias
        constant = cast("ir.TensorProtocol", bias.const_value)
        return self._constant(f"{bias.name}_scaled_", constant.numpy() * np.float32(beta))

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
        self, kind: str, inputs: Sequence[ir.Value | None], dtype: ir.DataType, layer: Layer, **attributes: int
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
