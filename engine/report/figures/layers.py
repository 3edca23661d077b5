"""What became of each layer, over all steps, and how much each one disturbs the outputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.report.detail_parts import Detail, LeftAlone
from engine.report.figures.figure import UNSURE, Figure, axis, bars_height, shortened
from engine.report.layer_cost import LayerCost
from engine.report.pruning_details import DropBlocksDetails, FactoriseDetails, PruneChannelsDetails, PruneWeightsDetails
from engine.report.quantization_details import (
    DynamicDetails,
    Float16Details,
    MethodDetails,
    MixedDetails,
    QuantizedLayer,
    StaticDetails,
    StoredLayer,
    WeightsDetails,
)
from engine.report.values import Report
from engine.report.wording import UNKNOWN, decibel, share, size_or_nothing

_MOST_BARS = 24
LAYERS_CAPTION = (
    "Size and share of the time in the original and in the result; SQNR is of the layer's output or weights beside the original's."
    f" {UNKNOWN}: not known, as where onnxruntime makes one kernel of several layers."
)


@dataclass(frozen=True)
class Layer:
    """One node of the network, and what the steps that were kept made of it. Shares are from 0 to 1."""

    node: str
    op: str = ""
    precision: str = ""
    bytes_before: int | None = None
    bytes_after: int | None = None
    time_before: float | None = None
    time_after: float | None = None
    sqnr_db: float | None = None
    sensitivity: float | None = None
    zeros: float | None = None
    told: str = ""


def layers(report: Report) -> tuple[Layer, ...]:
    """Give what is known of each layer: those that took most of the time first, else the largest, then in the order of the steps."""
    found: dict[str, Layer] = {}
    for step in report.steps:
        details = step.change.details if step.status == "applied" and step.change is not None else None
        if isinstance(details, Detail):
            for node, known in _of(details):
                found[node] = replace(found.get(node, Layer(node)), **_joined(found.get(node), known))
    for cost in report.layers:
        found[cost.node] = _measured(found.get(cost.node, Layer(cost.node)), cost)
    return tuple(sorted(found.values(), key=lambda layer: (-(layer.time_before or 0.0), -(layer.bytes_before or 0))))


def _measured(layer: Layer, cost: LayerCost) -> Layer:
    """Add what was measured of the result to what the steps say; these know more of precision and noise."""
    gone = cost.bytes_after is None and not layer.told
    return replace(
        layer,
        op=layer.op or cost.op,
        precision=layer.precision or cost.stored or "",
        bytes_before=cost.bytes_before,
        bytes_after=cost.bytes_after,
        time_before=layer.time_before if cost.time_share_before is None else cost.time_share_before,
        time_after=layer.time_after if cost.time_share_after is None else cost.time_share_after,
        sqnr_db=cost.output_sqnr_db if layer.sqnr_db is None else layer.sqnr_db,
        told="gone, or part of another layer" if gone else layer.told,
    )


def layer_table(report: Report) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Give head and rows of the table of layers: columns that no layer has are left out, cells that are not known are dashes."""
    found = layers(report)
    columns = {
        "layer": [layer.node for layer in found],
        "operator": [layer.op for layer in found],
        "precision": [layer.precision for layer in found],
        "size before": [size_or_nothing(layer.bytes_before) for layer in found],
        "size after": [size_or_nothing(layer.bytes_after) for layer in found],
        "time before": [share(layer.time_before) for layer in found],
        "time after": [share(layer.time_after) for layer in found],
        "SQNR": [decibel(layer.sqnr_db) for layer in found],
        "sensitivity": ["" if layer.sensitivity is None else f"{layer.sensitivity:.3g}" for layer in found],
        "zeros": [share(layer.zeros) for layer in found],
    }
    told = [layer.told for layer in found]
    kept = {name: [cell or UNKNOWN for cell in cells] for name, cells in columns.items() if any(cells)}
    kept |= {"what else": told} if any(told) else {}
    return tuple(kept), tuple(zip(*kept.values(), strict=True))


def _joined(before: Layer | None, known: dict[str, Any]) -> dict[str, Any]:
    if before is not None and before.told and known.get("told"):
        return {**known, "told": f"{before.told}; {known['told']}"}
    return known


