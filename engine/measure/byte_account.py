"""Where the bytes of a stored network are: every tensor by what it is for, weights in float by the reason, and the rest."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import get_args

import onnx
from onnx import TensorProto

from engine.graph.weights import counts_as_weights
from engine.report.byte_account import ByteAccount, ByteKind, ByteRow
from engine.runtime.network_files import load_structure, stored_bytes

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_SMALL_INTEGERS = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4})
# Where recurrent operators have their biases and first states.
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
# By operator: what each of its inputs holds. (values, scales, zero points)
_PLACES: dict[str, tuple[frozenset[int], frozenset[int], frozenset[int]]] = {
    kind: (frozenset(values), frozenset(scales), frozenset(zeros))
    for kind, (values, scales, zeros) in {
        "DequantizeLinear": ((0,), (1,), (2,)),
        "QuantizeLinear": ((), (1,), (2,)),
        "MatMulInteger": ((0, 1), (), (2, 3)),
        "ConvInteger": ((0, 1), (), (2, 3)),
        "MatMulNBits": ((1,), (2,), (3,)),
        "GatherBlockQuantized": ((0,), (2,), (3,)),
        "DynamicQuantizeLSTM": ((1, 2), (8, 10), (9, 11)),
        "DynamicQuantizeMatMul": ((1,), (2,), (3,)),
        "MatMulIntegerToFloat": ((0, 1), (2, 3), (4, 5)),
        "QAttention": ((1,), (3, 4), (6, 7)),
        "QLinearConv": ((0, 3), (1, 4, 6), (2, 5, 7)),
        "QLinearMatMul": ((0, 3), (1, 4, 6), (2, 5, 7)),
        "QGemm": ((0, 3), (1, 4, 7), (2, 5, 8)),
        "QMoE": ((2, 5, 8), (3, 6, 9), (11, 12, 13)),
    }.items()
}
_ROLES: tuple[ByteKind, ...] = ("quantized", "scales", "zero_points")
# They hand on what they read in another form: what reads their result decides.
_MOVES = frozenset(
    {
        "Cast",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
        "Concat",
        "Split",
    }
)
_TREES = frozenset({"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_DEPTH = 8

_Use = tuple[onnx.NodeProto, int]


@dataclass
class _Scope:
    """The names that are visible in a graph: who makes them, who reads them."""

    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    uses: dict[str, list[_Use]] = field(default_factory=dict)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file, with the graph that it is seen in."""

    tensor: onnx.TensorProto
    names: tuple[str, ...]
    scope: _Scope
    # Whether it is one of the lists of a tree ensemble.
    of_trees: bool = False


def byte_account(path: Path, reasons: Mapping[str, str], refused: Sequence[str] = ()) -> ByteAccount:
    """Say where every byte of a stored network is.

    `reasons`: why nodes' weights are in float, by the node's name or, where it has none, that of its first output.
    `refused`: the passes that would have quantized weights and were refused.
    """
    model, total = load_structure(path), stored_bytes(path)
    found: dict[tuple[ByteKind, str | None], tuple[int, int]] = {}

    def add(kind: ByteKind, reason: str | None, tensors: int, size: int) -> None:
        counted, summed = found.get((kind, reason), (0, 0))
        found[kind, reason] = (counted + tensors, summed + size)

    places = set()
    for stored in _all_tensors(model):
        place = _place(stored.tensor)
        if place is not None and place in places:
            continue  # Tensors of external data may be the same bytes.
        places.add(place)
        kind: ByteKind
        kind, reason = ("tree_ensembles", None) if stored.of_trees else _kind(stored, reasons, refused)
        add(kind, reason, 1, data_bytes(stored.tensor))
    trees = sum(_attribute_bytes(node) for node in _nodes(model) if node.op_type in _TREES)
    if trees:
        add("tree_ensembles", None, 0, trees)
    add("graph", None, 0, total - sum(size for _, size in found.values()))
    order = get_args(ByteKind)
    rows = sorted(found.items(), key=lambda each: (order.index(each[0][0]), -each[1][1]))
    return ByteAccount(
        rows=tuple(
            ByteRow(kind=kind, reason=reason, tensors=count, bytes=size) for (kind, reason), (count, size) in rows
        ),
        total=total,
    )


def data_bytes(tensor: onnx.TensorProto) -> int:
    """Give the bytes that a tensor's numbers take in its file, whichever of the format's fields holds them."""
    if tensor.data_location == TensorProto.EXTERNAL:
        told = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), None)
        return told if told is not None else _dense_bytes(tensor)
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    header = onnx.TensorProto()
    header.CopyFrom(tensor)
    for name in ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"):
        header.ClearField(name)
    return int(tensor.ByteSize() - header.ByteSize())


def _place(tensor: onnx.TensorProto) -> tuple[tuple[str, str], ...] | None:
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    return tuple(
        sorted((entry.key, entry.value) for entry in tensor.external_data if entry.key in {"location", "offset"})
    )


