"""Tensors that a file stores sparse, written dense as ONNX Runtime reads them: the same numbers, where every method sees them."""

from collections.abc import Iterable, Iterator
from math import prod

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from engine.errors import ModelInvalidError, ModelUnsupportedError

# A few bytes may stand for as many as they like.
MOST_BYTES = 1 << 29
_FILE_BYTES = (1 << 31) - 1
_TYPES = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    }
)


def make_dense(model: ModelProto) -> tuple[str, ...]:
    """Write sparse initializers and sparse constants dense, in place; say so, in words.

    Raises ModelInvalidError where places and values do not fit together, ModelUnsupportedError where all of them take more
    than MOST_BYTES, or have a type that is not taken.
    """
    made: list[TensorProto] = []
    for graph in _graphs(model.graph):
        tensors = [_dense(sparse, made) for sparse in graph.sparse_initializer]
        del graph.sparse_initializer[:]
        graph.initializer.extend(tensors)
    for node in _nodes(model):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                tensor = _dense(attribute.sparse_tensor, made)
                attribute.Clear()
                attribute.name, attribute.type = "value", AttributeProto.TENSOR
                attribute.t.CopyFrom(tensor)
    if not made:
        return ()
    if model.ByteSize() > _FILE_BYTES:
        raise ModelUnsupportedError(
            "The network is larger than 2 GiB once its sparse tensors are dense, which one ONNX file cannot be.",
            hint="Store them dense, and the weights as external data.",
        )
    which, how = ("A tensor is", "It is") if len(made) == 1 else (f"{len(made)} tensors are", "They are")
    return (
        (
            f"{which} stored sparse. {how} made dense, as ONNX Runtime does when it loads the network, and sizes are compared"
            f" with the dense file: {_taken(made)} bytes of it."
        ),
    )


def _dense(sparse: SparseTensorProto, made: list[TensorProto]) -> TensorProto:
    name, dims = sparse.values.name or "of a node", tuple(sparse.dims)
    if sparse.values.data_type not in _TYPES or TensorProto.EXTERNAL in {
        sparse.values.data_location,
        sparse.indices.data_location,
    }:
        raise ModelUnsupportedError(
            f"The tensor `{name}` is stored sparse, of a type or in a place in which it is not taken.",
            hint="Store it dense.",
        )
    kind = helper.tensor_dtype_to_np_dtype(sparse.values.data_type)
    if any(size < 0 for size in dims):
        raise ModelInvalidError(f"The sparse tensor `{name}` has a negative size.")
    if _taken(made) + prod(dims) * kind.itemsize > MOST_BYTES:
        raise ModelUnsupportedError(
            f"The tensors that are stored sparse take more than {MOST_BYTES} bytes once they are dense; `{name}` alone takes"
            f" {prod(dims) * kind.itemsize}.",
            hint="Store it dense, as external data where the file gets too large.",
        )
    values, indices = _array(sparse.values, name), _array(sparse.indices, name)
    array = np.zeros(prod(dims), kind)
    array[_places(indices, values.size, dims, name)] = values.reshape(-1)
    tensor = numpy_helper.from_array(array.reshape(dims), sparse.values.name)
    made.append(tensor)
    return tensor


def _array(tensor: TensorProto, name: str) -> npt.NDArray[np.generic]:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelInvalidError(f"The sparse tensor `{name}` holds more or fewer numbers than it says.") from error


def _places(indices: npt.NDArray[np.generic], count: int, dims: tuple[int, ...], name: str) -> npt.NDArray[np.int64]:
    """Give where the values are in the flat tensor; a file says it so, or as a place along each axis."""
    flat = indices.shape == (count,)
    if indices.dtype != np.int64 or not (flat or indices.shape == (count, len(dims))):
        raise ModelInvalidError(f"The sparse tensor `{name}` has {count} values, and other places than for these.")
    if not prod(dims):
        if count:
            raise ModelInvalidError(f"The sparse tensor `{name}` has a value outside its shape.")
        return np.zeros(0, np.int64)
    bounds = np.array([prod(dims)] if flat else dims, np.int64)
    by_axis = indices.astype(np.int64).reshape(count, len(bounds))
    if ((by_axis < 0) | (by_axis >= bounds)).any():
        raise ModelInvalidError(f"The sparse tensor `{name}` has a value outside its shape.")
    strides = np.array([prod(dims[axis + 1 :]) for axis in range(len(dims))], np.int64)
    places: npt.NDArray[np.int64] = by_axis[:, 0] if flat else by_axis @ strides
    if len(np.unique(places)) != count:
        raise ModelInvalidError(f"The sparse tensor `{name}` has two values in one place.")
    return places


def _taken(made: list[TensorProto]) -> int:
    return sum(len(tensor.raw_data) for tensor in made)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and the bodies in it, however deep."""
    waiting = [graph]
    while waiting:
        each = waiting.pop()
        yield each
        waiting.extend(_bodies(each.node))


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node
        for body in _bodies(function.node):
            for graph in _graphs(body):
                yield from graph.node


def _bodies(nodes: Iterable[NodeProto]) -> list[GraphProto]:
    return [
        graph
        for node in nodes
        for attribute in node.attribute
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs)
    ]
