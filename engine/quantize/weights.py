"""Weights stored in few bits, block by block; activations stay in float."""

from typing import Literal

import numpy as np
import onnx_ir as ir

from engine.contract import Context
from engine.errors import VerificationFailedError
from engine.graph.folded_constants import fold_constants, restore_constants
from engine.graph.names import require_nodes
from engine.graph.opset import upgrade
from engine.graph.products import spell_out
from engine.graph.quantized import holds_integer_weights
from engine.graph.weights import lift_weights
from engine.quantize.accuracy_levels import ONNX_LEVELS, choose_level
from engine.quantize.rest_in_float import rest_in_float
from engine.quantize.weights_gptq import SolvedLayer, is_solvable, solve
from engine.quantize.weights_plan import (
    AXIS_OPSET,
    BLOCKS_OPSET,
    OPERATORS,
    StoredLayer,
    WeightsPlan,
    WeightsSettings,
    make_plan,
    tied_tables,
)
from engine.quantize.weights_writer import WeightsWriter
from engine.report import quantization_details as details
from engine.report.detail_parts import counted, left_alone, stay
from engine.report.values import Change, Refusal


def prepare(model: ir.Model, settings: WeightsSettings) -> None:
    """Look for weights in Constant nodes too; convert networks older than the standard operators that are asked for."""
    # Where it cannot be converted, each layer says what it needs, or is stored in 8 bits.
    if settings.format == "qdq":
        upgrade(model, BLOCKS_OPSET if 4 in {settings.bits, settings.head_bits} else AXIS_OPSET)
    elif settings.bits == 4 and "Conv" in settings.operators and _has_convolution(model):
        upgrade(model, BLOCKS_OPSET)
    lift_weights(model)
    spell_out(model, settings.exclude)
    fold_constants(model, settings.exclude)


def _has_convolution(model: ir.Model) -> bool:
    return any(node.op_type == "Conv" for node in model.graph.all_nodes())


def check(model: ir.Model, settings: WeightsSettings) -> Refusal | None:
    """Refuse a network of which no layer can be quantized."""
    require_nodes(model, settings.exclude)
    plan = make_plan(model, settings)
    if plan.layers:
        return None
    done = next((node for node in model.graph.all_nodes() if holds_integer_weights(node)), None)
    if done is not None:
        return Refusal(
            code="already_done",
            reason=f"No float weights are left that could be quantized: the network holds {done.op_type} already.",
            node=done.name,
        )
    if plan.refused:
        node, reason = next(iter(plan.refused.items()))
        return Refusal(
            code="not_applicable",
            reason=f"No layer's weights can be quantized; the first, `{node}`, stays because {reason}.",
            node=node,
        )
    return Refusal(code="not_applicable", reason=f"The network has no {', '.join(settings.operators)} with weights.")


def quantize(model: ir.Model, settings: WeightsSettings, context: Context) -> Change | Refusal:
    """Quantize weights in place."""
    has_data = context.has_data and bool(context.calibration)
    if settings.method == "gptq" and not has_data:
        return Refusal(
            code="needs_data",
            reason="GPTQ needs calibration data, but the job has none.",
            hint="Add a dataset, or ask for the method `rtn`.",
        )
    plan = make_plan(model, settings)
    rest = rest_in_float(
        model,
        {*plan.refused, *(layer.name for layer in plan.layers)},
        operators=settings.operators,
        known=OPERATORS,
        exclude=settings.exclude,
    )
    tied = tied_tables(plan)
    writer = WeightsWriter(model, accuracy=_first_level(settings), range_search=settings.range_search, tied=tied)
    told: dict[str, details.StoredLayer] = {}
    # What GPTQ makes of a product is no better a table.
    heads = [head.name for head in tied.values()]
    solvable = [layer for layer in plan.layers if is_solvable(layer, model) and layer.name not in heads]
    solving = settings.method != "rtn" and has_data and bool(solvable)
    if solving:
        for solved in solve(model, solvable, context, activation_order=settings.activation_order):
            with context.working():
                told[solved.layer.name] = _told(solved.layer, solved)
                writer.replace(solved.layer, solved.quantized)
    by_gptq = len(told)
    for number, layer in enumerate(plan.layers):
        if layer.name not in told:
            told[layer.name] = _told(layer, None)
            with context.working():
                writer.replace(layer, None)
            context.progress(
                0.8 * (number + 1) / len(plan.layers), f"quantized {number + 1} of {len(plan.layers)} layers"
            )
    writer.finish()
    restore_constants(model)
    in_float = {**plan.refused, **rest}
    level = None
    if settings.accuracy == "auto":
        context.progress(0.8, "measuring how the products compute best")
        level = choose_level(model, context)
    before = sum(layer.tensor.nbytes for layer in {layer.weight: layer for layer in plan.layers}.values())
    return Change(
        summary=_summary(plan, settings.bits, solved=by_gptq, in_float=len(in_float)) + _level_sentence(level),
        details=details.WeightsDetails(
            method="gptq" if solving else "rtn",
            weight_bytes_before=before,
            weight_bytes_after=writer.bytes,
            accuracy=level,
            layers=tuple(told[layer.name] for layer in plan.layers),
            in_float=left_alone(in_float),
        ),
    )


