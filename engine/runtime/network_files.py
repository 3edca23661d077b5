"""The files of a stored network: which they are, and how large."""

import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from engine.errors import ModelInvalidError

_LEVEL = 6
_BLOCK = 1 << 20


def stored_bytes(path: Path) -> int:
    """Give the bytes of a network on disk: its file and each file of external data, counted once."""
    return sum(file.stat().st_size for file in stored_files(path))


def deflated_bytes(path: Path) -> int:
    """Give the bytes of a network's download as HTTP and zip compress it: deflate at zlib's level 6, each file by itself."""
    total = 0
    for file in stored_files(path):
        packer = zlib.compressobj(_LEVEL)
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                total += len(packer.compress(block))
        total += len(packer.flush())
    return total


def stored_files(path: Path) -> Iterator[Path]:
    """Yield a network's file, then each file of external data; raises ModelInvalidError for one that is not beside it."""
    yield path
    model = load_structure(path)
    for location in sorted({place for tensor in _tensors(model.graph) if (place := _location(tensor))}):
        file = path.parent / location
        if ".." in Path(location).parts or Path(location).is_absolute():
            raise ModelInvalidError(f"The external data location `{location}` leaves the network's folder")
        if not file.is_file():
            raise ModelInvalidError(f"The external data file `{location}` is missing")
        yield file


def parameters(path: Path) -> int:
    """Count the elements of all stored tensors, in subgraphs and Constant nodes too. Reads no external data."""
    return sum(prod(tensor.dims) for tensor in _tensors(load_structure(path).graph))


def load_structure(path: Path) -> onnx.ModelProto:
    """Read a network's file without its external data; raises ModelInvalidError."""
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ModelInvalidError("The file is not an ONNX network") from error


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for inner in attribute.graphs:
                    yield from _tensors(inner)


def _location(tensor: onnx.TensorProto) -> str | None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
