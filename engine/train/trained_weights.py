"""Which initializers a training may change."""

from collections.abc import Iterator

import onnx_ir as ir

from engine.train.framework import torch
from engine.train.twin import weights
from engine.train.twin.node import read_graph

# Running statistics: their place among the inputs.
_STATISTICS = {"BatchNormalization": (3, 4)}
_LAYERS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Einsum",
        "Gather",
        "LSTM",
        "GRU",
        "RNN",
        "Attention",
        "MultiHeadAttention",
    }
)
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})


def trained_weights(model: ir.Model) -> list[str]:
    """Name the weights; not what inputs are normalised with before the first layer, nor running statistics."""
    graph = read_graph(model.graph, model.opset_imports, torch.float32)
    kept = set(_constants_of_form(model))
    return [name for name in weights.trainable(model, graph) if name not in kept]


def _constants_of_form(model: ir.Model) -> Iterator[str]:
    behind_a_layer: set[ir.Value] = set()
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        behind = any(value in behind_a_layer for value in inputs)
        if behind or node.op_type in _LAYERS:
            behind_a_layer.update(node.outputs)
        statistics = (node.inputs[place] for place in _STATISTICS.get(node.op_type, ()))
        yield from (str(value.name) for value in statistics if value is not None)
        if node.op_type in _ELEMENTWISE and not behind and node.op_type not in _LAYERS:
            yield from (str(value.name) for value in inputs if value.is_initializer())
