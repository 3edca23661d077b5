"""The work of the `quantize_weights` pass."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.paired import Sums, Tap, paired_moments
from engine.contract import Context
from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.derived import Derivation, Form, Opened, transposed
from engine.graph.names import require_nodes
from engine.graph.quantized import holds_integer_weights
from engine.report.values import Change, Refusal
from engine.solve import Quantized, Window, gptq, reconstruct, round_to_nearest
from engine.solve.gram import AutoPad
from engine.solve.grid import Bits

if TYPE_CHECKING:
    from engine.passes.quantize_weights import QuantizeWeights

# The operator sets in which DequantizeLinear took an axis, and then blocks and 4-bit types.
AXIS_OPSET, BLOCKS_OPSET = 13, 21
_INT4_IR_VERSION = 10
_SMALLEST_WEIGHTS = 1024
_SMALLEST_BLOCK = 16
# Networks are run again after every stage; more stages follow the quantized prefix more closely.
_STAGES = 16
_STAGE_BYTES = 512 << 20
_CALIBRATION_RUNS = 256
# Shares of the inputs' mean energy that GPTQ adds to each: with few rows, more of it keeps from fitting to their noise.
_DAMPINGS = {"gptq": 0.01, "gptq, damped": 0.1}
_ACCURACY_LEVEL = {"float32": 1, "int8": 4}
# Weights that are rounded at once: temporaries then take a few times 16 MiB.
_CHUNK = 1 << 22

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Layer:
    """A node whose weights can be stored in few bits, and how."""

    node: ir.Node
    weight: ir.Value
    outputs_last: bool  # the weights are stored (inputs, outputs)
    alpha: float
    # What it becomes.
    bits: Bits
    group: int | None  # None: one scale per output
    symmetric: bool
    form: Literal["nbits", "blocks", "channels", "flat_blocks", "cast_channels", "cast_blocks", "table"]

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weights."""
        assert self.weight.const_value is not None
        return self.weight.const_value

    @property
    def shape(self) -> tuple[int, ...]:
        """The weights' own shape."""
        return tuple(int(size) for size in self.tensor.shape.numpy())

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.shape[1] if self.outputs_last else self.shape[0]

    @property
    def inputs(self) -> int:
        """Number of weights of each output."""
        return math.prod(self.shape) // self.outputs

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.node.name or str(self.node.outputs[0].name)

    def matrix(self, array: Floats) -> Floats:
        """Give stored weights as (outputs, inputs)."""
        return (array.T if self.outputs_last else array).reshape(self.outputs, self.inputs) * np.float32(self.alpha)


@dataclass
class Plan:
    """Layers in topological order, and those that stay in float with the reason."""

    layers: list[Layer] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def check(model: ir.Model, step: "QuantizeWeights") -> Refusal | None:
    """Refuse a network of which no layer can be quantized."""
    require_nodes(model, step.exclude)
    plan = make_plan(model, step)
    if plan.layers:
        return None
    done = next((node for node in model.graph.all_nodes() if holds_integer_weights(node)), None)
    if done is not None:
        return Refusal(
            code="already_done",
            reason=f"No float weights are left that could be quantized: the network holds {done.op_type} already.",
            node=done.name,
        )
    if plan.refused:
        node, reason = next(iter(plan.refused.items()))
        return Refusal(
            code="not_applicable",
            reason=f"No layer's weights can be quantized; the first, `{node}`, stays because {reason}.",
            node=node,
        )
    return Refusal(code="not_applicable", reason=f"The network has no {', '.join(step.operators)} with weights.")


