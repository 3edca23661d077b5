"""The work of the `factorise` pass: layers become two or three thinner ones where that saves time on the target."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from scipy import linalg

from engine.calibrate.paired import Sums
from engine.contract import Context
from engine.graph import io
from engine.prune.matrices import Matrices, Matrix, find, relative, walk
from engine.report.values import Change, Refusal
from engine.solve import Moments, low_rank, reconstruct, tucker
from engine.solve.gptq import damped

if TYPE_CHECKING:
    from engine.passes.factorise import Factorise

_SMALLEST_WEIGHTS = 4096
# Kinds of layers whose time is measured, the largest first; a race of many networks takes long.
_RACED_KINDS = 8
_LINEAR = frozenset({"MatMul", "Gemm", "Conv"})

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """How a layer is split: (rank,) into two, or (rank of the outputs, rank of the channels) into three."""

    layer: Matrix
    ranks: tuple[int, ...]
    cost: float  # multiplications as a share of the layer's

    @property
    def kind(self) -> tuple[Any, ...]:
        """Layers of one kind take the same time."""
        return (self.layer.node.op_type, self.layer.shape, _strides(self.layer), self.ranks)


def matrices(model: ir.Model, step: "Factorise") -> Matrices:
    """List the layers that could be split, and why others cannot."""
    return find(model, step.operators, step.exclude, _objection)


def check(model: ir.Model, step: "Factorise") -> Refusal | None:
    """Refuse a network without a layer that could be split."""
    layers = matrices(model, step)
    if layers.found:
        return None
    if not layers.refused:
        return Refusal(code="not_applicable", reason=f"The network has no {', '.join(step.operators)}.")
    node, reason = next(iter(layers.refused.items()))
    done = all("thin pair" in why or "fewer than" in why for why in layers.refused.values())
    pairs = any("thin pair" in why for why in layers.refused.values())
    return Refusal(
        code="already_done" if done and pairs else "not_applicable",
        reason=f"No layer can be split; the first, `{node}`, stays because {reason}.",
        node=node,
    )


def factorise(model: ir.Model, step: "Factorise", context: Context) -> Change | Refusal:
    """Split layers in place: choose ranks on the layers' inputs, race the result, solve layer after layer."""
    layers = matrices(model, step)
    splits = _choose(model, layers, step, context)
    times = _race(model, splits, context) if step.race and splits else {}
    chosen = []
    for split in splits:
        time = times.get(split.kind)
        if time is not None and time >= 1.0:
            layers.refused[split.layer.name] = (
                f"it is not faster on this target at {_told_ranks(split)}: a run then takes {time:.3f} times as long"
            )
        else:
            chosen.append(split)
    if not chosen:
        return _nothing(layers)
    before = _weights(model)
    facts = _solve(model, chosen, context)
    return Change(
        summary=f"{len(chosen)} of {len(layers.found)} layers are split into thinner ones; {_weights(model) / before:.1%}"
        " of the weights are left.",
        details={
            "layers": [
                {
                    "node": split.layer.name,
                    "op": split.layer.node.op_type,
                    "ranks": list(split.ranks),
                    "multiplications": round(split.cost, 4),
                    "time_of_network": round(times[split.kind], 4) if split.kind in times else None,
                    **facts[split.layer.name],
                }
                for split in chosen
            ],
            "left_alone": layers.left_alone(),
            "weights_before": before,
            "weights_after": _weights(model),
        },
    )


def _nothing(layers: Matrices) -> Refusal:
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


def _objection(layer: Matrix) -> str | None:
    if layer.array.size < _SMALLEST_WEIGHTS:
        return f"it has fewer than {_SMALLEST_WEIGHTS} weights"
    if layer.groups > 1:
        return "its channels are in groups, which is thin already"
    if not np.isfinite(layer.array).all():
        return "its weights hold NaN or infinity"
    other = _other_half(layer)
    if other is not None:
        return f"it and `{other.name or other.outputs[0].name}` are a thin pair already: nothing stands between them"
    return None


def _other_half(layer: Matrix) -> ir.Node | None:
    """Give the layer that makes or reads this one's narrow side with nothing between."""
    value = cast("ir.Value", layer.node.inputs[0])
    producer = value.producer() if len(value.uses()) == 1 else None
    producer = producer if producer is not None and _is_linear(producer) else None
    uses = list(layer.node.outputs[0].uses())
    reader = uses[0].node if len(uses) == 1 and uses[0].idx == 0 and _is_linear(uses[0].node) else None
    if producer is not None and (_channels(layer) < layer.outputs or reader is not None):
        return producer
    return reader if layer.outputs < _channels(layer) else None


