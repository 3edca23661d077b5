"""PyTorch module -> one clean ONNX file, checked before anybody else sees it."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when it is imported

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

OPSET = 18
TOLERANCE = 1e-4
"""Largest accepted difference to PyTorch, relative to the largest output."""

_DOMAINS = {"", "ai.onnx"}
_DTYPES: dict[str, npt.DTypeLike] = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@dataclass(frozen=True)
class Signature:
    """Names of inputs and outputs, and the names of the axes that may vary: input -> {axis: name}."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]]


def export(network: nn.Module, examples: Sequence[tuple[torch.Tensor, ...]], signature: Signature, path: Path) -> None:
    """Write `network` to `path`, then compare it with PyTorch on every tuple of `examples`.

    The first tuple is what the exporter traces; no axis that may vary should have length 1 in it.
    """
    network.eval()
    axes = {name: torch.export.Dim(name) for dims in signature.dynamic.values() for name in dims.values()}
    shapes = tuple({axis: axes[name] for axis, name in signature.dynamic[key].items()} for key in signature.inputs)
    program = torch.onnx.export(
        network,
        examples[0],
        input_names=list(signature.inputs),
        output_names=list(signature.outputs),
        dynamic_shapes=shapes,
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    assert program is not None  # None is only returned by the old exporter
    model = program.model_proto
    strip_origin(model)
    save(model, path)
    for arguments in examples:
        _compare(network, arguments, signature, path)


def strip_origin(model: onnx.ModelProto) -> None:
    """Remove what the exporter noted about its own machine: stack traces, file names, doc strings."""
    del model.metadata_props[:]
    model.doc_string = ""
    _strip_graph(model.graph)
    for function in model.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        _strip_nodes(function.node)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` as a single file after the full check: valid, standard operators only, shapes inferred."""
    onnx.checker.check_model(model, full_check=True)
    foreign = {entry.domain for entry in model.opset_import} - _DOMAINS
    if foreign or model.functions:
        raise ValueError(f"the exported graph is not plain ONNX: {sorted(foreign)}, {len(model.functions)} functions")
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def session(path: Path, threads: int = 1) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU with the model at `path`."""
    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]  # onnxruntime declares no exports
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]


def predict(path: Path, arrays: Mapping[str, npt.NDArray[Any]], batch: int = 100) -> npt.NDArray[Any]:
    """The first output for all samples, integer arrays cast by value to the model's float inputs."""
    running = session(path)
    wanted = {entry.name: _DTYPES[entry.type] for entry in running.get_inputs()}
    count = len(next(iter(arrays.values())))
    outputs = []
    for start in range(0, count, batch):
        feed = {name: arrays[name][start : start + batch].astype(dtype) for name, dtype in wanted.items()}
        outputs.append(running.run(None, feed)[0])
    return np.concatenate(outputs)


def accuracy(logits: npt.NDArray[Any], label: npt.NDArray[np.int64]) -> float:
    """Share of samples whose largest logit is the right one."""
    return float((logits.argmax(axis=1) == label).mean())


def _strip_graph(graph: onnx.GraphProto) -> None:
    del graph.metadata_props[:]
    graph.doc_string = ""
    _strip_nodes(graph.node)
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""


def _strip_nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("g"):
                _strip_graph(attribute.g)


def _compare(network: nn.Module, arguments: tuple[torch.Tensor, ...], signature: Signature, path: Path) -> None:
    """Raise unless onnxruntime gives what PyTorch gives."""
    feed = {name: value.numpy() for name, value in zip(signature.inputs, arguments, strict=True)}
    with torch.no_grad():
        expected = network(*arguments).numpy()
    got = session(path).run(None, feed)[0]
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    if error > TOLERANCE:
        raise ValueError(f"{path.name} differs from PyTorch by {error:.1e} of the largest output")