def make_plan(model: ir.Model, step: "QuantizeWeights") -> Plan:
    """Decide which weights are stored how; nothing is changed. Bodies of If and Loop count like the main graph."""
    plan = Plan()
    found: list[Layer] = []
    for node in model.graph.all_nodes():
        if node.op_type not in step.operators or node.domain not in {"", "ai.onnx"}:
            continue
        layer = _layer(node, step, io.opset(model))
        if isinstance(layer, Layer):
            found.append(layer)
        else:
            plan.refused[node.name or str(node.outputs[0].name)] = layer
    by_weight: dict[ir.Value, list[Layer]] = {}
    for layer in found:
        by_weight.setdefault(layer.weight, []).append(layer)
    for layer in found:
        users = by_weight[layer.weight]
        alike = all(
            (user.outputs_last, user.alpha, user.form) == (layer.outputs_last, layer.alpha, layer.form)
            for user in users
        )
        if len(users) == len(layer.weight.uses()) and alike and not layer.weight.is_graph_output():
            plan.layers.append(layer)
        else:
            plan.refused[layer.name] = (
                f"`{layer.weight.name}` is shared with an operator that needs it as it is, so that a second copy would"
                " only add to the size"
            )
    return plan


def quantize(model: ir.Model, step: "QuantizeWeights", context: Context) -> Change | Refusal:
    """Quantize weights in place."""
    has_data = context.has_data and bool(context.calibration)
    if step.method == "gptq" and not has_data:
        return Refusal(
            code="needs_data",
            reason="GPTQ needs calibration data, but the job has none.",
            hint="Add a dataset, or ask for the method `rtn`.",
        )
    plan = make_plan(model, step)
    writer = _Writer(model, step)
    facts: dict[str, dict[str, Any]] = {}
    solvable = [layer for layer in plan.layers if _solvable(layer, model)]
    solve = step.method != "rtn" and has_data and bool(solvable)
    if solve:
        for layer, quantized, fact in _solve(model, solvable, step, context):
            facts[layer.name] = {**fact, **_weight_facts(layer, quantized)}
            writer.replace(layer, quantized)
    for number, layer in enumerate(plan.layers):
        if layer.name not in facts:
            facts[layer.name] = {"method": "rtn"}
            writer.replace(layer, None)
        context.progress(0.8 * (number + 1) / len(plan.layers), f"quantized {number + 1} of {len(plan.layers)} layers")
    writer.finish()
    before = sum(layer.tensor.nbytes for layer in {layer.weight: layer for layer in plan.layers}.values())
    return Change(
        summary=_summary(plan, step, solved=len(facts) if solve else 0),
        details={
            "method": "gptq" if solve else "rtn",
            "weight_bytes_before": before,
            "weight_bytes_after": writer.bytes,
            "layers": [
                {
                    "node": layer.name,
                    "op": layer.node.op_type,
                    "bits": layer.bits,
                    "group": layer.group,
                    **facts[layer.name],
                }
                for layer in plan.layers
            ],
            "in_float": [{"node": node, "reason": reason} for node, reason in plan.refused.items()],
        },
    )


