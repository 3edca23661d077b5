"""Products and tables in other words, as MatMul, Gemm, Conv and Gather.

FusedMatMul, FusedGemm, FusedConv, Einsum and Attention with weights are products; EmbedLayerNormalization picks rows of tables.

ONNX Runtime fuses them again when it loads what stayed in float, so spelling them out costs nothing there.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from engine.graph import io
from engine.graph.attributes import integer, integers, number, text
from engine.graph.linear import STANDARD, constant_root, node_name
from engine.graph.weights import counts_as_weights

_CONTRIB = "com.microsoft"
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"),
}  # fmt: skip
_OF_INTEGERS = frozenset({"Shape", "Range", "Expand", "Cast", "ReduceSum", "Gather"})
# Inputs of Attention behind the mask; each changes what is computed.
_ATTENTION_EXTRAS = {4: "a past", 5: "an attention bias", 6: "a length of its past"}
_MASK, _QKV = 3, 3
# Inputs of EmbedLayerNormalization: ids, segments, three tables, scale and offset, mask, positions.
_SEGMENTS, _WORDS, _POSITIONS, _SEGMENT_ROWS, _SCALE, _OFFSET, _EMBEDDING_MASK, _POSITION_IDS = 1, 2, 3, 4, 5, 6, 7, 8
# Any number of axes in an equation, as one letter.
_OPEN = "."
# In which Split took sizes as an input.
_SPLIT_OPSET = 13


def spell_out(model: ir.Model, exclude: Collection[str] = ()) -> None:
    """Spell out in place every such product whose weights are constant; `exclude`: names of nodes to leave alone."""
    speller = _Speller(model)
    for node in list(model.graph.all_nodes()):
        if node.name not in exclude and _kind(node) and objection(node) is None:
            speller.spell(node)


def objection(node: ir.Node) -> str | None:
    """Say why a product in other words cannot be spelled out; None where it can, and for other operators."""
    reader = {
        "FusedMatMul": _fused_matmul_objection,
        "FusedGemm": _activation_objection,
        "FusedConv": _fused_conv_objection,
        "Einsum": _einsum_objection,
        "Attention": _attention_objection,
        "EmbedLayerNormalization": _embedding_objection,
    }.get(_kind(node))
    return None if reader is None else reader(node)


def _kind(node: ir.Node) -> str:
    if node.op_type == "Einsum" and node.domain in STANDARD:
        return "Einsum"
    fused = {"FusedMatMul", "FusedGemm", "FusedConv", "Attention", "EmbedLayerNormalization"}
    return node.op_type if node.domain == _CONTRIB and node.op_type in fused else ""


def _weights(value: ir.Value | None) -> tuple[int, ...] | None:
    """Give the shape of constant weights; None for what is no such thing."""
    found = None if value is None else constant_root(value)
    if value is None or found is None:
        return None
    shape = tuple(int(size) for size in cast("ir.TensorProtocol", found[0].const_value).shape.numpy())
    if not counts_as_weights(shape):
        return None
    for move in found[1]:
        if move.op_type == "Transpose":
            shape = tuple(shape[axis] for axis in integers(move, "perm") or range(len(shape))[::-1])
    return shape


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _fused_matmul_objection(node: ir.Node) -> str | None:
    shapes = [_weights(value) for value in node.inputs[:2]]
    if all(shape is None for shape in shapes):
        return "its weights are not constant"
    if any(shape is not None and len(shape) != 2 for shape in shapes):
        return "its weights are not one matrix"
    if integer(node, "transBatchA", 0) or integer(node, "transBatchB", 0):
        return "it moves the axis of samples"
    for place, name in enumerate(("transA", "transB")):
        if integer(node, name, 0) and shapes[place] is None and _rank(node.inputs[place]) is None:
            return "its input is transposed, and has no known rank"
    return None


def _activation_objection(node: ir.Node) -> str | None:
    if _weights(_at(node, 1)) is None:
        return "its weights are not constant"
    kind = text(node, "activation", "")
    return None if not kind or kind in _ACTIVATIONS else f"its activation, {kind}, has no operator of its own here"


def _fused_conv_objection(node: ir.Node) -> str | None:
    return "it adds another input" if _at(node, 3) is not None else _activation_objection(node)


def _einsum_objection(node: ir.Node) -> str | None:
    found = _Equation.read(node)
    return found if isinstance(found, str) else None


def _attention_objection(node: ir.Node) -> str | None:
    return next(_attention_objections(node), None)


def _attention_objections(node: ir.Node) -> Iterator[str]:
    shape, bias = _weights(_at(node, 1)), _at(node, 2)
    if shape is None or len(shape) != 2:
        yield "its weights are not one constant matrix"
    if bias is None or constant_root(bias) is None:
        yield "its bias is not constant"
    for index, what in _ATTENTION_EXTRAS.items():
        if _at(node, index) is not None:
            yield f"it reads {what}, which only the operator with packed weights takes in this form"
    if _used(node, 1):
        yield "it hands on keys and values, packed in one tensor"
    if integer(node, "do_rotary", 0):
        yield "it turns positions inside"
    if not _mask_is_plain(node):
        yield "the form of its mask is known only when it runs"


def _mask_is_plain(node: ir.Node) -> bool:
    """Say whether a mask is one of those that mean the same to MultiHeadAttention: none, a number per key, or per pair."""
    mask = _at(node, _MASK)
    if mask is None or _rank(mask) in {2, 3}:
        return True
    maker = mask.producer()
    if maker is not None:
        # A number of keys for each sample.
        return maker.op_type in {"EmbedLayerNormalization", "ReduceSum"} and _rank(mask) in {1, None}
    return _rank(mask) == 1 and _counts_samples(mask)


def _counts_samples(mask: ir.Value) -> bool:
    """Say whether an input's only axis is the first axis of another input too: the axis of samples."""
    graph = mask.graph
    size = None if mask.shape is None else mask.shape[0]
    named = isinstance(size, int) or (size is not None and size.value is not None)
    others = [] if graph is None else [each for each in graph.inputs if each is not mask and _rank(each)]
    return named and any(each.shape is not None and each.shape[0] == size for each in others)


