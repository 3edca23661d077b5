"""Which layers run in integers, which operators between them stay there too, and which tensors are therefore quantized.

ONNX Runtime turns DequantizeLinear -> op -> QuantizeLinear into one integer kernel. So a region of integer operators must
be closed: every activation that enters an operator is quantized, and so is what leaves it, or the pair that was inserted
stays in the graph, alone, and costs more than it saves.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from engine.graph.attributes import integer
from engine.graph.linear import BOTH_ACTIVATIONS, STANDARD, LinearLayer, is_constant, node_name, read

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
# Operators with an integer kernel of their own: inputs and output have their own scales.
COMPUTES = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"})
# Operators that only move or select numbers: the output keeps its input's scale, so they run on the integers as they are.
MOVES = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"})
# They shrink what passes through, so they are worth an integer kernel even where a float operator follows.
REDUCES = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool"})
# Layers that stay in float because ONNX Runtime's static integer kernels do not cover them.
NO_KERNEL = {
    "ConvTranspose": "ONNX Runtime has no integer kernel for it on processors, so it would compute in float between conversions",
    "LSTM": "ONNX Runtime has no static integer kernel for it; quantize_dynamic has one",
    "GRU": "ONNX Runtime has no integer kernel for it",
    "RNN": "ONNX Runtime has no integer kernel for it",
}
# A product with fewer weights on the left costs more in conversions than it saves.
_SMALLEST_LEFT = 1024
_VARIADIC = frozenset({"Add", "Mul", "Concat"})


@dataclass
class StaticPlan:
    """What will be quantized."""

    layers: list[LinearLayer] = field(default_factory=list)
    followers: list[ir.Node] = field(default_factory=list)
    # Matrix products of two activations that run in integers too.
    products: list[ir.Node] = field(default_factory=list)
    # Matrix products whose weights are on the left: uint8 there, one scale, because ONNX Runtime has no other kernel for it.
    left: list[LinearLayer] = field(default_factory=list)
    # Every quantized tensor, in topological order; True where an integer operator produces it.
    tensors: dict[ir.Value, bool] = field(default_factory=dict)
    # Tensors that must share scale and zero point with an earlier one.
    same_as: dict[ir.Value, ir.Value] = field(default_factory=dict)
    # Relu and Clip nodes that the saturation of a quantized tensor replaces, by that tensor (the node's output).
    absorbed: dict[ir.Value, ir.Node] = field(default_factory=dict)
    # Layers that stay in float, and why.
    refused: dict[str, str] = field(default_factory=dict)

    def root(self, value: ir.Value) -> ir.Value:
        """The tensor whose range sets this one's scale."""
        while value in self.same_as:
            value = self.same_as[value]
        return value


def make_plan(model: ir.Model, exclude: frozenset[str] = frozenset(), *, products: bool = False) -> StaticPlan:
    """Decide what to quantize in the network's main graph; nothing is changed.

    `products`: also products of two activations, as attention has them.
    """
    plan = StaticPlan()
    layers = _choose_layers(model, plan, exclude, products=products)
    integers = _reachable(model.graph, layers, exclude)
    kept = _worthwhile(model.graph, layers, integers)
    multiplied, turned = set(plan.products), {layer.node: layer for layer in plan.left}
    for node in model.graph:
        if node in layers:
            plan.layers.append(layers[node])
            _add(plan, layers[node].input, produced=False)
            _add_output(plan, node, kept, layers)
        elif node in multiplied:
            for value in node.inputs:
                _add(plan, _present(value), produced=False)
        elif node in turned:
            _add(plan, turned[node].input, produced=False)
            _add_output(plan, node, kept, layers)
        elif node in kept:
            plan.followers.append(node)
            for value in _activations(node):
                _add(plan, value, produced=False)
            _add_output(plan, node, kept, layers)
            if node.op_type in MOVES:
                plan.same_as[node.outputs[0]] = _present(node.inputs[0])
    return plan


def _choose_layers(
    model: ir.Model, plan: StaticPlan, exclude: frozenset[str], *, products: bool
) -> dict[ir.Node, LinearLayer]:
    """Give the layers; products and what is refused go into the plan."""
    layers: dict[ir.Node, LinearLayer] = {}
    for node in model.graph:
        if node.domain not in STANDARD:
            continue
        if node.op_type in NO_KERNEL:
            plan.refused[node_name(node)] = NO_KERNEL[node.op_type]
        elif node.op_type in LAYERS:
            found = _layer(node, exclude)
            if isinstance(found, LinearLayer):
                if found.on_left:
                    plan.left.append(found)
                else:
                    layers[node] = found
            elif products and found == BOTH_ACTIVATIONS:
                plan.products.append(node)
            else:
                plan.refused[node_name(node)] = found
    return layers


def final_output(node: ir.Node) -> tuple[ir.Value, ir.Node | None]:
    """Give the tensor that an integer operator hands on: after its only consumer where that is a Relu or Clip."""
    output = node.outputs[0]
    users = tuple(use.node for use in output.uses())
    if len(users) == 1 and not output.is_graph_output() and is_clamp(users[0]) and node.op_type not in MOVES:
        return users[0].outputs[0], users[0]
    return output, None


