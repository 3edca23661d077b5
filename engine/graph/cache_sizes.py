"""Sizes of a decoder's cache that its inputs leave open, read off the graph: onnxruntime-genai's builder names even the heads' size."""

from collections.abc import Iterator, Sequence

from onnx import GraphProto, NodeProto, helper

from engine.inspection import TensorInfo

_PAST_INPUTS = {"GroupQueryAttention": (3, 4), "Attention": (4, 5)}
_HEADS = {"GroupQueryAttention": ("num_heads", "kv_num_heads"), "Attention": ("q_num_heads", "kv_num_heads")}
_CACHE_AXES = 4


def with_cache_sizes(graph: GraphProto, inputs: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    """Give the inputs; where one is the cache of an attention, with its heads and their size filled in as far as they are known."""
    known = dict(_sizes(graph))
    return tuple(_filled(tensor, *known[tensor.name]) if tensor.name in known else tensor for tensor in inputs)


def _filled(tensor: TensorInfo, heads: int | None, size: int | None) -> TensorInfo:
    shape = tensor.shape
    if shape is None or len(shape) != _CACHE_AXES:
        return tensor
    batch, old_heads, length, old_size = shape
    filled = [
        old if isinstance(old, int) or new is None else new for old, new in ((old_heads, heads), (old_size, size))
    ]
    return tensor.model_copy(update={"shape": (batch, filled[0], length, filled[1])})


def _sizes(graph: GraphProto) -> Iterator[tuple[str, tuple[int | None, int | None]]]:
    """Yield each cache's name with the number of heads, and their size: the product behind the attention takes all heads."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type not in _PAST_INPUTS:
            continue
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        heads, kept = (given.get(name) for name in _HEADS[node.op_type])
        widths = (_inputs_of(reader, weights) for reader in readers.get(node.output[0], ()))
        width = next((found for found in widths if found), None)
        size = width // heads if width and heads and width % heads == 0 else None
        for at in _PAST_INPUTS[node.op_type]:
            if len(node.input) > at and node.input[at]:
                yield node.input[at], (kept, size)


def _inputs_of(node: NodeProto, weights: dict[str, tuple[int, ...]]) -> int | None:
    """Give the number of inputs of a product with constant weights."""
    if node.op_type == "MatMulNBits":
        return next((attribute.i for attribute in node.attribute if attribute.name == "K"), None)
    shape = weights.get(node.input[1]) if node.op_type in {"MatMul", "Gemm"} and len(node.input) > 1 else None
    if shape is None or len(shape) != 2:
        return None
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return shape[1] if transposed else shape[0]
