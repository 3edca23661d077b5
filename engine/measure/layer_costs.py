"""What each layer holds and takes, in the original and in the result: bytes, time, and how near its output is.

Nodes of the result that a step made for a layer carry the layer's name in front of theirs, and count to it.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx_ir as ir

from engine.graph import io
from engine.graph.linear import node_name
from engine.measure import latency
from engine.measure.kept_outputs import Folder, KeptOutput
from engine.report.layer_cost import LayerCost
from engine.runtime import sessions
from engine.runtime.host_lock import HostLock
from engine.runtime.kernel_times import OpProfile
from engine.target import Target

# They hand on a stored tensor in another form: who reads their result is the layer.
_MOVES = frozenset(
    {"Cast", "DequantizeLinear", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
# ONNX Runtime computes them in the kernel of the layer before them.
_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_DEPTH = 8
# Tables of fewer numbers are axes, shapes and epsilons.
_FEWEST = 16
_RUNS = 5
_MOST_COMPARED = 512
# What ONNX Runtime's optimizer appends to the name of the node, or of its output, that it made a kernel from.
KERNEL_SUFFIX = re.compile(r"(_nchwc|_token_\d+|_quant|_fused|/MatMulAddFusion|_MatMulIntegerToFloat)+$")

Feed = Mapping[str, Any]


@dataclass
class _Held:
    """What one node of a network holds: all bytes, and the number type and size of its largest weight."""

    op: str
    bytes: int = 0
    stored: str | None = None
    size: int = 0


@dataclass(frozen=True)
class _Network:
    """What is to be known of a stored network, so that it need not be in memory."""

    path: Path
    held: Mapping[str, _Held]
    # By name of an output: the node that makes it.
    makers: Mapping[str, str]
    # By node outside branches and loops: its first output, where that is of floats.
    floats: Mapping[str, str]
    # By node of an activation function: its operator, and the node that it follows.
    activations: Mapping[str, tuple[str, str]]
    all_named: bool

    @classmethod
    def of(cls, path: Path) -> Self:
        model = io.load(path)
        makers = {str(output.name): node_name(node) for node in model.graph.all_nodes() for output in node.outputs}
        all_named = all(node.name for node in model.graph.all_nodes())
        return cls(path, _held(model), makers, dict(_floats(model)), dict(_activations(model)), all_named)

    def profiled(self) -> sessions.ModelSource:
        """Give the network with a name for every node: a profile says nothing of the others."""
        if self.all_named:
            return self.path
        model = io.load(self.path)
        if io.weight_bytes(model) > io.SINGLE_FILE_BYTES:
            return self.path
        for node in model.graph.all_nodes():
            node.name = node_name(node)
        return io.to_bytes(model)


class LayerCosts:
    """The layers of two stored networks beside each other; neither is kept in memory."""

    def __init__(self, original: Path, result: Path) -> None:
        self._original, self._result = _Network.of(original), _Network.of(result)
        before = {name: held for name, held in self._original.held.items() if held.stored is not None}
        after = _by_layer(self._result.held, before)
        self.costs = (
            *(_cost(name, held, after.get(name)) for name, held in before.items()),
            *(_cost(name, None, held) for name, held in after.items() if name not in before and held.stored),
        )

    def time(self, feeds: Sequence[Feed], target: Target, lock: HostLock) -> None:
        """Add each layer's share of the time of all nodes, as far as onnxruntime's profile names it."""
        names = {cost.node for cost in self.costs}
        before, after = (
            _shares(latency.per_op(network.profiled(), feeds, target, lock=lock, runs=_RUNS), names, network)
            for network in (self._original, self._result)
        )
        self.costs = tuple(
            cost.model_copy(
                update={
                    "time_share_before": None if cost.bytes_before is None else before.get(cost.node),
                    "time_share_after": None if cost.bytes_after is None else after.get(cost.node),
                }
            )
            for cost in self.costs
        )

    def compare_outputs(self, feeds: Sequence[Feed], target: Target) -> None:
        """Add how near each layer's output is to the original's, where both networks have it in the same shape.

        `target` is one that nothing is timed on. Networks of very many layers are left as they are. One network is loaded at a
        time: what the first says is kept, in files where it is much.
        """
        kept = set(self._result.floats.values())
        outputs = self._original.floats
        pairs = {cost.node: outputs[cost.node] for cost in self.costs if outputs.get(cost.node) in kept}
        if not pairs or len(pairs) > _MOST_COMPARED:
            return
        folder = Folder(None)
        try:
            wanted = {name: KeptOutput(folder) for name in pairs.values()}
            for said in _said(self._original.path, wanted, feeds, target):
                for name, each in wanted.items():
                    each.append(said[name])
            energy = _energies(pairs, wanted, _said(self._result.path, wanted, feeds, target))
        finally:
            folder.close()
        told = {node: _decibel(*each) for node, each in energy.items()}
        self.costs = tuple(cost.model_copy(update={"output_sqnr_db": told.get(cost.node)}) for cost in self.costs)


def _said(path: Path, names: Iterable[str], feeds: Sequence[Feed], target: Target) -> Iterator[Mapping[str, Any]]:
    """Yield what a network says of some of its inner tensors, run by run."""
    running = sessions.session(_giving(io.load(path), names), target)
    yield from (running.run(feed) for feed in feeds)


def _energies(
    pairs: Mapping[str, str], wanted: Mapping[str, KeptOutput], found: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[float, float]]:
    """Give by node the energy of its output and that of the difference, over the runs in which their shapes agree."""
    energy: dict[str, tuple[float, float]] = {}
    for at, said in enumerate(found):
        for node, name in pairs.items():
            left, right = np.asarray(wanted[name][at], np.float64), np.asarray(said[name], np.float64)
            if left.shape == right.shape:
                signal, noise = energy.get(node, (0.0, 0.0))
                energy[node] = signal + float(np.square(left).sum()), noise + float(np.square(right - left).sum())
    return energy


def _cost(name: str, before: _Held | None, after: _Held | None) -> LayerCost:
    named = before or after
    assert named is not None
    return LayerCost(
        node=name,
        op=named.op,
        bytes_before=None if before is None else before.bytes,
        bytes_after=None if after is None else after.bytes,
        stored=None if after is None else after.stored,
    )


def _number_type(dtype: ir.DataType) -> str:
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())


def _held(model: ir.Model) -> dict[str, _Held]:
    """Give what each node holds, in the graph's order."""
    found = {node_name(node): _Held(node.op_type) for node in model.graph.all_nodes()}
    for _, value in io.initializers(model):
        reader = _reader(value)
        if reader is None or value.const_value is None:
            continue
        held = found[node_name(reader)]
        held.bytes += value.const_value.nbytes
        if _is_weight(value) and value.const_value.size > held.size:
            held.stored, held.size = _number_type(value.const_value.dtype), value.const_value.size
    return found


