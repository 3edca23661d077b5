"""A quantized graph as it is trained: its integers as floats that are rounded on the way, and the way back to integers.

The graph that ships has weights as integers, biases as 32-bit integers on the grid of the products, and activations that
QuantizeLinear rounds. For training, the same graph is written with weights and biases as inputs and with one operator,
`FakeQuantize`, in place of each pair of QuantizeLinear and DequantizeLinear; its scale is an input too. What is fed there is
made from float parameters, in `engine.train.quantized_twin`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.linear import is_constant, node_name
from engine.graph.quantized import first_quantized
from engine.report.values import Refusal
from engine.train.scales import (
    ActivationScale,
    Pair,
    pairs,
    remove_unread,
    scalar,
    unshare_activations,
    unshared,
)
from engine.train.stored_weights import StoredWeight, stored_weights

# The domain of what only networks in training hold.
DOMAIN = "onnxpress.train"
# A bias of 32 bits is added to an accumulator of 32 bits: half of them are left to it.
_LARGEST_BIAS = 1 << 30


@dataclass(frozen=True)
class StoredBias:
    """A bias as 32-bit integers: its scale is the product of the scales of what the layer multiplies."""

    node: str
    codes: str
    scale: str
    restored: str
    # The scale of the activation that the layer reads, and of its weights.
    activation: str
    weight: str


@dataclass(frozen=True)
class QuantizedGraph:
    """What can be trained of a quantized graph. Names are those of initializers of the graph that ships."""

    weights: tuple[StoredWeight, ...]
    biases: tuple[StoredBias, ...]
    activations: tuple[ActivationScale, ...]
    # By node, why weights that are stored in integers are not trained.
    left: dict[str, str]


def refusal(model: ir.Model) -> Refusal | None:
    """Say why a network cannot be trained as it is quantized: it holds no integers that could be; None where it can."""
    if stored_weights(model)[0] or pairs(model):
        return None
    node = first_quantized(model)
    if node is None:
        return Refusal(
            code="not_applicable",
            reason="The network is not quantized: quantize first, then train what is rounded.",
            hint="Put quantize_static, quantize_weights or mixed_precision before this step, or train the float network by"
            " distill.",
        )
    return Refusal(
        code="not_applicable",
        reason=f"The network is quantized in a form without grids that could be trained: it holds {node.op_type}.",
        node=node.name,
        hint="Weights in integers behind DequantizeLinear or in MatMulNBits can be trained, and fixed ranges of activations;"
        " quantize_static, quantize_weights and mixed_precision write those.",
    )


def ensures(model: ir.Model) -> None:
    """Check that every scale is a positive number; raises VerificationFailedError."""
    for node in model.graph.all_nodes():
        place = {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMulNBits": 2}.get(node.op_type)
        value = None if place is None else node.inputs[place]
        if value is None or value.const_value is None:
            continue
        scale = value.const_value.numpy().astype(np.float32)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise VerificationFailedError("A quantization scale is not a positive number.", node=node_name(node))


def prepare(model: ir.Model) -> QuantizedGraph:
    """Give every scale an initializer of its own, in place, and say what can be trained. No number changes.

    Scales that kernels need equal stay one: those of tensors whose integers an operator hands on.
    """
    weights, left = stored_weights(model)
    activations = unshare_activations(model, pairs(model))
    taken = io.value_names(model)
    own = tuple(_with_own_scale(model, weight, taken) for weight in weights)
    biases = tuple(_biases(model, own, taken))
    remove_unread(model)
    return QuantizedGraph(own, biases, tuple(activations), left)


def training_graph(model: ir.Model, graph: QuantizedGraph) -> ir.Model:
    """Give a copy of a prepared model as it is trained: weights, biases and scales of `graph` are inputs."""
    copied = io.copy(model)
    made = {str(value.name): node for node in copied.graph for value in node.outputs}
    for group in graph.activations:
        scale = _input(copied, group.name)
        for pair in group.pairs:
            _round_in_place(copied, pair, scale, made)
    for weight in graph.weights:
        if weight.form == "nbits":
            _multiply(copied, weight, made[weight.restoring[0]])
        else:
            _feed(copied, weight.restored, made)
    for bias in graph.biases:
        _feed(copied, bias.restored, made)
    _remove_dead(copied)
    copied.opset_imports[DOMAIN] = 1
    return copied


def rounded_bias(bias: npt.NDArray[np.float32], combined: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Round a bias to the grid of its layer's products."""
    codes = np.rint(bias.astype(np.float64) / combined.astype(np.float64))
    return np.clip(codes, -_LARGEST_BIAS, _LARGEST_BIAS).astype(np.int32)


def least_scale(bias: npt.NDArray[np.float32], activation: float) -> npt.NDArray[np.float32]:
    """Give per channel the least scale of weights with which the bias fits 32 bits (dead channels have next to no weights)."""
    return (np.abs(bias) / (_LARGEST_BIAS * activation)).astype(np.float32)


def write_bias(
    model: ir.Model, bias: StoredBias, codes: npt.NDArray[np.int32], combined: npt.NDArray[np.float32]
) -> None:
    """Store another bias and its scale."""
    for name, array in ((bias.codes, codes), (bias.scale, combined)):
        value = model.graph.initializers[name]
        tensor = cast("ir.TensorProtocol", value.const_value)
        shape = tuple(int(size) for size in tensor.shape.numpy())
        value.const_value = ir.tensor(array.astype(tensor.dtype.numpy()).reshape(shape), dtype=tensor.dtype, name=name)


