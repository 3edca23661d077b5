"""Reading and writing networks: lazily where weights are external, atomically, and without what only exporters care for."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from engine.errors import EngineError, ModelInvalidError
from engine.graph import runtime_operators
from engine.graph.derived import is_stored
from engine.graph.merging import merged
from engine.graph.normal_form import normalise
from engine.report.values import ModelFacts
from engine.runtime.network_files import parameters, stored_bytes

PRODUCER = "onnxpress"
# A protobuf message must stay under 2 GiB; weights move to a file beside it well before.
SINGLE_FILE_BYTES = (1 << 31) - (1 << 27)
_EXTERNAL_ABOVE_BYTES = 1 << 10
_STREAMED_FILE_BYTES = 1 << 27


def load(path: Path) -> ir.Model:
    """Read a network in its normal form; external weights stay on disk until they are used."""
    runtime_operators.register()
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelInvalidError("The file is not an ONNX network.") from error
    normalise(model)
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write a network under its name only when it is complete; equal constants are written once.

    Weights go beside it when one file cannot hold them, or when they are many and come from disk: then one tensor at a time
    is in memory.
    """
    partial = path.with_name(path.name + ".partial")
    model = merged(model)
    if weight_bytes(model) < (_STREAMED_FILE_BYTES if _is_streamed(model) else SINGLE_FILE_BYTES):
        partial.write_bytes(to_bytes(model))
    else:
        ir.save(model, partial, external_data=f"{path.stem}.data", size_threshold_bytes=_EXTERNAL_ABOVE_BYTES)
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.rename(path)


def to_bytes(model: ir.Model) -> bytes:
    """Serialize a network with its weights inside."""
    ir.external_data.load_to_model(model)
    try:
        serialized: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    except ir.serde.SerdeError as error:
        # Weights that are derived while they are written may turn out to break a promise.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, EngineError):
            cause = cause.__cause__
        raise cause or error from error
    return serialized


def copy(model: ir.Model) -> ir.Model:
    """Clone a network's structure; the tensors are shared, so replace them and never write into them."""
    return model.clone()


def initializers(model: ir.Model) -> Iterator[tuple[ir.Graph, ir.Value]]:
    """Yield every initializer of the network, those of subgraphs included, with its graph."""
    for graph in model.graphs():
        for value in tuple(graph.initializers.values()):
            yield graph, value


def weight_bytes(model: ir.Model) -> int:
    """Add up the bytes of all initializers and constants: some exporters write every weight as a Constant."""
    stored = sum(value.const_value.nbytes for _, value in initializers(model) if value.const_value is not None)
    return stored + sum(tensor.nbytes for graph in model.graphs() for tensor in _constants(graph))


def _constants(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    for node in graph:
        held = node.attributes.get("value") if node.op_type == "Constant" else None
        if held is not None and held.type == ir.AttributeType.TENSOR:
            yield held.as_tensor()


def external_files(path: Path) -> list[Path]:
    """List the files of external data that a stored network names."""
    tensors = (value.const_value for _, value in initializers(load(path)))
    return sorted({Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def operators(path: Path) -> int:
    """Count the nodes of a stored network, those in branches and loops included."""
    return sum(1 for _ in load(path).graph.all_nodes())


def facts(path: Path) -> ModelFacts:
    """Say what the report says of one stored network."""
    model = load(path)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    ops = Counter(node.op_type for node in model.graph.all_nodes())
    return ModelFacts(
        sha256=digest,
        size_bytes=stored_bytes(path),
        parameters=parameters(path),
        nodes=sum(ops.values()),
        ops=dict(sorted(ops.items())),
    )


def strip(model: ir.Model) -> None:
    """Remove in place what does not change the results: documentation, metadata, shapes of intermediate tensors."""
    model.producer_name, model.producer_version, model.domain, model.doc_string = PRODUCER, None, None, None
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        boundary = {id(value) for value in (*graph.inputs, *graph.outputs)}
        for value in graph.initializers.values():
            _strip_value(value)
        for value in (*graph.inputs, *graph.outputs):
            _strip_value(value)
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                _strip_value(value)
                if id(value) not in boundary:
                    value.type, value.shape = None, None


def sizes(value: ir.Value) -> tuple[int | str | None, ...] | None:
    """Give a tensor's shape, open sizes as names or None; None where its rank is unknown."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def opset(model: ir.Model) -> int:
    """Give the version of the standard operator set that the network uses."""
    return model.opset_imports.get("", 0)


def unused_name(taken: set[str], stem: str) -> str:
    """Give the shortest name that starts with `stem` and is not taken; it is taken from then on."""
    number = 0
    while (name := f"{stem}{number}") in taken:
        number += 1
    taken.add(name)
    return name


def value_names(model: ir.Model) -> set[str]:
    """Collect every value's name, those of subgraphs included: ONNX forbids inner names that shadow outer ones."""
    names: set[str] = set()
    for graph in model.graphs():
        names.update(value.name for value in (*graph.inputs, *graph.initializers.values()) if value.name)
        for node in graph:
            names.update(value.name for value in node.outputs if value.name)
    return names


def all_names(model: ir.Model) -> set[str]:
    """Collect every value's and every node's name."""
    return value_names(model) | {node.name for node in model.graph.all_nodes() if node.name}


def _is_streamed(model: ir.Model) -> bool:
    return any(value.const_value is not None and is_stored(value.const_value) for _, value in initializers(model))


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()
