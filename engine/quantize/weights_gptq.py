"""Weights of few bits that are rounded for the inputs that a layer really gets, layer after layer, and judged on other rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from engine.calibrate.paired import Sums, Tap, in_stages, paired_moments
from engine.contract import Context
from engine.graph import io
from engine.graph.derived import Opened
from engine.quantize.weights_plan import StoredLayer
from engine.solve import Quantized, gptq, reconstruct, round_to_nearest

_CALIBRATION_RUNS = 256
# Shares of the inputs' mean energy that GPTQ adds to each: with few rows, more of it keeps from fitting to their noise.
_DAMPINGS = {"gptq": 0.01, "gptq, damped": 0.1}


@dataclass(frozen=True)
class SolvedLayer:
    """A layer's rounding of the least error on held-out rows."""

    layer: StoredLayer
    quantized: Quantized
    method: str
    # By method: mean square error of the outputs, as a share of their energy.
    held_out_error: dict[str, float]
    # Of the input that was fitted to.
    rows: int

    def weight_sqnr_db(self) -> float | None:
        """Give the ratio of signal to noise of the weights themselves, in dB; None where it is not finite."""
        with Opened(self.layer.tensor) as array:
            weights = np.array(self.layer.matrix(array), np.float64)
            del array
        noise = float(np.square(self.quantized.values() - weights).sum())
        energy = float(np.square(weights).sum())
        return round(10 * math.log10(energy / noise), 2) if noise > 0 and energy > 0 else None


def is_solvable(layer: StoredLayer, model: ir.Model) -> bool:
    """Say whether a layer's inputs can be observed: it stands in the main graph, alone with its weights, and multiplies."""
    return layer.linear is not None and layer.node.graph is model.graph and len(layer.weight.uses()) == 1


def solve(
    model: ir.Model, layers: Sequence[StoredLayer], context: Context, *, activation_order: bool
) -> Iterator[SolvedLayer]:
    """Quantize layer after layer; the caller must write each result into the model before it asks for the next."""
    assert context.calibration is not None
    teacher = io.copy(model)
    done = 0
    for stage in in_stages(layers):
        taps = {layer.name: _tap(layer) for layer in stage}
        sums = paired_moments(
            teacher,
            model,
            taps,
            context.calibration,
            context.target,
            select=context.select,
            runs=_CALIBRATION_RUNS,
            working=context.working,
        )
        # The whole stage is solved before any of it is written: its layers saw the same prefix.
        solved = []
        for layer in stage:
            with context.working():
                solved.append(_best(layer, taps[layer.name], sums[layer.name], activation_order=activation_order))
        yield from solved
        done += len(stage)
        context.progress(0.7 * done / len(layers), f"solved {done} of {len(layers)} layers")


def _tap(layer: StoredLayer) -> Tap:
    with Opened(layer.tensor) as array:
        weights = np.array(layer.matrix(array), np.float64)
        del array
    assert layer.linear is not None
    return Tap(str(layer.linear.input.name), weights, layer.linear.window())


def _best(layer: StoredLayer, tap: Tap, sums: Sums, *, activation_order: bool) -> SolvedLayer:
    """Give the candidate of the least error on held-out rows."""
    weights = tap.weights.reshape(tap.groups, -1, layer.inputs)
    grid: dict[str, Any] = {"bits": layer.bits, "group": layer.group, "symmetric": layer.symmetric}
    found: dict[str, list[Quantized]] = {
        "rtn": [round_to_nearest(part.astype(np.float32), **grid) for part in weights],
        "rtn, ranges searched": [round_to_nearest(part.astype(np.float32), search=16, **grid) for part in weights],
    }
    grid |= {"activation_order": activation_order, "sweeps": 2}
    for name, damping in _DAMPINGS.items():
        pairs = zip(weights, sums.fit, strict=True)
        found[name] = [gptq(part, fit.xtx, damping=damping, **grid) for part, fit in pairs]
    errors = {name: _held_out_error(parts, sums) for name, parts in found.items()}
    damped = min(_DAMPINGS, key=lambda name: errors[name])
    # What the layer should be on the inputs that it gets now, rounded instead of what it was.
    aimed = []
    for part, fit, held_out, plain in zip(weights, sums.fit, sums.held_out, found[damped], strict=True):
        aim = reconstruct(fit, part, None, held_out=held_out, fit_bias=False)
        aimed.append(gptq(aim.weights, fit.xtx, damping=_DAMPINGS[damped], **grid) if aim.better else plain)
    found["gptq, aimed"] = aimed
    errors["gptq, aimed"] = _held_out_error(aimed, sums)
    best = min(errors, key=lambda name: errors[name])
    energy = sum(float(rows.y_squares.sum()) / max(rows.rows, 1) / len(rows.y_squares) for rows in sums.held_out)
    shares = {name: _round(error / energy) if energy > 0 else 0.0 for name, error in errors.items()}
    return SolvedLayer(layer, _join(found[best]), best, shares, sums.fit[0].rows)


def _held_out_error(parts: Sequence[Quantized], sums: Sums) -> float:
    return sum(rows.error(part.values()) for rows, part in zip(sums.held_out, parts, strict=True))


def _join(parts: Sequence[Quantized]) -> Quantized:
    return Quantized(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.zero for part in parts]),
        parts[0].bits,
        parts[0].group,
    )


def _round(value: float) -> float:
    return float(f"{value:.4g}")
