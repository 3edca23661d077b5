"""What a network does first with an input: how it scales it, and what its first layer and normalisation expect."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import io
from engine.graph.attributes import integer, number
from engine.graph.linear import OPERATORS

Floats = npt.NDArray[np.float64]

# Operators that hand the numbers on, in another place or type at most.
_MOVES = frozenset(
    {"Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Pad", "Slice", "Resize", "Gather"}
)
_SCALES = frozenset({"Sub", "Add", "Mul", "Div"})
# No preparation is longer.
_LONGEST = 24


@dataclass(frozen=True)
class Normalisation:
    """A BatchNormalization: of what tensor it expects which mean and deviation, channel by channel."""

    node: str
    tensor: str
    mean: Floats
    deviation: Floats


@dataclass(frozen=True)
class QuantizedRange:
    """The range that a QuantizeLinear keeps of its input."""

    low: float
    high: float


@dataclass(frozen=True)
class InputStem:
    """The first operators behind an input.

    `scale` and `offset`: what constants make of a number (x * scale + offset), as a mean over channels. `first`: the tensor that
    the first linear layer gives, and `bias` how large its own biases are; `channels`: how many it reads, where it is a Conv
    on the input's own axes.
    """

    name: str
    scale: float = 1.0
    offset: float = 0.0
    scaled: bool = False
    normalisation: Normalisation | None = None
    quantized: QuantizedRange | None = None
    first: str | None = None
    bias: float | None = None
    channels: int | None = None


def input_stems(model: ir.Model) -> Iterator[InputStem]:
    """Give the stem of each input of floating-point numbers."""
    for value in model.graph.inputs:
        if value.name in model.graph.initializers or value.dtype is None or not value.dtype.is_floating_point():
            continue
        yield _follow(value)


def cut_to(model: ir.Model, tensor: str) -> bytes:
    """Give a network that computes one tensor only."""
    copy = io.copy(model)
    values = (value for node in copy.graph for value in node.outputs)
    wanted = next((value for value in (*copy.graph.inputs, *values) if value.name == tensor), None)
    assert wanted is not None
    if wanted in copy.graph.inputs:
        node = ir.Node("", "Identity", [wanted], name="given")
        copy.graph.append(node)
        wanted = node.outputs[0]
        wanted.name = io.unused_name(io.value_names(copy), "given")
    copy.graph.outputs[:] = [wanted]
    return io.to_bytes(copy)


def _follow(value: ir.Value) -> InputStem:
    name, at = str(value.name), value
    scale, offset, scaled, moved = 1.0, 0.0, False, False
    for _ in range(_LONGEST):
        node = next((use.node for use in at.uses()), None)
        if node is None:
            break
        if node.op_type in _MOVES and node.inputs[0] is at:
            moved = moved or node.op_type in {"Transpose", "Reshape"}
        elif node.op_type in _SCALES and (constant := _other(node, at)) is not None:
            scale, offset = _scaled(node, at, constant, scale, offset)
            scaled = True
        elif node.op_type == "QuantizeLinear":
            return InputStem(name, scale, offset, scaled, quantized=_quantized(node))
        elif node.op_type == "BatchNormalization":
            return InputStem(name, scale, offset, scaled, _normalisation(node))
        elif node.op_type in OPERATORS and node.inputs[0] is at and _array(node, 1) is not None:
            return _with_layer(InputStem(name, scale, offset, scaled), node, moved=moved)
        else:
            break
        at = node.outputs[0]
    return InputStem(name, scale, offset, scaled)


def _with_layer(stem: InputStem, node: ir.Node, *, moved: bool) -> InputStem:
    following = next((use.node for use in node.outputs[0].uses()), None)
    normalised = following is not None and following.op_type == "BatchNormalization"
    bias, weight = _array(node, 2), _array(node, 1)
    conv = node.op_type == "Conv" and not moved and weight is not None
    return InputStem(
        stem.name,
        stem.scale,
        stem.offset,
        stem.scaled,
        _normalisation(following) if normalised and following is not None else None,
        first=str(node.outputs[0].name),
        bias=None if bias is None else float(np.sqrt(np.square(bias).mean())),
        channels=weight.shape[1] * integer(node, "group", 1) if conv and weight is not None else None,
    )


def _normalisation(node: ir.Node) -> Normalisation | None:
    mean, variance = _array(node, 3), _array(node, 4)
    tensor = node.inputs[0]
    if mean is None or variance is None or tensor is None:
        return None
    deviation = np.sqrt(np.maximum(variance, 0) + number(node, "epsilon", 1e-5))
    return Normalisation(str(node.name), str(tensor.name), mean.reshape(-1), deviation.reshape(-1))


def _quantized(node: ir.Node) -> QuantizedRange | None:
    scale, zero = _array(node, 1), node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or scale.size != 1:
        return None
    dtype = np.dtype(np.uint8) if zero is None or zero.dtype is None else zero.dtype.numpy()
    if dtype.kind not in "iu":
        return None
    point = 0.0 if zero is None or (held := _array(node, 2)) is None else float(held.reshape(-1)[0])
    limits, step = np.iinfo(dtype), float(scale.reshape(-1)[0])
    return QuantizedRange((limits.min - point) * step, (limits.max - point) * step)


def _scaled(node: ir.Node, at: ir.Value, constant: Floats, scale: float, offset: float) -> tuple[float, float]:
    by = float(constant.mean())
    match node.op_type:
        case "Mul":
            return scale * by, offset * by
        case "Div" if node.inputs[0] is at and by:
            return scale / by, offset / by
        case "Add":
            return scale, offset + by
        case "Sub":
            return (scale, offset - by) if node.inputs[0] is at else (-scale, by - offset)
    return scale, offset


def _other(node: ir.Node, at: ir.Value) -> Floats | None:
    """Give the constant operand beside a value."""
    for index, operand in enumerate(node.inputs):
        if operand is not None and operand is not at:
            return _array(node, index)
    return None


def _array(node: ir.Node, index: int) -> Floats | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().astype(np.float64)
