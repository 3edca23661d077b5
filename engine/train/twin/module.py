"""The twin: an ONNX graph that runs in PyTorch, whose parameters are its initializers by name."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from engine.errors import EngineError, ModelUnsupportedError
from engine.graph import io
from engine.target import Target
from engine.train import framework
from engine.train.framework import Tensor, torch
from engine.train.twin import control_flow, operators, weights
from engine.train.twin.fusing import fused
from engine.train.twin.node import Graph, Node, read_graph
from engine.train.twin.outside import OnnxRuntimeNodes
from engine.train.twin.table import OPERATORS, reason_against
from engine.train.twin.tensors import holds, to_torch

__all__ = ["Twin", "Unsupported", "operators"]

# What PyTorch raises on values that do not fit together. Our own faults (AssertionError, KeyError) are no property of a network.
_FAULTS = (RuntimeError, ValueError, TypeError, IndexError)
_CONV_RANK = 4


@dataclass(frozen=True)
class Unsupported:
    """A node that cannot be trained through, and why."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class _Step:
    node: Node
    # Values that nobody reads after it.
    drop: tuple[str, ...]


class Twin:
    """A network in PyTorch. Values are freed after their last use; shapes and what nodes read as numbers stay on the CPU."""

    def __init__(
        self,
        graph: Graph,
        parameters: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        device: Any,
        floating: Any,
    ) -> None:
        self.graph = graph
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.parameters: dict[str, Tensor] = dict(parameters)
        self.device, self.floating = device, floating
        self.constants: dict[str, Tensor] = dict(constants)
        self.outside: OnnxRuntimeNodes | None = None
        self._plans: dict[tuple[Graph, frozenset[str], tuple[str, ...]], tuple[_Step, ...]] = {}

    @classmethod
    def of(
        cls,
        model: ir.Model,
        *,
        trainable: Collection[str] | None = None,
        dtype: Any = torch.float32,
        device: Any = None,
        channels_last: bool = True,
        beside: Target | None = None,
    ) -> "Twin":
        """Copy a network's initializers into parameters (`trainable` by name; None: all weights) and constants.

        Weights in Constant nodes are constants here; `engine.graph.weights.lift_weights` makes initializers of them.
        16-bit and 32-bit floats are held as `dtype`. `channels_last` lays weights of four axes out so that the results of
        convolutions come channels last, which changes no shape and saves up to a third of the time on CPUs. `beside`: nodes of
        the main graph that cannot be trained through are run by onnxruntime on this target, and gradients end there.

        Raises:
            SpecInvalidError: `trainable` names what is no float initializer.
        """
        if model.functions:
            model = io.copy(model)
            InlinePass()(model)
        device = framework.device() if device is None else torch.device(device)
        graph = read_graph(model.graph, model.opset_imports, dtype)
        chosen = set(weights.trainable(model, graph, trainable))
        computed = weights.computed_with(graph)
        parameters: dict[str, Tensor] = {}
        constants: dict[str, Tensor] = {}
        for _, value in io.initializers(model):
            name, stored = str(value.name), value.const_value
            if stored is None or not holds(stored.dtype):
                continue
            tensor = to_torch(stored, dtype)
            if channels_last and tensor.dim() == _CONV_RANK and tensor.is_floating_point():
                # `contiguous` would leave the strides of a single channel or of a 1x1 kernel, which say nothing of the layout.
                tensor = torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)
            if name in chosen:
                parameters[name] = torch.nn.Parameter(tensor.to(device))
            else:
                constants[name] = tensor.to(device) if tensor.is_floating_point() and name in computed else tensor
        twin = cls(graph, parameters, constants, device, dtype)
        if beside is not None and (names := twin.cuts()):
            twin.outside = OnnxRuntimeNodes(model, names, beside, dtype)
        return twin

    def feed(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
        """Copy arrays to the twin's device, floats in its type."""
        found = {}
        for name, array in arrays.items():
            kind = ir.DataType.from_numpy(np.asarray(array).dtype)
            found[name] = to_torch(ir.Tensor(np.asarray(array), dtype=kind), self.floating).to(self.device)
        return found

    def run(self, feeds: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Give the wanted values of the graph (None: its outputs), and compute no more than they need.

        A feed may stand for any value, also for one inside the graph or for an initializer: what leads to it is left out then.

        Raises:
            ModelUnsupportedError: a node cannot be run, or fails; it is named.
            MemoryError: there is not enough memory.
        """
        names = tuple(self.outputs if wanted is None else wanted)
        found = self._execute(self.graph, dict(feeds), names)
        return dict(zip(names, found, strict=True))

    def write_back(self, model: ir.Model, values: Mapping[str, Tensor] | None = None) -> None:
        """Put the parameters (or other values for them) into a network's initializers of the same names and types."""
        weights.write_back(model, self.parameters if values is None else values)

    def unsupported(self) -> list[Unsupported]:
        """List the nodes that cannot be trained through, in the order of execution."""
        return [
            Unsupported(node.name, f"{node.domain or 'ai.onnx'}.{node.op_type}-{node.version}", reason)
            for node in _all_nodes(self.graph)
            if (reason := self.reason_against(node)) is not None
        ]

    def cuts(self) -> frozenset[str]:
        """Name the nodes of the main graph that cannot be trained through, by what they are or by what is in their bodies."""
        barred = {each.node for each in self.unsupported()}
        return frozenset(node.name for node in self.graph.nodes if barred.intersection(_names_within(node)))

    def reason_against(self, node: Node) -> str | None:
        """Say why a node cannot be run, its bodies left out; None where it can."""
        return None if control_flow.runs(node) else reason_against(node)

    def _execute(self, graph: Graph, values: dict[str, Tensor], wanted: tuple[str, ...]) -> tuple[Tensor, ...]:
        for step in self._plan(graph, frozenset(values), wanted):
            results = self._apply(step.node, values)
            values.update((name, value) for name, value in zip(step.node.outputs, results, strict=False) if name)
            for name in step.drop:
                values.pop(name, None)
        return tuple(self._look_up(name, values) for name in wanted)

    def _apply(self, node: Node, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        try:
            if self.outside is not None and node.name in self.outside:
                outer = {name: self._look_up(name, values) for name in node.reads}
                return self.outside.run(node, outer, self.device)
            inputs = [self._look_up(name, values) if name else None for name in node.inputs]
            while inputs and inputs[-1] is None:
                inputs.pop()
            if control_flow.runs(node):
                outer = {name: self._look_up(name, values) for name in node.reads}

                def run(body: Graph, feeds: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
                    return self._execute(body, {**outer, **feeds}, body.outputs)

                return control_flow.run(node, inputs, run)
            operator = OPERATORS[node.domain, node.op_type]
            results = operator(node, *self._placed(inputs, operator.host))
        except EngineError:
            raise
        except _FAULTS as error:
            raise _explain(node, error) from error
        return results if isinstance(results, tuple) else (results,)

    def _placed(self, inputs: Sequence[Tensor | None], host: frozenset[int]) -> list[Tensor | None]:
        """Bring what is computed with to one device, and what is read as numbers to the CPU."""
        if self.device.type == "cpu":
            return list(inputs)
        computed = [tensor for place, tensor in enumerate(inputs) if tensor is not None and place not in host]
        away = any(tensor.device.type != "cpu" for tensor in computed)
        return [self._place(tensor, away=away, as_numbers=place in host) for place, tensor in enumerate(inputs)]

    def _place(self, tensor: Tensor | None, *, away: bool, as_numbers: bool) -> Tensor | None:
        if tensor is None:
            return None
        if as_numbers:
            return tensor if tensor.device.type == "cpu" else tensor.detach().cpu()
        return tensor.to(self.device) if away else tensor

    def _look_up(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        for place in (values, self.parameters, self.constants):
            if name in place:
                return place[name]
        raise ModelUnsupportedError(f"The value {name} is neither given nor can it be computed from what is given.")

    def _plan(self, graph: Graph, given: frozenset[str], wanted: tuple[str, ...]) -> tuple[_Step, ...]:
        key = (graph, given, wanted)
        found = self._plans.get(key)
        if found is None:
            steps = tuple(_steps(graph, given, wanted, self.constants))
            for step in steps:
                node = step.node
                reason = None if self.outside is not None and node.name in self.outside else self.reason_against(node)
                if reason is not None:
                    raise ModelUnsupportedError(f"{node.op_type} cannot be trained through: {reason}.", node=node.name)
            found = self._plans[key] = steps
        return found


def _steps(
    graph: Graph, given: Collection[str], wanted: Collection[str], constants: Mapping[str, Tensor]
) -> Iterator[_Step]:
    """Yield the nodes that lead from what is given to what is wanted, in order."""
    needed = set(wanted) - set(given)
    backwards: list[Node] = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            backwards.append(node)
            needed.update(name for name in node.reads if name not in given)
    known = {name: value for name, value in constants.items() if name not in given}
    nodes = fused(backwards[::-1], known, wanted)
    last = {name: node for node in nodes for name in (*node.reads, *node.outputs)}
    for node in nodes:
        names = (*node.reads, *node.outputs)
        yield _Step(node, tuple(name for name in names if name and last[name] is node and name not in wanted))


def _all_nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for body in node.bodies.values():
            yield from _all_nodes(body)


def _names_within(node: Node) -> Iterator[str]:
    yield node.name
    for body in node.bodies.values():
        yield from (inner.name for inner in _all_nodes(body))


def _explain(node: Node, error: Exception) -> Exception:
    """Name the node of a failure; too little memory stays what it is."""
    text = str(error).strip().splitlines()
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return MemoryError(f"Too little memory at {node.op_type} {node.name}")
    return ModelUnsupportedError(
        f"{node.op_type} fails in training: {text[0] if text else type(error).__name__}", node=node.name
    )
