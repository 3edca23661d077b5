"""Concrete sizes of every value at chosen input dimensions, with the small constants that follow from them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from engine.errors import ModelUnsupportedError
from engine.graph import runtime_operators
from engine.graph.attributes import integer, integers
from engine.graph.shape_arithmetic import ELEMENTWISE, MOST_INTEGERS, evaluate, is_small, shape_output
from engine.graph.shape_trial import shapes_by_running

Shape = tuple[int, ...]
Array = np.ndarray

# What some exporters write for a dimension that is open.
OPEN_SIZE = -1
# Stand-ins for dynamic dimensions: images divide by every common stride, sequences stay short.
BATCH = 1
_IMAGE = 64
_SEQUENCE = 8


@dataclass
class Sizes:
    """Shapes, element types and known small values by value name, at one choice of the dynamic dimensions."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    known: dict[str, Array] = field(default_factory=dict)
    # Which elements of known values depend on dynamic dimensions, where any does.
    moving: dict[str, Array] = field(default_factory=dict)
    # Values whose shape nothing but the file tells, dynamic dimensions replaced by numbers of their own.
    declared: set[str] = field(default_factory=set)
    # Whether operators that no rule is known for are run on zeros.
    run: bool = True

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Give the value's concrete shape, None where it could not be inferred."""
        return None if value is None or value.name is None else self.shapes.get(value.name)

    def port(self, value: ir.Value) -> tuple[int, Shape] | None:
        """Give the value's element type and concrete shape, None where either is not known."""
        shape, kind = self.shape(value), self.types.get(str(value.name))
        return None if shape is None or kind is None else (kind, shape)

    def constant(self, value: ir.Value | None) -> Array | None:
        """Give the value's content if shape arithmetic or a small initializer determines it."""
        return None if value is None or value.name is None else self.known.get(value.name)

    def enter_initializer(self, value: ir.Value) -> None:
        """Note what an initializer tells of itself."""
        tensor = value.const_value
        if tensor is None or value.name is None:
            return
        self.shapes[value.name] = tuple(int(size) for size in tensor.shape.numpy())
        self.types[value.name] = int(tensor.dtype)
        if is_small(tensor):
            self.known[value.name] = tensor.numpy()


def elements(shape: Shape | None) -> int:
    """Give how many elements a tensor has; 0 where its shape is unknown."""
    return 0 if shape is None else math.prod(shape)


def infer(model: ir.Model, dims: Mapping[str, int] | None = None) -> Sizes:
    """Walk the graph with every dynamic dimension replaced by a number; `dims` names some, the rest get defaults.

    A second walk at other numbers tells which sizes are dynamic, and so which elements of shape arithmetic are.
    """
    doubled = {name: 2 * size for name, size in (dims or {}).items()}
    first, second = _infer(model, dims, factors=(1, 1)), _infer(model, doubled, factors=(2, 3))
    for node in model.graph:
        if node.outputs and node.outputs[0].name in first.known:
            _mark_moving(first, second, node)
    return first


def of_feed(model: ir.Model, shapes: Mapping[str, Shape], *, run: bool = True) -> Sizes:
    """Walk the graph once with inputs of these shapes; `run`: operators that no rule is known for are run on zeros.

    Raises:
        ModelUnsupportedError: a shape is missing of an input that has no rank.
    """
    runtime_operators.register()
    found = Sizes(run=run)
    chosen: dict[str, int] = {}
    for value in model.graph.inputs:
        given = shapes.get(str(value.name))
        if given is None or value.shape is None or len(value.shape) != len(given):
            continue
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) or size < 0:
                name = (None if isinstance(size, int) else size.value) or f"{value.name}.{axis}"
                chosen.setdefault(name, given[axis])
    for value in model.graph.inputs:
        if not value.is_initializer() and isinstance(value.type, ir.TensorType | None):
            _enter(found, value, shapes.get(str(value.name)) or _concrete(value, chosen, factors=(1, 1)))
    for value in model.graph.initializers.values():
        found.enter_initializer(value)
    for node in model.graph:
        _walk(model, found, node, chosen, factors=(1, 1))
    return found


def _mark_moving(first: Sizes, second: Sizes, node: ir.Node) -> None:
    """Follow dynamic elements through shape arithmetic: what is moved stays itself, what is computed mixes."""
    about_shapes = node.op_type in {"Shape", "Size"}
    moving = _moving_axes(first, second, node) if about_shapes else _mixed(first, node)
    for value, marks in zip(node.outputs, moving, strict=False):
        if value.name and marks.any():
            first.moving[value.name] = marks


def _moving_axes(first: Sizes, second: Sizes, node: ir.Node) -> list[Array]:
    one, other = first.shape(node.inputs[0]), second.shape(node.inputs[0])
    assert one is not None
    if other is None or len(other) != len(one):
        return [np.ones(first.known[str(node.outputs[0].name)].shape, bool)]
    moving = np.array(one) != np.array(other)
    return [np.asarray(moving.any())] if node.op_type == "Size" else [shape_output(node, tuple(moving)).astype(bool)]