def _is_linear(node: ir.Node) -> bool:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return node.op_type in _LINEAR and weight is not None and weight.is_initializer()


# --- how thin ---------------------------------------------------------------------------------------------------------


def _choose(model: ir.Model, layers: Matrices, step: "Factorise", context: Context) -> list[Split]:
    """Give each layer the ranks that were asked for; refuse those that would not save enough."""
    if step.ratio is not None:
        wanted = {layer.name: _ranks_by_cost(layer, step) for layer in layers.found}
    else:
        wanted = {
            layer.name: _ranks_by_energy(layer, sums.fit[0], step)
            for layer, _, sums in walk(model, layers.found, context, stages=1)
        }
    splits = []
    for layer in layers.found:
        ranks = wanted[layer.name]
        split = Split(layer, ranks, _cost(layer, ranks))
        if split.cost <= step.break_even:
            splits.append(split)
        else:
            asked = "the least ranks" if step.ratio is not None else f"keeping {step.energy:.1%} of its output's energy"
            layers.refused[layer.name] = (
                f"{asked} needs {_told_ranks(split)}, which is {split.cost:.0%} of its multiplications;"
                f" at most {step.break_even:.0%} pay"
            )
    return splits


def _ranks_by_energy(layer: Matrix, fit: Moments, step: "Factorise") -> tuple[int, ...]:
    lost = 1 - step.energy
    if not _is_kernel(layer):
        spectrum = low_rank(layer.values, fit.xtx, 1).lost
        return (_rounded(_least(spectrum, lost), min(layer.outputs, layer.inputs), step),)
    # Two subspaces are cut; what they lose adds up.
    by_output, by_channel = _kernel_spectra(layer, fit)
    outputs = _rounded(_least(by_output, lost / 2), layer.outputs, step)
    channels = _rounded(_least(by_channel, lost / 2), _channels(layer), step)
    return _fitting(layer, outputs, channels)


def _kernel_spectra(layer: Matrix, fit: Moments) -> tuple[Doubles, Doubles]:
    """Give the shares of output energy that are lost at each number of outputs and of channels."""
    channels = _channels(layer)
    places = layer.inputs // channels
    metric = damped(fit.xtx, 1e-4)
    lower = linalg.cholesky(metric, lower=True)
    by_output = _lost(linalg.svd(layer.values @ lower, compute_uv=False))
    per_place = metric.reshape(channels, places, channels, places)
    whiten = linalg.cholesky(np.einsum("apbp->ab", per_place) / places, lower=True)
    white = np.einsum("ocp,cd->dop", layer.values.reshape(-1, channels, places), whiten).reshape(channels, -1)
    by_channel = _lost(np.sqrt(np.maximum(linalg.eigvalsh(white @ white.T)[::-1], 0)))
    return by_output, by_channel


def _lost(singular: Doubles) -> Doubles:
    energy = np.concatenate([np.cumsum((singular**2)[::-1])[::-1], [0.0]])
    shares: Doubles = energy / max(energy[0], np.finfo(float).tiny)
    return shares


def _least(lost: Doubles, allowed: float) -> int:
    return max(1, int(np.argmax(lost <= allowed)))


def _ranks_by_cost(layer: Matrix, step: "Factorise") -> tuple[int, ...]:
    """Give the largest ranks within a share of the layer's multiplications; a kernel is cut alike on both sides."""
    assert step.ratio is not None
    if not _is_kernel(layer):
        full = min(layer.outputs, layer.inputs)
        most = int(step.ratio * layer.outputs * layer.inputs / (layer.outputs + layer.inputs))
        return (_rounded(max(1, min(most, full)), full, step, down=True),)
    best: tuple[int, ...] = _fitting(layer, 1, 1)
    for share in np.linspace(0.02, 1, 99):
        outputs = _rounded(max(1, int(share * layer.outputs)), layer.outputs, step, down=True)
        channels = _rounded(max(1, int(share * _channels(layer))), _channels(layer), step, down=True)
        ranks = _fitting(layer, outputs, channels)
        if _cost(layer, ranks) <= step.ratio:
            best = ranks
    return best


