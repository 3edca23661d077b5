"""The work of the `factorise` pass: layers become two or three thinner ones where that saves time on the target."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.paired import Sums
from engine.contract import Context
from engine.graph import io, linear
from engine.graph.linear import LinearLayer
from engine.prune import ranks, thin_layers
from engine.prune.layer_by_layer import Layers, find, relative, walk
from engine.prune.ranks import Split
from engine.report.detail_parts import left_alone
from engine.report.pruning_details import FactoriseDetails, FactorisedLayer
from engine.report.values import Change, Refusal
from engine.solve.gram import Moments
from engine.solve.lowrank import low_rank, tucker
from engine.solve.ridge import reconstruct

_OPERATORS = ("MatMul", "Gemm", "Conv")
_SHOWN = 20
_SMALLEST_WEIGHTS = 4096
# Kinds of layers whose time is measured, the largest first; a race of many networks takes long.
_RACED_KINDS = 8

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FactoriseSettings:
    """Which layers are split, how thin they may become, and when that pays."""

    # Share of a layer's output energy that is kept; `ratio` instead: the share of its multiplications that is left.
    energy: float
    ratio: float | None
    # A layer stays whole if the thin ones take a larger share of its multiplications.
    break_even: float
    # Keep only what is faster on the target.
    race: bool
    # Of which ranks are multiples.
    multiple: int
    operators: tuple[str, ...]
    exclude: tuple[str, ...]
    # By layer; where there are any, these layers are split, to exactly this, and no others.
    ranks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Solved:
    """Thin layers for one layer, and the errors on held-out rows by method."""

    method: str
    parts: list[Doubles]
    errors: Mapping[str, float]


def splittable(model: ir.Model) -> frozenset[str]:
    """Name the layers that can be split."""
    return frozenset(layer.name for layer in find(model, _OPERATORS, (), _objection).found)


def check(model: ir.Model, settings: FactoriseSettings) -> Refusal | None:
    """Refuse a network without a layer that could be split, and ranks of layers that cannot."""
    layers = _layers(model, settings)
    if settings.ranks:
        return _check_ranks(layers, settings.ranks)
    if layers.found:
        return None
    if not layers.refused:
        return Refusal(code="not_applicable", reason=f"The network has no {', '.join(settings.operators)}.")
    node, reason = next(iter(layers.refused.items()))
    done = all("thin pair" in why or "fewer than" in why for why in layers.refused.values())
    pairs = any("thin pair" in why for why in layers.refused.values())
    return Refusal(
        code="already_done" if done and pairs else "not_applicable",
        reason=f"No layer can be split; the first, `{node}`, stays because {reason}.",
        node=node,
    )


def _check_ranks(layers: Layers, asked: Mapping[str, int]) -> Refusal | None:
    names = [layer.name for layer in layers.found]
    strange = next((name for name in asked if name not in names), None)
    if strange is not None:
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        return Refusal(
            code="not_applicable",
            reason=f"`ranks` names `{strange}`: {layers.refused.get(strange, 'the network has no such layer')}.",
            node=strange,
            hint=f"Layers that can be split: {shown}." if names else None,
        )
    for layer in layers.found:
        full = min(layer.outputs, layer.inputs)
        if layer.name in asked and asked[layer.name] >= full:
            return Refusal(
                code="not_applicable",
                reason=f"`ranks` asks for rank {asked[layer.name]} of `{layer.name}`, which has rank {full} as it is.",
                node=layer.name,
            )
    return None


def factorise(model: ir.Model, settings: FactoriseSettings, context: Context) -> Change | Refusal:
    """Split layers in place: choose ranks on the layers' inputs, race the result, solve layer after layer."""
    layers = _layers(model, settings)
    splits = _choose(model, layers, settings, context)
    times = _race(model, splits, context) if settings.race and splits and not settings.ranks else {}
    chosen = []
    for split in splits:
        time = times.get(split.kind)
        if time is not None and time >= 1.0:
            layers.refused[split.layer.name] = (
                f"it is not faster on this target at {split.told()}: a run then takes {time:.3f} times as long"
            )
        else:
            chosen.append(split)
    if not chosen:
        return _nothing(layers)
    before = _weights(model)
    split_layers = _solve(model, chosen, times, context)
    after = _weights(model)
    return Change(
        summary=f"{len(chosen)} of {len(layers.found)} layers are split into thinner ones; {after / before:.1%}"
        " of the weights are left.",
        details=FactoriseDetails(
            layers=split_layers, left_alone=left_alone(layers.refused), weights_before=before, weights_after=after
        ),
    )


def _nothing(layers: Layers) -> Refusal:
    names = {layer.name for layer in layers.found}
    reasons = [(node, reason) for node, reason in layers.refused.items() if node in names]
    node, reason = reasons[0]
    more = f" (and {len(reasons) - 1} others for like reasons)" if len(reasons) > 1 else ""
    return Refusal(
        code="no_gain",
        reason=f"No layer gains by being split: `{node}` stays{more}, because {reason}.",
        node=node,
        hint="Ask for less energy, or distill afterwards to win quality back.",
    )


def _layers(model: ir.Model, settings: FactoriseSettings) -> Layers:
    # Whoever names a rank knows what it is worth.
    return find(model, settings.operators, settings.exclude, _obstacle if settings.ranks else _objection)


def _objection(layer: LinearLayer) -> str | None:
    if math.prod(layer.shape) < _SMALLEST_WEIGHTS:
        return f"it has fewer than {_SMALLEST_WEIGHTS} weights"
    return _obstacle(layer)


