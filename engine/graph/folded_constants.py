"""Weights behind a Cast or a Transpose: computed once, so that passes see them, and put back where they stay as they were."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from engine.graph import io
from engine.graph.attributes import integer, integers
from engine.graph.derived import Derivation, Form, transposed
from engine.graph.linear import STANDARD, constant_root, is_constant
from engine.graph.weights import counts_as_weights

_STORED = "stored_behind"
_NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# Where a layer reads its weights, and a table its rows.
_PLACES = {
    "MatMul": (0, 1), "Gemm": (1,), "Conv": (1,), "ConvTranspose": (1,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
    "Gather": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """The initializer that weights were computed from, and by what."""

    name: str
    tensor: ir.TensorProtocol
    made: ir.TensorProtocol
    moves: tuple[ir.Node, ...]


def stored_behind(value: ir.Value) -> Stored | None:
    """Say what weights were computed from; None where they are stored as they are."""
    found = value.meta.get(_STORED)
    return found if isinstance(found, Stored) and found.made is value.const_value else None


def tied_to(value: ir.Value, tables: Collection[ir.Value]) -> ir.Value | None:
    """Give the table whose rows are the columns of these weights: a head that is tied to its embedding."""
    stored = stored_behind(value)
    if stored is None or len(stored.moves) != 1 or stored.moves[0].op_type != "Transpose":
        return None
    return next((table for table in tables if table.const_value is stored.tensor), None)


def fold_constants(model: ir.Model, exclude: Collection[str] = ()) -> None:
    """Let products read weights that a chain of Cast and Transpose makes of a constant as initializers of their own, in place.

    Weights in 16 bits that anything else needs stay: a wider copy beside them would only add to the size. `exclude`: names
    of nodes to leave alone.
    """
    owners = {value: graph for graph, value in io.initializers(model)}
    taken, derivation = io.all_names(model), Derivation()
    made: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph.all_nodes()):
        if node.domain not in STANDARD or node.name in exclude:
            continue
        for place in _PLACES.get(node.op_type, ()):
            value = node.inputs[place] if place < len(node.inputs) else None
            found = None if value is None else constant_root(value)
            if value is None or found is None or not found[1] or not _foldable(*found, exclude):
                continue
            if value not in made:
                made[value] = _computed(*found, owners[found[0]], taken, derivation)
            node.replace_input_with(place, made[value])
    _drop_unread(model)


def restore_constants(model: ir.Model) -> None:
    """Undo `fold_constants` in place for the weights that are still what it made of them."""
    taken = io.all_names(model)
    for graph, value in io.initializers(model):
        stored = stored_behind(value)
        if stored is None or not value.uses() or value.is_graph_output():
            continue
        root = next(
            (each for each in graph.initializers.values() if each.const_value is stored.tensor and is_constant(each)),
            None,
        )
        if root is None:
            name = stored.name if stored.name not in taken else io.unused_name(taken, stored.name)
            taken.add(name)
            root = _register(graph, name, stored.tensor)
        nodes: list[ir.Node] = []
        for move in stored.moves:
            source = nodes[-1].outputs[0] if nodes else root
            node = ir.Node("", move.op_type, [source], list(move.attributes.values()), num_outputs=1)
            node.outputs[0].name = io.unused_name(taken, f"{stored.name}_{move.op_type.lower()}_")
            nodes.append(node)
        graph.insert_before(next(iter(graph)), nodes)
        value.replace_all_uses_with(nodes[-1].outputs[0])
        graph.initializers.pop(str(value.name))


def _foldable(root: ir.Value, moves: tuple[ir.Node, ...], exclude: Collection[str]) -> bool:
    tensor = cast("ir.TensorProtocol", root.const_value)
    if not counts_as_weights(tuple(tensor.shape.numpy())) or not _is_plain(moves, tensor.dtype):
        return False
    if tensor.dtype not in _NARROW:
        return True
    return all(place is not None and node.name not in exclude for node, place in _ends(root))


def _is_plain(moves: tuple[ir.Node, ...], dtype: ir.DataType) -> bool:
    """Say whether moves give float32 out of float32 or 16-bit floats."""
    casts = [move for move in moves if move.op_type == "Cast"]
    if dtype in _NARROW:
        return len(casts) == 1 and integer(casts[0], "to", 0) == ir.DataType.FLOAT
    return dtype == ir.DataType.FLOAT and not casts


def _ends(value: ir.Value) -> Iterator[tuple[ir.Node, int | None]]:
    """Yield what reads weights in the end, with the place where a product does; None for another reader."""
    for use in value.uses():
        node = use.node
        if node.op_type in {"Cast", "Transpose"} and node.domain in STANDARD and not node.outputs[0].is_graph_output():
            yield from _ends(node.outputs[0])
        elif node.domain in STANDARD and use.idx in _PLACES.get(node.op_type, ()):
            yield node, use.idx
        else:
            yield node, None


def _computed(
    root: ir.Value, moves: tuple[ir.Node, ...], graph: ir.Graph, taken: set[str], derivation: Derivation
) -> ir.Value:
    tensor = cast("ir.TensorProtocol", root.const_value)
    orders = [_order(move, len(tensor.shape)) for move in moves if move.op_type == "Transpose"]
    axes = np.arange(len(tensor.shape))
    for order in orders:
        axes = axes[list(order)]
    sizes = tensor.shape.numpy()
    shape = tuple(int(sizes[axis]) for axis in axes.tolist())
    name = io.unused_name(taken, f"{root.name}_weights_")

    def compute(array: np.ndarray) -> list[np.ndarray]:
        turned = transposed(array) if axes.tolist() == [1, 0] else np.transpose(array, axes)
        return [np.ascontiguousarray(turned.astype(np.float32))]

    (made,) = derivation.make(tensor, compute, [Form(name, ir.DataType.FLOAT, shape)])
    value = _register(graph, name, made)
    value.meta[_STORED] = Stored(str(root.name), tensor, made, moves)
    return value


def _order(move: ir.Node, rank: int) -> tuple[int, ...]:
    return tuple(integers(move, "perm") or range(rank)[::-1])


def _register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _drop_unread(model: ir.Model) -> None:
    """Remove movers that nothing reads any more, and constants that only they read."""
    for graph in model.graphs():
        for node in reversed(list(graph)):
            alone = node.op_type in {"Cast", "Transpose"} and node.domain in STANDARD
            source = node.inputs[0] if alone else None
            if source is None or node.outputs[0].uses() or node.outputs[0].is_graph_output():
                continue
            if constant_root(node.outputs[0]) is None:
                continue
            graph.remove(node, safe=True)
            if source.is_initializer() and not source.uses() and not source.is_graph_output():
                cast("ir.Graph", source.graph).initializers.pop(str(source.name))