_MOVED = frozenset(
    {
        "Cast",
        "Concat",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def _mixed(sizes: Sizes, node: ir.Node) -> list[Array]:
    marks = {
        index: sizes.moving[value.name]
        for index, value in enumerate(node.inputs)
        if value is not None and value.name in sizes.moving
    }
    shapes = [sizes.shape(value) or () for value in node.outputs]
    if not marks:
        return [np.zeros(shape, bool) for shape in shapes]
    moved = node.op_type == "Concat" or (node.op_type in _MOVED and set(marks) == {0})
    if moved:
        values = [sizes.constant(value) for value in node.inputs]
        data = range(len(values)) if node.op_type == "Concat" else (0,)
        for index in data:
            value = values[index]
            assert value is not None
            values[index] = marks.get(index, np.zeros(value.shape, bool)).astype(np.int64)
        outcome = evaluate(node, values)
        if outcome is not None:
            return [array.astype(bool) for array in outcome]
    if node.op_type in ELEMENTWISE or node.op_type in {"Div", "Mod", "Max", "Min", "Pow"}:
        return [np.broadcast_to(np.any(np.broadcast_arrays(*marks.values()), axis=0), shapes[0])]
    return [np.ones(shape, bool) for shape in shapes]


def _infer(model: ir.Model, dims: Mapping[str, int] | None, factors: tuple[int, int]) -> Sizes:
    runtime_operators.register()
    sizes = Sizes()
    chosen = dict(dims or {})
    for value in model.graph.inputs:
        # Sequences and the like have no sizes; what reads them stays unknown.
        if not value.is_initializer() and isinstance(value.type, ir.TensorType | None):
            _enter(sizes, value, _concrete(value, chosen, factors))
    for value in model.graph.initializers.values():
        sizes.enter_initializer(value)
    for node in model.graph:
        _walk(model, sizes, node, chosen, factors)
    return sizes


def _enter(sizes: Sizes, value: ir.Value, shape: Shape) -> None:
    assert value.name is not None
    sizes.shapes[value.name] = shape
    sizes.types[value.name] = int(value.dtype or ir.DataType.FLOAT)


def _concrete(value: ir.Value, chosen: dict[str, int], factors: tuple[int, int]) -> Shape:
    if value.shape is None:
        raise ModelUnsupportedError(f"Input {value.name} has no declared rank.", node=value.name)
    rank = len(value.shape)
    found = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int) and size >= 0:
            found.append(size)
            continue
        # Some exporters write -1 for a dynamic dimension.
        name = (None if isinstance(size, int) else size.value) or f"{value.name}.{axis}"
        default = BATCH if axis == 0 else _IMAGE if rank >= 4 else _SEQUENCE
        # Neighbouring axes get different factors, so that their quotient is seen to be dynamic too.
        found.append(chosen.setdefault(name, default * factors[axis % 2]))
    return tuple(found)


def _walk(model: ir.Model, sizes: Sizes, node: ir.Node, chosen: dict[str, int], factors: tuple[int, int]) -> None:
    shape = sizes.shape(node.inputs[0]) if node.inputs else None
    evaluated = evaluate(node, [sizes.constant(value) for value in node.inputs], shape=shape, most=MOST_INTEGERS)
    if evaluated is not None:
        for value, array in zip(node.outputs, evaluated, strict=False):
            if value.name:
                sizes.shapes[value.name] = array.shape
                sizes.types[value.name] = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                sizes.known[value.name] = array
        return
    inferred = _infer_node(model, sizes, node)
    result = node.outputs[0].name if node.outputs else None
    if node.op_type in _SAME_SHAPE and result and inferred.get(result, (0, None))[1] is None:
        # Operators that are defined as functions have no inference of their own.
        inferred |= _infer_contrib(sizes, node, _as_first)
    if any(inferred.get(str(value.name), (0, None))[1] is None for value in node.outputs if value.uses()):
        inferred |= shapes_by_running(model, node, sizes.port) if sizes.run else {}
    for value in node.outputs:
        declared = None if value.dtype is None else int(value.dtype)
        kind, shape = inferred.get(value.name or "", (declared, None))
        # An output without an element type is a sequence or unknown; what reads it stays unknown too.
        if not value.name or not kind:
            continue
        sizes.types[value.name] = kind
        if shape is None and value.shape is not None:
            shape = _concrete(value, chosen, factors)
            sizes.declared.add(value.name)
        if shape is not None:
            sizes.shapes[value.name] = shape


def _infer_node(model: ir.Model, sizes: Sizes, node: ir.Node) -> dict[str, tuple[int, Shape | None]]:
    contrib = CONTRIB.get(node.op_type) if node.domain == "com.microsoft" else None
    if contrib is not None:
        return _infer_contrib(sizes, node, contrib)
    version = model.opset_imports.get(node.domain, 0)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        # Exporters put LayerNormalization-like functions of later sets or of the runtime into the standard domain.
        simple = CONTRIB.get(node.op_type)
        return {} if simple is None else _infer_contrib(sizes, node, simple)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or not value.name:
            continue
        name = value.name
        if name not in sizes.types:
            return {}
        types[name] = onnx.helper.make_tensor_type_proto(sizes.types[name], sizes.shapes.get(name))
        if name in sizes.known:
            data[name] = onnx.numpy_helper.from_array(sizes.known[name])
    imports = [onnx.helper.make_opsetid(domain, number) for domain, number in model.opset_imports.items()]
    proto = ir.serde.serialize_node(node)
    try:
        found = shape_inference.infer_node_outputs(schema, proto, types, data, None, imports)
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return {}
    return {name: _read_type(kind) for name, kind in found.items()}


def _read_type(kind: onnx.TypeProto) -> tuple[int, Shape | None]:
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return tensor.elem_type, None
    return tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim)


