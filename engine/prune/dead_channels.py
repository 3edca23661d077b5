"""Dead channels: what makes them is zero, or all that reads them; they can go without changing any result."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context
from engine.data.batches import padded
from engine.errors import ModelUnsupportedError, SpecInvalidError
from engine.graph import io, linear, verify
from engine.graph.attributes import integer, number
from engine.graph.coupling import Coupling, analyse
from engine.graph.linear import LinearLayer
from engine.graph.slicing import remove
from engine.report.pruning_details import RemovedChannels

Array = npt.NDArray[Any]

# Removing what is dead reorders sums at most.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class _Channels:
    """What each channel of a value always is; NaN where that depends on the input. The axis counts from the end."""

    axis: int
    values: Array


@dataclass(frozen=True)
class _Candidate:
    """A network without so many channels."""

    model: ir.Model
    channels: int


def remove_dead_channels(model: ir.Model, context: Context) -> RemovedChannels:
    """Remove dead channels in place and say what went, or why nothing did."""
    found = _without_dead_channels(model, context)
    if isinstance(found, str):
        return RemovedChannels(channels=0, reason=found)
    before = _parameters(model)
    model.graph = found.model.graph
    return RemovedChannels(channels=found.channels, parameters=before - _parameters(model))


def _without_dead_channels(model: ir.Model, context: Context) -> _Candidate | str:
    candidate = io.copy(model)
    _zero_what_reads_zeros(candidate)
    if not _has_zero_lines(candidate):
        return "no whole row or channel of weights is zero"
    try:
        coupling = analyse(candidate)
        atoms = _unread(candidate, coupling)
        if not atoms:
            return "the zero rows and channels are tied to others that are not zero"
        pruned = remove(candidate, coupling, atoms)
    except (ModelUnsupportedError, SpecInvalidError) as error:
        # The zeros themselves are worth having; a network that cannot be cut keeps its shape.
        return f"the network cannot be cut: {error.message}"
    if not _agree(model, pruned, context):
        return "without its zero channels the network gave other results"
    return _Candidate(pruned, len(atoms))


def _parameters(model: ir.Model) -> int:
    return sum(value.const_value.size for _, value in io.initializers(model) if value.const_value is not None)


def _agree(model: ir.Model, pruned: ir.Model, context: Context) -> bool:
    assert context.calibration is not None
    size = fixed_batch(model, context.calibration) or 2
    feed = padded(next(iter(context.calibration.batches(size))), size)
    with tempfile.TemporaryDirectory(prefix="dead-channels-") as folder:
        paths = [Path(folder, "before.onnx"), Path(folder, "after.onnx")]
        for network, path in zip((model, pruned), paths, strict=True):
            io.save(network, path)
        return verify.same_outputs(paths[0], paths[1], [feed], context.untimed).relative <= _TOLERANCE


def _unread(model: ir.Model, coupling: Coupling) -> list[int]:
    """Choose the sets of channels that nothing reads: all weights on them are zero."""
    needed: set[int] = set()
    for member in coupling.members:
        tensor = model.graph.initializers[member.initializer].const_value
        if member.role == "in" and tensor is not None:
            array = tensor.numpy()
            needed.update(np.unique(np.broadcast_to(member.labels.atoms, array.shape)[array != 0]).tolist())
    for sink in coupling.sinks:
        needed.update(np.unique(sink.labels.atoms).tolist())
    read = {
        atom for member in coupling.members if member.role == "in" for atom in np.unique(member.labels.atoms).tolist()
    }
    gone: list[int] = []
    for group in coupling.groups:
        idle = [atom for atom in group.atoms if atom in read and atom not in needed]
        if not idle:
            continue
        scores = {atom: float(atom not in idle) for atom in group.atoms}
        for unit in coupling.choose(group, len(idle), scores, gone):
            if all(scores[atom] == 0 for atom in unit.atoms):
                gone.extend(unit.atoms)
    return gone


def _has_zero_lines(model: ir.Model) -> bool:
    for node in model.graph:
        layer = linear.read(node)
        if not isinstance(layer, LinearLayer):
            continue
        weight = layer.tensor.numpy()
        if any(
            not np.any(weight, axis=tuple(other for other in range(weight.ndim) if other != axis)).all()
            for axis in (0, 1)
        ):
            return True
    return False


def _zero_what_reads_zeros(model: ir.Model) -> None:
    """Set to zero what reads channels that are always zero."""
    known: dict[ir.Value, _Channels] = {}
    for node in model.graph:
        layer = linear.read(node)
        if isinstance(layer, LinearLayer) and layer.input in known:
            _ignore_zeros(layer, known[layer.input])
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain not in {"", "ai.onnx"}:
            continue
        found = rule(node, known)
        if found is not None and not np.isnan(found.values).all():
            known[node.outputs[0]] = found


def _ignore_zeros(layer: LinearLayer, source: _Channels) -> None:
    zero = np.flatnonzero(source.values == 0)
    channels = layer.shape[1 if layer.node.op_type == "Conv" else 0] if layer.is_convolution else layer.inputs
    read = layer.groups == 1 and not layer.on_left and not layer.reads_transposed
    if not read or source.axis != _channel_axis(layer) or channels != len(source.values) or not len(zero):
        return
    if not layer.shared:
        matrix = np.array(layer.matrix())
        matrix[:, layer.columns(zero)] = 0
        layer.write(matrix)


def _channel_axis(layer: LinearLayer) -> int:
    return 1 - len(layer.shape) if layer.is_convolution else -1


def _constant(value: ir.Value | None) -> Array | None:
    if value is None or not value.is_initializer() or value.const_value is None or value.is_graph_input():
        return None
    found: Array = value.const_value.numpy()
    return found


Known = Mapping[ir.Value, _Channels]


def _layer(node: ir.Node, known: Known) -> _Channels | None:
    layer = linear.read(node)
    if not isinstance(layer, LinearLayer) or layer.on_left or layer.reads_transposed:
        return None
    dead = np.asarray(~layer.matrix().any(axis=1))
    source = known.get(layer.input)
    if layer.is_convolution and source is not None and layer.groups == len(dead) == len(source.values):
        dead |= source.values == 0
    bias: Array = np.zeros(1)
    if layer.bias is not None:
        given = _constant(layer.bias)
        if given is None or given.size not in {1, len(dead)}:
            return None
        bias = given.reshape(-1) * layer.beta
    return _Channels(_channel_axis(layer), np.where(dead, bias, np.nan))


def _of_input(change: Callable[[ir.Node, Array], Array]) -> Callable[[ir.Node, Known], _Channels | None]:
    def rule(node: ir.Node, known: Known) -> _Channels | None:
        source = known.get(node.inputs[0]) if node.inputs[0] is not None else None
        return None if source is None else _Channels(source.axis, change(node, source.values))

    return rule


def _zero_stays(_: ir.Node, values: Array) -> Array:
    return np.where(values == 0, 0.0, np.nan)


def _leaky(node: ir.Node, values: Array) -> Array:
    return np.where(values < 0, number(node, "alpha", 0.01) * values, values)


def _clip(node: ir.Node, values: Array) -> Array:
    bounds = [_constant(value) if value is not None else None for value in (*node.inputs, None, None)[1:3]]
    given = [value for value in node.inputs[1:] if value is not None]
    if any(name in node.attributes for name in ("min", "max")) or len(given) != sum(b is not None for b in bounds):
        return np.full_like(values, np.nan)
    low, high = (None if bound is None else float(bound) for bound in bounds)
    return values if low is None and high is None else np.clip(values, low, high)


def _normalise(node: ir.Node, values: Array) -> Array:
    vectors = [_constant(value) for value in node.inputs[1:5]]
    if any(vector is None for vector in vectors) or len(node.outputs) > 1:
        return np.full_like(values, np.nan)
    scale, shift, mean, variance = (np.asarray(vector, np.float64) for vector in vectors)
    return (values - mean) / np.sqrt(variance + number(node, "epsilon", 1e-5)) * scale + shift


def _pair(node: ir.Node, known: Known) -> _Channels | None:
    left, right = (known.get(value) if value is not None else None for value in node.inputs)
    if left is not None and right is not None:
        if (left.axis, len(left.values)) != (right.axis, len(right.values)):
            return None
        other = right.values
        one = left
    else:
        one_or_none = left or right
        constant = _constant(node.inputs[1] if left is not None else node.inputs[0])
        if one_or_none is None or constant is None:
            return None
        one = one_or_none
        if constant.size != 1 and (
            constant.ndim < -one.axis or constant.size != constant.shape[one.axis] or constant.size != len(one.values)
        ):
            return None
        other = constant.reshape(-1)
    if node.op_type == "Add":
        return _Channels(one.axis, one.values + other)
    product = one.values * other
    if left is not None and right is not None:
        product = np.where((one.values == 0) | (other == 0), 0.0, product)
    return _Channels(one.axis, product)


def _flatten(node: ir.Node, known: Known) -> _Channels | None:
    source = known.get(node.inputs[0]) if node.inputs[0] is not None else None
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    pooled = producer is not None and producer.op_type in {"GlobalAveragePool", "GlobalMaxPool"}
    return _Channels(-1, source.values) if source and pooled and integer(node, "axis", 1) == 1 else None


_RULES: dict[str, Callable[[ir.Node, Known], _Channels | None]] = {
    **dict.fromkeys(linear.OPERATORS, _layer),
    **dict.fromkeys(("Identity", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"), _of_input(lambda _, values: values)),
    **dict.fromkeys(("AveragePool", "Gelu", "HardSwish", "Erf", "Abs", "Elu", "Selu", "Mish"), _of_input(_zero_stays)),
    "Relu": _of_input(lambda _, values: np.maximum(values, 0)),
    "Tanh": _of_input(lambda _, values: np.tanh(values)),
    "LeakyRelu": _of_input(_leaky),
    "Clip": _of_input(_clip),
    "BatchNormalization": _of_input(_normalise),
    "Add": _pair,
    "Mul": _pair,
    "Flatten": _flatten,
}