def _embedding_objection(node: ir.Node) -> str | None:
    if _weights(_at(node, _WORDS)) is None:
        return "its table is not constant"
    if _used(node, 1) and _at(node, _EMBEDDING_MASK) is None:
        return "it makes a mask of nothing"
    return None


def _used(node: ir.Node, index: int) -> bool:
    """Say whether anything reads an output."""
    if index >= len(node.outputs):
        return False
    return bool(node.outputs[index].uses()) or node.outputs[index].is_graph_output()


class _Equation:
    """An Einsum of an activation and a constant that is one product with a matrix."""

    def __init__(self, place: int, *, rows: int, inner: tuple[int, ...], outer: tuple[int, ...], by_row: bool) -> None:
        # Which input has the weights; how many leading axes of the activation stay; sizes of what is summed and made.
        self.place, self.rows, self.inner, self.outer, self.by_row = place, rows, inner, outer, by_row

    @classmethod
    def read(cls, node: ir.Node) -> "_Equation | str":
        shapes = [_weights(value) for value in node.inputs]
        if len(shapes) != 2 or sum(shape is not None for shape in shapes) != 1:
            return "it does not multiply one activation with one constant"
        place = 0 if shapes[0] is not None else 1
        shape = cast("tuple[int, ...]", shapes[place])
        equation = text(node, "equation", "").replace(" ", "")
        if equation.count("->") != 1:
            return f"its equation, {equation}, leaves its result open"
        # Axes that nobody counts are rows like any others where none has to be reshaped.
        terms, result = equation.replace("...", _OPEN).split("->")
        labels = terms.split(",")
        weights, activation = labels[place], labels[1 - place]
        if any(len(set(each)) != len(each) for each in (weights, activation, result)):
            return f"its equation, {equation}, takes a diagonal"
        inner = "".join(label for label in weights if label in activation and label not in result)
        outer = "".join(label for label in weights if label in result and label not in activation)
        rows = activation[: len(activation) - len(inner)]
        fits = activation == rows + inner and result == rows + outer and inner and outer
        if not fits or weights not in {inner + outer, outer + inner}:
            return f"its equation, {equation}, is no product with one matrix"
        if _OPEN in weights or (_OPEN in rows and (len(inner) > 1 or len(outer) > 1)):
            return f"its equation, {equation}, leaves open how many axes there are"
        sizes = dict(zip(weights, shape, strict=True))
        return cls(
            place,
            rows=len(rows),
            inner=tuple(sizes[label] for label in inner),
            outer=tuple(sizes[label] for label in outer),
            by_row=weights == outer + inner,
        )


