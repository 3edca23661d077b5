"""Static quantization: ranges of activations are fixed from calibration data, and layers compute in integers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import onnx_ir as ir

from engine.calibrate import Histogram
from engine.contract import Context, Observe
from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.folded_constants import fold_constants, restore_constants
from engine.graph.linear import node_name
from engine.graph.names import require_nodes
from engine.graph.opset import upgrade
from engine.graph.products import spell_out
from engine.graph.quantized import CONVERSIONS, first_quantized
from engine.graph.tree_ensembles import holds_ensembles
from engine.graph.unshare import unshare
from engine.inspection import TREES_HINT
from engine.quantize import dynamic, effort, integer_types
from engine.quantize.dynamic_plan import DynamicSettings
from engine.quantize.dynamic_plan import make_plan as make_dynamic_plan
from engine.quantize.explain import Compared, Feed, ProfileKey, conversions_left
from engine.quantize.gptq_and_bias import stages
from engine.quantize.ranges import Method
from engine.quantize.refinement import Design, Refinement, ranges_by, sources, statistics
from engine.quantize.rest_in_float import rest_in_float
from engine.quantize.sensitivity import sensitivities
from engine.quantize.static_plan import StaticPlan, make_plan, subgraph_layers
from engine.quantize.static_writer import StaticWriter, WrittenLayer
from engine.quantize.structure import Structure, choose_structure, latency_feeds
from engine.report.detail_parts import counted, left_alone, stay
from engine.report.quantization_details import DynamicDetails, DynamicLayer, QuantizedLayer, StaticDetails
from engine.report.values import Change, Refusal
from engine.runtime import heap, processor

# Per-channel scales came with this version of the standard operators.
OLDEST_OPSET = 13
_EXPLAIN_FEEDS = 2
_SENSITIVITY_SECONDS = 10.0
# Smaller tables of embeddings stay in float: they cost more.
_SMALLEST_TABLE = 4096
_IN_A_BODY = "it is inside the body of If, Loop or Scan"
_BODIES_HINT = "quantize_dynamic and quantize_weights quantize layers in bodies too."


@dataclass(frozen=True)
class StaticSettings:
    """How to quantize with fixed ranges."""

    per_channel: bool
    activations: Literal["auto", "uint8", "int8"]
    weights: integer_types.AskedWeights
    ranges: Literal["auto", "min_max", "moving_average", "percentile", "entropy", "mse"]
    # Whether to try what may make the network more faithful.
    improve: bool
    # Whether to store tables of embeddings in integers.
    embeddings: bool
    # Whether to leave kinds of layers in float that are measured to run faster so.
    measure_layers: bool
    # Names of nodes that stay in float because the recipe says so.
    exclude: tuple[str, ...]
    # And because of whoever quantizes, by name with the reason.
    left_out: Mapping[str, str] = field(default_factory=dict)
    # Whether what is tried includes equalisation, for which each try calibrates anew.
    equalise: bool = True

    @property
    def in_float(self) -> frozenset[str]:
        """Name all nodes that stay in float."""
        return frozenset((*self.exclude, *self.left_out))


def prepare(model: ir.Model, exclude: Collection[str] = ()) -> None:
    """Give every layer its own weights and the network an operator set that has per-channel quantization."""
    if not upgrade(model, OLDEST_OPSET):
        raise VerificationFailedError(
            f"The network uses operator set {io.opset(model)}; per-channel quantization needs {OLDEST_OPSET}, and it"
            " cannot be converted.",
            hint=f"Export the network again with opset {OLDEST_OPSET} or later.",
        )
    spell_out(model, exclude)
    fold_constants(model, exclude)
    unshare(model)


def check(model: ir.Model, settings: StaticSettings) -> Refusal | None:
    """Refuse a network that is quantized already, or has no layer that can be."""
    quantized = first_quantized(model)
    if quantized is not None:
        return Refusal(
            code="already_done",
            reason=f"The network holds {quantized.op_type}: it is quantized already, at least in part.",
            node=quantized.name,
            hint="Upload the floating-point network that it was made from.",
        )
    require_nodes(model, settings.exclude)
    plan = make_plan(model, settings.in_float)
    if plan.layers or plan.left:
        return None
    if plan.refused:
        node, reason = next(iter(_told(plan, settings).items()))
        return Refusal(
            code="not_applicable",
            reason=f"No layer can be quantized; the first, `{node}`, stays in float because {reason}.",
            node=node,
        )
    inner = next(subgraph_layers(model), None)
    where = "" if inner is None else " outside the bodies of If, Loop or Scan"
    return Refusal(
        code="not_applicable",
        reason=f"The network has no Conv, Gemm or MatMul with weights{where}.",
        hint=TREES_HINT if holds_ensembles(model) else None if inner is None else _BODIES_HINT,
    )


def observes(model: ir.Model, settings: StaticSettings) -> Sequence[Observe]:
    """Ask for the range of every tensor that gets a scale of its own in any of the networks that may be tried.

    Where fewer layers are quantized, a tensor that shared its scale may need its own; it is always one of these.
    """
    exclude = settings.in_float
    plan = make_plan(model, exclude, products=settings.measure_layers)
    moving = settings.ranges == "moving_average"
    kind: Literal["moving_average", "histogram"] = "moving_average" if moving else "histogram"
    found = [Observe(str(value.name), kind) for value in plan.tensors]
    return found + (statistics(model, exclude) if settings.improve else [])


def quantize(
    model: ir.Model, settings: StaticSettings, observations: Mapping[Observe, Any], context: Context
) -> Change | Refusal:
    """Quantize in place; layers that the target runs faster in float stay so.

    `observations` holds the range or the histogram of each tensor in `observes`. Candidates are tried (`settings.improve`)
    only where there are histograms; that also takes `context.calibration` and `context.observe`.
    """
    if not any(source.high > source.low for source in sources(observations).values()):
        return Refusal(
            code="needs_data",
            reason="No calibration sample gave an activation that varies, so no range can be set.",
            hint="Add samples like those that the network will see.",
        )
    profile = processor.cpu_profile()
    types = integer_types.choose(profile, activations=settings.activations, weights=settings.weights)
    method: Method = "min_max" if settings.ranges in {"auto", "moving_average"} else cast("Method", settings.ranges)
    structure = Structure(Design(settings.in_float, ranges_by(sources(observations), method)))
    context.progress(0.6, "choosing layers")
    if settings.measure_layers:
        structure = choose_structure(model, structure.design, types, context, per_channel=settings.per_channel)
    design = structure.design
    refinement = _refinement(model, settings, observations, types, context)
    if refinement is not None:
        design = refinement.run(design)
    before = io.copy(model)
    plan = make_plan(model, design.exclude, products=design.products)
    inner = dict.fromkeys((node_name(node) for node in subgraph_layers(model)), _IN_A_BODY)
    told_already = {**_told(plan, settings), **structure.in_float, **inner}
    told_of = {*told_already, *(layer.name for layer in (*plan.layers, *plan.left))}
    rest = rest_in_float(model, told_of, exclude=settings.exclude)
    keys = [ProfileKey.of(layer) for layer in plan.layers]
    writer = StaticWriter(
        model, plan, design.ranges, types, per_channel=settings.per_channel, overrides=design.overrides
    )
    with context.working():
        written = writer.run()
    told = [layer.told for layer in written]
    tables, left_tables = _quantize_tables(model, settings, context)
    restore_constants(model)
    if refinement is not None and refinement.fidelity.ready:
        context.progress(0.77, "explaining")
        heap.give_back(io.weight_bytes(before))
        feeds = refinement.fidelity.feeds[:_EXPLAIN_FEEDS]
        compared = Compared(before, model, context)
        told = _with_measurements(told, keys, written, compared, (feeds, latency_feeds(before, context)))
        noise = sensitivities(
            before,
            design.ranges,
            types,
            feeds[:1],
            context,
            exclude=design.exclude,
            seconds=_SENSITIVITY_SECONDS,
        )
        told = [_with_sensitivity(layer, noise) for layer in told]
    in_float = told_already | _without_tables(rest, tables, left_tables)
    return Change(
        summary=_summary(plan, types, len(in_float)),
        details=StaticDetails(
            activations=types.activation,
            weights=types.weight,
            why=types.why,
            per_channel=settings.per_channel,
            processor=profile.dot,
            integer_operators=len(plan.layers) + len(plan.left) + len(plan.followers) + len(plan.products),
            clamps_absorbed=len(plan.absorbed),
            channels_with_wider_scale=sum(layer.limited_channels for layer in told),
            layers=tuple(told),
            tables=tables,
            in_float=left_alone(in_float),
            races=structure.races,
            candidates=tuple(refinement.candidates) if refinement is not None else (),
            conversions_left=conversions_left(model, context.target),
            effort=refinement.effort.said if refinement is not None and refinement.fidelity.ready else None,
        ),
    )


def _told(plan: StaticPlan, settings: StaticSettings) -> dict[str, str]:
    """Give why layers stay in float: what someone else left out, the recipe has not excluded."""
    left_out = {node: reason for node, reason in settings.left_out.items() if node in plan.refused}
    return {**plan.refused, **{node: why for node, why in left_out.items() if node not in settings.exclude}}


def _refinement(
    model: ir.Model,
    settings: StaticSettings,
    observations: Mapping[Observe, Any],
    types: integer_types.IntegerTypes,
    context: Context,
) -> Refinement | None:
    # Whoever gives only ranges has decided how they are cut.
    if not settings.improve or not any(isinstance(value, Histogram) for value in observations.values()):
        return None
    return Refinement(
        model,
        observations,
        types,
        context,
        per_channel=settings.per_channel,
        search_ranges=settings.ranges == "auto",
        effort=effort.choose_refinement(
            model,
            sum(1 for _ in stages(make_plan(model, settings.in_float).layers)),
            context,
            equalise=settings.equalise,
        ),
    )


def _quantize_tables(
    model: ir.Model, settings: StaticSettings, context: Context
) -> tuple[tuple[DynamicLayer, ...], Mapping[str, str]]:
    """Store tables of embeddings as int8 rows with a scale each, as `quantize_dynamic` does; they need no activations.

    Give also the tables that stay, with the reason.
    """
    rows = DynamicSettings(
        per_channel=True, weights="auto", operators=("Gather",), smallest=_SMALLEST_TABLE, exclude=settings.exclude
    )
    plan = make_dynamic_plan(model, rows)
    if not settings.embeddings:
        return (), dict.fromkeys(
            (layer.name for layer in plan.layers), "the recipe leaves tables of embeddings in float"
        )
    if not plan.layers:
        return (), plan.refused
    outcome = dynamic.quantize(model, rows, context)
    details = outcome.details
    return details.layers if isinstance(details, DynamicDetails) else (), plan.refused


def _without_tables(rest: Mapping[str, str], tables: Sequence[DynamicLayer], left: Mapping[str, str]) -> dict[str, str]:
    """Leave out of what stays in float the tables that are quantized, and say of the others why they are not."""
    quantized = {table.node for table in tables}
    return {node: left.get(node, reason) for node, reason in rest.items() if node not in quantized}


def _with_measurements(
    told: Sequence[QuantizedLayer],
    keys: Sequence[ProfileKey],
    written: Sequence[WrittenLayer],
    compared: Compared,
    feeds: tuple[Sequence[Feed], Sequence[Feed]],
) -> list[QuantizedLayer]:
    """Add what only runs of both networks tell; products with weights on the left come last and have no key."""
    outputs = {key.node: (key, layer.output) for key, layer in zip(keys, written, strict=False)}
    sqnr = compared.output_sqnr(outputs, feeds[0])
    shares = compared.shares(keys, feeds[1])
    found = [
        layer.model_copy(update={"output_sqnr_db": round(sqnr[key.node], 2), **shares[key.node]})
        for key, layer in zip(keys, told, strict=False)
    ]
    return [*found, *told[len(keys) :]]


def _with_sensitivity(layer: QuantizedLayer, noise: Mapping[str, float]) -> QuantizedLayer:
    if layer.node not in noise:
        return layer
    return layer.model_copy(update={"sensitivity": float(f"{noise[layer.node]:.3g}")})


def ensures(model: ir.Model) -> None:
    """Check that every scale is positive and finite, and that integer weights lie where their kernels cannot fail."""
    constants = {value.name: value.const_value for _, value in io.initializers(model)}
    for node in model.graph:
        if node.op_type not in CONVERSIONS:
            continue
        scale = constants.get(node.inputs[1].name if node.inputs[1] is not None else None)
        if scale is None:
            raise VerificationFailedError("A quantization scale is not constant.", node=node.name)
        values = scale.numpy()
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise VerificationFailedError("A quantization scale is not positive.", node=node.name)


def _summary(plan: StaticPlan, types: integer_types.IntegerTypes, in_float: int) -> str:
    kinds = f"{types.activation} activations, {types.weight} weights"
    layers, between = len(plan.layers) + len(plan.left), len(plan.followers)
    others = f" and {counted(between, 'operator')} between them" if between else ""
    run = f"run{'s' * (layers + between == 1)}"
    return f"{counted(layers, 'layer')}{others} {run} in integers ({kinds}){stay(in_float)}."
