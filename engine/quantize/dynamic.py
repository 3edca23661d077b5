"""Dynamic quantization: ranges of activations are taken anew in every run, so it needs no data."""

from collections.abc import Collection

import onnx_ir as ir

from engine.contract import Context
from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.folded_constants import fold_constants, restore_constants
from engine.graph.linear import constant_root
from engine.graph.names import require_nodes
from engine.graph.opset import upgrade
from engine.graph.products import spell_out
from engine.graph.quantized import first_quantized
from engine.graph.weights import lift_weights
from engine.inspection import CONVOLUTIONS_HINT
from engine.quantize import integer_types
from engine.quantize.dynamic_plan import OPERATORS, DynamicPlan, DynamicSettings, make_plan
from engine.quantize.dynamic_writer import DynamicWriter
from engine.quantize.rest_in_float import rest_in_float
from engine.report.detail_parts import counted, left_alone, stay
from engine.report.quantization_details import DynamicDetails
from engine.report.values import Change, Refusal
from engine.runtime import processor

# The operator set in which DynamicQuantizeLinear came.
OLDEST_OPSET = 11
_INTEGERS = {ir.DataType.INT8, ir.DataType.UINT8}


def prepare(model: ir.Model, exclude: Collection[str] = ()) -> None:
    """Bring every product's weights to where they are looked for; convert networks older than the operators needed."""
    # Where it cannot be converted, `check` refuses.
    upgrade(model, OLDEST_OPSET)
    lift_weights(model)
    spell_out(model, exclude)
    fold_constants(model, exclude)


def check(model: ir.Model, settings: DynamicSettings) -> Refusal | None:
    """Refuse a network of which no layer can be quantized."""
    require_nodes(model, settings.exclude)
    if io.opset(model) < OLDEST_OPSET:
        return Refusal(
            code="unsupported",
            reason=f"DynamicQuantizeLinear needs operator set {OLDEST_OPSET}, and the network, which uses"
            f" {io.opset(model)}, cannot be converted.",
            hint="Export the network again with a later opset.",
        )
    plan = make_plan(model, settings)
    if plan.layers:
        return None
    done = first_quantized(model)
    if done is not None:
        return Refusal(
            code="already_done",
            reason=f"No float layer is left that could be quantized: the network holds {done.op_type} already.",
            node=done.name,
        )
    if plan.refused:
        node, reason = next(iter(plan.refused.items()))
        return Refusal(
            code="not_applicable",
            reason=f"No layer can be quantized; the first, `{node}`, stays in float because {reason}.",
            node=node,
            hint=CONVOLUTIONS_HINT if any(each.op_type == "Conv" for each in model.graph.all_nodes()) else None,
        )
    return Refusal(code="not_applicable", reason=f"The network has no {', '.join(settings.operators)} with weights.")


def quantize(model: ir.Model, settings: DynamicSettings, context: Context) -> Change | Refusal:
    """Quantize in place."""
    plan = make_plan(model, settings)
    if context.target.provider != "cpu":
        _leave_lstms(plan, context.target.provider)
    rest = rest_in_float(
        model,
        {*plan.refused, *(layer.name for layer in plan.layers)},
        operators=settings.operators,
        known=OPERATORS,
        exclude=settings.exclude,
    )
    if not plan.layers:
        return Refusal(code="not_applicable", reason="The target has no integer kernel for any of the layers.")
    profile = processor.cpu_profile()
    types = integer_types.choose(profile, activations="uint8", weights=settings.weights)
    tables = [layer.weights[0] for layer in plan.layers if layer.node.op_type == "Gather"]
    writer = DynamicWriter(model, types, per_channel=settings.per_channel, tables=tables)
    told = []
    for number, layer in enumerate(plan.layers):
        with context.working():
            told.append(writer.replace(layer))
        context.progress(0.8 * (number + 1) / len(plan.layers), f"quantized {number + 1} of {len(plan.layers)} layers")
    writer.finish()
    restore_constants(model)
    in_float = {**plan.refused, **rest}
    return Change(
        summary=(
            _said(sum(layer.node.op_type == "Gather" for layer in plan.layers), len(plan.layers))
            + f"{stay(len(in_float), 'operator')}."
        ),
        details=DynamicDetails(
            weights=types.weight,
            why=types.why,
            per_channel=settings.per_channel,
            processor=profile.dot,
            layers=tuple(told),
            in_float=left_alone(in_float),
        ),
    )


def _said(tables: int, layers: int) -> str:
    """Tell layers that compute in integers from tables that are only stored so."""
    stored = f"{counted(tables, 'table')} of embeddings {'is' if tables == 1 else 'are'} stored in 8 bits"
    if tables == layers:
        return stored
    computing = (
        f"{counted(layers - tables, 'layer')} compute{'s' * (layers - tables == 1)} with 8-bit weights and activations whose"
        " ranges are taken in every run"
    )
    return f"{computing}, {stored}" if tables else computing


def _leave_lstms(plan: DynamicPlan, provider: str) -> None:
    for layer in [layer for layer in plan.layers if layer.node.op_type == "LSTM"]:
        plan.layers.remove(layer)
        plan.refused[layer.name] = f"only the processor's provider has an integer kernel for it, not {provider}"


def ensures(model: ir.Model) -> None:
    """Check that the weights of every integer product are constant integers, and scales in memory are positive."""
    for node in model.graph.all_nodes():
        positions = {"MatMulInteger": (1,), "DynamicQuantizeLSTM": (1, 2)}.get(node.op_type, ())
        for position in positions:
            weight = node.inputs[position]
            root = None if weight is None else constant_root(weight)
            constant = None if root is None else root[0].const_value
            if constant is None or constant.dtype not in _INTEGERS:
                raise VerificationFailedError(
                    "The weights of an integer product are no constant integers.", node=node.name
                )