class _Speller:
    """Writes the plain forms; the product keeps the node's name, so that recipes and reports still find it."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken = io.all_names(model)
        self._owner = {value: graph for graph, value in io.initializers(model)}

    def spell(self, node: ir.Node) -> None:
        writers: Mapping[str, Callable[[ir.Node], list[ir.Node]]] = {
            "FusedMatMul": self._matmul,
            "FusedGemm": lambda each: self._activated(each, "Gemm"),
            "FusedConv": lambda each: self._activated(each, "Conv"),
            "Einsum": self._einsum,
            "Attention": self._attention,
        }
        if _kind(node) == "EmbedLayerNormalization":
            nodes, results = self._embedding(node)
        else:
            nodes = writers[_kind(node)](node)
            results = [nodes[-1].outputs[0]]
        replaced = node.outputs[: len(results)]
        for old, new in zip(replaced, results, strict=True):
            new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(cast("ir.Graph", node.graph), node, [node], nodes, replaced, results)

    def _matmul(self, node: ir.Node) -> list[ir.Node]:
        nodes: list[ir.Node] = []
        operands = []
        for place, name in enumerate(("transA", "transB")):
            value = cast("ir.Value", node.inputs[place])
            if integer(node, name, 0):
                weights = _weights(value)
                rank = len(weights) if weights is not None else cast("int", _rank(value))
                order = [*range(rank - 2), rank - 1, rank - 2] if rank > 1 else [0]
                nodes.append(self._node("Transpose", [value], node, perm=order))
                value = nodes[-1].outputs[0]
            operands.append(value)
        nodes.append(self._node("MatMul", operands, node, name=node_name(node)))
        alpha = number(node, "alpha", 1.0)
        if alpha != 1:
            factor = self._constant(f"{node.name}_alpha_", np.float32(alpha))
            nodes.append(self._node("Mul", [nodes[-1].outputs[0], factor], node))
        return nodes

    def _activated(self, node: ir.Node, kind: str) -> list[ir.Node]:
        activation = text(node, "activation", "")
        inner = [each for name, each in node.attributes.items() if not name.startswith("activation")]
        plain = ir.Node("", kind, list(node.inputs), inner, num_outputs=1, name=node_name(node))
        self._named(plain, node)
        if not activation:
            return [plain]
        names = _ACTIVATIONS[activation]
        listed = node.attributes.get("activation_params")
        given = [float(each) for each in listed.as_floats()] if listed is not None else []
        found = {
            name: given[index] if index < len(given) else number(node, f"activation_{name}", math.nan)
            for index, name in enumerate(names)
        }
        attributes = [ir.AttrFloat32(name, value) for name, value in found.items() if not math.isnan(value)]
        applied = ir.Node("", activation, [plain.outputs[0]], attributes, num_outputs=1)
        self._named(applied, node)
        return [plain, applied]

    def _einsum(self, node: ir.Node) -> list[ir.Node]:
        equation = cast("_Equation", _Equation.read(node))
        weights, source = (cast("ir.Value", node.inputs[place]) for place in (equation.place, 1 - equation.place))
        matrix = (math.prod(equation.inner), math.prod(equation.outer))
        nodes: list[ir.Node] = []
        if len(equation.inner) > 1:
            # Zeros keep the sizes of the axes before.
            shape = self._constant(f"{node.name}_rows_", np.array([0] * equation.rows + [matrix[0]], np.int64))
            nodes.append(self._node("Reshape", [source, shape], node))
            source = nodes[-1].outputs[0]
        if len(equation.inner) > 1 or len(equation.outer) > 1:
            weights = self._reshaped(weights, matrix[::-1] if equation.by_row else matrix)
        if equation.by_row:
            nodes.append(self._node("Transpose", [weights], node, perm=[1, 0]))
            weights = nodes[-1].outputs[0]
        nodes.append(self._node("MatMul", [source, weights], node, name=node_name(node)))
        if len(equation.outer) > 1:
            sizes = np.array([0] * equation.rows + list(equation.outer), np.int64)
            shape = self._constant(f"{node.name}_shape_", sizes)
            nodes.append(self._node("Reshape", [nodes[-1].outputs[0], shape], node))
        return nodes

    def _attention(self, node: ir.Node) -> list[ir.Node]:
        source, weights, bias = (cast("ir.Value", node.inputs[place]) for place in range(3))
        columns = cast("tuple[int, ...]", _weights(weights))[1]
        sizes = integers(node, "qkv_hidden_sizes") or [columns // _QKV] * _QKV
        product = self._node("MatMul", [source, weights], node, name=node_name(node))
        added = self._node("Add", [product.outputs[0], bias], node)
        inputs: list[ir.Value | None] = [added.outputs[0]]
        attributes: list[ir.Attr] = [ir.AttrInt64("axis", -1)]
        if io.opset(self._model) >= _SPLIT_OPSET:
            inputs.append(self._constant(f"{node.name}_sizes_", np.array(sizes, np.int64)))
        else:
            attributes.append(ir.AttrInt64s("split", sizes))
        parts = ir.Node("", "Split", inputs, attributes, num_outputs=_QKV)
        self._named(parts, node)
        mask = _at(node, _MASK)
        kept = ("num_heads", "unidirectional", "scale", "mask_filter_value")
        attributes = [node.attributes[name] for name in kept if name in node.attributes]
        inputs = [*parts.outputs, *((None, mask) if mask is not None else ())]
        heads = ir.Node(_CONTRIB, "MultiHeadAttention", inputs, attributes, num_outputs=1)
        self._named(heads, node)
        return [product, added, parts, heads]

    def _embedding(self, node: ir.Node) -> tuple[list[ir.Node], list[ir.Value]]:
        """Rows of words, positions and segments, then SkipLayerNormalization, which adds and normalises them."""
        ids, words = cast("ir.Value", node.inputs[0]), cast("ir.Value", node.inputs[_WORDS])
        places, nodes = _at(node, _POSITION_IDS), list[ir.Node]()
        if places is None:
            nodes = self._positions(ids, node)
            places = nodes[-1].outputs[0]
        picked = self._node("Gather", [words, ids], node, name=node_name(node))
        rows = self._node("Gather", [node.inputs[_POSITIONS], places], node)
        nodes += [picked, rows]
        if _at(node, _SEGMENT_ROWS) is not None and _at(node, _SEGMENTS) is not None:
            segments = self._node("Gather", [node.inputs[_SEGMENT_ROWS], node.inputs[_SEGMENTS]], node)
            rows = self._node("Add", [rows.outputs[0], segments.outputs[0]], node)
            nodes += [segments, rows]
        attributes = [node.attributes["epsilon"]] if "epsilon" in node.attributes else []
        operands = [picked.outputs[0], rows.outputs[0], node.inputs[_SCALE], node.inputs[_OFFSET]]
        normal = ir.Node(_CONTRIB, "SkipLayerNormalization", operands, attributes, num_outputs=4)
        self._named(normal, node)
        counted = self._counted(node) if _used(node, 1) else []
        results = [normal.outputs[0]]
        if counted:
            results.append(counted[-1].outputs[0])
        elif _used(node, 2):
            # The mask's place is between; nothing reads it.
            node.outputs[2].replace_all_uses_with(normal.outputs[3])
        if counted and _used(node, 2):
            results.append(normal.outputs[3])
        return [*nodes, normal, *counted], results

    def _positions(self, ids: ir.Value, node: ir.Node) -> list[ir.Node]:
        """0, 1, 2, ... along each row of ids."""
        shape = self._node("Shape", [ids], node)
        length = self._node("Gather", [shape.outputs[0], self._constant("axis_", np.array(1, np.int64))], node)
        start, step = (self._constant("count_", np.array(value, np.int64)) for value in (0, 1))
        counted = self._node("Range", [start, length.outputs[0], step], node)
        spread = self._node("Expand", [counted.outputs[0], shape.outputs[0]], node)
        return [shape, length, counted, spread]

    def _counted(self, node: ir.Node) -> list[ir.Node]:
        """How many keys of each sample the mask lets through."""
        narrow = self._node("Cast", [node.inputs[_EMBEDDING_MASK]], node)
        narrow.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.INT32))
        attributes: list[ir.Attr] = [ir.AttrInt64("keepdims", 0)]
        inputs: list[ir.Value | None] = [narrow.outputs[0]]
        if io.opset(self._model) >= _SPLIT_OPSET:
            inputs.append(self._constant("axes_", np.array([1], np.int64)))
        else:
            attributes.append(ir.AttrInt64s("axes", [1]))
        total = ir.Node("", "ReduceSum", inputs, attributes, num_outputs=1)
        self._named(total, node)
        return [narrow, total]

    def _reshaped(self, weights: ir.Value, shape: tuple[int, int]) -> ir.Value:
        """Give constant weights of another shape, read past what moves them."""
        root, moves = cast("tuple[ir.Value, tuple[ir.Node, ...]]", constant_root(weights))
        if not moves and len(root.uses()) == 1 and not root.is_graph_output():
            value = root
            name = str(root.name)
        else:
            name = io.unused_name(self._taken, f"{root.name}_matrix_")
            value = ir.Value(name=name)
        array = _values(root, moves).reshape(shape)
        value.const_value = ir.Tensor(np.ascontiguousarray(array), name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(shape)
        if value is not root:
            self._owner[root].register_initializer(value)
            self._owner[value] = self._owner[root]
        return value

    def _constant(self, stem: str, array: "np.ndarray | np.generic") -> ir.Value:
        name = io.unused_name(self._taken, stem)
        value = ir.Value(name=name, const_value=ir.Tensor(np.asarray(array), name=name))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(np.asarray(array).dtype)), ir.Shape(array.shape)
        self._model.graph.register_initializer(value)
        return value

    def _node(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        origin: ir.Node,
        *,
        name: str | None = None,
        perm: Sequence[int] = (),
    ) -> ir.Node:
        attributes = [ir.AttrInt64s("perm", list(perm))] if perm else []
        node = ir.Node("", kind, inputs, attributes, num_outputs=1, name=name)
        self._named(node, origin)
        return node

    def _named(self, node: ir.Node, origin: ir.Node) -> None:
        stem = origin.name or str(origin.outputs[0].name)
        for output in node.outputs:
            output.name = io.unused_name(self._taken, f"{stem}_{node.op_type.lower()}_")
            # Sizes, counts and shapes are integers.
            output.type = None if node.op_type in _OF_INTEGERS else origin.outputs[0].type
        if not node.name:
            node.name = io.unused_name(self._taken, f"{stem}_{node.op_type}_")


def _values(root: ir.Value, moves: Sequence[ir.Node]) -> np.ndarray:
    array = cast("ir.TensorProtocol", root.const_value).numpy()
    for move in moves:
        if move.op_type == "Transpose":
            array = np.transpose(array, integers(move, "perm"))
        else:
            array = array.astype(ir.DataType(integer(move, "to", 1)).numpy())
    return array