def _dense_bytes(tensor: onnx.TensorProto) -> int:
    bits = 4 if tensor.data_type in {TensorProto.INT4, TensorProto.UINT4} else 8 * _item_bytes(tensor.data_type)
    return int(-(-prod(tensor.dims) * bits // 8))


def _item_bytes(data_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _kind(stored: _Stored, reasons: Mapping[str, str], refused: Sequence[str]) -> tuple[ByteKind, str | None]:
    tensor = stored.tensor
    uses = [use for name in stored.names for use in _readers(name, stored.scope)]
    role = next((role for use in uses if (role := _role(use)) is not None), None)
    if role is not None:
        return role, None
    if tensor.data_type in _SMALL_INTEGERS:
        return ("zero_points" if _centres(stored, uses) else "quantized"), None
    if tensor.data_type not in _FLOATS | _HALVES:
        return "other_tensors", None
    if any(_scales_integers(use, stored.scope) for use in uses):
        return "scales", None
    told = next((reasons[name] for node, _ in uses for name in (_name(node),) if name in reasons), None)
    if tensor.data_type in _HALVES:
        told = "stored in 16 bits"
    biases = uses and all(node.op_type in _RECURRENT and index > 2 for node, index in uses)
    if biases or not counts_as_weights(tensor.dims):
        return "other_floats", None
    return "float_weights", told or _unsaid(uses, refused)


def _unsaid(uses: list[_Use], refused: Sequence[str]) -> str:
    kinds = sorted({node.op_type for node, _ in uses})
    if not kinds:
        return "nothing reads them"
    verb = "was" if len(refused) == 1 else "were"
    why = f"{' and '.join(refused)} {verb} refused" if refused else "no step of this job quantizes them"
    return f"weights of {', '.join(kinds)}: {why}"


def _role(use: _Use) -> ByteKind | None:
    node, index = use
    places = _PLACES.get(node.op_type, ())
    return next((role for role, where in zip(_ROLES, places, strict=False) if index in where), None)


def _readers(name: str, scope: _Scope, depth: int = 0) -> Iterator[_Use]:
    """Yield who reads a tensor, past what only moves it, the movers themselves included."""
    for node, index in scope.uses.get(name, ()):
        yield node, index
        if node.op_type in _MOVES and depth < _DEPTH and index == 0 and node.output:
            yield from _readers(node.output[0], scope, depth + 1)


def _scales_integers(use: _Use, scope: _Scope) -> bool:
    """Say whether a factor is multiplied with integers, or with the scale of an activation."""
    node, index = use
    if node.op_type != "Mul" or len(node.input) != 2:
        return False
    return _comes_from_integers(node.input[1 - index], scope)


def _comes_from_integers(name: str, scope: _Scope, depth: int = 0) -> bool:
    if name in scope.tensors:
        return scope.tensors[name].data_type in _SMALL_INTEGERS
    maker = scope.makers.get(name)
    if maker is None or depth > _DEPTH:
        return False
    if maker.op_type == "DynamicQuantizeLinear":
        return bool(name == maker.output[1])
    if maker.op_type in _MOVES | {"Sub"}:
        return _comes_from_integers(maker.input[0], scope, depth + 1)
    return False


def _centres(stored: _Stored, uses: list[_Use]) -> bool:
    """Say whether small integers are subtracted from others."""
    return stored.tensor.name != "" and any(node.op_type == "Sub" and index == 1 for node, index in uses)


def _name(node: onnx.NodeProto) -> str:
    return node.name or (node.output[0] if node.output else "")


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _nodes_in(model.graph.node)
    for function in model.functions:
        yield from _nodes_in(function.node)


def _nodes_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _bodies(node):
            yield from _nodes_in(graph.node)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _attribute_bytes(node: onnx.NodeProto) -> int:
    """Give the bytes of a node's attributes without those of tensors, which are counted by themselves."""
    return sum(
        attribute.ByteSize() - (data_bytes(attribute.t) if attribute.HasField("t") else 0)
        for attribute in node.attribute
    )


def _all_tensors(model: onnx.ModelProto) -> Iterator[_Stored]:
    yield from _tensors(model.graph, _Scope())
    for function in model.functions:
        scope = _Scope()
        _enter(function.node, scope)
        yield from _in_attributes(function.node, scope)


def _tensors(graph: onnx.GraphProto, outer: _Scope) -> Iterator[_Stored]:
    """Yield a graph's tensors, those of bodies too; bodies see the names around them."""
    scope = _Scope(dict(outer.makers), {}, dict(outer.tensors))
    _enter(graph.node, scope)
    for tensor in graph.initializer:
        scope.tensors[tensor.name] = tensor
    for tensor in graph.initializer:
        yield _Stored(tensor, (tensor.name,), scope)
    for sparse in graph.sparse_initializer:
        yield _Stored(sparse.values, (sparse.values.name,), scope)
        yield _Stored(sparse.indices, (), scope)
    yield from _in_attributes(graph.node, scope)


def _in_attributes(nodes: Iterable[onnx.NodeProto], scope: _Scope) -> Iterator[_Stored]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                names = tuple(node.output) if node.op_type == "Constant" else ()
                yield _Stored(attribute.t, names, scope, of_trees=node.op_type in _TREES)
            for tensor in attribute.tensors:
                yield _Stored(tensor, (), scope)
        for graph in _bodies(node):
            yield from _tensors(graph, scope)


def _enter(nodes: Iterable[onnx.NodeProto], scope: _Scope) -> None:
    """Note who makes and reads each name, in bodies too."""
    for node in nodes:
        for name in node.output:
            scope.makers[name] = node
        if node.op_type == "Constant":
            scope.tensors |= dict.fromkeys(node.output, node.attribute[0].t)
        for index, name in enumerate(node.input):
            if name:
                scope.uses.setdefault(name, []).append((node, index))
        for graph in _bodies(node):
            _enter(graph.node, scope)