def write_activation(model: ir.Model, group: ActivationScale, scale: float) -> None:
    """Store another scale of activations."""
    value = model.graph.initializers[group.name]
    tensor = cast("ir.TensorProtocol", value.const_value)
    array = np.full(tuple(int(size) for size in tensor.shape.numpy()), scale, tensor.dtype.numpy())
    value.const_value = ir.tensor(array, dtype=tensor.dtype, name=group.name)


# --- reading ---------------------------------------------------------------------------------------------------------


def _with_own_scale(model: ir.Model, weight: StoredWeight, taken: set[str]) -> StoredWeight:
    node = next(node for node in model.graph if node.outputs[0].name == weight.restoring[0])
    value = unshared(model, model.graph.initializers[weight.scale], taken)
    index = next(place for place, each in enumerate(node.inputs) if each is not None and each.name == weight.scale)
    node.replace_input_with(index, value)
    return replace(weight, scale=str(value.name))


def _biases(model: ir.Model, weights: tuple[StoredWeight, ...], taken: set[str]) -> Iterator[StoredBias]:
    by_value = {weight.restored: weight for weight in weights}
    for node in model.graph:
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm"} or len(node.inputs) < 3:
            continue
        read, matrix, bias = (None if value is None else value.producer() for value in node.inputs[:3])
        weight = None if matrix is None else by_value.get(str(matrix.outputs[0].name))
        if read is None or bias is None or weight is None or not _is_bias(bias) or read.op_type != "DequantizeLinear":
            continue
        if scalar(read.inputs[1]) is None:
            continue
        for place in (0, 1):
            # Equal biases of other layers, such as zeros, may be stored once.
            bias.replace_input_with(place, unshared(model, cast("ir.Value", bias.inputs[place]), taken))
        yield StoredBias(
            node=node_name(node),
            codes=str(cast("ir.Value", bias.inputs[0]).name),
            scale=str(cast("ir.Value", bias.inputs[1]).name),
            restored=str(bias.outputs[0].name),
            activation=str(cast("ir.Value", read.inputs[1]).name),
            weight=weight.scale,
        )


def _is_bias(node: ir.Node) -> bool:
    codes, scale = node.inputs[0], node.inputs[1]
    if node.op_type != "DequantizeLinear" or codes is None or scale is None or len(node.outputs[0].uses()) != 1:
        return False
    stored = codes.const_value.dtype if is_constant(codes) and codes.const_value is not None else None
    # Its zero point, if there is one, is zero by the standard.
    return stored == ir.DataType.INT32 and is_constant(scale)


# --- writing the graph that is trained -------------------------------------------------------------------------------


def _round_in_place(model: ir.Model, pair: Pair, scale: ir.Value, made: dict[str, ir.Node]) -> None:
    node = made[str(pair.quantize.outputs[0].name)]
    attributes = {"low": pair.low, "high": pair.high}
    rounded = ir.node("FakeQuantize", [node.inputs[0], scale], attributes, domain=DOMAIN)
    _replace(model, node, rounded)
    made[str(rounded.outputs[0].name)] = rounded
    for restoring in pair.dequantize:
        restored = made[str(restoring.outputs[0].name)]
        same = ir.node("Identity", [restored.inputs[0]])
        _replace(model, restored, same)
        made[str(same.outputs[0].name)] = same


def _replace(model: ir.Model, node: ir.Node, other: ir.Node) -> None:
    """Put another node in the place of one; its output takes over name and readers."""
    name = node.outputs[0].name
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [other], [node.outputs[0]], [other.outputs[0]])
    other.outputs[0].name = name
    other.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)


def _feed(model: ir.Model, name: str, made: dict[str, ir.Node]) -> None:
    """Let a value be an input in place of what its node gives."""
    node = made[name]
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    node.outputs[0].name = f"{name}_"
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    model.graph.inputs.append(value)


def _input(model: ir.Model, name: str) -> ir.Value:
    """Let an initializer be an input."""
    value = model.graph.initializers.pop(name)
    value.const_value = None
    model.graph.inputs.append(value)
    return value


def _multiply(model: ir.Model, weight: StoredWeight, node: ir.Node) -> None:
    """Write MatMulNBits as the product with the restored weights that it stands for."""
    value = ir.Value(name=weight.restored, type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(value)
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    product = ir.node("MatMul", [node.inputs[0], value], name=node.name)
    nodes = [product]
    if bias is not None:
        product.outputs[0].name = f"{node.outputs[0].name}_product"
        product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        nodes.append(ir.node("Add", [product.outputs[0], bias]))
    last = nodes[-1].outputs[0]
    name = node.outputs[0].name
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [node.outputs[0]], [last])
    last.name, last.type = name, ir.TensorType(ir.DataType.FLOAT)


def _remove_dead(model: ir.Model) -> None:
    """Remove what restored weights, now that nothing reads it."""
    wanted = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if not any(value.uses() or value in wanted for value in node.outputs):
            model.graph.remove(node, safe=True)
    remove_unread(model)
