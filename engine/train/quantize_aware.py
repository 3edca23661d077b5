"""The work of the `quantize_aware_train` pass: train the numbers of a quantized graph, rounded in every run as it will ship."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch, with_outputs
from engine.contract import Context
from engine.data.batches import padded
from engine.gate import TASK_METRICS
from engine.graph import io
from engine.graph.quantized import first_quantized
from engine.measure.acceptance import KEPT_SHARES, main_metrics, quality_drop
from engine.report.detail_parts import left_alone
from engine.report.training_details import QuantizeAwareDetails, TrainedInteger
from engine.report.values import Change, Quality, Refusal
from engine.runtime import sessions
from engine.train import framework
from engine.train.distill import (
    DistillSettings,
    Taught,
    no_gain,
    summary,
    teach,
    teacher_of,
    threads,
)
from engine.train.framework import torch
from engine.train.lesson import student_threads
from engine.train.quantized_graph import QuantizedGraph, prepare
from engine.train.quantized_twin import QuantizedTwin

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

# Samples on which the twin is held against onnxruntime.
_COMPARED = 8
# Noise of the twin beside onnxruntime, as a share of a tensor's energy: numbers in the middle of two steps go either way.
_FLIPS = 0.01
# It may be no more than this share of the noise that quantization itself adds.
_OF_QUANTIZATION = 0.5


def quantize_aware_train(
    model: ir.Model, settings: DistillSettings, context: Context, *, scale_rate: float = 1.0
) -> Change | Refusal:
    """Train a quantized network in place; refuse, and leave it to be thrown away, where that makes it no better.

    Weights and biases start where the original's lie inside of their steps, scales as they are; both are trained, and what
    stays in float too (`engine.train.quantized_twin`). What comes out is the same integer graph. Scales learn at
    `scale_rate` times the rate of weights.
    """
    ir.external_data.load_to_model(model)
    teacher = teacher_of(context)
    if first_quantized(teacher) is not None:
        return Refusal(
            code="not_applicable",
            reason="The network was uploaded quantized, so that no float network is there to learn from.",
            hint="Name the float network that it was made from as the job's `teacher`, or upload that and quantize it here.",
        )
    ir.external_data.load_to_model(context.original)
    before = context.evaluate(io.copy(model))
    graph = prepare(model)
    with threads(student_threads(context.untimed.threads)):
        student = QuantizedTwin(model, graph, context.original, framework.device())
        started = _Started(student)
        taught = _taught(student, model, teacher, with_rates(settings, student, scale_rate), context)
        if isinstance(taught, Refusal):
            return taught
        told = tuple(started.told())
        student.write_back(model)
    after = context.evaluate(io.copy(model))
    details = QuantizeAwareDetails(
        drop_before=quality_drop(before),
        drop_after=quality_drop(after),
        weights=told,
        activation_scales=len(graph.activations),
        biases=len(graph.biases),
        left=left_alone(graph.left),
        training=taught.told,
    )
    if not taught.record.improved:
        return no_gain("on the samples to choose on, the network came no closer to its teacher", details)
    # Of another teacher's student, closeness to the original says nothing.
    reason = None if context.teacher is not None else _worse(before, after)
    if reason is not None:
        return no_gain(reason, details)
    return Change(summary=_summary(taught, graph, details), details=details, repair=True)


def _taught(
    student: QuantizedTwin, model: ir.Model, teacher: ir.Model, settings: DistillSettings, context: Context
) -> Taught | Refusal:
    first = next(iter(student.unsupported()), None)
    if first is not None:
        return Refusal(
            code="unsupported",
            reason=f"The network cannot be trained through {first.operator}: {first.reason}.",
            node=first.node,
            hint="Train the float network by distill, which goes around what it cannot train through, and quantize it then.",
        )
    return _disagreement(student, model, teacher, context) or teach(student, model, teacher, settings, context)


def _worse(before: Sequence[Quality], after: Sequence[Quality]) -> str | None:
    """Say why a trained network is no better; None where it is.

    One sample more or less that it gets right is chance: there its distance from the original decides, which is finer.
    """
    lost, loses = quality_drop(before), quality_drop(after)
    if lost is not None and loses is not None and loses > lost + _chance(after):
        return f"the trained network loses {loses:.4g}, the network before {lost:.4g}"
    was, now = main_metrics(before), main_metrics(after)
    for metric, sign in (("kl", 1), ("sqnr_db", -1)):
        if metric in was and metric in now:
            worse = sign * now[metric].compressed > sign * was[metric].compressed
            said = f"{metric} of the trained network is {now[metric].compressed:.4g}, before it was {was[metric].compressed:.4g}"
            return said if worse else None
    return None


def _chance(quality: Sequence[Quality]) -> float:
    """Give the standard error of what `quality_drop` reads."""
    found = main_metrics(quality)
    return next((found[name].standard_error for name in (*TASK_METRICS, *KEPT_SHARES) if name in found), 0.0)


class _Started:
    """What a network was before it was trained."""

    def __init__(self, student: QuantizedTwin) -> None:
        self._student = student
        with torch.no_grad():
            self._codes = [weight.codes(weight.scale).clone() for weight in student.weights]

    def told(self) -> Iterator[TrainedInteger]:
        """Say of each layer how far it came."""
        with torch.no_grad():
            for weight, codes in zip(self._student.weights, self._codes, strict=True):
                moved = (weight.codes(weight.scale) != codes).float().mean()
                yield TrainedInteger(
                    node=weight.stored.node,
                    op=weight.stored.op,
                    bits=weight.stored.bits,
                    codes_changed=round(float(moved), 4),
                    scale_change=round(float(((weight.growth - 1).exp() - 1).abs().mean()), 4),
                )


def _summary(taught: Taught, graph: QuantizedGraph, details: QuantizeAwareDetails) -> str:
    trained = f"weights of {len(graph.weights)} layers" if graph.weights else "no weights"
    return (
        f"{summary(taught, details.drop_before, details.drop_after).removesuffix('.')}; trained were {trained} and {len(graph.activations)} scales of"
        " activations, in the same integer graph."
    )


# --- whether the twin rounds as onnxruntime does ---------------------------------------------------------------------


def _disagreement(student: QuantizedTwin, model: ir.Model, teacher: ir.Model, context: Context) -> Refusal | None:
    """Refuse a network that onnxruntime computes otherwise; name the first operator where they part."""
    feeds = list(_feeds(model, context))
    outputs = [str(value.name) for value in model.graph.outputs]
    own, theirs = _said(student, feeds, outputs), _run(model, feeds, outputs, context)
    float_ones = _run(teacher, feeds, [name for name in outputs if _gives(teacher, name)], context)
    for name in outputs:
        noise = _noise(theirs[name], own[name])
        quantization = _noise(float_ones[name], theirs[name]) if name in float_ones else np.inf
        if noise > max(_FLIPS, _OF_QUANTIZATION * min(quantization, 1.0)):
            node = _first_apart(student, model, feeds, context)
            return Refusal(
                code="unsupported",
                reason=f"In training the network computes something else than ONNX Runtime does: output `{name}` is apart by"
                f" {noise:.1%} of its energy, of which rounding explains {_FLIPS:.0%}"
                + (f"; {node.op_type} is the first operator that differs." if node is not None else "."),
                node=None if node is None else node.name,
                hint="Weights in blocks with accuracy_level 4 round activations on the way; `accuracy`: `float32` does not.",
            )
    return None


def _first_apart(student: QuantizedTwin, model: ir.Model, feeds: Sequence[Feed], context: Context) -> ir.Node | None:
    """Give the first node whose float result differs by more than rounding."""
    made = {name for node in student.twin.graph.nodes for name in node.outputs}
    nodes = {str(value.name): node for node in model.graph for value in node.outputs if _is_float(node)}
    names = [name for name in nodes if name in made]
    own, theirs = _said(student, feeds, names), _run(model, feeds, names, context)
    return next((nodes[name] for name in names if _noise(theirs[name], own[name]) > _FLIPS), None)


def _is_float(node: ir.Node) -> bool:
    return node.op_type in {"DequantizeLinear", "Conv", "Gemm", "MatMul", "MatMulNBits", "Add", "Mul", "Softmax"}


def _gives(model: ir.Model, name: str) -> bool:
    return any(value.name == name for value in model.graph.outputs)


def _feeds(model: ir.Model, context: Context) -> Iterator[Feed]:
    assert context.calibration is not None
    fixed = fixed_batch(model, context.calibration)
    for feed in islice(context.calibration.batches(fixed or 1), 1 if fixed and fixed > 1 else _COMPARED):
        yield padded(feed, fixed)


def _said(student: QuantizedTwin, feeds: Sequence[Feed], names: Sequence[str]) -> dict[str, Array]:
    with torch.no_grad():
        runs = [student.run(student.feed(feed), names) for feed in feeds]
    return {name: _joined([run[name].cpu().numpy() for run in runs]) for name in names}


def _run(model: ir.Model, feeds: Sequence[Feed], names: Sequence[str], context: Context) -> dict[str, Array]:
    with context.working():
        session = sessions.session(io.to_bytes(with_outputs(model, names)), context.target)
        runs = [session.run(feed) for feed in feeds]
    return {name: _joined([np.asarray(run[name]) for run in runs]) for name in names}


def _joined(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.asarray(array, np.float64).reshape(-1) for array in arrays])


def _noise(reference: Array, found: Array) -> float:
    known = np.isfinite(reference) & np.isfinite(found)
    energy = float(np.square(reference[known]).sum())
    return float(np.square(reference[known] - found[known]).sum()) / max(energy, 1e-30) if energy else 0.0


def with_rates(settings: DistillSettings, student: QuantizedTwin, scales: float) -> DistillSettings:
    """Let scales learn at a multiple of the rate of weights."""
    rates = dict.fromkeys(student.growths, scales)
    return replace(settings, training=replace(settings.training, rates=rates))
