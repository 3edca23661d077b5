"""The value of small integer and float arithmetic: what exporters compute shapes, axes and scales with."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from engine.graph.attributes import axes_of, integer, integers, slices

Shape = tuple[int, ...]
Array = np.ndarray

# Shape vectors, axes, scales and scalars are known by value; weights are not read.
MOST_INTEGERS = 4096
_MOST_FLOATS = 16


def is_small(tensor: ir.TensorProtocol) -> bool:
    """Say whether a constant may take part."""
    most = _MOST_FLOATS if tensor.dtype.is_floating_point() else MOST_INTEGERS
    return tensor.size <= most and tensor.dtype != ir.DataType.STRING


ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "Abs": np.abs, "Add": np.add, "And": np.logical_and, "Ceil": np.ceil, "Equal": np.equal, "Floor": np.floor,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less, "LessOrEqual": np.less_equal,
    "Mul": np.multiply, "Neg": np.negative, "Not": np.logical_not, "Or": np.logical_or, "Reciprocal": np.reciprocal,
    "Round": np.rint, "Sign": np.sign, "Sqrt": np.sqrt, "Sub": np.subtract, "Exp": np.exp, "Log": np.log,
    "Where": np.where, "Xor": np.logical_xor,
}  # fmt: skip


def evaluate(
    node: ir.Node, values: Sequence[Array | None], *, shape: Shape | None = None, most: int | None = None
) -> list[Array] | None:
    """Compute a node's outputs from known inputs, None where the node or an input is not known.

    `shape` is that of the first input, where only Shape and Size can be told; results of more than `most` elements are not
    given.
    """
    if node.op_type == "Constant":
        return _constant(node)
    if node.op_type in {"Shape", "Size"}:
        return None if shape is None else [shape_output(node, shape)]
    given = [values[index] for index, value in enumerate(node.inputs) if value is not None]
    arrays = [value for value in given if value is not None]
    if node.domain not in {"", "ai.onnx"} or not given or len(arrays) < len(given):
        return None
    function = _EVALUATORS.get(node.op_type)
    if function is None and node.op_type in ELEMENTWISE:
        return [np.asarray(ELEMENTWISE[node.op_type](*arrays)).astype(_elementwise_type(node, arrays), copy=False)]
    if function is None:
        return None
    outcome = function(node, arrays)
    return None if outcome is None or (most is not None and any(array.size > most for array in outcome)) else outcome


def _elementwise_type(node: ir.Node, arrays: list[Array]) -> np.dtype:
    if node.op_type in {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"}:
        return np.dtype(bool)
    return arrays[-1].dtype


def _constant(node: ir.Node) -> list[Array] | None:
    for name in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        attribute = node.attributes.get(name)
        if attribute is None:
            continue
        if name == "value":
            tensor = attribute.as_tensor()
            return [tensor.numpy()] if is_small(tensor) else None
        return [np.array(attribute.value, np.int64 if "int" in name else np.float32)]
    return None


def shape_output(node: ir.Node, shape: Sequence[int]) -> Array:
    """Give what Shape or Size says of an input of this shape."""
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    start, end = integer(node, "start", 0), node.attributes.get("end")
    return np.array(shape[start : None if end is None else end.as_int()], np.int64)


def _divide(_: ir.Node, arrays: list[Array]) -> list[Array] | None:
    left, right = arrays
    if not np.issubdtype(left.dtype, np.integer):
        return [np.asarray(left / right).astype(left.dtype)]
    if not np.all(right):
        return None
    return [np.asarray(np.trunc(left / right)).astype(left.dtype)]


def _cast(node: ir.Node, arrays: list[Array]) -> list[Array]:
    return [arrays[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())]


def _gather(node: ir.Node, arrays: list[Array]) -> list[Array]:
    return [np.asarray(np.take(arrays[0], arrays[1].astype(np.int64), axis=integer(node, "axis", 0)))]


def _slice(node: ir.Node, arrays: list[Array]) -> list[Array]:
    data = arrays[0]
    where = slices(node, arrays[1:], data.ndim)
    return [data if where is None else data[where]]


def _concat(node: ir.Node, arrays: list[Array]) -> list[Array]:
    return [np.concatenate(arrays, axis=integer(node, "axis", 0))]


def _squeeze(node: ir.Node, arrays: list[Array]) -> list[Array]:
    axes = axes_of(node, arrays[1] if len(arrays) > 1 else None, arrays[0].ndim)
    return [np.squeeze(arrays[0], axis=axes)]


def _unsqueeze(node: ir.Node, arrays: list[Array]) -> list[Array]:
    listed = integers(node, "axes") or arrays[1].reshape(-1).tolist()
    return [np.expand_dims(arrays[0], tuple(listed))]


def _reshape(node: ir.Node, arrays: list[Array]) -> list[Array] | None:
    target = arrays[1].tolist()
    if not integer(node, "allowzero", 0):
        target = [arrays[0].shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return [arrays[0].reshape(target)]


def _flatten(node: ir.Node, arrays: list[Array]) -> list[Array]:
    axis = integer(node, "axis", 1) % (arrays[0].ndim + 1)
    return [arrays[0].reshape(math.prod(arrays[0].shape[:axis]), -1)]


def _transpose(node: ir.Node, arrays: list[Array]) -> list[Array]:
    return [arrays[0].transpose(integers(node, "perm"))]


def _constant_of_shape(node: ir.Node, arrays: list[Array]) -> list[Array] | None:
    shape = tuple(arrays[0].tolist())
    if math.prod(shape) > MOST_INTEGERS:
        return None
    attribute = node.attributes.get("value")
    return [
        np.full(
            shape, 0.0 if attribute is None else attribute.as_tensor().numpy()[0], None if attribute else np.float32
        )
    ]


def _range(_: ir.Node, arrays: list[Array]) -> list[Array] | None:
    start, limit, delta = (array.item() for array in arrays)
    if delta == 0 or (limit - start) / delta > MOST_INTEGERS:
        return None
    return [np.arange(start, limit, delta, dtype=arrays[0].dtype)]


def _expand(_: ir.Node, arrays: list[Array]) -> list[Array] | None:
    shape = np.broadcast_shapes(arrays[0].shape, tuple(arrays[1].tolist()))
    return [np.broadcast_to(arrays[0], shape)] if math.prod(shape) <= MOST_INTEGERS else None


def _reduce(function: Callable[..., Array]) -> Callable[[ir.Node, list[Array]], list[Array]]:
    def run(node: ir.Node, arrays: list[Array]) -> list[Array]:
        axes = axes_of(node, arrays[1] if len(arrays) > 1 else None, arrays[0].ndim)
        keep = bool(integer(node, "keepdims", 1))
        return [np.asarray(function(arrays[0], axis=axes, keepdims=keep)).astype(arrays[0].dtype)]

    return run


def _split(node: ir.Node, arrays: list[Array]) -> list[Array]:
    axis = integer(node, "axis", 0)
    pieces = integers(node, "split") or (arrays[1].tolist() if len(arrays) > 1 else None)
    if pieces is None:
        return [np.asarray(piece) for piece in np.array_split(arrays[0], len(node.outputs), axis=axis)]
    return [np.asarray(piece) for piece in np.split(arrays[0], np.cumsum(pieces)[:-1], axis=axis)]


def _extreme(function: Callable[..., Array]) -> Callable[[ir.Node, list[Array]], list[Array]]:
    def run(_: ir.Node, arrays: list[Array]) -> list[Array]:
        result = arrays[0]
        for other in arrays[1:]:
            result = function(result, other)
        return [np.asarray(result)]

    return run


_EVALUATORS: dict[str, Callable[[ir.Node, list[Array]], list[Array] | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda _, arrays: [arrays[0]],
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Mod": lambda node, arrays: [np.asarray((np.fmod if integer(node, "fmod", 0) else np.mod)(arrays[0], arrays[1]))],
    "Pow": lambda _, arrays: [np.asarray(np.power(arrays[0], arrays[1])).astype(arrays[0].dtype)],
    "Range": _range,
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