def _of(details: Detail) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(details, MixedDetails):
        for node, noise in details.sensitivity.items():
            yield node, {"sensitivity": noise}
        for method in details.steps:
            yield from _quantization(method)
    elif isinstance(details, StaticDetails | DynamicDetails | WeightsDetails | Float16Details):
        yield from _quantization(details)
    else:
        yield from _pruning(details)


def _pruning(details: Detail) -> Iterator[tuple[str, dict[str, Any]]]:
    match details:
        case PruneChannelsDetails():
            for group in details.groups:
                if group.kept < group.channels:
                    told = f"{group.kept} of {group.channels} {group.kind} kept"
                    yield from ((node, {"told": told}) for node in group.producers)
        case PruneWeightsDetails():
            yield from ((each.node, {"op": each.op, "zeros": each.zeros}) for each in details.layers)
        case FactoriseDetails():
            for thin in details.layers:
                ranks = " and ".join(map(str, thin.ranks))
                yield thin.node, {"op": thin.op, "told": f"split at rank {ranks}"}
        case DropBlocksDetails():
            yield from ((block.node, {"told": "branch dropped"}) for block in details.blocks if block.dropped)
        case _:
            return


def _quantization(details: MethodDetails) -> Iterator[tuple[str, dict[str, Any]]]:
    match details:
        case StaticDetails():
            yield from ((layer.node, _quantized(layer)) for layer in details.layers)
            yield from ((each.node, {"op": each.op, "precision": "int8, ranges per run"}) for each in details.tables)
            yield from _floats(details.in_float, "float")
        case DynamicDetails():
            for product in details.layers:
                noise = getattr(product, "weight_sqnr_db", None)
                known = {"op": product.op, "precision": f"{details.weights}, ranges per run", "sqnr_db": noise}
                yield product.node, known
            yield from _floats(details.in_float, "float")
        case WeightsDetails():
            yield from ((stored.node, _stored(stored)) for stored in details.layers)
            yield from _floats(details.in_float, "float")
        case Float16Details():
            yield from _floats(details.in_float32, "float32")


def _floats(left: Sequence[LeftAlone], precision: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((each.node, {"precision": precision, "told": each.reason}) for each in left)


def _quantized(layer: QuantizedLayer) -> dict[str, Any]:
    return {
        "op": layer.op,
        "precision": f"{layer.weight} weights, {layer.activation}",
        "time_before": layer.time_share_before,
        "time_after": layer.time_share_after,
        "sqnr_db": layer.weight_sqnr_db if layer.output_sqnr_db is None else layer.output_sqnr_db,
        **({} if layer.sensitivity is None else {"sensitivity": layer.sensitivity}),
    }


def _stored(layer: StoredLayer) -> dict[str, Any]:
    group = "" if layer.group is None else f", groups of {layer.group}"
    known = {"op": layer.op, "precision": f"{layer.bits} bits{group}", "sqnr_db": layer.weight_sqnr_db}
    return {**known, "told": layer.method}


def sensitivity(report: Report) -> Figure | None:
    """Show which layers disturb the outputs most when they alone are quantized; None where that was not measured."""
    found = sorted(
        ((layer.node, layer.sensitivity) for layer in layers(report) if layer.sensitivity), key=lambda each: -each[1]
    )
    if not found:
        return None
    shown = found[:_MOST_BARS]
    more = f" The other {len(found) - len(shown)} are in the table." if len(found) > len(shown) else ""
    return Figure(
        name="sensitivity",
        title="Sensitivity of the layers",
        caption="Noise that each layer alone adds to the outputs when it is quantized, as a share of their energy. Most of it:"
        f" {found[0][0]}, {found[0][1]:.2g}.{more}",
        data=(
            {
                "type": "bar",
                "orientation": "h",
                "y": [shortened(node) for node, _ in shown],
                "x": [noise for _, noise in shown],
                "marker": {"color": UNSURE},
                "hovertemplate": "%{y}: %{x:.3g}<extra></extra>",
            },
        ),
        layout={
            "height": bars_height(len(shown)),
            "xaxis": axis("share of the outputs' energy", type="log", exponentformat="e", nticks=6),
            "yaxis": axis("", autorange="reversed"),
            "showlegend": False,
        },
        head=("layer", "noise that it adds"),
        rows=tuple((node, f"{noise:.3g}") for node, noise in found),
    )