def is_clamp(node: ir.Node) -> bool:
    """Say whether a node is Relu, or Clip with constant bounds around zero: saturation can do its work."""
    if node.op_type == "Relu":
        return True
    low, high = clamp_bounds(node) if node.op_type == "Clip" else (None, None)
    return low is not None and high is not None and low <= 0 < high


def clamp_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Give the bounds of a Relu or Clip; None where a bound is not constant."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds: list[float | None] = []
    for index, absent in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            bounds.append(absent)
        else:
            constant = ir.convenience.get_const_tensor(value)
            bounds.append(None if constant is None or constant.size != 1 else float(constant.numpy().reshape(())))
    return bounds[0], bounds[1]


def _layer(node: ir.Node, exclude: frozenset[str]) -> LinearLayer | str:
    """Give the layer, or say why it stays in float."""
    if node.name in exclude:
        return "excluded by the recipe"
    layer = read(node)
    if not isinstance(layer, LinearLayer):
        return layer or f"{node.op_type} is no layer"
    return next(_objections(layer), layer)


def _objections(layer: LinearLayer) -> Iterator[str]:
    if layer.on_left and layer.tensor.size < _SMALLEST_LEFT:
        yield f"its weights are on the left, and fewer than {_SMALLEST_LEFT}"
    if layer.on_left and layer.reads_vector:
        yield "its input is a vector"
    if layer.reads_transposed:
        yield "its input is transposed"
    for name, factor in (("alpha", layer.alpha), ("beta", layer.beta)):
        if factor != 1.0:
            yield f"{name} is not 1"
    if layer.bias is not None:
        yield from _bias_objections(layer, layer.bias)
    if not np.isfinite(layer.tensor.numpy()).all():
        yield "its weights hold NaN or infinity"


def _bias_objections(layer: LinearLayer, bias: ir.Value) -> Iterator[str]:
    if not is_constant(bias) or bias.const_value is None:
        yield "its bias is not constant"
        return
    shape = tuple(bias.const_value.shape.numpy())
    if not layer.is_convolution and (shape[-1:] != (layer.outputs,) or math.prod(shape) != layer.outputs):
        yield "its bias is not one number per output"


def _reachable(graph: ir.Graph, layers: Mapping[ir.Node, LinearLayer], exclude: frozenset[str]) -> set[ir.Node]:
    """Find the operators between layers whose activations are all integers already."""
    integer: set[ir.Value] = {layer.input for layer in layers.values()}
    found: set[ir.Node] = set()
    for node in graph:
        if node in layers:
            integer.add(final_output(node)[0])
        elif _can_follow(node, exclude) and all(value in integer for value in _activations(node)):
            found.add(node)
            integer.add(final_output(node)[0])
    return found


def _worthwhile(graph: ir.Graph, layers: Mapping[ir.Node, LinearLayer], candidates: set[ir.Node]) -> set[ir.Node]:
    """Keep the operators that feed integer operators, or that save more than the pair of nodes at their end costs."""
    kept: set[ir.Node] = set()
    for node in reversed(list(graph)):
        if node not in candidates:
            continue
        output, _ = final_output(node)
        wanted = any(use.node in layers or use.node in kept for use in output.uses())
        if wanted or node.op_type in REDUCES or (node.op_type in _VARIADIC and len(_activations(node)) > 1):
            kept.add(node)
    return kept


def _can_follow(node: ir.Node, exclude: frozenset[str]) -> bool:
    if node.domain not in STANDARD or node.name in exclude:
        return False
    if node.op_type not in COMPUTES | MOVES or len(node.outputs) != 1:
        return False
    activations = _activations(node)
    if not activations or any(value.is_initializer() for value in activations):
        return False
    if node.op_type in {"Add", "Mul"}:
        return len(set(activations)) == len(activations)
    return not (node.op_type == "AveragePool" and integer(node, "ceil_mode", 0))


def _activations(node: ir.Node) -> list[ir.Value]:
    """List the inputs that hold activations: the others are shapes and axes."""
    count = None if node.op_type in _VARIADIC else 1
    return [value for value in node.inputs[:count] if value is not None]


def _add_output(plan: StaticPlan, node: ir.Node, kept: set[ir.Node], layers: Mapping[ir.Node, LinearLayer]) -> None:
    output, clamp = final_output(node)
    # The integer kernels of matrix products can give out float, which saves the pair of nodes where a float operator follows;
    # but ONNX Runtime does not take them where there is a Relu or Clip between.
    wanted = clamp is not None or any(use.node in kept or use.node in layers for use in output.uses())
    if node.op_type in {"Gemm", "MatMul"} and not wanted:
        return
    _add(plan, output, produced=True)
    if clamp is not None:
        plan.absorbed[output] = clamp


def _add(plan: StaticPlan, value: ir.Value, *, produced: bool) -> None:
    plan.tensors.setdefault(value, produced)


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def subgraph_layers(model: ir.Model) -> Iterator[ir.Node]:
    """Yield layers inside If, Loop and Scan bodies: they stay in float."""
    for node in model.graph.all_nodes():
        if node.graph is not model.graph and node.op_type in LAYERS:
            yield node
