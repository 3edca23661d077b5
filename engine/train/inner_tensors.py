"""Which tensors inside of two networks are the same ones, so that a student can be held to its teacher's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import onnx_ir as ir

from engine.errors import ModelUnsupportedError
from engine.graph import sizes
from engine.graph.sizes import Sizes
from engine.train.batches import Feed

_MOST = 8
# Where blocks end.
_ENDS = frozenset(
    {"Add", "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}
)
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN", "Attention"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Shared:
    """Float tensors, made inside of both networks, that have one name and one shape in both; outputs are none of them.

    `names` are those that depend on weights of the student, in its order, each with the type of the operator that makes it.
    """

    names: Mapping[str, str]

    @classmethod
    def of(cls, student: ir.Model, teacher: ir.Model, feed: Feed) -> Self:
        """Compare two networks by their shapes for a feed."""
        try:
            own, other = (
                sizes.of_feed(model, {name: array.shape for name, array in feed.items()})
                for model in (student, teacher)
            )
        except ModelUnsupportedError:
            return cls({})
        made = {str(value.name): value for node in teacher.graph for value in node.outputs}
        return cls(
            {
                str(value.name): op_type
                for op_type, value in _depending_on_weights(student)
                if _same(str(value.name), own, other)
                and str(value.name) in made
                and not value.is_graph_output()
                and not made[str(value.name)].is_graph_output()
            }
        )

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def blocks(self) -> tuple[str, ...]:
        """Name at most eight, spread over the network: where residual blocks end, if there are such."""
        ends = [name for name, op_type in self.names.items() if op_type in _ENDS]
        names = ends or [name for name, op_type in self.names.items() if op_type in _WEIGHTED]
        if len(names) <= _MOST:
            return tuple(names)
        return tuple(names[index * len(names) // _MOST] for index in range(_MOST))


def _depending_on_weights(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Yield operators and what they make; a sum of a product and its bias ends no block, and counts as the product."""
    known: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type in _WEIGHTED or any(value in known for value in node.inputs if value is not None):
            known.update(node.outputs)
            biased = node.op_type == "Add" and any(
                value is not None and value.is_initializer() for value in node.inputs
            )
            yield from (("MatMul" if biased else node.op_type, value) for value in node.outputs if value.name)


def _same(name: str, own: Sizes, other: Sizes) -> bool:
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = (own.shapes, other.shapes)
    floating = ir.DataType(own.types[name]) in _FLOATS if name in own.types else False
    return (
        floating
        and all(name in each for each in shapes)
        and own.shapes[name] == other.shapes[name]
        and bool(own.shapes[name])
    )
