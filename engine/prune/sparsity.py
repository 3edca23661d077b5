"""The work of the `prune_weights` pass: which weights become zero, and what the rest become."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.paired import Sums
from engine.contract import Context
from engine.graph.linear import LinearLayer
from engine.prune.dead_channels import remove_dead_channels
from engine.prune.layer_by_layer import Layers, find, relative, walk
from engine.report.detail_parts import left_alone
from engine.report.pruning_details import PruneWeightsDetails, RemovedChannels, SparseLayer
from engine.report.values import Change, Refusal
from engine.solve.gram import Moments
from engine.solve.ridge import reconstruct
from engine.solve.sparse import Pattern, magnitude, sparsegpt, wanda

_SMALLEST_WEIGHTS = 1024

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SparsitySettings:
    """Which weights become zero: a share of them, those under a threshold, or so many of each run of inputs."""

    method: Literal["auto", "magnitude", "wanda", "sparsegpt"]
    share: float | None
    threshold: float | None
    # "2:4": 2 of 4 neighbouring inputs stay.
    pattern: str | None
    # The share is of each layer, or of all together.
    scope: Literal["layer", "global"]
    remove_channels: bool
    operators: tuple[str, ...]
    exclude: tuple[str, ...]

    @property
    def zeros(self) -> float:
        """The share of zeros that was asked for."""
        return 0.5 if self.share is None else self.share

    @property
    def runs(self) -> Pattern | None:
        """The pattern as zeros per run of inputs, and the run's length."""
        if self.pattern is None:
            return None
        kept, run = (int(number) for number in self.pattern.split(":"))
        return run - kept, run


def check(model: ir.Model, settings: SparsitySettings) -> Refusal | None:
    """Refuse a network without a layer that can get zeros, or where all have theirs."""
    layers = _layers(model, settings)
    if not layers.found:
        if not layers.refused:
            return Refusal(code="not_applicable", reason=f"The network has no {', '.join(settings.operators)}.")
        node, reason = next(iter(layers.refused.items()))
        return Refusal(
            code="not_applicable",
            reason=f"No layer can get zeros; the first, `{node}`, stays because {reason}.",
            node=node,
        )
    if _is_done(layers.found, settings):
        return Refusal(code="already_done", reason="The network's weights hold the zeros that were asked for already.")
    return None


def prune_weights(model: ir.Model, settings: SparsitySettings, context: Context) -> Change | Refusal:
    """Set weights to zero in place, repair the others where there are data, and remove what is zero as a whole."""
    has_data = context.has_data and bool(context.calibration)
    if settings.method in {"wanda", "sparsegpt"} and not has_data:
        return Refusal(
            code="needs_data",
            reason=f"The method {settings.method} needs calibration data, but the job has none.",
            hint="Add a dataset, or ask for the method `magnitude`.",
        )
    layers = _layers(model, settings)
    solve = has_data and settings.method != "magnitude" and settings.threshold is None and settings.scope == "layer"
    if solve:
        told = []
        for layer, sums in walk(model, layers.found, context):
            with context.working():
                told.append(_solve(layer, sums, settings))
    else:
        told = _by_magnitude(layers.found, settings)
    total = sum(_count(layer) for layer in layers.found)
    share = sum(_zero_count(layer) for layer in layers.found) / total
    removed = RemovedChannels(channels=0, reason="it was not asked for")
    if settings.remove_channels:
        with context.working():
            removed = remove_dead_channels(model, context)
    return Change(
        summary=_summary(share, len(told), removed, settings, context),
        details=PruneWeightsDetails(
            method="magnitude" if not solve else "by layer" if settings.method == "auto" else settings.method,
            pattern=settings.pattern,
            zeros=round(share, 4),
            layers=tuple(told),
            left_alone=left_alone(layers.refused),
            removed_channels=removed,
            latency=_expectation(settings, context),
        ),
        download=True,
    )


def _summary(share: float, count: int, removed: RemovedChannels, settings: SparsitySettings, context: Context) -> str:
    went = f"; {removed.channels} channels that were zero as a whole are gone" if removed.channels else ""
    kind = f" in the pattern {settings.pattern}" if settings.pattern else ""
    return f"{share:.1%} of the weights of {count} layers are zero{kind}{went}. {_expectation(settings, context)}"


def _expectation(settings: SparsitySettings, context: Context) -> str:
    if context.target.provider == "tensorrt" and settings.pattern == "2:4":
        return "TensorRT may run 2:4 weights faster where sparsity is enabled (trt_sparsity_enable) and the GPU can."
    prepared = " TensorRT on GPUs with sparse tensor cores can make use of them." if settings.pattern == "2:4" else ""
    return f"What zeros save is the download; no latency gain is expected on this target.{prepared}"


def _layers(model: ir.Model, settings: SparsitySettings) -> Layers:
    """List the layers that can get zeros, and why others do not."""
    return find(model, settings.operators, settings.exclude, lambda layer: _objection(layer, settings))


def _count(layer: LinearLayer) -> int:
    return math.prod(layer.shape)


def _zero_count(layer: LinearLayer) -> int:
    return int((layer.tensor.numpy() == 0).sum())


def _objection(layer: LinearLayer, settings: SparsitySettings) -> str | None:
    if _count(layer) < _SMALLEST_WEIGHTS:
        return f"it has fewer than {_SMALLEST_WEIGHTS} weights"
    if not np.isfinite(layer.tensor.numpy()).all():
        return "its weights hold NaN or infinity"
    if settings.runs is not None:
        channels = layer.shape[1] if layer.is_convolution else layer.inputs
        run = settings.runs[1]
        if channels % run:
            return f"its {channels} inputs cannot be cut into runs of {run}"
    return None