def ensures(model: ir.Model) -> None:
    """Check packed sizes and, where weights are in memory, that scales are finite and not zero."""
    for node in model.graph.all_nodes():
        if node.op_type == "MatMulNBits":
            size, bits = node.attributes["block_size"].as_int(), node.attributes["bits"].as_int()
            inputs, outputs = node.attributes["K"].as_int(), node.attributes["N"].as_int()
            packed = _constant(node.inputs[1])
            if packed is None or tuple(packed.shape.numpy()) != (outputs, -(-inputs // size), size * bits // 8):
                raise VerificationFailedError(
                    "Packed weights do not have the size that their operator states.", node=node.name
                )
            scale = _constant(node.inputs[2])
        elif node.op_type in {"DequantizeLinear", "GatherBlockQuantized"}:
            scale = _constant(node.inputs[1 if node.op_type == "DequantizeLinear" else 2])
        else:
            continue
        if scale is None or isinstance(scale, ir.LazyTensor):
            continue
        values = scale.numpy()
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise VerificationFailedError("A weight's scale is not a positive number.", node=node.name)


def round_stored(layer: Layer, array: Floats, *, search: int = 0) -> Quantized:
    """Round a layer's weights as they are stored, some outputs at a time; raises where they are not finite."""
    outputs, inputs = layer.outputs, layer.inputs
    parts = []
    step = max(1, _CHUNK // inputs)
    # Whole pages of a stored row at a time.
    step = step // 1024 * 1024 or step
    for start in range(0, outputs, step):
        stop = min(start + step, outputs)
        part = transposed(array[:, start:stop]) if layer.outputs_last else array[start:stop]
        rows = np.ascontiguousarray(part, np.float32).reshape(stop - start, inputs)
        if layer.alpha != 1:
            rows = rows * np.float32(layer.alpha)  # the weights may be mapped read-only
        if not np.isfinite(rows).all():
            raise VerificationFailedError("The weights hold NaN or infinity.", node=layer.name)
        parts.append(
            round_to_nearest(rows, bits=layer.bits, group=layer.group, symmetric=layer.symmetric, search=search)
        )
    return Quantized(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.zero for part in parts]),
        layer.bits,
        parts[0].group,
    )


def _layer(node: ir.Node, step: "QuantizeWeights", opset: int) -> Layer | str:
    reason = next(_objections(node, step), None)
    if reason is not None:
        return reason
    weight = cast("ir.Value", node.inputs[_position(node)])
    special = {"Conv": _convolution, "Gather": _table}.get(node.op_type)
    if special is not None:
        return special(node, weight, step, opset)
    transposed = node.op_type == "Gemm" and _integer(node, "transB") == 1
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    if step.format == "matmul_nbits":
        return Layer(node, weight, not transposed, alpha, step.bits, step.group, step.symmetric, "nbits")
    if opset >= BLOCKS_OPSET:
        return Layer(node, weight, not transposed, alpha, step.bits, step.group, step.symmetric, "blocks")
    if step.bits == 8 and opset >= AXIS_OPSET:
        return Layer(node, weight, not transposed, alpha, 8, None, True, "channels")
    return f"DequantizeLinear of {step.bits}-bit blocks needs operator set {BLOCKS_OPSET}, and the network uses {opset}"


def _convolution(node: ir.Node, weight: ir.Value, step: "QuantizeWeights", opset: int) -> Layer | str:
    tensor = cast("ir.TensorProtocol", weight.const_value)
    inputs = math.prod(tensor.shape.numpy()[1:])
    in_blocks = step.bits == 4 and opset >= BLOCKS_OPSET and inputs >= step.group
    if step.format == "matmul_nbits":
        # Cast and Mul do what DequantizeLinear does, but ONNX Runtime folds them when the network is loaded.
        group = next((size for size in (step.group, 64, 32, 16) if inputs % size == 0), None)
        if in_blocks and group is not None:
            return Layer(node, weight, False, 1.0, 4, group, step.symmetric, "cast_blocks")
        return Layer(node, weight, False, 1.0, 8, None, True, "cast_channels")
    if in_blocks:
        return Layer(node, weight, False, 1.0, 4, step.group, step.symmetric, "flat_blocks")
    if opset >= AXIS_OPSET:
        return Layer(node, weight, False, 1.0, 8, None, True, "channels")
    return f"DequantizeLinear per channel needs operator set {AXIS_OPSET}, and the network uses {opset}"


def _table(node: ir.Node, weight: ir.Value, step: "QuantizeWeights", opset: int) -> Layer | str:
    columns = int(cast("ir.TensorProtocol", weight.const_value).shape.numpy()[1])
    if step.format == "matmul_nbits":
        if step.bits == 4 and columns % 2:
            return "its rows have an odd number of columns, which do not fill whole bytes"
        # In 8 bits one scale per row is fine enough; blocks have to be powers of two.
        group = step.group if step.bits == 4 else max(_SMALLEST_BLOCK, 1 << (columns - 1).bit_length())
        return Layer(node, weight, False, 1.0, step.bits, group, step.symmetric, "table")
    if step.bits == 8:
        return "standard operators would restore all of its rows in every run; quantize_dynamic stores it in 8 bits"
    if opset < BLOCKS_OPSET:
        return f"DequantizeLinear of 4-bit blocks needs operator set {BLOCKS_OPSET}, and the network uses {opset}"
    return Layer(node, weight, False, 1.0, 4, step.group, step.symmetric, "blocks")


def _position(node: ir.Node) -> int:
    """Say which input holds the weights."""
    return 0 if node.op_type == "Gather" else 1


def _objections(node: ir.Node, step: "QuantizeWeights") -> Iterator[str]:
    if node.name in step.exclude:
        yield "the recipe excludes it"
    value, weight = node.inputs[1 - _position(node)], node.inputs[_position(node)]
    constant = _constant(weight)
    if constant is None or weight is None or weight.is_graph_input():
        table = "it does not pick rows of a constant table"
        yield table if node.op_type == "Gather" else "its weights are not constant, or stand on the left"
        return
    if constant.dtype != ir.DataType.FLOAT:
        yield f"its weights are {constant.dtype.name.lower()}, not float32"
    if value is None or value.is_initializer():
        yield "its input is a constant"
        return
    yield from _shape_objections(node, constant.shape.numpy())
    if node.op_type == "MatMul" and value.shape is not None and len(value.shape) < 2:
        yield "its input is a vector"
    if node.op_type == "Gather" and _integer(node, "axis") != 0:
        yield "it does not pick rows of its table"
    if node.op_type == "Gemm" and _integer(node, "transA"):
        yield "its input is transposed"
    if _beta(node) != 1 and len(node.inputs) > 2 and _constant(node.inputs[2]) is None:
        yield "beta is not 1 and the bias is not constant"


def _shape_objections(node: ir.Node, sizes: Sequence[int]) -> Iterator[str]:
    if node.op_type != "Conv" and len(sizes) != 2:
        yield "its weights are not one matrix"
        return
    if node.op_type == "Conv" and len(sizes) < 3:
        yield "its weights have no spatial axis"
    if math.prod(sizes) < _SMALLEST_WEIGHTS:
        yield f"it has fewer than {_SMALLEST_WEIGHTS} weights"


def _beta(node: ir.Node) -> float:
    return node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0


def _solvable(layer: Layer, model: ir.Model) -> bool:
    """Say whether a layer's inputs can be observed: it stands in the main graph, alone with its weights, and multiplies."""
    return layer.node.op_type != "Gather" and layer.node.graph is model.graph and len(layer.weight.uses()) == 1


def _solve(
    model: ir.Model, layers: Sequence[Layer], step: "QuantizeWeights", context: Context
) -> Iterator[tuple[Layer, Quantized, dict[str, Any]]]:
    """Quantize layer after layer; the caller must write each result into the model before it asks for the next."""
    assert context.calibration is not None
    teacher = io.copy(model)
    done = 0
    for stage in _stages(layers):
        taps = {layer.name: _tap(layer) for layer in stage}
        sums = paired_moments(teacher, model, taps, context.calibration, context.target, runs=_CALIBRATION_RUNS)
        # The whole stage is solved before any of it is written: its layers saw the same prefix.
        solved = [(layer, *_best(layer, taps[layer.name], sums[layer.name], step)) for layer in stage]
        yield from solved
        done += len(stage)
        context.progress(0.7 * done / len(layers), f"solved {done} of {len(layers)} layers")


def _stages(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    most = -(-len(layers) // _STAGES)
    stage: list[Layer] = []
    size = 0
    for layer in layers:
        need = 2 * 8 * layer.inputs * (layer.inputs + layer.outputs)
        if stage and (len(stage) == most or size + need > _STAGE_BYTES):
            yield stage
            stage, size = [], 0
        stage.append(layer)
        size += need
    if stage:
        yield stage


def _tap(layer: Layer) -> Tap:
    with Opened(layer.tensor) as array:
        weights = np.array(layer.matrix(array), np.float64)
        del array
    tensor = str(cast("ir.Value", layer.node.inputs[0]).name)
    return Tap(tensor, weights, window(layer.node, layer.shape) if layer.node.op_type == "Conv" else None)


def window(node: ir.Node, shape: Sequence[int]) -> Window:
    """Give a convolution's geometry."""
    lists = {
        name: tuple(node.attributes[name].as_ints()) if name in node.attributes else ()
        for name in ("kernel_shape", "strides", "dilations", "pads")
    }
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    return Window(
        kernel=lists["kernel_shape"] or tuple(shape[2:]),
        strides=lists["strides"],
        dilations=lists["dilations"],
        pads=lists["pads"],
        groups=_integer(node, "group", 1),
        auto_pad=cast("AutoPad", auto),
    )


def _best(layer: Layer, tap: Tap, sums: Sums, step: "QuantizeWeights") -> tuple[Quantized, dict[str, Any]]:
    """Give the candidate of the least error on held-out rows."""
    weights = tap.weights.reshape(tap.groups, -1, layer.inputs)
    grid: dict[str, Any] = {"bits": layer.bits, "group": layer.group, "symmetric": layer.symmetric}
    found: dict[str, list[Quantized]] = {
        "rtn": [round_to_nearest(part.astype(np.float32), **grid) for part in weights],
        "rtn, ranges searched": [round_to_nearest(part.astype(np.float32), search=16, **grid) for part in weights],
    }
    grid |= {"activation_order": step.activation_order, "sweeps": 2}
    for name, damping in _DAMPINGS.items():
        pairs = zip(weights, sums.fit, strict=True)
        found[name] = [gptq(part, fit.xtx, damping=damping, **grid) for part, fit in pairs]
    errors = {name: _held_out_error(parts, sums) for name, parts in found.items()}
    damped = min(_DAMPINGS, key=lambda name: errors[name])
    # What the layer should be on the inputs that it gets now, rounded instead of what it was.
    aimed = []
    for part, fit, held_out, plain in zip(weights, sums.fit, sums.held_out, found[damped], strict=True):
        aim = reconstruct(fit, part, None, held_out=held_out, fit_bias=False)
        aimed.append(gptq(aim.weights, fit.xtx, damping=_DAMPINGS[damped], **grid) if aim.better else plain)
    found["gptq, aimed"] = aimed
    errors["gptq, aimed"] = _held_out_error(aimed, sums)
    best = min(errors, key=lambda name: errors[name])
    energy = sum(float(judge.y_squares.sum()) / max(judge.rows, 1) / len(judge.y_squares) for judge in sums.held_out)
    facts = {
        "method": best,
        "held_out_error": {name: _round(error / energy) if energy > 0 else 0.0 for name, error in errors.items()},
        "rows": sums.fit[0].rows,
    }
    return _join(found[best]), facts


def _held_out_error(parts: Sequence[Quantized], sums: Sums) -> float:
    return sum(judge.error(part.values()) for judge, part in zip(sums.held_out, parts, strict=True))


def _join(parts: Sequence[Quantized]) -> Quantized:
    return Quantized(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.zero for part in parts]),
        parts[0].bits,
        parts[0].group,
    )


def _weight_facts(layer: Layer, quantized: Quantized) -> dict[str, Any]:
    with Opened(layer.tensor) as array:
        weights = np.array(layer.matrix(array), np.float64)
        del array
    noise = float(np.square(quantized.values() - weights).sum())
    energy = float(np.square(weights).sum())
    return {"weight_sqnr_db": round(10 * math.log10(energy / noise), 2) if noise > 0 and energy > 0 else None}


def _round(value: float) -> float:
    return float(f"{value:.4g}")


class _Writer:
    """Writes quantized weights into the network."""

    def __init__(self, model: ir.Model, step: "QuantizeWeights") -> None:
        self._model = model
        self._step = step
        self._taken = io.value_names(model)
        self._derivation = Derivation()
        self._owner = {value: graph for graph, value in io.initializers(model)}
        self._made: dict[ir.Value, list[ir.Value]] = {}
        self._shapes: dict[tuple[int, ...], ir.Value] = {}
        self.bytes = 0

    def replace(self, layer: Layer, quantized: Quantized | None) -> None:
        """Let the layer read quantized weights: the given ones, or its own rounded to nearest."""
        if layer.weight not in self._made:
            self._made[layer.weight] = self._initializers(layer, quantized)
        made = self._made[layer.weight]
        if layer.form == "nbits":
            self._matmul_nbits(layer, made)
        elif layer.form == "table":
            self._gather_blocks(layer, made)
        elif layer.form.startswith("cast"):
            self._cast(layer, made)
        else:
            self._dequantize(layer, made)

    def finish(self) -> None:
        """Drop float weights that nothing reads any more and declare what the new nodes need."""
        for weight in self._made:
            if not weight.uses():
                self._owner[weight].initializers.pop(str(weight.name))
        kinds = {node.op_type for node in self._model.graph.all_nodes()}
        if {"MatMulNBits", "GatherBlockQuantized"} & kinds:
            self._model.opset_imports.setdefault("com.microsoft", 1)
        if any(value.dtype == ir.DataType.UINT4 for values in self._made.values() for value in values):
            self._model.ir_version = max(self._model.ir_version, _INT4_IR_VERSION)

    def _initializers(self, layer: Layer, quantized: Quantized | None) -> list[ir.Value]:
        forms = _forms(layer, lambda stem: io.unused_name(self._taken, f"{layer.weight.name}_{stem}"))
        search = 16 if self._step.range_search else 0

        def compute(array: Floats) -> Sequence[npt.NDArray[Any]]:
            return _arrays(layer, quantized or round_stored(layer, array, search=search))

        tensors = self._derivation.make(layer.tensor, compute, forms)
        graph = self._owner[layer.weight]
        values = []
        for form, made in zip(forms, tensors, strict=True):
            value = ir.Value(
                name=form.name, type=ir.TensorType(form.dtype), shape=ir.Shape(form.shape), const_value=made
            )
            graph.register_initializer(value)
            values.append(value)
            self.bytes += made.nbytes
        return values

    def _matmul_nbits(self, layer: Layer, made: Sequence[ir.Value]) -> None:
        node = layer.node
        group = cast("int", layer.group)
        attributes: dict[str, int] = {
            "K": layer.inputs,
            "N": layer.outputs,
            "bits": layer.bits,
            "block_size": group,
            "accuracy_level": _ACCURACY_LEVEL[self._step.accuracy],
        }
        bias = self._bias(node) if node.op_type == "Gemm" else None
        product = ir.Node(
            "com.microsoft",
            "MatMulNBits",
            [node.inputs[0], *made],
            [ir.AttrInt64(name, value) for name, value in attributes.items()],
            num_outputs=1,
            name=node.name,
        )
        nodes = [product]
        if bias is not None:
            product.outputs[0].name = io.unused_name(self._taken, f"{node.outputs[0].name}_product")
            nodes.append(
                ir.Node("", "Add", [product.outputs[0], bias], name=f"{node.name}_bias" if node.name else None)
            )
        ir.convenience.replace_nodes_and_values(
            cast("ir.Graph", node.graph), node, [node], nodes, node.outputs, nodes[-1].outputs
        )

    def _gather_blocks(self, layer: Layer, made: Sequence[ir.Value]) -> None:
        codes, scale, *zero = made
        attributes = {"gather_axis": 0, "quantize_axis": 1, "bits": layer.bits, "block_size": layer.group}
        picked = ir.Node(
            "com.microsoft",
            "GatherBlockQuantized",
            [codes, layer.node.inputs[1], scale, *zero],
            [ir.AttrInt64(name, cast("int", value)) for name, value in attributes.items()],
            num_outputs=1,
            name=layer.node.name,
        )
        ir.convenience.replace_nodes_and_values(
            cast("ir.Graph", layer.node.graph), layer.node, [layer.node], [picked], layer.node.outputs, picked.outputs
        )

    def _bias(self, node: ir.Node) -> ir.Value | None:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        beta = _beta(node)
        if bias is None or beta == 1:
            return bias
        constant = cast("ir.TensorProtocol", _constant(bias))
        name = io.unused_name(self._taken, f"{bias.name}_scaled")
        scaled = ir.Value(name=name, const_value=ir.Tensor(constant.numpy() * np.float32(beta), name=name))
        scaled.type, scaled.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(constant.shape.numpy())
        self._model.graph.register_initializer(scaled)
        return scaled

    def _dequantize(self, layer: Layer, made: Sequence[ir.Value]) -> None:
        node, graph = layer.node, cast("ir.Graph", layer.node.graph)
        axis = {"blocks": 0 if layer.outputs_last else 1, "flat_blocks": 1}.get(layer.form, int(layer.outputs_last))
        attributes = [ir.AttrInt64("axis", axis)]
        if layer.form != "channels":
            attributes.append(ir.AttrInt64("block_size", cast("int", layer.group)))
        restored = ir.Node("", "DequantizeLinear", made, attributes, name=f"{layer.name}_weights")
        self._name(restored, layer)
        nodes = [restored]
        if layer.form == "flat_blocks":
            reshape = ir.Node("", "Reshape", [restored.outputs[0], self._shape(layer)], name=f"{layer.name}_kernel")
            self._name(reshape, layer)
            nodes.append(reshape)
        graph.insert_before(node, nodes)
        node.replace_input_with(_position(node), nodes[-1].outputs[0])
        if layer.alpha != 1:
            node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)

    def _cast(self, layer: Layer, made: Sequence[ir.Value]) -> None:
        """(code - zero) * scale in plain operators; all of it is constant, so the runtime does it once."""
        node, graph = layer.node, cast("ir.Graph", layer.node.graph)
        codes, scale, *zero = made
        nodes = [self._widened(codes, layer)]
        if zero:
            nodes.append(self._widened(zero[0], layer))
            nodes.append(ir.Node("", "Sub", [nodes[0].outputs[0], nodes[1].outputs[0]], name=f"{layer.name}_centred"))
        nodes.append(ir.Node("", "Mul", [nodes[-1].outputs[0], scale], name=f"{layer.name}_weights"))
        if layer.form == "cast_blocks":
            kernel = [nodes[-1].outputs[0], self._shape(layer)]
            nodes.append(ir.Node("", "Reshape", kernel, name=f"{layer.name}_kernel"))
        for inner in nodes:
            self._name(inner, layer)
        graph.insert_before(node, nodes)
        node.replace_input_with(1, nodes[-1].outputs[0])

    def _widened(self, value: ir.Value, layer: Layer) -> ir.Node:
        to = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        return ir.Node("", "Cast", [value], [to], name=f"{layer.name}_{value.name}_float")

    def _name(self, node: ir.Node, layer: Layer) -> None:
        node.outputs[0].name = io.unused_name(self._taken, f"{layer.weight.name}_restored")
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)

    def _shape(self, layer: Layer) -> ir.Value:
        if layer.shape not in self._shapes:
            name = io.unused_name(self._taken, "kernel_shape_")
            value = ir.Value(name=name, const_value=ir.Tensor(np.array(layer.shape, np.int64), name=name))
            value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(layer.shape)])
            self._model.graph.register_initializer(value)
            self._shapes[layer.shape] = value
        return self._shapes[layer.shape]


