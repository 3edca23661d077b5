"""ONNX's own backend tests, run through the twin: the data that the onnx package carries and computes."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import torch
from onnx import numpy_helper
from onnx.backend.test.case import node as onnx_nodes

from engine.train.twin.module import Twin
from engine.train.twin.tensors import holds

_STORED = Path(onnx.backend.test.__file__).parent / "data"
# Cases that no training can want, by the beginning of their names.
SKIPPED = {
    "test_training_dropout": "it drops values at random while it is used",
    "test_scan_sum": "Scan of operator set 8, which scanned batches",
}


@dataclass
class Case:
    """A network of a few nodes, its inputs and what it must give, both by name."""

    name: str
    proto: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    wanted: dict[str, np.ndarray]
    operators: frozenset[tuple[str, str]] = field(init=False)

    def __post_init__(self):
        self.operators = frozenset(_operators(self.proto.graph))

    @property
    def kinds(self):
        """Element types of everything that goes in and comes out; None where it is no tensor."""
        for port in (*self.proto.graph.input, *self.proto.graph.output):
            kind = port.type.tensor_type.elem_type if port.type.HasField("tensor_type") else 0
            yield ir.DataType(kind) if kind else None


@cache
def cases() -> tuple[Case, ...]:
    return (*_computed(), *_stored())


def _computed() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the arithmetic that makes the data
        found = onnx_nodes.collect_testcases()
    for case in found:
        ((inputs, outputs),) = case.data_sets
        graph = case.model.graph
        yield Case(case.name, case.model, _named(graph.input, inputs), _named(graph.output, outputs))


def _stored() -> Iterator[Case]:
    """Networks of operator set 6 that an exporter wrote: old forms of operators, with weights."""
    for folder in sorted([*(_STORED / "pytorch-operator").iterdir(), *(_STORED / "pytorch-converted").iterdir()]):
        proto = onnx.load(folder / "model.onnx")
        weights = {each.name for each in proto.graph.initializer}
        ports = [port for port in proto.graph.input if port.name not in weights]
        for data in sorted(folder.glob("test_data_set_*")):
            inputs, outputs = (
                [onnx.load_tensor(data / f"{kind}_{place}.pb") for place in range(len(list(data.glob(f"{kind}_*.pb"))))]
                for kind in ("input", "output")
            )
            yield Case(
                f"{folder.name}_{data.name[-1]}", proto, _named(ports, inputs), _named(proto.graph.output, outputs)
            )


def _named(ports, values):
    return {
        port.name: numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        for port, value in zip(ports, values, strict=False)
    }


def _operators(graph):
    for node in graph.node:
        yield ("" if node.domain == "ai.onnx" else node.domain), node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _operators(attribute.g)


def twin_of(case: Case, dtype=torch.float32) -> Twin:
    return Twin.of(ir.from_proto(case.proto), dtype=dtype, device="cpu")


def outside(case: Case) -> str | None:
    """Say why a case is not for the twin: it has no type for an input or output."""
    for kind in case.kinds:
        if kind is None:
            return "sequences and optional values"
        if not holds(kind):
            return f"elements of type {kind.name}"
    return None


def difference(found: torch.Tensor, wanted: np.ndarray, case: Case) -> str | None:
    """Say how a result differs from what is wanted, None where it does not."""
    array = found.detach().numpy()
    if array.shape != wanted.shape:
        return f"shape {array.shape} instead of {wanted.shape}"
    half = any(kind in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16} for kind in case.kinds)
    coarse = any(kind == ir.DataType.BFLOAT16 for kind in case.kinds)
    if wanted.dtype.kind in "fV" or wanted.dtype.name == "bfloat16":
        rtol, atol = (2e-2, 1e-2) if coarse else (5e-3, 1e-3) if half else (1e-3, 1e-5)
        close = np.allclose(array.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True)
        return None if close else f"{array.reshape(-1)[:6]} instead of {wanted.reshape(-1)[:6]}"
    same = np.array_equal(array, wanted.astype(array.dtype))
    return None if same else f"{array.reshape(-1)[:6]} instead of {wanted.reshape(-1)[:6]}"


def failure(case: Case) -> str | None:
    """Run a case through the twin; say what is wrong with its results, None where nothing is."""
    twin = twin_of(case)
    with torch.no_grad():
        found = twin.run(twin.feed(case.feeds), list(case.wanted))
    for name, wanted in case.wanted.items():
        problem = difference(found[name], np.asarray(wanted), case)
        if problem:
            return f"{name}: {problem}"
    return None
