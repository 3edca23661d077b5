"""The work of the `quantize_static` pass."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import onnx_ir as ir

from engine.calibrate import Histogram
from engine.contract import Context, Observe
from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.names import require_nodes
from engine.graph.opset import upgrade
from engine.graph.quantized import CONVERSIONS, first_quantized
from engine.graph.unshare import unshare
from engine.quantize import types
from engine.quantize.explain import Compared, Feed, Key, conversions_left
from engine.quantize.plan import Plan, make_plan, subgraph_layers
from engine.quantize.ranges import Method
from engine.quantize.refinement import Design, Improver, ranges_by, sources, statistics
from engine.quantize.rewrite import Rewriter
from engine.quantize.sensitivity import sensitivities
from engine.quantize.structure import Structure, choose_structure, latency_feeds
from engine.report.values import Change, Refusal
from engine.runtime import processor

if TYPE_CHECKING:
    from engine.passes.quantize_static import QuantizeStatic

# Per-channel scales came with this version of the standard operators.
OLDEST_OPSET = 13
_EXPLAIN_FEEDS = 2
_SENSITIVITY_SECONDS = 10.0


def prepare(model: ir.Model) -> None:
    """Give every layer its own weights and the network an operator set that has per-channel quantization."""
    if not upgrade(model, OLDEST_OPSET):
        raise VerificationFailedError(
            f"The network uses operator set {io.opset(model)}; per-channel quantization needs {OLDEST_OPSET}, and it"
            " cannot be converted.",
            hint=f"Export the network again with opset {OLDEST_OPSET} or later.",
        )
    unshare(model)


def check(model: ir.Model, step: "QuantizeStatic") -> Refusal | None:
    """Refuse a network that is quantized already, or has no layer that can be."""
    quantized = first_quantized(model)
    if quantized is not None:
        return Refusal(
            code="already_done",
            reason=f"The network holds {quantized.op_type}: it is quantized already, at least in part.",
            node=quantized.name,
            hint="Upload the floating-point network that it was made from.",
        )
    require_nodes(model, step.exclude)
    plan = make_plan(model, frozenset(step.exclude))
    if plan.layers or plan.left:
        return None
    if plan.refused:
        node, reason = next(iter(plan.refused.items()))
        return Refusal(
            code="not_applicable",
            reason=f"No layer can be quantized; the first, `{node}`, because {reason}.",
            node=node,
        )
    inner = next(subgraph_layers(model), None)
    where = "" if inner is None else " outside the bodies of If, Loop or Scan"
    return Refusal(code="not_applicable", reason=f"The network has no Conv, Gemm or MatMul with weights{where}.")


def observes(model: ir.Model, step: "QuantizeStatic") -> Sequence[Observe]:
    """Ask for the range of every tensor that gets a scale of its own in any of the variants that may be tried.

    Where fewer layers are quantized, a tensor that shared its scale may need its own; it is always one of these.
    """
    exclude = frozenset(step.exclude)
    plan = make_plan(model, exclude, products=step.measure_layers)
    kind: Literal["moving_average", "histogram"] = "moving_average" if step.ranges == "moving_average" else "histogram"
    found = [Observe(str(value.name), kind, part="fit") for value in plan.tensors]
    return found + (statistics(model, exclude) if step.improve else [])


def quantize(
    model: ir.Model, step: "QuantizeStatic", observations: Mapping[Observe, Any], context: Context
) -> Change | Refusal:
    """Quantize in place; layers that the target runs faster in float stay so.

    `observations` holds the range or the histogram of each tensor in `observes`. Candidates are tried (`step.improve`) only
    where there are histograms; that also takes `context.calibration` and `context.observe`.
    """
    if not any(source.high > source.low for source in sources(observations).values()):
        return Refusal(
            code="needs_data",
            reason="No calibration sample gave an activation that varies, so no range can be set.",
            hint="Add samples like those that the network will see.",
        )
    choice = types.choose(processor.cpu_profile(), activations=step.activations, weights=step.weights)
    method: Method = "min_max" if step.ranges in {"auto", "moving_average"} else cast("Method", step.ranges)
    design = Design(frozenset(step.exclude), ranges_by(sources(observations), method))
    context.progress(0.6, "choosing layers")
    structure = choose_structure(model, step, design, choice, context) if step.measure_layers else Structure(design)
    design = structure.design
    # Whoever gives only ranges has decided how they are cut.
    improve = step.improve and any(isinstance(value, Histogram) for value in observations.values())
    improver = Improver(model, step, observations, choice, context) if improve else None
    if improver is not None:
        design = improver.run(design)
    before = io.copy(model)
    plan = make_plan(model, design.exclude, products=design.products)
    keys = [Key.of(layer) for layer in plan.layers]
    rewriter = Rewriter(model, plan, design.ranges, choice, per_channel=step.per_channel, treatment=design.treatment)
    layers = rewriter.run()
    refused = {**plan.refused, **structure.in_float}
    tables = _quantize_tables(model, step, context)
    inner = [node.name or node.op_type for node in subgraph_layers(model)]
    refused.update(dict.fromkeys(inner, "it is inside the body of If, Loop or Scan"))
    facts = [layer.facts() for layer in layers]
    if improver is not None and improver.judge.ready:
        context.progress(0.77, "explaining")
        feeds = improver.judge.feeds[:_EXPLAIN_FEEDS], latency_feeds(before, context)
        # Products with weights on the left come last and are not among the keys.
        _explain(
            facts[: len(keys)],
            keys,
            [layer.output for layer in layers[: len(keys)]],
            Compared(before, model, context.target),
            feeds,
        )
        noise = sensitivities(
            before,
            design.ranges,
            choice,
            feeds[0][:1],
            context.target,
            exclude=design.exclude,
            seconds=_SENSITIVITY_SECONDS,
        )
        for fact in facts:
            if fact["node"] in noise:
                fact["sensitivity"] = float(f"{noise[fact['node']]:.3g}")
    return Change(
        summary=_summary(plan, choice, len(refused)),
        details={
            "activations": choice.activation,
            "weights": "uint8" if choice.rule == "uint8" else "int8",
            "why": choice.why,
            "per_channel": step.per_channel,
            "processor": processor.cpu_profile().dot,
            "integer_operators": len(plan.layers) + len(plan.left) + len(plan.followers) + len(plan.products),
            "clamps_absorbed": len(plan.absorbed),
            "channels_with_wider_scale": sum(layer.limited_channels for layer in layers),
            "layers": facts,
            "tables": tables,
            "in_float": [{"node": node, "reason": reason} for node, reason in refused.items()],
            "races": structure.races,
            "candidates": [trial.facts() for trial in improver.trials] if improver is not None else [],
            **conversions_left(model, context.target),
        },
    )


def _quantize_tables(model: ir.Model, step: "QuantizeStatic", context: Context) -> list[dict[str, Any]]:
    """Store tables of embeddings as int8 rows with a scale each, as `quantize_dynamic` does; they need no activations."""
    # Both of these modules import this one.
    from engine.passes.quantize_dynamic import QuantizeDynamic  # noqa: PLC0415
    from engine.quantize import dynamic  # noqa: PLC0415

    rows = QuantizeDynamic(operators=("Gather",), exclude=step.exclude)
    if not step.embeddings or not dynamic.make_plan(model, rows).layers:
        return []
    outcome = dynamic.quantize(model, rows, context)
    if not isinstance(outcome, Change):
        return []
    assert isinstance(outcome.details, dict)
    tables: list[dict[str, Any]] = outcome.details["layers"]
    return tables


def _explain(
    facts: Sequence[dict[str, Any]],
    keys: Sequence[Key],
    outputs: Sequence[str],
    compared: Compared,
    feeds: tuple[Sequence[Feed], Sequence[Feed]],
) -> None:
    """Add to the facts of every layer what only runs of both networks tell."""
    judged, timed = feeds
    sqnr = compared.output_sqnr(
        dict(zip((key.node for key in keys), zip(keys, outputs, strict=True), strict=True)), judged
    )
    shares = compared.shares(keys, timed)
    for key, fact in zip(keys, facts, strict=True):
        fact.update(output_sqnr_db=round(sqnr[key.node], 2), **shares[key.node])


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


def _summary(plan: Plan, choice: types.Choice, in_float: int) -> str:
    kinds = f"{choice.activation} activations, {'uint8' if choice.rule == 'uint8' else 'int8'} weights"
    rest = f"; {in_float} layers stay in float" if in_float else ""
    return f"{len(plan.layers) + len(plan.left)} layers and {len(plan.followers)} operators between them run in integers ({kinds}){rest}."
