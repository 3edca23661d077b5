"""How each output of a network is made: the operator behind what only moves numbers, and what lies further upstream."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

# Operators that give the numbers of their first input in another place or type.
_MOVES = frozenset(
    {
        "Identity",
        "Cast",
        "CastLike",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "QuantizeLinear",
        "DequantizeLinear",
        "Dropout",
        "Slice",
        "Split",
        "Gather",
        "Expand",
    }
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
# Operators that give one number for several of them, of the same meaning.
_SUMMARIES = frozenset({"ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool"})
# Operators that decide by the data how many rows there are.
_COUNTING = frozenset({"NonMaxSuppression", "NonZero", "Compress", "Unique"})
# Between a vector and its length: what keeps the length from zero and brings it into shape.
_LENGTH_PATH = _MOVES | {"Clip", "Max", "Add", "Sqrt", "Pow"}
_LENGTHS = frozenset({"ReduceL2", "ReduceSumSquare"})
_LINEAR = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "QGemm", "Conv", "QLinearConv"})


@dataclass(frozen=True)
class Ending:
    """What the graph says of one output.

    op: operator that makes the numbers, behind what only moves them; None where the output is an input or a constant.
    axis: that operator's axis as the graph writes it, where it has one.
    unit_length: vectors are divided by their own length.
    pooled: a mean over positions, plain or masked, makes them.
    mean_of_sigmoid: a mean or a maximum of what Sigmoid makes, which is a score as that is.
    state_of: the inputs that the state of a recurrent operator starts from; None unless the output is such a state.
    upstream: types of all operators that the output depends on, those of subgraphs included.
    vocabulary: rows of the tables that integer inputs are looked up in.
    passed_on: the output is an input that is only moved or cast.
    """

    op: str | None
    axis: int | None = None
    unit_length: bool = False
    pooled: bool = False
    mean_of_sigmoid: bool = False
    state_of: tuple[str, ...] | None = None
    upstream: frozenset[str] = frozenset()
    vocabulary: frozenset[int] = frozenset()
    passed_on: bool = False

    @property
    def linear(self) -> bool:
        """Say whether a linear layer makes the numbers."""
        return self.op in _LINEAR

    @property
    def rows_depend_on_data(self) -> bool:
        """Say whether operators upstream decide by the data how many rows there are."""
        return bool(self.upstream & _COUNTING)

    @property
    def rows_may_swap(self) -> bool:
        """Say whether the data decide how many rows there are, or in which order."""
        return self.rows_depend_on_data or "TopK" in self.upstream


def endings(model: ir.Model) -> dict[str, Ending]:
    """Give for each output by name how it is made."""
    vocabulary = frozenset(_vocabularies(model))
    return {str(value.name): _ending(value, vocabulary) for value in model.graph.outputs}


def _ending(output: ir.Value, vocabulary: frozenset[int]) -> Ending:
    source = _behind_moves(output)
    node = source.producer()
    upstream = frozenset(_upstream(output))
    if node is None:
        passed_on = source.is_graph_input() and not source.is_initializer()
        return Ending(None, upstream=upstream, vocabulary=vocabulary, passed_on=passed_on)
    axis = node.attributes.get("axis")
    unit_length = _is_unit_length(node)
    return Ending(
        node.op_type,
        axis=axis.as_int() if axis is not None and axis.type == ir.AttributeType.INT else None,
        unit_length=unit_length,
        pooled=not unit_length and _is_pooled(node),
        mean_of_sigmoid=_is_mean_of_sigmoid(node),
        state_of=_state_of(output),
        upstream=upstream,
        vocabulary=vocabulary,
    )


def _behind_moves(value: ir.Value) -> ir.Value:
    """Follow a tensor back through moves, and through a bias or a scale that is added to it."""
    while True:
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return value
        # A list of one, as exporters write it, is concatenated too.
        if node.op_type in _MOVES or (node.op_type == "Concat" and len(node.inputs) == 1):
            value = node.inputs[0]
            continue
        if node.op_type == "If":
            return _behind_branches(node, value) or value
        varying = [each for each in node.inputs if each is not None and not _is_constant(each)]
        if node.op_type in {"Add", "Mul", "Sub"} and len(varying) == 1:
            before = _behind_moves(varying[0])
            made_by = before.producer()
            # A bias belongs to its layer; behind anything else a constant is an operation of its own.
            if made_by is not None and (made_by.op_type in _LINEAR or made_by.op_type == "LayerNormalization"):
                return before
        return value


def _behind_branches(node: ir.Node, output: ir.Value) -> ir.Value | None:
    """Give what makes an output of If behind the moves in its branches, where the same operator makes it in all of them."""
    at = list(node.outputs).index(output)
    branches = [graph for attribute in node.attributes.values() for graph in _graphs(attribute)]
    sources = [_behind_moves(graph.outputs[at]) for graph in branches]
    makers = {None if (maker := source.producer()) is None else maker.op_type for source in sources}
    return sources[0] if len(makers) == 1 and makers != {None} else None


def _is_constant(value: ir.Value | None) -> bool:
    if value is None:
        return False
    node = value.producer()
    return value.is_initializer() or (node is not None and node.op_type == "Constant")


def _is_unit_length(node: ir.Node) -> bool:
    if node.op_type == "LpNormalization":
        return True
    if node.op_type != "Div" or node.inputs[1] is None:
        return False
    return any(found in _LENGTHS or found == "Sqrt" for found in _along(node.inputs[1], _LENGTH_PATH))


def _along(value: ir.Value, path: frozenset[str]) -> Iterator[str]:
    """Yield the operators met on the way back along the first inputs, the first one off the path included."""
    node = value.producer()
    while node is not None:
        yield node.op_type
        first = next((each for each in node.inputs if each is not None), None)
        if node.op_type not in path or first is None:
            return
        node = first.producer()


def _is_pooled(node: ir.Node) -> bool:
    if node.op_type in {"ReduceMean", "GlobalAveragePool"}:
        return True
    if node.op_type != "Div" or node.inputs[0] is None:
        return False
    above = _behind_moves(node.inputs[0]).producer()
    return above is not None and above.op_type in {"ReduceSum", "MatMul", "Einsum"} and not _is_constant(node.inputs[1])


def _is_mean_of_sigmoid(node: ir.Node) -> bool:
    if node.op_type not in _SUMMARIES or not node.inputs or node.inputs[0] is None:
        return False
    maker = _behind_moves(node.inputs[0]).producer()
    return maker is not None and maker.op_type == "Sigmoid"


def _state_of(output: ir.Value) -> tuple[str, ...] | None:
    """Give the inputs that a recurrent operator's state starts from, where the output is its last state."""
    value, node = output, output.producer()
    while node is not None and (node.op_type in _MOVES or node.op_type == "Concat") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    if node is None or node.op_type not in _RECURRENT or value is node.outputs[0]:
        return None
    starts = [each for each in node.inputs[5:7] if each is not None]
    return tuple(sorted({name for start in starts for name in _inputs_of(start)}))