def _forms(layer: Layer, name: Any) -> list[Form]:
    """Say what tensors the layer's weights become."""
    outputs, inputs = layer.outputs, layer.inputs
    groups = 1 if layer.group is None else -(-inputs // layer.group)
    if layer.form in {"nbits", "table"}:
        assert layer.group is not None
        in_blocks = layer.form == "nbits"
        packed = (outputs, groups, layer.group * layer.bits // 8) if in_blocks else (outputs, inputs * layer.bits // 8)
        zeros = (outputs, -(-groups * layer.bits // 8))
        forms = [
            Form(name(f"q{layer.bits}_"), ir.DataType.UINT8, packed),
            Form(name("scale_"), ir.DataType.FLOAT, (outputs, groups)),
            Form(name("zero_"), ir.DataType.UINT8, zeros),
        ]
        return forms[:2] if layer.symmetric else forms
    if layer.form == "channels":
        return [
            Form(name("q8_"), ir.DataType.INT8, layer.shape),
            Form(name("scale_"), ir.DataType.FLOAT, (outputs,)),
        ]
    if layer.form == "cast_channels":
        return [
            Form(name("q8_"), ir.DataType.INT8, layer.shape),
            Form(name("scale_"), ir.DataType.FLOAT, (outputs, *(1 for _ in layer.shape[1:]))),
        ]
    kind = ir.DataType.UINT4 if layer.bits == 4 else ir.DataType.UINT8
    if layer.form == "cast_blocks":
        assert layer.group is not None
        return [
            Form(name("q4_"), kind, (outputs, groups, layer.group)),
            Form(name("scale_"), ir.DataType.FLOAT, (outputs, groups, 1)),
            Form(name("zero_"), kind, (outputs, groups, 1)),
        ]
    sizes, scales = [(outputs, inputs), (outputs, groups)]
    if layer.outputs_last:
        sizes, scales = sizes[::-1], scales[::-1]
    return [
        Form(name(f"q{layer.bits}_"), kind, sizes),
        Form(name("scale_"), ir.DataType.FLOAT, scales),
        Form(name("zero_"), kind, scales),
    ]


def _arrays(layer: Layer, quantized: Quantized) -> Sequence[npt.NDArray[Any]]:
    """Give the tensors' contents in the order of `_forms`; 4-bit numbers two to a byte, the first one low."""
    codes, scale, zero = quantized.codes, quantized.scale, quantized.zero
    if layer.form in {"channels", "cast_channels"}:
        signed = (codes.astype(np.int16) - zero).astype(np.int8)
        return [(signed.T if layer.outputs_last else signed).reshape(layer.shape), scale[:, 0]]
    if layer.form in {"nbits", "table"}:
        assert layer.group is not None
        spare = -codes.shape[1] % layer.group if layer.form == "nbits" else 0
        if spare:
            filler = np.broadcast_to(zero[:, -1:], (len(codes), spare))
            codes = np.concatenate([codes, filler], axis=1)
        packed = _nibbles(codes) if layer.bits == 4 else codes
        zeros = _nibbles(zero) if layer.bits == 4 else zero
        return [packed, scale] if layer.symmetric else [packed, scale, zeros]
    if layer.outputs_last:
        codes, scale, zero = codes.T, scale.T, zero.T
    if layer.bits == 8:
        return [codes, scale, zero]
    return [_nibbles(codes.reshape(1, -1)), scale, _nibbles(zero.reshape(1, -1))]


def _nibbles(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pack 4-bit numbers along the last axis, padded with a zero where their number is odd."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    packed = np.left_shift(codes[:, 1::2], 4, dtype=np.uint8)
    packed |= codes[:, 0::2]
    return packed


def _summary(plan: Plan, step: "QuantizeWeights", *, solved: int) -> str:
    how = "GPTQ" if solved else "rounding to nearest"
    rest = f"; {len(plan.refused)} layers stay in float" if plan.refused else ""
    eight = sum(layer.bits == 8 for layer in plan.layers)
    if step.bits == 4 and eight:
        # Said apart: who asked for 4 bits counts on them.
        rest = f"; {eight} of them in 8 bits, whose form has no blocks of 4{rest}"
    return f"The weights of {len(plan.layers)} layers are stored in {step.bits} bits per weight by {how}{rest}."


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return value.const_value if value is not None and value.is_initializer() else None


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