def _rounded(rank: int, full: int, step: "Factorise", *, down: bool = False) -> int:
    """Round to the widths that vector units like; never to nothing, never beyond the whole."""
    if rank < step.multiple:
        return min(rank if down else step.multiple, full)
    whole = rank // step.multiple if down else -(-rank // step.multiple)
    return min(whole * step.multiple, full)


def _fitting(layer: Matrix, outputs: int, channels: int) -> tuple[int, int]:
    return min(outputs, channels * (layer.inputs // _channels(layer))), channels


def _cost(layer: Matrix, ranks: tuple[int, ...]) -> float:
    """Give the multiplications of the thin layers as a share of the layer's own."""
    if len(ranks) == 1:
        return ranks[0] * (layer.outputs + layer.inputs) / (layer.outputs * layer.inputs)
    outputs, channels = ranks
    places = layer.inputs // _channels(layer)
    # The first 1x1 runs at every place of the input, the others only where the kernel stops.
    first = _channels(layer) * channels * math.prod(_strides(layer))
    return (first + channels * outputs * places + outputs * layer.outputs) / (layer.outputs * layer.inputs)


def _race(model: ir.Model, splits: Sequence[Split], context: Context) -> dict[tuple[Any, ...], float]:
    """Give the time of a run with all layers of a kind split, as a multiple of the time without."""
    kinds: dict[tuple[Any, ...], list[Split]] = {}
    for split in splits:
        kinds.setdefault(split.kind, []).append(split)
    largest = sorted(kinds, key=lambda kind: -sum(split.layer.array.size for split in kinds[kind]))[:_RACED_KINDS]
    context.progress(0.3, f"racing {len(largest)} kinds of split layers against the whole ones")
    random = np.random.default_rng(0)
    runners = [model]
    for kind in largest:
        runner = io.copy(model)
        nodes = {node.outputs[0].name: node for node in runner.graph}
        for split in kinds[kind]:
            node = nodes[split.layer.node.outputs[0].name]
            layer = Matrix(node, cast("ir.Value", node.inputs[1]), split.layer.outputs_last)
            # Time does not depend on the values.
            _write(runner, layer, [random.standard_normal(size) / size[-1] ** 0.5 for size in _sizes(split)])
        runners.append(runner)
    return dict(zip(largest, context.race(runners)[1:], strict=True))


def _sizes(split: Split) -> list[tuple[int, int]]:
    """Give the thin layers as (outputs, inputs)."""
    layer = split.layer
    if len(split.ranks) == 1:
        return [(split.ranks[0], layer.inputs), (layer.outputs, split.ranks[0])]
    outputs, channels = split.ranks
    places = layer.inputs // _channels(layer)
    return [(channels, _channels(layer)), (outputs, channels * places), (layer.outputs, outputs)]


# --- the split --------------------------------------------------------------------------------------------------------


def _solve(model: ir.Model, splits: Sequence[Split], context: Context) -> Mapping[str, dict[str, Any]]:
    of = {split.layer.name: split for split in splits}
    facts = {}
    for layer, _, sums in walk(model, [split.layer for split in splits], context):
        factors, errors, best = _best(of[layer.name], sums)
        judge = sums.held_out[0]
        energy = float(judge.y_squares.sum()) / max(judge.rows, 1) / len(judge.y_squares)
        facts[layer.name] = {
            "method": best,
            "held_out_error": {name: relative(error, energy) for name, error in errors.items()},
            "rows": sums.fit[0].rows,
        }
        _write(model, layer, factors)
    return facts


def _best(split: Split, sums: Sums) -> tuple[list[Doubles], dict[str, float], str]:
    """Split the weights, and what they should be on the inputs that the layer gets now; keep what held-out rows prefer."""
    fit, judge = sums.fit[0], sums.held_out[0]
    weights = split.layer.values
    aim = reconstruct(fit, weights, None, held_out=judge, fit_bias=False)
    found = {"low rank": _factors(split, weights, fit)}
    if aim.better:
        found["low rank, aimed"] = _factors(split, aim.weights, fit)
    errors = {name: judge.error(_product(split, parts)) for name, parts in found.items()}
    best = min(errors, key=lambda name: errors[name])
    return found[best], errors, best


def _factors(split: Split, weights: Doubles, fit: Moments) -> list[Doubles]:
    if len(split.ranks) == 1:
        factors = low_rank(weights, fit.xtx, split.ranks[0])
        return [factors.down, factors.up]
    kernel = weights.reshape(split.layer.shape)
    thin = tucker(kernel, fit.xtx, (split.ranks[0], split.ranks[1]))
    return [thin.down, thin.core.reshape(len(thin.core), -1), thin.up]


def _product(split: Split, parts: Sequence[Doubles]) -> Doubles:
    if len(parts) == 2:
        return parts[1] @ parts[0]
    down, core, up = parts
    inner = (up @ core).reshape(len(up), len(down), -1)
    return np.ascontiguousarray(np.einsum("orp,rc->ocp", inner, down)).reshape(split.layer.outputs, -1)


def _write(model: ir.Model, layer: Matrix, parts: Sequence[npt.NDArray[Any]]) -> None:
    """Put thin layers in the place of one; the last has its bias, its name and its output."""
    node = layer.node
    taken = io.value_names(model)
    weights = [
        _register(model, taken, f"{layer.weight.name}_{part}", _stored(layer, array, number, len(parts)))
        for number, (part, array) in enumerate(zip(_PARTS[len(parts)], parts, strict=True))
    ]
    nodes: list[ir.Node] = []
    value = node.inputs[0]
    for number, weight in enumerate(weights):
        last = number == len(weights) - 1
        thin = ir.Node(
            node.domain,
            node.op_type,
            [value, weight, *(node.inputs[2:] if last else [])],
            _attributes(layer, number, len(weights)),
            name=node.name if last else f"{layer.name}_{_PARTS[len(weights)][number]}",
        )
        if not last:
            thin.outputs[0].name = io.unused_name(taken, f"{node.outputs[0].name}_thin_")
            thin.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        nodes.append(thin)
        value = thin.outputs[0]
    ir.convenience.replace_nodes_and_values(
        cast("ir.Graph", node.graph), node, [node], nodes, node.outputs, nodes[-1].outputs
    )
    if not layer.weight.uses():
        model.graph.initializers.pop(str(layer.weight.name))


_PARTS = {2: ("down", "up"), 3: ("down", "core", "up")}


def _stored(layer: Matrix, array: npt.NDArray[Any], number: int, count: int) -> npt.NDArray[Any]:
    """Give a thin layer's weights in the layout of its operator."""
    if layer.node.op_type == "MatMul":
        return array.T
    if layer.node.op_type == "Gemm":
        return array
    kernel = layer.shape[2:] if count == 3 and number == 1 else (1,) * len(layer.shape[2:])
    return array.reshape(len(array), -1, *kernel)


def _attributes(layer: Matrix, number: int, count: int) -> list[ir.Attr]:
    """A convolution moves where its kernel is: in the core of three, in the first of two. Gemm scales at the end."""
    node = layer.node
    if node.op_type == "Gemm":
        last = [attribute for name, attribute in node.attributes.items() if name in {"alpha", "beta"}]
        return [ir.AttrInt64("transB", 1), *(last if number == count - 1 else [])]
    if node.op_type == "Conv" and number == (1 if count == 3 else 0):
        return list(node.attributes.values())
    return []


def _register(model: ir.Model, taken: set[str], stem: str, array: npt.NDArray[Any]) -> ir.Value:
    name = stem if stem not in taken else io.unused_name(taken, f"{stem}_")
    taken.add(name)
    made = np.array(array, np.float32, order="C")
    value = ir.Value(
        name=name,
        const_value=ir.tensor(made, name=name),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(made.shape),
    )
    model.graph.register_initializer(value)
    return value


def _is_kernel(layer: Matrix) -> bool:
    """Say whether a layer is a convolution of more than one place."""
    return layer.node.op_type == "Conv" and math.prod(layer.shape[2:]) > 1


def _channels(layer: Matrix) -> int:
    return layer.shape[1] if layer.node.op_type == "Conv" else layer.inputs


def _strides(layer: Matrix) -> tuple[int, ...]:
    node = layer.node
    if node.op_type != "Conv":
        return ()
    given = node.attributes["strides"].as_ints() if "strides" in node.attributes else ()
    return tuple(given) or (1,) * len(layer.shape[2:])


def _told_ranks(split: Split) -> str:
    return f"rank {split.ranks[0]}" if len(split.ranks) == 1 else f"ranks {split.ranks[0]} and {split.ranks[1]}"


def _weights(model: ir.Model) -> int:
    return sum(value.const_value.size for _, value in io.initializers(model) if value.const_value is not None)
