"""Which regions of a network are worth integers on the target: a minimum cut through measured times.

Every operator of a quantization plan may run in float or in integers, at the time that the target's profile shows for each.
Where two neighbours differ, the tensor between them is converted, which takes time too. The choice of the least total time
is a minimum cut of the graph, found exactly; a region that would not pay for its own borders never appears.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.contract import Context
from engine.graph import io
from engine.graph.quantized import CONVERSIONS
from engine.measure.latency import per_op
from engine.quantize.static_plan import StaticPlan, final_output
from engine.report.run_facts import OpCost
from engine.runtime import sessions
from engine.runtime.kernel_times import OpProfile

Feed = Mapping[str, npt.NDArray[Any]]

# Other layouts of float and integer convolutions: moved at the same borders.
_MOVES = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
_FUSED_IN_FLOAT = frozenset({"Relu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh", "LeakyRelu"})
# What the runtime's profile calls them; a hard-swish of its own is a hard-sigmoid and a product there.
_ACTIVATIONS = _FUSED_IN_FLOAT | {"Mul", "QuickGelu"}
_NEVER = 1 << 40
_RUNS = 12


@dataclass(frozen=True)
class Times:
    """Milliseconds of each operator of a plan in float and in integers, and of converting one number."""

    in_float: Mapping[str, float]
    in_integers: Mapping[str, float]
    per_number: float


def measure(
    networks: Sequence[ir.Model], plan: StaticPlan, sizes: Mapping[str, int], feeds: Sequence[Feed], context: Context
) -> Times:
    """Profile a network and its quantized form on the target; operators that the runtime fused into others count nothing."""
    profiles = []
    for model in networks:
        with context.measuring():
            profiles.append(per_op(io.to_bytes(model), feeds, context.target, runs=_RUNS))
    members = [*(layer.node for layer in plan.layers), *plan.followers]
    found = [_times(members, profile.by_node) for profile in profiles]
    moved = sum(cost.ms for cost in profiles[1].by_type if cost.op_type in CONVERSIONS | _MOVES)
    borders = sum(sizes.get(str(tensor.name), 0) for tensor in _borders(plan))
    return Times(found[0], _with_activations(found[1], profiles, plan, sizes), moved / max(borders, 1))


def choose(plan: StaticPlan, times: Times, sizes: Mapping[str, int], *, border: float = 1.0) -> frozenset[str]:
    """Give the names of the plan's operators that had better stay in float.

    Args:
        plan: what could run in integers.
        times: as measured.
        sizes: numbers in each tensor.
        border: weighs the cost of conversions; above 1, regions are fewer and larger.
    """
    members = [*(layer.node for layer in plan.layers), *plan.followers]
    place = {node: index for index, node in enumerate(members)}
    source, sink = len(members), len(members) + 1
    flow: dict[tuple[int, int], int] = {}

    def add(left: int, right: int, ms: float) -> None:
        flow[left, right] = flow.get((left, right), 0) + min(round(ms * 1e6), _NEVER)

    # On the source's side is what runs in integers: it pays its edge to the sink.
    for node, index in place.items():
        add(index, sink, times.in_integers.get(str(node.name), 0.0))
        add(source, index, times.in_float.get(str(node.name), 0.0))
        cost = border * times.per_number
        for value in node.inputs[: None if node.op_type in {"Add", "Mul", "Concat"} else 1]:
            if value is None or value.is_initializer():
                continue
            maker = _maker(value, place)
            other = sink if maker is None else place[maker]
            add(index, other, cost * sizes.get(str(value.name), 0))
            if maker is not None:
                add(other, index, cost * sizes.get(str(value.name), 0))
        output, _ = final_output(node)
        if output.is_graph_output() or any(use.node not in place for use in output.uses()):
            add(index, sink, cost * sizes.get(str(output.name), 0))
    return _float_side(members, flow, source, sink)


def tensor_sizes(model: ir.Model, plan: StaticPlan, feed: Feed, context: Context) -> dict[str, int]:
    """Run once and give how many numbers each tensor of the plan has."""
    shown = io.copy(model)
    present = {value.name for value in (*shown.graph.outputs, *shown.graph.inputs)}
    wanted = {str(value.name) for value in plan.tensors}
    for node in (*(layer.node for layer in plan.layers), *plan.followers):
        wanted |= {str(node.outputs[0].name), str(final_output(node)[0].name)}
    values = {value.name: value for node in shown.graph for value in node.outputs}
    shown.graph.outputs.extend(values[name] for name in sorted(wanted) if name in values and name not in present)
    with context.working():
        arrays = {**feed, **sessions.session(io.to_bytes(shown), context.untimed).run(feed)}
    return {name: int(arrays[name].size) for name in wanted if name in arrays}


def _with_activations(
    times: Mapping[str, float], profiles: Sequence[OpProfile], plan: StaticPlan, sizes: Mapping[str, int]
) -> dict[str, float]:
    """Charge integer layers with the activations that float kernels take along: they then run on their own."""
    apart = [sum(cost.ms for cost in profile.by_type if cost.op_type in _ACTIVATIONS) for profile in profiles]
    numbers = {
        layer.name: sizes.get(str(layer.node.outputs[0].name), 0)
        for layer in plan.layers
        if (user := _only_user(layer.node)) is not None
        and user.op_type in _FUSED_IN_FLOAT
        and final_output(layer.node)[1] is None
    }
    each = max(apart[1] - apart[0], 0.0) / max(sum(numbers.values()), 1)
    return {name: ms + each * numbers.get(name, 0) for name, ms in times.items()}


def _only_user(node: ir.Node) -> ir.Node | None:
    output = node.outputs[0]
    users = {use.node for use in output.uses()}
    return next(iter(users)) if len(users) == 1 and not output.is_graph_output() else None


def _maker(value: ir.Value, place: Mapping[ir.Node, int]) -> ir.Node | None:
    """Give the plan's operator that makes a value, perhaps through the clamp that it absorbs."""
    producer = value.producer()
    if producer is None or producer in place:
        return producer
    before = producer.inputs[0].producer() if producer.inputs and producer.inputs[0] is not None else None
    if before is None or before not in place:
        return None
    return before if final_output(before)[0] is value else None


