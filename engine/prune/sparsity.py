"""The work of the `prune_weights` pass: which weights become zero, and what the rest become."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.paired import Sums
from engine.contract import Context
from engine.prune.dead_channels import remove_silent
from engine.prune.matrices import Matrices, Matrix, find, relative, walk
from engine.report.values import Change, Refusal
from engine.solve import magnitude, reconstruct, sparsegpt, wanda
from engine.solve.gram import Moments
from engine.solve.sparse import Pattern

if TYPE_CHECKING:
    from engine.passes.prune_weights import PruneWeights

_SMALLEST_WEIGHTS = 1024

Doubles = npt.NDArray[np.float64]


def matrices(model: ir.Model, step: "PruneWeights") -> Matrices:
    """List the layers that can get zeros, and why others do not."""
    return find(model, step.operators, step.exclude, lambda layer: _objection(layer, step))


def check(model: ir.Model, step: "PruneWeights") -> Refusal | None:
    """Refuse a network without a layer that can get zeros, or where all have theirs."""
    layers = matrices(model, step)
    if not layers.found:
        if not layers.refused:
            return Refusal(code="not_applicable", reason=f"The network has no {', '.join(step.operators)}.")
        node, reason = next(iter(layers.refused.items()))
        return Refusal(
            code="not_applicable",
            reason=f"No layer can get zeros; the first, `{node}`, stays because {reason}.",
            node=node,
        )
    if _is_done(layers.found, step):
        return Refusal(code="already_done", reason="The network's weights hold the zeros that were asked for already.")
    return None


def prune_weights(model: ir.Model, step: "PruneWeights", context: Context) -> Change | Refusal:
    """Set weights to zero in place, repair the others where there are data, and remove what is zero as a whole."""
    has_data = context.has_data and bool(context.calibration)
    if step.method in {"wanda", "sparsegpt"} and not has_data:
        return Refusal(
            code="needs_data",
            reason=f"The method {step.method} needs calibration data, but the job has none.",
            hint="Add a dataset, or ask for the method `magnitude`.",
        )
    layers = matrices(model, step)
    solve = has_data and step.method != "magnitude" and step.threshold is None and step.scope == "layer"
    if solve:
        facts = {layer.name: _solve(layer, sums, step) for layer, _, sums in walk(model, layers.found, context)}
    else:
        facts = _by_magnitude(layers.found, step)
    told: list[dict[str, Any]] = [
        {"node": layer.name, "op": layer.node.op_type, "weights": layer.array.size, "zeros": _zeros(layer.array)}
        | facts[layer.name]
        for layer in layers.found
    ]
    total = sum(layer.array.size for layer in layers.found)
    share = sum(int((layer.array == 0).sum()) for layer in layers.found) / total
    removed = remove_silent(model, context) if step.remove_channels else "it was not asked for"
    return Change(
        summary=_summary(share, len(told), removed, step, context),
        details={
            "method": "by layer" if solve and step.method == "auto" else ("magnitude" if not solve else step.method),
            "pattern": step.pattern,
            "zeros": round(share, 4),
            "layers": told,
            "left_alone": layers.left_alone(),
            "removed_channels": removed if isinstance(removed, dict) else {"channels": 0, "reason": removed},
            "latency": _expectation(step, context),
        },
        download=True,
    )


def _summary(share: float, count: int, removed: dict[str, int] | str, step: "PruneWeights", context: Context) -> str:
    went = f"; {removed['channels']} channels that were zero as a whole are gone" if isinstance(removed, dict) else ""
    kind = f" in the pattern {step.pattern}" if step.pattern else ""
    return f"{share:.1%} of the weights of {count} layers are zero{kind}{went}. {_expectation(step, context)}"


def _expectation(step: "PruneWeights", context: Context) -> str:
    if context.target.provider == "tensorrt" and step.pattern == "2:4":
        return "TensorRT may run 2:4 weights faster where sparsity is enabled (trt_sparsity_enable) and the GPU can."
    prepared = " TensorRT on GPUs with sparse tensor cores can make use of them." if step.pattern == "2:4" else ""
    return f"The download is smaller; no latency gain is expected on this target.{prepared}"


def _objection(layer: Matrix, step: "PruneWeights") -> str | None:
    if layer.array.size < _SMALLEST_WEIGHTS:
        return f"it has fewer than {_SMALLEST_WEIGHTS} weights"
    if not np.isfinite(layer.array).all():
        return "its weights hold NaN or infinity"
    if step.pattern is not None:
        channels = layer.shape[1] if layer.node.op_type == "Conv" else layer.inputs
        run = step.runs()[1]
        if channels % run:
            return f"its {channels} inputs cannot be cut into runs of {run}"
    return None


def _is_done(layers: Sequence[Matrix], step: "PruneWeights") -> bool:
    if step.pattern is not None:
        zeros, run = step.runs()
        return all(
            ((_columns(layer, layer.values) == 0).reshape(layer.outputs, -1, run).sum(-1) >= zeros).all()
            for layer in layers
        )
    if step.threshold is not None:
        return not any(((layer.array != 0) & (np.abs(layer.array) < step.threshold)).any() for layer in layers)
    if step.scope == "global":
        total = sum(layer.array.size for layer in layers)
        return sum(int((layer.array == 0).sum()) for layer in layers) >= round(step.zeros() * total)
    # Shares are rounded by row and by block.
    return all(
        int((layer.array == 0).sum()) >= round(step.zeros() * layer.array.size) - layer.outputs for layer in layers
    )


def _by_magnitude(layers: Sequence[Matrix], step: "PruneWeights") -> dict[str, dict[str, Any]]:
    limit = step.threshold
    if limit is None and step.pattern is None and step.scope == "global":
        limit = _global_threshold(layers, step.zeros())
    for layer in layers:
        pattern = step.runs() if step.pattern is not None else None
        share = None if pattern or limit is not None else step.zeros()
        values = _columns(layer, layer.values)
        stays = magnitude(values, share=share, threshold=limit, pattern=pattern)
        layer.write(_rows(layer, np.where(stays, values, 0.0)))
    return {layer.name: {"method": "magnitude"} for layer in layers}


def _global_threshold(layers: Sequence[Matrix], share: float) -> float:
    """Give the absolute value under which this share of all layers' weights lies."""
    sizes = np.concatenate([np.abs(layer.array).reshape(-1) for layer in layers])
    place = min(round(share * sizes.size), sizes.size - 1)
    return float(np.partition(sizes, place)[place])