def _is_done(layers: Sequence[LinearLayer], settings: SparsitySettings) -> bool:
    if settings.runs is not None:
        zeros, run = settings.runs
        return all(
            ((_columns(layer, layer.matrix()) == 0).reshape(layer.outputs, -1, run).sum(-1) >= zeros).all()
            for layer in layers
        )
    if settings.threshold is not None:
        arrays = (layer.tensor.numpy() for layer in layers)
        return not any(((array != 0) & (np.abs(array) < settings.threshold)).any() for array in arrays)
    if settings.scope == "global":
        total = sum(_count(layer) for layer in layers)
        return sum(_zero_count(layer) for layer in layers) >= round(settings.zeros * total)
    # Shares are rounded by row and by block.
    return all(_zero_count(layer) >= round(settings.zeros * _count(layer)) - layer.outputs for layer in layers)


def _by_magnitude(layers: Sequence[LinearLayer], settings: SparsitySettings) -> list[SparseLayer]:
    limit = settings.threshold
    if limit is None and settings.pattern is None and settings.scope == "global":
        limit = _global_threshold(layers, settings.zeros)
    for layer in layers:
        share = None if settings.runs or limit is not None else settings.zeros
        values = _columns(layer, _doubles(layer))
        stays = magnitude(values, share=share, threshold=limit, pattern=settings.runs)
        layer.write(_rows(layer, np.where(stays, values, 0.0)))
    return [_told(layer, "magnitude") for layer in layers]


def _told(
    layer: LinearLayer, method: str, errors: dict[str, float] | None = None, rows: int | None = None
) -> SparseLayer:
    return SparseLayer(
        node=layer.name,
        op=layer.node.op_type,
        weights=_count(layer),
        zeros=round(_zero_count(layer) / _count(layer), 4),
        method=method,
        held_out_error=errors,
        rows=rows,
    )


def _doubles(layer: LinearLayer) -> Doubles:
    return np.array(layer.matrix(), np.float64)


def _global_threshold(layers: Sequence[LinearLayer], share: float) -> float:
    """Give the absolute value under which this share of all layers' weights lies."""
    sizes = np.concatenate([np.abs(layer.tensor.numpy()).reshape(-1) for layer in layers])
    place = min(round(share * sizes.size), sizes.size - 1)
    return float(np.partition(sizes, place)[place])


def _solve(layer: LinearLayer, sums: Sums, settings: SparsitySettings) -> SparseLayer:
    """Try the methods that were asked for, keep the one of least error on held-out rows, and write it."""
    candidates: dict[str, list[Doubles]] = {}
    parts = _doubles(layer).reshape(layer.groups, -1, layer.inputs)
    for part, fit, held_out in zip(parts, sums.fit, sums.held_out, strict=True):
        for name, solve in _methods(layer, settings).items():
            candidates.setdefault(name, []).append(solve(part, fit, held_out))
    errors = {
        name: sum(held_out.error(part) for held_out, part in zip(sums.held_out, found, strict=True))
        for name, found in candidates.items()
    }
    best = min(errors, key=lambda name: errors[name])
    layer.write(np.concatenate(candidates[best]))
    energy = sum(float(each.y_squares.sum()) / max(each.rows, 1) / len(each.y_squares) for each in sums.held_out)
    return _told(layer, best, {name: relative(error, energy) for name, error in errors.items()}, sums.fit[0].rows)


Method = Callable[[Doubles, Moments, Moments], Doubles]


def _methods(layer: LinearLayer, settings: SparsitySettings) -> dict[str, Method]:
    pattern = settings.runs
    share = None if pattern else settings.zeros
    order = _order(layer)

    def masked(stays: npt.NDArray[np.bool_], part: Doubles) -> Doubles:
        return np.where(stays, part, 0.0)

    def by_size(part: Doubles, fit: Moments, held_out: Moments) -> Doubles:
        del fit, held_out
        return masked(magnitude(part[:, order], share=share, pattern=pattern)[:, np.argsort(order)], part)

    def by_norm(part: Doubles, fit: Moments, held_out: Moments) -> Doubles:
        del held_out
        stays = wanda(part[:, order], np.diag(fit.xtx)[order], share=share, pattern=pattern)
        return masked(stays[:, np.argsort(order)], part)

    def by_elimination(part: Doubles, fit: Moments, held_out: Moments) -> Doubles:
        del held_out
        xtx = fit.xtx[np.ix_(order, order)]
        found, _ = sparsegpt(part[:, order], xtx, share=share, pattern=pattern, sweeps=1)
        return found[:, np.argsort(order)]

    def aimed(part: Doubles, fit: Moments, held_out: Moments) -> Doubles:
        # What the layer should be on the inputs that it gets now, thinned out instead of what it was.
        aim = reconstruct(fit, part, None, held_out=held_out, fit_bias=False)
        return by_elimination(aim.weights if aim.better else part, fit, held_out)

    every: dict[str, Method] = {
        "magnitude": by_size, "wanda": by_norm, "sparsegpt": by_elimination, "sparsegpt, aimed": aimed,
    }  # fmt: skip
    if settings.method == "auto":
        return every
    return {name: method for name, method in every.items() if name.startswith(settings.method)}


def _order(layer: LinearLayer) -> npt.NDArray[np.intp]:
    """Give the order of inputs in which a pattern's runs count: channels side by side, for each place of a kernel."""
    if layer.node.op_type != "Conv":
        return np.arange(layer.inputs)
    return np.arange(layer.inputs).reshape(layer.shape[1], -1).T.reshape(-1)


def _columns(layer: LinearLayer, values: Doubles) -> Doubles:
    return values[:, _order(layer)]


def _rows(layer: LinearLayer, values: Doubles) -> Doubles:
    return values[:, np.argsort(_order(layer))]