def _reader(value: ir.Value) -> ir.Node | None:
    """Give the first node that computes with a stored tensor, past those that only hand it on."""
    move: ir.Node | None = None
    for _ in range(_DEPTH):
        use = next(iter(value.uses()), None)
        if use is None:
            break
        node, index = use
        if node.op_type not in _MOVES or (index and node.op_type != "DequantizeLinear"):
            return node
        move, value = node, node.outputs[0]
    return move


def _is_weight(value: ir.Value) -> bool:
    """Say whether a tensor has two axes or more, and is no list of sizes."""
    sizes = () if value.const_value is None else value.const_value.shape.numpy()
    return sum(size > 1 for size in sizes) > 1 and prod(sizes) >= _FEWEST


def _by_layer(held: Mapping[str, _Held], layers: Container[str]) -> dict[str, _Held]:
    """Add up by the original's layer what the result's nodes hold; nodes of none keep their own names."""
    found: dict[str, _Held] = {}
    for name, each in held.items():
        one = found.setdefault(_layer_of(name, layers) or name, _Held(each.op))
        one.bytes += each.bytes
        if each.size > one.size:
            one.stored, one.size = each.stored, each.size
    return {name: each for name, each in found.items() if each.bytes}


def _layer_of(name: str, layers: Container[str]) -> str | None:
    """Give the layer whose name a node has, or has in front of its own: the longest one."""
    if name in layers:
        return name
    while "_" in name:
        name = name.rpartition("_")[0]
        if name in layers:
            return name
    return None


def _shares(profile: OpProfile, layers: Container[str], network: _Network) -> dict[str, float]:
    """Give each layer's share of the time; kernels have the name of a node, or of its output.

    A kernel that takes in the activation function behind a layer has that one's name, and the layer's operator.
    """
    total, found = sum(cost.ms for cost in profile.by_node), dict[str, float]()
    for cost in profile.by_node:
        kernel = KERNEL_SUFFIX.sub("", cost.node or "")
        name = network.makers.get(kernel, kernel)
        operator, before = network.activations.get(name, (cost.op_type, name))
        layer = _layer_of(name if operator == cost.op_type else before, layers)
        if layer is not None and total > 0:
            found[layer] = found.get(layer, 0.0) + cost.ms / total
    return {layer: round(share, 4) for layer, share in found.items()}


def _floats(model: ir.Model) -> Iterator[tuple[str, str]]:
    """Yield nodes outside branches and loops whose first output is of floats, each with that output's name."""
    for node in model.graph:
        output = node.outputs[0]
        if output.name and (output.dtype is None or output.dtype.is_floating_point()):
            yield node_name(node), output.name


def _activations(model: ir.Model) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in model.graph:
        maker = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type in _ACTIVATIONS and maker is not None and len(maker.outputs[0].uses()) == 1:
            yield node_name(node), (node.op_type, node_name(maker))


def _giving(model: ir.Model, names: Iterable[str]) -> bytes:
    """Write a network that gives some of its inner tensors too."""
    present = {value.name for value in model.graph.outputs}
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in dict.fromkeys(names) if name not in present)
    return io.to_bytes(model)


def _decibel(signal: float, noise: float) -> float:
    return round(min(10 * float(np.log10(signal / noise)), 200.0), 2) if noise > 0 and signal > 0 else 200.0
