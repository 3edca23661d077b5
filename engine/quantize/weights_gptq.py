"""Weights of few bits that are rounded for the inputs that a layer really gets, layer after layer, and judged on other rows."""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.layer_inputs import LayerInputs, Site
from engine.contract import Context
from engine.graph.derived import Opened
from engine.quantize.weights_plan import StoredLayer
from engine.report.wording import rough_duration
from engine.runtime.processor import threads
from engine.solve.blas_threads import one_blas_thread, side_by_side
from engine.solve.gptq import Curvature, curvature, round_by
from engine.solve.grid import Quantized, round_to_nearest
from engine.solve.input_sums import Inputs

# Shares of the inputs' mean energy that GPTQ adds to each: with few rows, more of it keeps from fitting to their noise.
_DAMPINGS = {"gptq": 0.01, "gptq, damped": 0.1}
_NEAREST = {"rtn": 0, "rtn, ranges searched": 16}
_AIMED = "gptq, aimed"
# Outputs of a layer on which the candidates compete; outputs do not depend on each other, so the winner rounds the others.
_TRIED_OUTPUTS = 96
# Outputs that are rounded at once: bounds memory where a layer has a vocabulary of them.
_OUTPUTS_AT_ONCE = 4096
# Factors of fewer inputs are not worth a thread each, those of more take too much memory to be found side by side.
_FACTORED_SIDE_BY_SIDE = (256, 4096)
_SEARCHED_RANGES, _SWEEPS = 16, 2

Singles = npt.NDArray[np.float32]
Errors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SolvedLayer:
    """A layer's rounding of the least error on held-out rows."""

    layer: StoredLayer
    quantized: Quantized
    method: str
    # By method: mean square error of the outputs that were tried, as a share of their energy.
    held_out_error: dict[str, float]
    # Of the input that was fitted to.
    rows: int

    def weight_sqnr_db(self) -> float | None:
        """Give the ratio of signal to noise of the weights themselves, in dB; None where it is not finite."""
        with Opened(self.layer.tensor) as array:
            weights = self.layer.matrix(array)
            noise = energy = 0.0
            for start in range(0, len(weights), _OUTPUTS_AT_ONCE):
                some = slice(start, start + _OUTPUTS_AT_ONCE)
                part = np.asarray(weights[some], np.float32)
                energy += float(np.square(part, dtype=np.float64).sum())
                noise += float(np.square(self.quantized.part(some).values() - part, dtype=np.float64).sum())
            del array, weights, part
        return round(10 * math.log10(energy / noise), 2) if noise > 0 and energy > 0 else None


def is_solvable(layer: StoredLayer, model: ir.Model) -> bool:
    """Say whether a layer's inputs can be observed: it stands in the main graph, alone with its weights, and multiplies."""
    return layer.linear is not None and layer.node.graph is model.graph and len(layer.weight.uses()) == 1


def solve(
    model: ir.Model, layers: Sequence[StoredLayer], context: Context, *, activation_order: bool
) -> Iterator[SolvedLayer]:
    """Quantize layer after layer; the caller must write each result into the model before it asks for the next.

    A layer whose input is the same in every run is left out.
    """
    assert context.calibration is not None
    by_name = {layer.name: layer for layer in layers}
    progress = _Progress(context, layers)
    # What is independent goes side by side instead.
    with one_blas_thread(), tempfile.TemporaryDirectory(prefix="moments-") as folder:
        stages = LayerInputs(
            model,
            [_site(layer) for layer in layers],
            context.calibration,
            context.untimed,
            select=context.select,
            working=context.working,
            folder=Path(folder),
        )
        for stage, inputs in stages:
            # The whole stage is solved before any of it is written: its layers saw the same prefix.
            solved = []
            for alike in _alike([by_name[site.key] for site in stage], stage):
                together = _Together(alike, inputs[alike[0].name], context, activation_order=activation_order)
                for found in together.solve():
                    solved.append(found)
                    progress.done(found.layer)
            yield from solved


def _site(layer: StoredLayer) -> Site:
    assert layer.linear is not None
    return Site(
        layer.name,
        layer.node,
        str(layer.linear.input.name),
        layer.inputs,
        layer.outputs,
        layer.linear.window(),
        lambda: _weights(layer),
    )