ContribShape = Callable[[ir.Node, list[Shape | None]], Shape | None]


def _infer_contrib(sizes: Sizes, node: ir.Node, shape_of: ContribShape) -> dict[str, tuple[int, Shape | None]]:
    shapes = [sizes.shape(value) for value in node.inputs]
    first = next((value.name for value in node.inputs if value is not None), None)
    output = node.outputs[0]
    if first is None or not output.name:
        return {}
    kind = sizes.types.get(first, int(ir.DataType.FLOAT))
    if node.op_type == "EmbedLayerNormalization":
        kind = int(ir.DataType.FLOAT)
    found = {output.name: (kind, shape_of(node, shapes))}
    if node.op_type.startswith("Skip") and len(node.outputs) > 3 and node.outputs[3].name:  # the sum before the norm
        found[node.outputs[3].name] = found[output.name]
    return found


_SAME_SHAPE = frozenset(
    {"GroupNormalization", "MeanVarianceNormalization", "RMSNormalization", "RotaryEmbedding", "Swish"}
)


def _as_first(_: ir.Node, shapes: list[Shape | None]) -> Shape | None:
    return shapes[0]


def _fused_matmul(node: ir.Node, shapes: list[Shape | None]) -> Shape | None:
    left, right = shapes[0], shapes[1]
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    rows = left[-1] if integer(node, "transA", 0) else left[-2]
    columns = right[-2] if integer(node, "transB", 0) else right[-1]
    return (*np.broadcast_shapes(left[:-2], right[:-2]), rows, columns)


def _attention(node: ir.Node, shapes: list[Shape | None]) -> Shape | None:
    source, weight = shapes[0], shapes[1]
    if source is None or weight is None:
        return None
    hidden = integers(node, "qkv_hidden_sizes")
    return (*source[:-1], hidden[2] if hidden else weight[1] // 3)


def _multi_head(_: ir.Node, shapes: list[Shape | None]) -> Shape | None:
    query, value = shapes[0], shapes[2] if len(shapes) > 2 else None
    if query is None or len(query) != 3:
        return None
    return query if value is None or len(value) != 3 else (*query[:-1], value[-1])


def _grouped_query(node: ir.Node, shapes: list[Shape | None]) -> Shape | None:
    query = shapes[0]
    if query is None or (len(shapes) > 1 and shapes[1] is not None):
        return query
    heads, pairs = integer(node, "num_heads", 1), integer(node, "kv_num_heads", 1)
    return (*query[:-1], query[-1] * heads // (heads + 2 * pairs))


def _embedding(_: ir.Node, shapes: list[Shape | None]) -> Shape | None:
    ids, table = shapes[0], shapes[2]
    return None if ids is None or table is None else (*ids, table[-1])


def _fused_conv(node: ir.Node, shapes: list[Shape | None]) -> Shape | None:
    source, weight = shapes[0], shapes[1]
    if source is None or weight is None:
        return None
    kind = onnx.helper.make_tensor_type_proto
    types = {"x": kind(1, source), "w": kind(1, weight)}
    names = ("dilations", "group", "kernel_shape", "pads", "strides", "auto_pad")
    attributes = [ir.serde.serialize_attribute(node.attributes[name]) for name in names if name in node.attributes]
    proto = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    proto.attribute.extend(attributes)
    schema = onnx.defs.get_schema("Conv", 11, "")
    return _read_type(shape_inference.infer_node_outputs(schema, proto, types)["y"])[1]


CONTRIB: dict[str, ContribShape] = {
    **dict.fromkeys(
        (
            "BiasAdd", "BiasGelu", "FastGelu", "Gelu", "GroupNorm", "LayerNormalization", "QuickGelu", "RotaryEmbedding",
            "SimplifiedLayerNormalization", "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
        ),
        _as_first,
    ),
    "Attention": _attention,
    "EmbedLayerNormalization": _embedding,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_matmul,
    "FusedMatMul": _fused_matmul,
    "GroupQueryAttention": _grouped_query,
    "MultiHeadAttention": _multi_head,
}  # fmt: skip
