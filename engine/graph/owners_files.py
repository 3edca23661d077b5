"""A network and its external data as they lie on their owner's disk, copied into a folder of their own."""

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from engine.errors import ModelInvalidError
from engine.graph.foreign_formats import recognise


def copy_with_data(model: Path, folder: Path, name: str | None = None) -> Path:
    """Copy a network into an existing folder, its external data beside it, and give the copy's path.

    Symbolic links are followed where they stay with the network: into its own folder, or into the folder that the link of the
    network itself leads to, as in the cache of a Hugging Face hub. Raises ModelInvalidError for others, and for what is missing.
    """
    if not model.is_file() or recognise(model) is not None:
        _refuse(model)
    copy = folder / (name or model.name)
    shutil.copyfile(model, copy)
    for location in sorted(external_locations(model)):
        source = _followed(model, location)
        if folder / location == copy:
            raise ModelInvalidError(f"The network's external data are called {copy.name}, as the network is.")
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / location)
    return copy


def external_locations(model: Path) -> set[PurePosixPath]:
    """List where a network says that its external data lie; nothing is said of whether they do. Empty where it is unreadable."""
    proto = ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except DecodeError:
        return set()
    nodes = [node for function in proto.functions for node in function.node]
    tensors = [*_of_graph(proto.graph), *(tensor for node in nodes for tensor in _of_node(node))]
    entries = (
        entry
        for tensor in tensors
        if onnx.external_data_helper.uses_external_data(tensor)
        for entry in tensor.external_data
    )
    return {PurePosixPath(entry.value) for entry in entries if entry.key == "location"}


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        yield from (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors)
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _of_graph(graph)


def _followed(model: Path, location: PurePosixPath) -> Path:
    file = model.parent / location
    if location.is_absolute() or ".." in location.parts or not location.name:
        raise ModelInvalidError(f"The network names external data outside its folder: `{location}`.")
    if not file.is_file():
        broken = " (a symbolic link that leads nowhere)" if file.is_symlink() else ""
        raise ModelInvalidError(
            f"The network has data in `{location}`, which is not there{broken}.",
            hint=f"Put it beside `{model.name}`: the two belong together.",
        )
    found = file.resolve()
    homes = (model.parent.resolve(), model.resolve().parent)
    if not any(found.is_relative_to(home) for home in homes):
        raise ModelInvalidError(
            f"`{location}` is a symbolic link that leads away from the network, to `{found}`.",
            hint=f"Copy the network with what its links lead to: `cp -L {model.name} {location} FOLDER`.",
        )
    return found


def _refuse(model: Path) -> None:
    foreign = recognise(model) if model.exists() else None
    if foreign is not None:
        raise ModelInvalidError(foreign.sentence, hint=foreign.way_out)
    if model.is_dir():
        networks = sorted(file.name for file in model.glob("*.onnx"))
        hint = f"Name the network in it: {', '.join(networks[:5])}." if networks else "It holds no .onnx file."
        raise ModelInvalidError(f"{model} is a folder.", hint=hint)
    raise ModelInvalidError(f"{model} is not there.")
