"""Whether the twin computes what onnxruntime computes: asked before a network is trained."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.contract import Samples
from engine.errors import VerificationFailedError
from engine.graph import io, quantized
from engine.graph.agreement import Agreement, agreement
from engine.graph.verify import some_feeds
from engine.runtime import sessions
from engine.target import Target
from engine.train.framework import torch
from engine.train.twin.boundary import InnerValues
from engine.train.twin.module import Twin
from engine.train.twin.node import Node
from engine.train.twin.tensors import to_numpy

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

# Largest difference of an output as a share of its largest value.
LIMIT = 1e-3
# Where onnxruntime computes in 16 bits, and the twin does not.
HALF_LIMIT = 2e-2
# Where both round to few bits, a sum in another order may fall to the other side of a half, anywhere in the network.
QUANTIZED_DB = 30.0
_SAMPLES = 8
# Values that are looked at together while a difference is searched for.
_NODES_AT_ONCE = 48


@dataclass(frozen=True)
class Parity:
    """How far the twin's outputs are from onnxruntime's: by output, as a share of its largest value (of integers: of those there are).

    `node` and `operator` name what differs first, where an output is further off than `limit`.
    """

    outputs: Mapping[str, float]
    limit: float
    holds: bool
    node: str | None = None
    operator: str | None = None

    @property
    def largest(self) -> float:
        """Give the largest difference."""
        return max(self.outputs.values(), default=0.0)


def parity(twin: Twin, model: ir.Model, samples: Samples, target: Target) -> Parity:
    """Run the twin and the network, as onnxruntime's CPU kernels compute it without fusion, on eight samples.

    `model` has to hold the values that the twin has. Where they differ by more than the limit, nodes are run one by one on
    onnxruntime's values to find the first that does.

    Raises:
        ModelUnsupportedError: a node cannot be run by the twin.
    """
    cpu = Target(threads=target.threads)
    with tempfile.TemporaryDirectory(prefix="parity-") as folder, exact_products():
        path = Path(folder, "network.onnx")
        io.save(io.copy(model), path)
        session = sessions.session(path, cpu, optimise=False)
        feeds = some_feeds(session, samples, _SAMPLES)
        found = agreement(session, _Run(twin, session), feeds)
        limit = HALF_LIMIT if _computes_in_half(model) else LIMIT
        outputs = {name: each.relative for name, each in found.outputs.items()}
        if _holds(found, model, limit):
            return Parity(outputs, limit, holds=True)
        culprit = _first_different(twin, model, feeds[0], cpu, limit)
    if culprit is None:
        return Parity(outputs, limit, holds=False)
    return Parity(outputs, limit, holds=False, node=culprit.name, operator=culprit.op_type)


def require_parity(twin: Twin, model: ir.Model, samples: Samples, target: Target) -> Parity:
    """Give the parity of a twin that may be trained.

    Raises:
        VerificationFailedError: it computes something else than onnxruntime; the node that does is named.
        ModelUnsupportedError: a node cannot be run by the twin.
    """
    found = parity(twin, model, samples, target)
    if found.holds:
        return found
    worst = max(found.outputs, key=lambda name: found.outputs[name])
    where = f"; {found.operator} is the first to differ" if found.operator else ", though no node by itself is"
    raise VerificationFailedError(
        f"PyTorch computes something else than ONNX Runtime: output `{worst}` is {found.outputs[worst]:.1e} of its largest value"
        f" off{where}. {found.limit:.0e} are allowed before a network is trained.",
        node=found.node,
        hint="Leave out the steps that train this network, and report the operator with its attributes.",
    )


class _Run:
    """The twin as something that gives arrays of a session's types for arrays."""

    def __init__(self, twin: Twin, session: sessions.Session) -> None:
        self._twin = twin
        self._types = {port.name: port.dtype for port in session.outputs}

    def run(self, feed: Feed) -> dict[str, Any]:
        """Give every output by name."""
        with torch.no_grad():
            found = self._twin.run(self._twin.feed(feed))
        return {name: to_numpy(value).astype(self._types[name] or np.float32) for name, value in found.items()}


def _holds(found: Agreement, model: ir.Model, limit: float) -> bool:
    if found.relative <= limit:
        return True
    return quantized.first_quantized(model) is not None and found.sqnr_db >= QUANTIZED_DB


def _computes_in_half(model: ir.Model) -> bool:
    halves = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    casts = (node.attributes["to"].as_int() for node in model.graph.all_nodes() if node.op_type == "Cast")
    stored = (value.dtype for _, value in io.initializers(model))
    return any(kind in halves for kind in (*casts, *stored))


def _first_different(twin: Twin, model: ir.Model, feed: Feed, target: Target, limit: float) -> Node | None:
    """Find the first node that gives something else for the same inputs; None where errors only add up."""
    if quantized.first_quantized(model) is not None:
        limit = HALF_LIMIT
    computed = {str(value.name) for node in model.graph for value in node.outputs}
    computed |= {str(value.name) for value in model.graph.inputs}
    nodes = twin.graph.nodes
    for start in range(0, len(nodes), _NODES_AT_ONCE):
        group = nodes[start : start + _NODES_AT_ONCE]
        names = {name for node in group for name in (*node.reads, *node.outputs) if name in computed}
        values = InnerValues(model, sorted(names), target, optimise=False).run(feed)
        for node in group:
            if _differs(twin, node, values, limit):
                return node
    return None


def _differs(twin: Twin, node: Node, values: Feed, limit: float) -> bool:
    wanted = [name for name in node.outputs if name in values]
    with torch.no_grad():
        found = twin.run(twin.feed({name: values[name] for name in node.reads if name in values}), wanted)
    return any(_distance(to_numpy(found[name]), values[name]) > limit for name in wanted)


def _distance(found: Array, wanted: Array) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    left, right = found.astype(np.float64), wanted.astype(np.float64)
    if not np.array_equal(np.isfinite(left), np.isfinite(right)):
        return float("inf")
    left, right = np.nan_to_num(left, posinf=0, neginf=0), np.nan_to_num(right, posinf=0, neginf=0)
    return float(np.abs(left - right).max(initial=0.0) / (np.abs(right).max(initial=0.0) or 1.0))


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute float32 products as such on a GPU for a while."""
    kinds = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    try:
        yield
    finally:
        for kind, allowed in zip(kinds, before, strict=True):
            kind.allow_tf32 = allowed