def _told(layer: StoredLayer, solved: SolvedLayer | None) -> details.StoredLayer:
    told = details.StoredLayer(node=layer.name, op=layer.node.op_type, bits=layer.bits, group=layer.group, method="rtn")
    if solved is None:
        return told
    found = {
        "method": solved.method,
        "held_out_error": solved.held_out_error,
        "rows": solved.rows,
        "weight_sqnr_db": solved.weight_sqnr_db(),
    }
    return told.model_copy(update=found)


def ensures(model: ir.Model) -> None:
    """Check packed sizes and, where weights are in memory, that scales are finite and not zero."""
    for node in model.graph.all_nodes():
        if node.op_type == "MatMulNBits":
            size, bits = node.attributes["block_size"].as_int(), node.attributes["bits"].as_int()
            inputs, outputs = node.attributes["K"].as_int(), node.attributes["N"].as_int()
            packed = _constant(node.inputs[1])
            if packed is None or tuple(packed.shape.numpy()) != (outputs, -(-inputs // size), size * bits // 8):
                raise VerificationFailedError(
                    "Packed weights do not have the size that their operator states.", node=node.name
                )
            scale = _constant(node.inputs[2])
        elif node.op_type in {"DequantizeLinear", "GatherBlockQuantized"}:
            scale = _constant(node.inputs[1 if node.op_type == "DequantizeLinear" else 2])
        else:
            continue
        if scale is None or isinstance(scale, ir.LazyTensor):
            continue
        values = scale.numpy()
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise VerificationFailedError("A weight's scale is not a positive number.", node=node.name)


def _summary(plan: WeightsPlan, bits: int, *, solved: int, in_float: int) -> str:
    rounded = len(plan.layers) - solved
    how = (
        "rounding to nearest"
        if not solved
        else f"GPTQ, {rounded} of them by rounding to nearest"
        if rounded
        else "GPTQ"
    )
    rest = stay(in_float)
    apart = sum(layer.bits != bits and layer.group is not None for layer in plan.layers)
    if apart:
        rest = f"; {apart} of them, which make the outputs, in {12 - bits} bits{rest}"
    eight = sum(layer.bits == 8 and layer.group is None for layer in plan.layers)
    if bits == 4 and eight:
        # Said apart: who asked for 4 bits counts on them.
        rest = f"; {eight} of them in 8 bits, whose form has no blocks of 4{rest}"
    return f"The weights of {counted(len(plan.layers), 'layer')} are stored in {bits} bits per weight by {how}{rest}."


def _first_level(settings: WeightsSettings) -> Literal["int8", "float32"]:
    """Give the level that the network is written with; where it is open, the faster one."""
    return "int8" if settings.accuracy == "auto" else settings.accuracy


def _level_sentence(level: details.AccuracyChoice | None) -> str:
    if level is None:
        return ""
    chosen = next(each.level for each in level.levels if each.chosen)
    return (
        f" Products compute in {chosen} (accuracy_level {ONNX_LEVELS[chosen]}): {level.reason}; {level.loss_share:.0%} of the loss"
        " with `int8` comes from rounding activations."
    )


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return value.const_value if value is not None and value.is_initializer() else None
