"""Channels that say nothing: what makes them is zero, or what reads them; they can go without changing any result."""

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
from engine.errors import EngineError
from engine.graph import io, verify
from engine.graph.coupling import Coupling, analyse
from engine.graph.slicing import remove
from engine.prune.matrices import integer, store

Array = npt.NDArray[Any]

# Removing what is silent reorders sums at most.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class _Channels:
    """What each channel of a value always is; NaN where that depends on the input. The axis counts from the end."""

    axis: int
    values: Array


def remove_silent(model: ir.Model, context: Context) -> dict[str, int] | str:
    """Remove silent channels in place and say what went, or why nothing did."""
    candidate = io.copy(model)
    _deafen(candidate)
    if not _has_zero_lines(candidate):
        return "no whole row or channel of weights is zero"
    try:
        coupling = analyse(candidate)
        atoms = _silent(candidate, coupling)
        if not atoms:
            return "the zero rows and channels are tied to others that are not zero"
        pruned = remove(candidate, coupling, atoms)
        if not _agree(model, pruned, context):
            return "without its zero channels the network gave other results"
    except EngineError as error:
        # The zeros themselves are worth having; a network that cannot be cut keeps its shape.
        return f"the network cannot be cut: {error.message}"
    before = _parameters(model)
    model.graph = pruned.graph
    return {"channels": len(atoms), "parameters": before - _parameters(model)}


def _parameters(model: ir.Model) -> int:
    return sum(value.const_value.size for _, value in io.initializers(model) if value.const_value is not None)


def _agree(model: ir.Model, pruned: ir.Model, context: Context) -> bool:
    assert context.calibration is not None
    size = fixed_batch(model, context.calibration) or 2
    feed = padded(next(iter(context.calibration.batches(size))), size)
    with tempfile.TemporaryDirectory(prefix="silence-") as folder:
        paths = [Path(folder, "before.onnx"), Path(folder, "after.onnx")]
        for network, path in zip((model, pruned), paths, strict=True):
            io.save(network, path)
        return verify.same_outputs(paths[0], paths[1], [feed], context.target).relative <= _TOLERANCE


def _silent(model: ir.Model, coupling: Coupling) -> list[int]:
    """Choose the sets of channels that nobody hears: all weights that read them are zero."""
    loud: set[int] = set()
    for member in coupling.members:
        tensor = model.graph.initializers[member.initializer].const_value
        if member.role == "in" and tensor is not None:
            array = tensor.numpy()
            loud.update(np.unique(np.broadcast_to(member.labels.atoms, array.shape)[array != 0]).tolist())
    for sink in coupling.sinks:
        loud.update(np.unique(sink.labels.atoms).tolist())
    read = {
        atom for member in coupling.members if member.role == "in" for atom in np.unique(member.labels.atoms).tolist()
    }
    gone: list[int] = []
    for group in coupling.groups:
        quiet = [atom for atom in group.atoms if atom in read and atom not in loud]
        if not quiet:
            continue
        scores = {atom: float(atom not in quiet) for atom in group.atoms}
        for unit in coupling.choose(group, len(quiet), scores, gone):
            if all(scores[atom] == 0 for atom in unit.atoms):
                gone.extend(unit.atoms)
    return gone


def _has_zero_lines(model: ir.Model) -> bool:
    for node in model.graph:
        weight = _weights(node)
        if weight is not None and any(
            not np.any(weight, axis=tuple(other for other in range(weight.ndim) if other != axis)).all()
            for axis in (0, 1)
        ):
            return True
    return False


def _deafen(model: ir.Model) -> None:
    """Set to zero what reads channels that are always zero."""
    known: dict[ir.Value, _Channels] = {}
    for node in model.graph:
        source = known.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        weight = _weights(node)
        if weight is not None and source is not None:
            weight = _ignoring(node, weight, source)
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain not in {"", "ai.onnx"}:
            continue
        found = rule(node, known)
        if found is not None and not np.isnan(found.values).all():
            known[node.outputs[0]] = found


def _ignoring(node: ir.Node, weight: Array, source: _Channels) -> Array:
    zero = source.values == 0
    if node.op_type == "Conv":
        own = integer(node, "group", 1) == 1 and source.axis == 1 - weight.ndim and weight.shape[1] == len(zero)
        axis = 1
    else:
        axis = 1 if node.op_type == "Gemm" and integer(node, "transB", 0) else 0
        own = source.axis == -1 and weight.shape[axis] == len(zero)
    if not own or not zero.any():
        return weight
    quiet = np.array(weight)
    np.moveaxis(quiet, axis, 0)[zero] = 0
    value = node.inputs[1]
    assert value is not None
    if len(value.uses()) == 1:
        store(value, quiet)
    return quiet


def _weights(node: ir.Node) -> Array | None:
    """Give a layer's float32 matrix or kernel."""
    if node.op_type not in {"Conv", "MatMul", "Gemm"} or node.domain not in {"", "ai.onnx"}:
        return None
    tensor = _constant(node.inputs[1])
    if tensor is None or tensor.dtype != np.float32 or tensor.ndim < 2 + (node.op_type == "Conv"):
        return None
    return None if node.op_type != "Conv" and tensor.ndim != 2 else tensor


def _constant(value: ir.Value | None) -> Array | None:
    if value is None or not value.is_initializer() or value.const_value is None or value.is_graph_input():
        return None
    found: Array = value.const_value.numpy()
    return found


Known = Mapping[ir.Value, _Channels]


def _layer(node: ir.Node, known: Known) -> _Channels | None:
    weight = _weights(node)
    if weight is None or (node.op_type == "Gemm" and integer(node, "transA", 0)):
        return None
    if node.op_type == "Conv":
        axis = 1 - weight.ndim
        dead = np.asarray(~weight.reshape(len(weight), -1).any(axis=1))
        source = known.get(node.inputs[0]) if node.inputs[0] is not None else None
        if source is not None and integer(node, "group", 1) == len(weight) == len(source.values):
            dead |= source.values == 0
    else:
        axis = -1
        dead = np.asarray(~weight.any(axis=1 if node.op_type == "Gemm" and integer(node, "transB", 0) else 0))
    bias: Array = np.zeros(1)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = _constant(node.inputs[2])
        if given is None or given.size not in {1, len(dead)}:
            return None
        beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
        bias = given.reshape(-1) * beta
    return _Channels(axis, np.where(dead, bias, np.nan))


def _of_input(change: Callable[[ir.Node, Array], Array]) -> Callable[[ir.Node, Known], _Channels | None]:
    def rule(node: ir.Node, known: Known) -> _Channels | None:
        source = known.get(node.inputs[0]) if node.inputs[0] is not None else None
        return None if source is None else _Channels(source.axis, change(node, source.values))

    return rule


def _zero_stays(_: ir.Node, values: Array) -> Array:
    return np.where(values == 0, 0.0, np.nan)


def _leaky(node: ir.Node, values: Array) -> Array:
    slope = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01
    return np.where(values < 0, slope * values, values)


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
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    return (values - mean) / np.sqrt(variance + epsilon) * scale + shift


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
    **dict.fromkeys(("Conv", "MatMul", "Gemm"), _layer),
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
