"""Weights rounded for the inputs that a layer really gets (GPTQ), and biases that keep its mean output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.calibrate.paired import cut
from engine.contract import Context, Samples
from engine.data.batches import sample_count
from engine.data.subsets import First
from engine.graph import io
from engine.graph.activations import affordable_batch
from engine.graph.linear import LinearLayer
from engine.quantize import integer_types
from engine.quantize.kernel_order import kernel_matrix, kernel_order
from engine.quantize.rounding import round_with
from engine.quantize.static_plan import StaticPlan
from engine.quantize.static_writer import Overrides
from engine.runtime import sessions
from engine.solve.gram import Gram, Moments, patches, positions

_BATCH = 16
# Rows of a layer's input that are looked at, over all samples.
_ROWS = 8192
_ROWS_PER_INPUT = 16
_STAGE_BYTES = 256 << 20
# X^T X of a layer with more inputs takes more time to factorise than the step may cost.
_MOST_INPUTS = 4608

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Solution:
    """Rounded weights, and the shift of biases that each rounding needs; by the name of the layer's output."""

    weights: dict[str, integer_types.QuantizedWeight]
    shifts_nearest: dict[str, npt.NDArray[np.float32]]
    shifts_rounded: dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Prefix:
    """A network whose layers' inputs are looked at, and the names that tensors of the float network have in it."""

    model: ir.Model
    names: dict[str, str]


def solve(
    model: ir.Model,
    plan: StaticPlan,
    types: integer_types.IntegerTypes,
    context: Context,
    overrides: Overrides,
    *,
    per_channel: bool,
    samples: int,
    prefix: Prefix | None = None,
) -> Solution:
    """Look at the inputs of all layers once, on at most so many samples, and solve for weights and biases.

    `prefix`: the network that inputs are taken from, quantized as far as is known; by default the float one.
    """
    prefix = prefix or Prefix(model, {})
    found = Solution({}, {}, {})
    assert context.calibration is not None
    looked_at = First(context.calibration, samples)
    for stage in stages(plan.layers):
        sums = _moments(prefix, stage, looked_at, context)
        for layer in stage:
            name = _name(layer)
            with context.working():
                nearest = overrides.weights.get(name) or integer_types.quantize_weight(
                    _matrix(layer), types.rule, per_channel=per_channel
                )
                rounded = _rounded(layer, sums[name], nearest, types.rule)
                found.weights[name] = rounded
                found.shifts_nearest[name] = _shift(layer, sums[name], nearest)
                found.shifts_rounded[name] = _shift(layer, sums[name], rounded)
    return found


def _moments(
    prefix: Prefix, layers: Sequence[LinearLayer], samples: Samples, context: Context
) -> dict[str, list[Moments]]:
    """Give X^T X of the layers' inputs, per group, over some rows of each sample."""
    grams = _summed(prefix, layers, samples, context)
    found = {}
    for layer in layers:
        # Let go of as it is read: all of them take as much again.
        gram = grams.pop(_name(layer))
        found[_name(layer)] = [gram.moments(group) for group in range(layer.groups)]
    return found


def _summed(prefix: Prefix, layers: Sequence[LinearLayer], samples: Samples, context: Context) -> dict[str, Gram]:
    """Run the samples and add up the layers' inputs."""
    model = prefix.model
    inputs = {layer.node: prefix.names.get(str(layer.input.name), str(layer.input.name)) for layer in layers}
    names = sorted(set(inputs.values()) - {value.name for value in model.graph.inputs})
    part = cut(model, names) if names else model
    session = sessions.session(io.to_bytes(part), context.untimed) if names else None
    grams = {_name(layer): Gram(layer.inputs, groups=layer.groups, block=256) for layer in layers}
    first = 0
    fixed = fixed_batch(model, samples)
    size = fixed or affordable_batch(part, samples, _BATCH, budget=context.run_bytes, target=context.untimed)
    for feed in samples.batches(size):
        length = sample_count(feed)
        if fixed and length < fixed:
            break
        with context.working():
            given = {**feed, **(session.run(feed) if session is not None else {})}
            for layer in layers:
                gram = grams[_name(layer)]
                rows = max(_ROWS, _ROWS_PER_INPUT * layer.inputs) // len(samples) + 1
                gram.update(_rows(layer, given[inputs[layer.node]], first, length, rows))
            # The next run's tensors would come on top.
            del given
        first += length
    return grams


def _rows(layer: LinearLayer, x: Floats, first: int, count: int, keep: int) -> Floats:
    """Give some rows that a layer multiplies with its weights, the same ones whatever batch a sample comes in."""
    geometry = layer.window()
    if geometry is not None:
        places = int(np.prod(geometry.outputs(x.shape[2:])))
        return patches(x, geometry, positions(first, len(x), places, keep))
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) % count:
        return rows
    samples = rows.reshape(count, -1, rows.shape[1])
    chosen = positions(first, count, samples.shape[1], keep)
    return samples[np.arange(count)[:, None], chosen].reshape(-1, rows.shape[1])


def stages(layers: Sequence[LinearLayer]) -> Iterator[list[LinearLayer]]:
    """Group layers, in their order, so that the sums of a group fit into memory together."""
    stage: list[LinearLayer] = []
    size = 0
    for layer in layers:
        inputs = layer.inputs
        if inputs > _MOST_INPUTS:
            continue
        need = 8 * layer.groups * inputs * inputs
        if stage and size + need > _STAGE_BYTES:
            yield stage
            stage, size = [], 0
        stage.append(layer)
        size += need
    if stage:
        yield stage


def _rounded(
    layer: LinearLayer,
    moments: Sequence[Moments],
    nearest: integer_types.QuantizedWeight,
    rule: integer_types.WeightRule,
) -> integer_types.QuantizedWeight:
    matrix, order = _matrix(layer), kernel_order(layer)
    size = len(matrix) // len(moments)
    values = [
        round_with(
            matrix[at * size : (at + 1) * size],
            part.xtx[np.ix_(order, order)],
            nearest.scale[at * size : (at + 1) * size],
            rule,
        )
        for at, part in enumerate(moments)
    ]
    return integer_types.measured(np.concatenate(values), nearest)


def _shift(
    layer: LinearLayer, moments: Sequence[Moments], rounded: integer_types.QuantizedWeight
) -> npt.NDArray[np.float32]:
    """Give what rounding takes off the layer's mean output."""
    error = _matrix(layer).astype(np.float64) - rounded.values * rounded.scale[:, None].astype(np.float64)
    order = kernel_order(layer)
    parts = np.split(error, len(moments))
    shifts = [part @ (each.x_sum / max(each.rows, 1))[order] for part, each in zip(parts, moments, strict=True)]
    return np.concatenate(shifts).astype(np.float32)


def _matrix(layer: LinearLayer) -> Floats:
    return kernel_matrix(layer).astype(np.float32)


def _name(layer: LinearLayer) -> str:
    return str(layer.node.outputs[0].name)