def _inputs_of(value: ir.Value) -> Iterator[str]:
    for each in _ancestors(value):
        if each.is_graph_input() and not each.is_initializer():
            yield str(each.name)


def _ancestors(value: ir.Value) -> Iterator[ir.Value]:
    seen = {value}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        yield current
        node = current.producer()
        for each in () if node is None else node.inputs:
            if each is not None and each not in seen:
                seen.add(each)
                waiting.append(each)


def _upstream(output: ir.Value) -> Iterator[str]:
    for value in _ancestors(output):
        node = value.producer()
        if node is None:
            continue
        yield node.op_type
        for attribute in node.attributes.values():
            for graph in _graphs(attribute):
                yield from (inner.op_type for inner in graph.all_nodes())


def _graphs(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def _vocabularies(model: ir.Model) -> Iterator[int]:
    for node in model.graph:
        if node.op_type not in {"Gather", "GatherBlockQuantized"} or len(node.inputs) < 2:
            continue
        table, indices = node.inputs[0], node.inputs[1]
        if table is None or indices is None or table.shape is None or len(table.shape) != 2:
            continue
        source = _behind_moves(indices)
        if source.is_graph_input() and isinstance(table.shape[0], int):
            yield table.shape[0]


def rows_may_swap(model: ir.Model) -> Mapping[str, bool]:
    """Say for each output whether the data decide how many rows it has, or in which order."""
    return {name: ending.rows_may_swap for name, ending in endings(model).items()}