def _weights(layer: StoredLayer) -> Singles:
    with Opened(layer.tensor) as array:
        weights = np.array(layer.matrix(array), np.float32, order="C")
        del array
    return weights


def _alike(layers: Sequence[StoredLayer], sites: Sequence[Site]) -> list[list[StoredLayer]]:
    """Group layers that share what they read and their grid."""
    found: dict[Any, list[StoredLayer]] = {}
    for layer, site in zip(layers, sites, strict=True):
        found.setdefault((site.reads, layer.bits, layer.group, layer.symmetric), []).append(layer)
    return list(found.values())


@dataclass
class _Progress:
    """Says how far the solver is and how long it will take, by the weights that are done."""

    context: Context
    layers: Sequence[StoredLayer]
    begun: float = field(default_factory=time.monotonic)
    count: int = 0
    weights: int = 0

    def done(self, layer: StoredLayer) -> None:
        self.count += 1
        self.weights += layer.outputs * layer.inputs
        share = self.weights / sum(each.outputs * each.inputs for each in self.layers)
        left = (time.monotonic() - self.begun) * (1 - share) / share
        rest = f", about {rough_duration(left)} left" if self.count < len(self.layers) else ""
        self.context.progress(0.8 * share, f"solved {self.count} of {len(self.layers)} layers{rest}")


@dataclass(frozen=True)
class _Choice:
    """How a layer is rounded: the method, its damping, and the damping by which its weights are aimed at what they should be."""

    method: str
    damping: str | None = None
    aim: str | None = None


