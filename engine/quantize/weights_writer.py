"""Writes weights of few bits into the network, each in the form that its operator and its format take."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.derived import Derivation, Form, transposed
from engine.graph.linear import LinearLayer
from engine.quantize.accuracy_levels import ONNX_LEVELS
from engine.quantize.weights_plan import StoredLayer
from engine.solve.grid import Quantized, round_to_nearest

_INT4_IR_VERSION = 10
# Weights that are rounded at once: temporaries then take a few times 16 MiB.
_CHUNK = 1 << 22
# Ranges that a search tries for each group of weights.
_SEARCHED_RANGES = 16

Floats = npt.NDArray[np.floating[Any]]


def round_stored(layer: StoredLayer, array: Floats, *, search: int = 0) -> Quantized:
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


class WeightsWriter:
    """Writes quantized weights into the network."""

    def __init__(
        self,
        model: ir.Model,
        *,
        accuracy: Literal["int8", "float32"],
        range_search: bool,
        tied: Mapping[ir.Value, StoredLayer] | None = None,
    ) -> None:
        """`tied`: by table, the product whose blocks hold the same numbers."""
        self._model = model
        self._tied = tied or {}
        self._accuracy = accuracy
        self._search = _SEARCHED_RANGES if range_search else 0
        self._taken = io.all_names(model)
        self._derivation = Derivation()
        self._owner = {value: graph for graph, value in io.initializers(model)}
        self._made: dict[ir.Value, list[ir.Value]] = {}
        self._shapes: dict[tuple[int, ...], ir.Value] = {}
        self.bytes = 0

    def replace(self, layer: StoredLayer, quantized: Quantized | None) -> None:
        """Let the layer read quantized weights: the given ones, or its own rounded to nearest."""
        if layer.weight not in self._made:
            head = self._tied.get(layer.weight)
            self._made[layer.weight] = (
                self._initializers(layer, quantized) if head is None else self._rows_of(layer, head)
            )
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

    def _initializers(self, layer: StoredLayer, quantized: Quantized | None) -> list[ir.Value]:
        forms = _forms(layer, lambda stem: io.unused_name(self._taken, f"{layer.weight.name}_{stem}"))

        def compute(array: Floats) -> Sequence[npt.NDArray[Any]]:
            return _arrays(layer, quantized or round_stored(layer, array, search=self._search))

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

    def _rows_of(self, layer: StoredLayer, head: StoredLayer) -> list[ir.Value]:
        """Let a table read a product's blocks as its rows: the same bytes in another shape."""
        if head.weight not in self._made:
            self._made[head.weight] = self._initializers(head, None)
        codes, *rest = self._made[head.weight]
        graph = self._owner[layer.weight]
        name = io.unused_name(self._taken, "rows_shape_")
        shape = ir.Value(name=name, const_value=ir.Tensor(np.array([layer.outputs, -1], np.int64), name=name))
        shape.type, shape.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2])
        graph.register_initializer(shape)
        rows = ir.Node("", "Reshape", [codes, shape], name=f"{layer.name}_rows")
        rows.outputs[0].name = io.unused_name(self._taken, f"{layer.weight.name}_rows")
        rows.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        graph.insert_before(next(iter(graph)), rows)
        return [rows.outputs[0], *rest]

    def _matmul_nbits(self, layer: StoredLayer, made: Sequence[ir.Value]) -> None:
        node = layer.node
        group = cast("int", layer.group)
        attributes: dict[str, int] = {
            "K": layer.inputs,
            "N": layer.outputs,
            "bits": layer.bits,
            "block_size": group,
            "accuracy_level": ONNX_LEVELS[self._accuracy],
        }
        bias = self._bias(layer.linear)
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

    def _gather_blocks(self, layer: StoredLayer, made: Sequence[ir.Value]) -> None:
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

    def _bias(self, linear: LinearLayer | None) -> ir.Value | None:
        bias, beta = (None, 1.0) if linear is None else (linear.bias, linear.beta)
        if bias is None or beta == 1:
            return bias
        constant = cast("ir.TensorProtocol", bias.const_value)
        name = io.unused_name(self._taken, f"{bias.name}_scaled")
        scaled = ir.Value(name=name, const_value=ir.Tensor(constant.numpy() * np.float32(beta), name=name))
        scaled.type, scaled.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(constant.shape.numpy())
        self._model.graph.register_initializer(scaled)
        return scaled

    def _dequantize(self, layer: StoredLayer, made: Sequence[ir.Value]) -> None:
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
        node.replace_input_with(layer.position, nodes[-1].outputs[0])
        if layer.alpha != 1:
            node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)

    def _cast(self, layer: StoredLayer, made: Sequence[ir.Value]) -> None:
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

    def _widened(self, value: ir.Value, layer: StoredLayer) -> ir.Node:
        to = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        return ir.Node("", "Cast", [value], [to], name=f"{layer.name}_{value.name}_float")

    def _name(self, node: ir.Node, layer: StoredLayer) -> None:
        node.outputs[0].name = io.unused_name(self._taken, f"{layer.weight.name}_restored")
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)

    def _shape(self, layer: StoredLayer) -> ir.Value:
        if layer.shape not in self._shapes:
            name = io.unused_name(self._taken, "kernel_shape_")
            value = ir.Value(name=name, const_value=ir.Tensor(np.array(layer.shape, np.int64), name=name))
            value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(layer.shape)])
            self._model.graph.register_initializer(value)
            self._shapes[layer.shape] = value
        return self._shapes[layer.shape]


def _forms(layer: StoredLayer, name: Callable[[str], str]) -> list[Form]:
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


def _arrays(layer: StoredLayer, quantized: Quantized) -> Sequence[npt.NDArray[Any]]:
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
