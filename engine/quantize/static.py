"""The work of the `quantize_static` pass."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from engine.calibrate import Range
from engine.errors import SpecInvalidError, VerificationFailedError
from engine.graph import io
from engine.graph.unshare import unshare
from engine.measure import cpu, providers
from engine.passes.contract import Context, Observe
from engine.quantize import types
from engine.quantize.plan import Layer, Plan, make_plan, subgraph_layers
from engine.quantize.rewrite import Rewriter
from engine.report import Change, Refusal

if TYPE_CHECKING:
    from engine.passes.quantize_static import QuantizeStatic

# Per-channel scales came with this version of the standard operators.
OLDEST_OPSET = 13
# A layer goes back to float only for a gain that a short measurement can tell from noise.
_WORTHWHILE_GAIN = 0.01
# Kernels work on four input channels at a time; below that, most of their work is padding.
_NARROW_CHANNELS = 4


def prepare(model: ir.Model) -> None:
    """Give every layer its own weights and the network an operator set that has per-channel quantization."""
    if io.opset(model) < OLDEST_OPSET:
        _upgrade(model)
    unshare(model)


def check(model: ir.Model, step: "QuantizeStatic") -> Refusal | None:
    """Refuse a network that is quantized already, or has no layer that can be."""
    quantized = next((node for node in model.graph.all_nodes() if is_quantization(node)), None)
    if quantized is not None:
        return Refusal(
            code="already_done",
            reason=f"The network holds {quantized.op_type}: it is quantized already, at least in part.",
            node=quantized.name,
            hint="Upload the floating-point network that it was made from.",
        )
    unknown = sorted(set(step.exclude) - {node.name or "" for node in model.graph.all_nodes()})
    if unknown:
        raise SpecInvalidError(f"`exclude` names nodes that the network does not have: {', '.join(unknown[:5])}.")
    plan = make_plan(model, frozenset(step.exclude))
    if plan.layers:
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


def is_quantization(node: ir.Node) -> bool:
    """Say whether an operator belongs to a quantized network."""
    return (
        node.op_type in {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits", "MatMulBnb4"}
        or node.op_type.startswith(("QLinear", "QAttention", "QGemm", "QMoE", "DynamicQuantize"))
        or node.op_type.endswith("Integer")
    )


def observes(model: ir.Model, step: "QuantizeStatic") -> Sequence[Observe]:
    """Ask for the range of every tensor that gets a scale of its own in any of the variants that may be tried.

    Where fewer layers are quantized, a tensor that shared its scale may need its own; it is always one of these.
    """
    plan = make_plan(model, frozenset(step.exclude))
    return [Observe(str(value.name)) for value in plan.tensors]


def quantize(
    model: ir.Model, step: "QuantizeStatic", observations: Mapping[Observe, Any], context: Context
) -> Change | Refusal:
    """Quantize in place; layers that the target runs faster in float stay so."""
    ranges: dict[str, Range] = {request.tensor: result for request, result in observations.items()}
    choice = types.choose(cpu.cpu_profile(), activations=step.activations, weights=step.weights)
    context.progress(0.6, "choosing layers")
    slower = _slower_in_integers(model, step, ranges, choice, context) if step.measure_layers else {}
    plan = make_plan(model, frozenset(step.exclude) | slower.keys())
    layers = Rewriter(model, plan, ranges, choice, per_channel=step.per_channel).run()
    refused = {**plan.refused, **slower}
    inner = [node.name or node.op_type for node in subgraph_layers(model)]
    refused.update(dict.fromkeys(inner, "it is inside the body of If, Loop or Scan"))
    limited = sum(layer.limited_channels for layer in layers)
    return Change(
        summary=_summary(plan, choice, len(refused)),
        details={
            "activations": choice.activation,
            "weights": "uint8" if choice.rule == "uint8" else "int8",
            "why": choice.why,
            "per_channel": step.per_channel,
            "processor": cpu.cpu_profile().dot,
            "integer_operators": len(plan.layers) + len(plan.followers),
            "clamps_absorbed": len(plan.absorbed),
            "channels_with_wider_scale": limited,
            "layers": [layer.facts() for layer in layers],
            "in_float": [{"node": node, "reason": reason} for node, reason in refused.items()],
            **_left_over(model, context),
        },
    )


def ensures(model: ir.Model) -> None:
    """Check that every scale is positive and finite, and that integer weights lie where their kernels cannot fail."""
    constants = {value.name: value.const_value for _, value in io.initializers(model)}
    for node in model.graph:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        scale = constants.get(node.inputs[1].name if node.inputs[1] is not None else None)
        if scale is None:
            raise VerificationFailedError("A quantization scale is not constant.", node=node.name)
        values = scale.numpy()
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise VerificationFailedError("A quantization scale is not positive.", node=node.name)


def _upgrade(model: ir.Model) -> None:
    try:
        converted = onnx.version_converter.convert_version(ir.to_proto(model), OLDEST_OPSET)
        onnx.checker.check_model(converted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise VerificationFailedError(
            f"The network uses operator set {io.opset(model)}; per-channel quantization needs {OLDEST_OPSET}, and it"
            " cannot be converted.",
            hint=f"Export the network again with opset {OLDEST_OPSET} or later.",
        ) from error
    model.graph = ir.from_proto(converted).graph


def _slower_in_integers(
    model: ir.Model, step: "QuantizeStatic", ranges: Mapping[str, Range], choice: types.Choice, context: Context
) -> dict[str, str]:
    """Measure which families of layers the target runs faster in float; give their nodes with the reason."""
    plan = make_plan(model, frozenset(step.exclude))
    families = [family for family in _doubtful(plan) if 0 < len(family) < len(plan.layers)]
    if not families:
        return {}
    families += [frozenset().union(*families)] if len(families) > 1 else []
    variants: list[ir.Model] = []
    for family in (frozenset[str](), *families):
        variant = io.copy(model)
        variant_plan = make_plan(variant, frozenset(step.exclude) | family)
        Rewriter(variant, variant_plan, ranges, choice, per_channel=step.per_channel).run()
        variants.append(variant)
    ratios = context.race(variants)
    best = int(np.argmin(ratios))
    if best == 0 or ratios[best] > 1 - _WORTHWHILE_GAIN:
        return {}
    reason = f"measured: the network takes {1 - ratios[best]:.1%} less time with it in float"
    return dict.fromkeys(sorted(families[best - 1]), reason)


def _doubtful(plan: Plan) -> Iterator[frozenset[str]]:
    """Give the families of layers whose integer kernels are often the slower ones: few input channels, depthwise."""
    narrow = {
        layer.node.name
        for layer in plan.layers
        if layer.node.op_type == "Conv" and not _is_depthwise(layer) and _input_channels(layer) < _NARROW_CHANNELS
    }
    depthwise = {layer.node.name for layer in plan.layers if _is_depthwise(layer)}
    for names in (narrow, depthwise):
        yield frozenset(name for name in names if name)


def _is_depthwise(layer: Layer) -> bool:
    group = layer.node.attributes.get("group")
    return layer.node.op_type == "Conv" and group is not None and group.as_int() > 1 and _input_channels(layer) == 1


def _input_channels(layer: Layer) -> int:
    assert layer.weight.const_value is not None
    return int(layer.weight.const_value.shape.numpy()[1])


def _left_over(model: ir.Model, context: Context) -> dict[str, Any]:
    """Count the conversions that ONNX Runtime leaves in the graph that it really runs."""
    if context.target.provider != "cpu" or io.weight_bytes(model) > io.SINGLE_FILE_BYTES:
        return {}
    optimised = onnx.load_model_from_string(providers.optimised_graph(io.to_bytes(model), context.target))
    kinds = [node.op_type for node in optimised.graph.node]
    return {
        "conversions_left": kinds.count("QuantizeLinear") + kinds.count("DequantizeLinear"),
        "integer_kernels": sum(kind.startswith(("QLinear", "QGemm")) or "Integer" in kind for kind in kinds),
    }


def _summary(plan: Plan, choice: types.Choice, in_float: int) -> str:
    kinds = f"{choice.activation} activations, {'uint8' if choice.rule == 'uint8' else 'int8'} weights"
    rest = f"; {in_float} layers stay in float" if in_float else ""
    return (
        f"{len(plan.layers)} layers and {len(plan.followers)} operators between them run in integers ({kinds}){rest}."
    )
