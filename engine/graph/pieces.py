"""A network that is too large to load: it runs piece by piece, with the weights of one piece in memory at a time."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from engine.errors import ModelUnsupportedError
from engine.graph import io
from engine.graph.walk import Walk, reads
from engine.runtime.network_files import stored_bytes
from engine.runtime.sessions import Port
from engine.target import Target

# Of a process that has loaded no network yet, and what ONNX Runtime holds of one: its weights, and packed for its kernels.
_PROCESS_BYTES = 200 << 20
_LOADED_RATIO = 2.0
# Weights of one piece, in bytes; a piece has one node at least.
_PIECE_BYTES = 128 << 20


def memory_to_load(path: Path) -> int:
    """Estimate the bytes that a process needs to load a stored network and to work with it."""
    return _PROCESS_BYTES + int(_LOADED_RATIO * stored_bytes(path))


class Pieces:
    """Runs a stored network like a session, and reads its weights anew in each run: slow, but in little memory.

    ONNX Runtime optimises each piece on its own, so nothing is fused across their borders; times mean nothing.
    """

    def __init__(self, path: Path, target: Target, *, optimise: bool = True, piece_bytes: int = _PIECE_BYTES) -> None:
        self._path, self._target, self._optimise = path, target, optimise
        model = io.load(path)
        graph = model.graph
        self.inputs = tuple(_port(value) for value in graph.inputs if value.name not in graph.initializers)
        self.outputs = tuple(_port(value) for value in graph.outputs)
        self._names = [port.name for port in self.outputs]
        made = {str(value.name) for node in graph for value in node.outputs}
        if not made.issuperset(self._names):
            raise ModelUnsupportedError(
                "An output of the network is an input or a constant, so it cannot run in pieces"
            )
        self._cuts = _cuts(model, piece_bytes)

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Give every output by name."""
        typed = {port.name: np.asarray(feed[port.name], port.dtype) for port in self.inputs}
        with tempfile.TemporaryDirectory(prefix="pieces-") as folder:
            model = io.load(self._path)
            walk = Walk(model, [typed], self._target, Path(folder), keep=self._names, optimise=self._optimise)
            for cut in self._cuts:
                walk.advance(cut)
                _unmap(model)
            return {name: walk.live[name][0] for name in self._names}


def _cuts(model: ir.Model, most: int) -> list[int]:
    """Give the positions in the order of nodes at which a new piece begins, and the end."""
    found: list[int] = []
    held, seen = 0, set[str]()
    nodes = list(model.graph)
    for position, node in enumerate(nodes):
        weights = {str(value.name): value.const_value for value in reads(node) if value.is_initializer()}
        added = sum(tensor.nbytes for name, tensor in weights.items() if tensor is not None and name not in seen)
        if held and held + added > most:
            found.append(position)
            held, seen = 0, set()
            added = sum(tensor.nbytes for tensor in weights.values() if tensor is not None)
        held += added
        seen |= weights.keys()
    return [*found, len(nodes)]


def _unmap(model: ir.Model) -> None:
    """Close the mapped files: the pages that were read count as this process's memory until then."""
    for _, value in io.initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.release()


def _port(value: ir.Value) -> Port:
    return Port(str(value.name), None if value.dtype is None else value.dtype.numpy(), io.sizes(value) or ())