class _Together:
    """Layers that read the same inputs: they share sums and factorisations, and their candidates compete in one go."""

    def __init__(
        self, layers: Sequence[StoredLayer], inputs: Sequence[Inputs], context: Context, *, activation_order: bool
    ) -> None:
        self._layers = layers
        self._inputs = inputs
        self._working = context.working
        first = layers[0]
        self._grid: dict[str, Any] = {"bits": first.bits, "group": first.group, "symmetric": first.symmetric}
        self._order = activation_order
        self._curves: list[dict[str, Curvature]] = []
        # By group of a convolution; a product has one.
        self._weights = [_weights(layer).reshape(len(inputs), -1, layer.inputs) for layer in layers]

    def solve(self) -> Iterator[SolvedLayer]:
        """Give the layers, each rounded by what does best on some of its outputs."""
        for inputs in self._inputs:
            with self._working():
                self._curves.append(self._curvatures(inputs))
        with self._working():
            chosen = self._choose()
        for layer, weights, (choice, errors) in zip(self._layers, self._weights, chosen, strict=True):
            parts = []
            for group, whole in enumerate(weights):
                for start in range(0, len(whole), _OUTPUTS_AT_ONCE):
                    some = slice(start, start + _OUTPUTS_AT_ONCE)
                    # Room for a measurement of another job between two slabs of outputs.
                    with self._working():
                        parts.append(self._round(whole[some], group, some, choice))
            yield SolvedLayer(layer, _join(parts), choice.method, errors, self._inputs[0].rows)

    def _curvatures(self, inputs: Inputs) -> dict[str, Curvature]:
        def find(damping: float) -> Curvature:
            return curvature(inputs.xtx, damping=damping, activation_order=self._order, dtype=np.float32)

        least, most = _FACTORED_SIDE_BY_SIDE
        count = threads() if least <= len(inputs.xtx) <= most else 1
        return dict(zip(_DAMPINGS, side_by_side(find, list(_DAMPINGS.values()), threads=count), strict=True))

    def _choose(self) -> list[tuple[_Choice, dict[str, float]]]:
        """Let all candidates round some outputs of each layer, and compare them on held-out rows."""
        few = [_some(weights.shape[1]) for weights in self._weights]
        parts = [
            np.concatenate([weights[group][some] for weights, some in zip(self._weights, few, strict=True)])
            for group in range(len(self._inputs))
        ]
        # Only a layer that stands alone has sums that tell outputs from each other.
        pulls = [inputs.pull(part, few[0]) for inputs, part in zip(self._inputs, parts, strict=True)]
        targets = [inputs.targets(part) for inputs, part in zip(self._inputs, parts, strict=True)]
        aim = self._aim(parts, pulls, targets)
        energy = np.zeros(len(parts[0]))
        totals: dict[_Choice, Errors] = {}
        for group, inputs in enumerate(self._inputs):
            energy += np.square(targets[group]).mean(0, dtype=np.float64)
            for choice, found in self._tried(parts[group], pulls[group], group, aim):
                errors = inputs.errors(targets[group], found.values())
                totals[choice] = totals[choice] + errors if choice in totals else errors
        ends = np.cumsum([len(some) for some in few])
        spans = [slice(end - len(some), end) for end, some in zip(ends, few, strict=True)]
        return [
            _best({choice: float(each[span].sum()) for choice, each in totals.items()}, float(energy[span].sum()))
            for span in spans
        ]

    def _aim(self, parts: Sequence[Singles], pulls: Sequence[Singles | None], targets: Sequence[Singles]) -> str | None:
        """Give the damping of the best aim, if it is better on held-out rows than none."""
        if all(pull is None for pull in pulls):
            return None
        errors: dict[str | None, float] = {}
        for aim in (None, *_DAMPINGS):
            aimed = [
                self._aimed(part, pull, group, aim) for group, (part, pull) in enumerate(zip(parts, pulls, strict=True))
            ]
            each = zip(self._inputs, targets, aimed, strict=True)
            errors[aim] = sum(float(inputs.errors(target, weights).sum()) for inputs, target, weights in each)
        return min(errors, key=lambda aim: errors[aim])

    def _tried(
        self, weights: Singles, pull: Singles | None, group: int, aim: str | None
    ) -> Iterator[tuple[_Choice, Quantized]]:
        for name, search in _NEAREST.items():
            yield _Choice(name), round_to_nearest(weights, search=search, **self._grid)
        # Aimed or not, weights are rounded by the same factor: side by side in one go.
        aims = [None] if aim is None else [None, aim]
        several = np.concatenate([self._aimed(weights, pull, group, each) for each in aims])
        for damping in _DAMPINGS:
            found = round_by(several, self._curves[group][damping], search=_SEARCHED_RANGES, **self._grid)
            for at, each in enumerate(aims):
                choice = _Choice(damping if each is None else _AIMED, damping, each)
                yield choice, found.part(slice(at * len(weights), (at + 1) * len(weights)))

    def _aimed(self, weights: Singles, pull: Singles | None, group: int, aim: str | None) -> Singles:
        """Give the weights that come closest to the original outputs on the inputs that the layer gets now.

        The minimum of |X' C^T - X W^T|^2 + damping * |C - W|^2 is C = W + (X'^T X' + damping)^-1 X'^T (X - X') W^T.
        """
        if aim is None or pull is None:
            return weights
        aimed: Singles = weights + self._curves[group][aim].solve(pull, threads=threads()).T.astype(np.float32)
        return aimed

    def _round(self, weights: Singles, group: int, outputs: slice, choice: _Choice) -> Quantized:
        if choice.damping is None:
            return round_to_nearest(weights, search=_NEAREST[choice.method], **self._grid)
        pull = None if choice.aim is None else self._inputs[group].pull(weights, outputs)
        aimed = self._aimed(weights, pull, group, choice.aim)
        curved = self._curves[group][choice.damping]
        return round_by(aimed, curved, search=_SEARCHED_RANGES, sweeps=_SWEEPS, threads=threads(), **self._grid)


def _some(outputs: int) -> npt.NDArray[np.intp]:
    return np.unique(np.linspace(0, outputs - 1, min(outputs, _TRIED_OUTPUTS)).astype(np.intp))


def _best(totals: Mapping[_Choice, float], energy: float) -> tuple[_Choice, dict[str, float]]:
    """Give the choice of the least error, and the least error of each method as a share of the energy."""
    told: dict[str, float] = {}
    for choice, total in totals.items():
        told[choice.method] = min(total, told.get(choice.method, math.inf))
    shares = {name: _rounded(total / energy) if energy > 0 else 0.0 for name, total in told.items()}
    return min(totals, key=lambda choice: totals[choice]), shares


def _join(parts: Sequence[Quantized]) -> Quantized:
    return Quantized(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.zero for part in parts]),
        parts[0].bits,
        parts[0].group,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