def _float_side(
    members: Sequence[ir.Node], flow: Mapping[tuple[int, int], int], source: int, sink: int
) -> frozenset[str]:
    edges = np.array([*flow], np.int64).reshape(-1, 2)
    # Capacities are 32-bit in scipy: nanoseconds of networks up to two seconds.
    capacities = np.array([min(value, (1 << 31) - 1) for value in flow.values()], np.int32)
    size = len(members) + 2
    # Loaded late: they are slow, and only measured networks are cut.
    sparse: Any = import_module("scipy.sparse")
    csgraph: Any = import_module("scipy.sparse.csgraph")
    network = sparse.csr_array((capacities, (edges[:, 0], edges[:, 1])), shape=(size, size))
    left = network - csgraph.maximum_flow(network, source, sink).flow
    left.data = np.where(left.data > 0, left.data, 0)
    left.eliminate_zeros()
    integers = set(csgraph.breadth_first_order(left, source, return_predecessors=False).tolist())
    return frozenset(str(node.name) for index, node in enumerate(members) if index not in integers)


def _borders(plan: StaticPlan) -> Iterator[ir.Value]:
    """Yield the tensors that are converted where the whole plan runs in integers."""
    members = {layer.node for layer in plan.layers} | set(plan.followers)
    for value, produced in plan.tensors.items():
        if not produced or any(use.node not in members for use in value.uses()) or value.is_graph_output():
            yield value


def _times(members: Sequence[ir.Node], costs: Sequence[OpCost]) -> dict[str, float]:
    """Match profiled nodes with the operators they came from: the runtime renames what it fuses or lays out anew."""
    by_name: dict[str, float] = {}
    for cost in costs:
        if cost.op_type not in CONVERSIONS | _MOVES:
            name = (cost.node or "").partition("_token_")[0].removesuffix("_nchwc")
            by_name[name] = by_name.get(name, 0.0) + cost.ms
    return {str(node.name): sum(by_name.get(alias, 0.0) for alias in _aliases(node)) for node in members if node.name}


def _aliases(node: ir.Node) -> set[str]:
    found = {str(node.name), str(node.outputs[0].name), str(final_output(node)[0].name)}
    user = _only_user(node)
    return found | {str(user.outputs[0].name)} if user is not None and user.op_type in _FUSED_IN_FLOAT else found