def _solve(layer: Matrix, sums: Sums, step: "PruneWeights") -> dict[str, Any]:
    """Try the methods that were asked for, keep the one of least error on held-out rows, and write it."""
    candidates: dict[str, list[Doubles]] = {}
    parts = layer.values.reshape(layer.groups, -1, layer.inputs)
    for part, fit, held_out in zip(parts, sums.fit, sums.held_out, strict=True):
        for name, solve in _methods(layer, step).items():
            candidates.setdefault(name, []).append(solve(part, fit, held_out))
    errors = {
        name: sum(judge.error(part) for judge, part in zip(sums.held_out, found, strict=True))
        for name, found in candidates.items()
    }
    best = min(errors, key=lambda name: errors[name])
    layer.write(np.concatenate(candidates[best]))
    energy = sum(float(judge.y_squares.sum()) / max(judge.rows, 1) / len(judge.y_squares) for judge in sums.held_out)
    return {
        "method": best,
        "held_out_error": {name: relative(error, energy) for name, error in errors.items()},
        "rows": sums.fit[0].rows,
    }


Method = Callable[[Doubles, Moments, Moments], Doubles]


def _methods(layer: Matrix, step: "PruneWeights") -> dict[str, Method]:
    pattern: Pattern | None = step.runs() if step.pattern is not None else None
    share = None if pattern else step.zeros()
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
    if step.method == "auto":
        return every
    return {name: method for name, method in every.items() if name.startswith(step.method)}


def _order(layer: Matrix) -> npt.NDArray[np.intp]:
    """Give the order of inputs in which a pattern's runs count: channels side by side, for each place of a kernel."""
    if layer.node.op_type != "Conv":
        return np.arange(layer.inputs)
    return np.arange(layer.inputs).reshape(layer.shape[1], -1).T.reshape(-1)


def _columns(layer: Matrix, values: Doubles) -> Doubles:
    return values[:, _order(layer)]


def _rows(layer: Matrix, values: Doubles) -> Doubles:
    return values[:, np.argsort(_order(layer))]


def _zeros(array: npt.NDArray[Any]) -> float:
    return round(float((array == 0).mean()), 4)
