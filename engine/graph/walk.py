"""Run a network piece by piece over all samples, so that each node runs once however many layers are looked at."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper

from engine.errors import ModelUnsupportedError
from engine.runtime import loading, sessions
from engine.target import Target

Array = npt.NDArray[Any]

# What is alive between two pieces goes to disk beyond this.
_MEMORY_BYTES = 384 << 20
# Beyond this fewer samples are used.
DISK_BYTES = 3 << 30


class Walk:
    """Where a run stands: the tensors that the rest of the network still reads, one array per batch.

    `keep` names tensors that stay to the end. `optimise`: by ONNX Runtime, each piece on its own. `working` is held for one
    run of a piece at a time.
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[Mapping[str, Array]],
        target: Target,
        folder: Path,
        *,
        keep: Iterable[str] = (),
        optimise: bool = True,
        working: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._model, self._target, self._folder, self._optimise = model, target, folder, optimise
        self._working = working
        self._nodes = list(model.graph)
        self._place = {node: number for number, node in enumerate(self._nodes)}
        self._at = 0
        self._files = 0
        self._last = self._last_uses() | dict.fromkeys(keep, len(self._nodes))
        folder.mkdir(parents=True, exist_ok=True)
        names = {str(value.name) for value in model.graph.inputs}
        self.live: dict[str, list[Array]] = {
            name: [feed[name] for feed in feeds] for name in feeds[0] if name in names and self._last.get(name, -1) >= 0
        }
        self.batches = len(feeds)

    def place(self, node: ir.Node) -> int:
        """Give a node's position in the order of execution."""
        return self._place[node]

    def advance(self, position: int) -> None:
        """Run up to just before a node; what is not read from there on is dropped."""
        piece = self._nodes[self._at : position]
        made = [str(value.name) for node in piece for value in node.outputs if value.name]
        wanted = [name for name in made if self._last.get(name, -1) >= position]
        if wanted:
            session, needed = self._open(piece, wanted)
            fresh: dict[str, list[Array]] = {name: [] for name in wanted}
            for batch in range(self.batches):
                with self._working():
                    found = session.run({name: self.live[name][batch] for name in needed})
                for name in wanted:
                    if not isinstance(found[name], np.ndarray):
                        raise ModelUnsupportedError(
                            "Sequences are not followed from layer to layer.", node=piece[0].name
                        )
                    fresh[name].append(self._kept(found[name]))
            self.live.update(fresh)
        self._at = max(self._at, position)
        for name in [name for name in self.live if self._last.get(name, -1) < position]:
            self._drop(name)

    def look(self, tensor: str) -> Callable[[int], Array]:
        """Give a function from a batch's number to a tensor that can be computed from what is alive."""
        if tensor in self.live:
            return lambda batch: self.live[tensor][batch]
        session, needed = self._open(self._upstream(tensor), [tensor])

        def run(batch: int) -> Array:
            with self._working():
                found: Array = session.run({name: self.live[name][batch] for name in needed})[tensor]
                return found

        return run

    def can_make(self, tensor: ir.Value, within: int = 8) -> bool:
        """Say whether a tensor is alive, or only a few nodes away from what is."""
        return str(tensor.name) in self.live or len(self._upstream(str(tensor.name))) <= within

    @property
    def bytes(self) -> int:
        """What is alive, in memory and on disk."""
        return sum(array.nbytes for arrays in self.live.values() for array in arrays)

    def limit(self, batches: int) -> None:
        """Go on with the first batches only."""
        self.batches = batches
        for name, arrays in self.live.items():
            self.live[name] = arrays[:batches]

    def _last_uses(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for number, node in enumerate(self._nodes):
            for value in reads(node):
                if value.name and not value.is_initializer():
                    found[value.name] = number
        return found

    def _kept(self, array: Array) -> Array:
        if self.bytes + array.nbytes < _MEMORY_BYTES or array.ndim == 0 or not array.size:
            return np.asarray(sessions.owned(array))
        path = self._folder / f"{self._files}.npy"
        self._files += 1
        np.save(path, array, allow_pickle=False)
        mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped

    def _drop(self, name: str) -> None:
        for array in self.live.pop(name):
            if isinstance(array, np.memmap) and array.filename is not None:
                # The mapping keeps the data until nobody looks at it any more.
                Path(array.filename).unlink(missing_ok=True)

    def _upstream(self, tensor: str) -> list[ir.Node]:
        """List the nodes that lead from what is alive to a tensor."""
        needed = {tensor}
        piece: list[ir.Node] = []
        for node in reversed(self._nodes[self._at :]):
            if not needed.isdisjoint(str(value.name) for value in node.outputs):
                piece.append(node)
                needed.update(
                    value.name
                    for value in reads(node)
                    if value.name and value.name not in self.live and not value.is_initializer()
                )
        return piece[::-1]

    def _open(self, piece: Sequence[ir.Node], wanted: Sequence[str]) -> tuple[loading.Session, list[str]]:
        made = {str(value.name) for node in piece for value in node.outputs}
        read = {str(value.name): value for node in piece for value in reads(node) if value.name}
        weights = {name: value for name, value in read.items() if value.is_initializer()}
        needed = [name for name in read if name not in made and name not in weights]
        graph = onnx.GraphProto(name="piece")
        graph.node.extend(ir.to_proto(node) for node in piece)
        for name, value in weights.items():
            assert value.const_value is not None
            graph.initializer.append(_embedded(value.const_value, name))
        for name in needed:
            array = self.live[name][0]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, [None] * array.ndim))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        imports = [helper.make_opsetid(domain, version) for domain, version in self._model.opset_imports.items()]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=self._model.ir_version)
        proto.functions.extend(ir.to_proto(function) for function in self._model.functions.values())
        with self._working():
            return sessions.session(proto.SerializeToString(), self._target, optimise=self._optimise), needed


def _embedded(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """Give a tensor with its bytes inside: a piece in memory has no folder to find them in."""
    if not isinstance(tensor, ir.ExternalTensor):
        proto = ir.to_proto(tensor)
        proto.name = name
        return proto
    shape = tensor.shape.numpy()
    return onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=shape, raw_data=tensor.tobytes())


def reads(node: ir.Node) -> Iterable[ir.Value]:
    """List what a node reads from its graph, its bodies included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        bodies = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        bodies += list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        for body in bodies:
            inside = {id(value) for inner in body.all_nodes() for value in inner.outputs}
            inside |= {id(value) for value in (*body.inputs, *body.initializers.values())}
            for inner in body.all_nodes():
                yield from (value for value in inner.inputs if value is not None and id(value) not in inside)
            yield from (value for value in body.outputs if id(value) not in inside)