def _obstacle(layer: LinearLayer) -> str | None:
    if layer.groups > 1:
        return "its channels are in groups, which is thin already"
    if not np.isfinite(layer.tensor.numpy()).all():
        return "its weights hold NaN or infinity"
    other = _other_half(layer)
    if other is not None:
        return f"it and `{linear.node_name(other)}` are a thin pair already: nothing stands between them"
    return None


def _other_half(layer: LinearLayer) -> ir.Node | None:
    """Give the layer that makes or reads this one's narrow side with nothing between."""
    channels = ranks.channels_of(layer)
    producer = layer.input.producer() if len(layer.input.uses()) == 1 else None
    producer = producer if producer is not None and _multiplies(producer) else None
    uses = list(layer.node.outputs[0].uses())
    reader = uses[0].node if len(uses) == 1 and uses[0].idx == 0 and _multiplies(uses[0].node) else None
    if producer is not None and (channels < layer.outputs or reader is not None):
        return producer
    return reader if layer.outputs < channels else None


def _multiplies(node: ir.Node) -> bool:
    return node.op_type != "ConvTranspose" and isinstance(linear.read(node), LinearLayer)


def _choose(model: ir.Model, layers: Layers, settings: FactoriseSettings, context: Context) -> list[Split]:
    """Give each layer the ranks that were asked for; refuse those that would not save enough."""
    wanted: dict[str, Split] = {}
    if settings.ranks:
        return [
            ranks.by_rank(layer, settings.ranks[layer.name], settings.multiple)
            for layer in layers.found
            if layer.name in settings.ranks
        ]
    if settings.ratio is not None:
        for layer in layers.found:
            wanted[layer.name] = ranks.by_cost(layer, settings.ratio, settings.multiple)
    else:
        for layer, sums in walk(model, layers.found, context, stages=1):
            with context.working():
                wanted[layer.name] = ranks.by_energy(layer, sums.fit[0], settings.energy, settings.multiple)
    splits = []
    for layer in layers.found:
        split = wanted[layer.name]
        if split.cost <= settings.break_even:
            splits.append(split)
            continue
        asked = (
            "the least ranks" if settings.ratio is not None else f"keeping {settings.energy:.1%} of its output's energy"
        )
        layers.refused[layer.name] = (
            f"{asked} needs {split.told()}, which is {split.cost:.0%} of its multiplications;"
            f" at most {settings.break_even:.0%} pay"
        )
    return splits


def _race(model: ir.Model, splits: Sequence[Split], context: Context) -> dict[tuple[Any, ...], float]:
    """Give the time of a run with all layers of a kind split, as a multiple of the time without."""
    kinds: dict[tuple[Any, ...], list[Split]] = {}
    for split in splits:
        kinds.setdefault(split.kind, []).append(split)
    largest = sorted(kinds, key=lambda kind: -sum(math.prod(split.layer.shape) for split in kinds[kind]))[:_RACED_KINDS]
    context.progress(0.3, f"racing {len(largest)} kinds of split layers against the whole ones")
    random = np.random.default_rng(0)
    candidates = [model]
    for kind in largest:
        candidate = io.copy(model)
        nodes = {node.outputs[0].name: node for node in candidate.graph}
        for split in kinds[kind]:
            layer = linear.read(nodes[split.layer.node.outputs[0].name])
            assert isinstance(layer, LinearLayer)
            # Time does not depend on the values.
            parts = [random.standard_normal(size) / size[-1] ** 0.5 for size in split.sizes]
            thin_layers.write(candidate, layer, parts)
        candidates.append(candidate)
    return dict(zip(largest, context.race(candidates)[1:], strict=True))


def _solve(
    model: ir.Model, splits: Sequence[Split], times: Mapping[tuple[Any, ...], float], context: Context
) -> tuple[FactorisedLayer, ...]:
    of = {split.layer.name: split for split in splits}
    done = []
    for layer, sums in walk(model, [split.layer for split in splits], context):
        split = of[layer.name]
        with context.working():
            solved = _best(split, sums)
        held_out = sums.held_out[0]
        energy = float(held_out.y_squares.sum()) / max(held_out.rows, 1) / len(held_out.y_squares)
        thin_layers.write(model, layer, solved.parts)
        done.append(
            FactorisedLayer(
                node=layer.name,
                op=layer.node.op_type,
                ranks=split.ranks,
                multiplications=round(split.cost, 4),
                time_of_network=round(times[split.kind], 4) if split.kind in times else None,
                method=solved.method,
                held_out_error={name: relative(error, energy) for name, error in solved.errors.items()},
                rows=sums.fit[0].rows,
            )
        )
    return tuple(done)


def _best(split: Split, sums: Sums) -> _Solved:
    """Split the weights, and what they should be on the inputs that the layer gets now; keep what held-out rows prefer."""
    fit, held_out = sums.fit[0], sums.held_out[0]
    weights = ranks.values(split.layer)
    aim = reconstruct(fit, weights, None, held_out=held_out, fit_bias=False)
    found = {"low rank": _factors(split, weights, fit)}
    if aim.better:
        found["low rank, aimed"] = _factors(split, aim.weights, fit)
    errors = {name: held_out.error(thin_layers.product(split.layer, parts)) for name, parts in found.items()}
    best = min(errors, key=lambda name: errors[name])
    return _Solved(best, found[best], errors)


def _factors(split: Split, weights: Doubles, fit: Moments) -> list[Doubles]:
    if len(split.ranks) == 1:
        factors = low_rank(weights, fit.xtx, split.ranks[0])
        return [factors.down, factors.up]
    kernel = weights.reshape(split.layer.shape)
    thin = tucker(kernel, fit.xtx, (split.ranks[0], split.ranks[1]))
    return [thin.down, thin.core.reshape(len(thin.core), -1), thin.up]


def _weights(model: ir.Model) -> int:
    return sum(value.const_value.size for _, value in io.initializers(model) if value.const_value is not None)
