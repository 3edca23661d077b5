"""The scales of a quantized graph: which quantized tensors share one because kernels need it, and which only by chance."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import onnx_ir as ir

from engine.graph import io
from engine.graph.linear import STANDARD, is_constant

# Operators that hand integers on as they are: ONNX Runtime runs them without conversions only if what they read and what
# they give have equal scales. The values are the inputs that count; None: all of them.
HANDS_ON: Mapping[str, int | None] = {
    "Concat": None, "DepthToSpace": 1, "Expand": 1, "Flatten": 1, "Gather": 1, "Identity": 1, "MaxPool": 1, "Pad": 1,
    "Reshape": 1, "Resize": 1, "Slice": 1, "SpaceToDepth": 1, "Split": 1, "Squeeze": 1, "Tile": 1, "Transpose": 1,
    "Unsqueeze": 1,
}  # fmt: skip
# What may stand between a QuantizeLinear and the DequantizeLinear that restores its integers.
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_BOUNDS = {ir.DataType.UINT8: (0, 255), ir.DataType.INT8: (-128, 127)}


@dataclass(frozen=True)
class Pair:
    """A QuantizeLinear and all DequantizeLinear that restore its integers, with the one scale of them all."""

    quantize: ir.Node
    dequantize: tuple[ir.Node, ...]
    scale: float
    zero: int
    # Of the codes, the zero point taken off.
    low: int
    high: int

    @property
    def alike(self) -> tuple[float, int, int, int]:
        """What kernels compare."""
        return self.scale, self.zero, self.low, self.high


@dataclass(frozen=True)
class ActivationScale:
    """A scale that is trained, and the pairs that it belongs to: more than one where kernels need them equal."""

    name: str
    pairs: tuple[Pair, ...]

    @property
    def value(self) -> float:
        """The scale as it is stored."""
        return self.pairs[0].scale


def pairs(model: ir.Model) -> list[Pair]:
    """List the quantized activations of the main graph whose scale can be trained: one constant number, used by nobody else."""
    found = [_pair(node) for node in model.graph if node.op_type == "QuantizeLinear" and node.domain in STANDARD]
    return [pair for pair in found if pair is not None]


def unshare_activations(model: ir.Model, found: Iterable[Pair]) -> list[ActivationScale]:
    """Give the pairs scales of their own, in place: one for all that kernels need equal. No number changes."""
    taken = io.value_names(model)
    groups = []
    for group in _tied(list(found)):
        value = unshared(model, cast("ir.Value", group[0].quantize.inputs[1]), taken)
        for pair in group:
            for node in (pair.quantize, *pair.dequantize):
                node.replace_input_with(1, value)
        groups.append(ActivationScale(str(value.name), tuple(group)))
    return groups


def unshared(model: ir.Model, value: ir.Value, taken: set[str]) -> ir.Value:
    """Give a copy of an initializer under a name of its own."""
    tensor = cast("ir.TensorProtocol", value.const_value)
    name = io.unused_name(taken, f"{value.name}_")
    stored = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    shape = ir.Shape(tensor.shape.numpy())
    copied = ir.Value(name=name, const_value=stored, type=ir.TensorType(tensor.dtype), shape=shape)
    model.graph.register_initializer(copied)
    return copied


def remove_unread(model: ir.Model) -> None:
    """Remove initializers that nothing reads any more."""
    for name, value in tuple(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del model.graph.initializers[name]


def scalar(value: ir.Value | None) -> float | None:
    """Read a constant of one number; None where it is anything else."""
    if value is None or not is_constant(value):
        return None
    array = cast("ir.TensorProtocol", value.const_value).numpy()
    return float(array.reshape(())) if array.size == 1 else None


def _pair(quantize: ir.Node) -> Pair | None:
    scale = scalar(quantize.inputs[1])
    zero_point = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    zero = 0.0 if zero_point is None else scalar(zero_point)
    kind = ir.DataType.UINT8
    if zero_point is not None and zero_point.const_value is not None:
        kind = zero_point.const_value.dtype
    elif "output_dtype" in quantize.attributes:
        kind = ir.DataType(quantize.attributes["output_dtype"].as_int())
    restoring = list(_restoring(quantize.outputs[0]))
    if scale is None or zero is None or kind not in _BOUNDS or not restoring or None in restoring:
        return None
    nodes = cast("list[ir.Node]", restoring)
    if any(scalar(node.inputs[1]) != scale or _zero_of(node) != zero for node in nodes):
        return None
    low, high = _BOUNDS[kind]
    return Pair(quantize, tuple(nodes), scale, int(zero), low - int(zero), high - int(zero))


def _zero_of(node: ir.Node) -> float | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return 0.0 if value is None else scalar(value)


def _restoring(value: ir.Value) -> Iterator[ir.Node | None]:
    """Yield the nodes that restore integers, through what only moves them; None for any other reader."""
    if value.is_graph_output():
        yield None
    for node, index in value.uses():
        if index or node.domain not in STANDARD or node.graph is not _graph_of(value):
            yield None
        elif node.op_type == "DequantizeLinear":
            yield node
        elif node.op_type in _MOVES:
            yield from _restoring(node.outputs[0])
        else:
            yield None


def _graph_of(value: ir.Value) -> ir.Graph | ir.Function | None:
    producer = value.producer()
    return None if producer is None else producer.graph


def _tied(found: list[Pair]) -> Iterator[list[Pair]]:
    """Yield sets of pairs whose scales kernels need equal, as far as they are equal."""
    parent = list(range(len(found)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    restored = {node.outputs[0]: number for number, pair in enumerate(found) for node in pair.dequantize}
    for number, pair in enumerate(found):
        before = list(_handed_on(pair.quantize.inputs[0]))
        sources = [restored[value] for value in before if value in restored]
        if len(sources) == len(before) and all(found[source].alike == pair.alike for source in sources):
            for source in sources:
                parent[root(source)] = root(number)
    groups: dict[int, list[Pair]] = {}
    for number, pair in enumerate(found):
        groups.setdefault(root(number), []).append(pair)
    yield from groups.values()


def _handed_on(value: ir.Value | None) -> Iterator[ir.Value]:
    """Yield the values whose numbers a tensor holds unchanged, seen through operators that hand them on."""
    producer = None if value is None else value.producer()
    if producer is None or producer.domain not in STANDARD or producer.op_type not in HANDS_ON:
        return
    for source in producer.inputs[: HANDS_ON[producer.op_type]]:
        if source is not None:
            deeper = list(_handed_on(source))
            yield from deeper or [source]
