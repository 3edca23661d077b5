"""The work of the `distill` pass: train a network's weights until it says what its teacher says."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context
from engine.data.batches import padded
from engine.gate import TASK_METRICS
from engine.graph import io
from engine.graph.weights import lift_weights
from engine.measure.acceptance import KEPT_SHARES, main_metrics, quality_drop
from engine.report.detail_parts import LeftAlone
from engine.report.training_details import DistillDetails, QuantizeAwareDetails, TrainingPoint, TrainingRecord
from engine.report.values import Change, Quality, Refusal
from engine.train import checkpoint, framework, loop
from engine.train.framework import torch
from engine.train.lesson import LessonSettings, Student, TeacherLesson, student_threads
from engine.train.loop import Record, Surroundings
from engine.train.memory_plan import MemoryPlan, plan, within_device
from engine.train.trained_weights import trained_weights
from engine.train.twin.module import Twin
from engine.train.twin.parity import require_parity
from engine.train.twin.pieces import pieces

_LARGEST_BATCH, _SMALLEST_BATCH, _SMALLEST_BATCH_OF_MAPS = 64, 8, 2
# A budget of seconds is for at least so many steps: large networks take smaller batches.
_LEAST_STEPS = 500
# Each epoch has at least so many steps.
_LEAST_BATCHES = 8
# A network that has lost more than that of its decisions, or of the task's metric, has far to go.
_FAR = 0.05
_USUAL_RATE, _RATES_FROM_AFAR = 0.01, (0.01, 0.03, 0.1)
# One judgement takes no more than this share of the seconds, as if forward took as long as forward and back.
_JUDGED_SHARE, _FEWEST_JUDGED = 0.03, 32
# Of the time until the job's deadline, what is left for what comes after the training.
_RESERVE, _LEAST_RESERVE_S = 0.1, 5.0
_TOLD_OF = 0.8


@dataclass(frozen=True)
class DistillSettings:
    """How long, with what and how is trained; `batch`: samples of a step, None: by what there is time and memory for."""

    training: loop.Settings = field(default_factory=loop.Settings)
    lesson: LessonSettings = field(default_factory=LessonSettings)
    batch: int | None = None


@dataclass(frozen=True)
class Taught:
    """What came of a training: what the loop says, and what the report says of it."""

    record: Record
    told: TrainingRecord


def distill(model: ir.Model, settings: DistillSettings, context: Context) -> Change | Refusal:
    """Train a network in place; refuse, and leave it to be thrown away, where it comes no closer to its teacher.

    Raises:
        VerificationFailedError: PyTorch computes something else than ONNX Runtime.
    """
    ir.external_data.load_to_model(model)
    lift_weights(model)
    teacher = teacher_of(context)
    with threads(student_threads(context.untimed.threads)):
        weights = trained_weights(model)
        if not weights:
            return Refusal(code="not_applicable", reason="The network has no float weights that could be trained.")
        refused = plan_for(model, teacher, weights, settings, context)
        if isinstance(refused, Refusal):
            return refused
        # What cannot be trained through is run by onnxruntime: gradients end there.
        student = Twin.of(model, trainable=weights, device=framework.device(), beside=context.untimed)
        assert context.calibration is not None
        with context.working():
            require_parity(student, model, context.calibration, context.target)
            before = context.evaluate(io.copy(model))
        settings = _with_rate(settings, quality_drop(before))
        taught = teach(student, model, teacher, settings, context, inner=_ends_of_pieces(student, model))
        if isinstance(taught, Refusal):
            return taught
        student.write_back(model)
    after = context.evaluate(io.copy(model))
    cuts = tuple(LeftAlone(node=each.node, reason=f"{each.operator}: {each.reason}") for each in student.unsupported())
    drops = quality_drop(before), quality_drop(after)
    details = DistillDetails(drop_before=drops[0], drop_after=drops[1], not_trained_through=cuts, training=taught.told)
    if not taught.record.improved:
        return no_gain("on the samples to choose on, the network came no closer to its teacher", details)
    # Of another teacher's student, closeness to the original says nothing.
    if context.teacher is None and _is_worse(before, after):
        return no_gain(f"the trained network loses {drops[1]:.4g}, the network before {drops[0]:.4g}", details)
    return Change(summary=summary(taught, *drops), details=details, repair=True)


def _is_worse(before: Sequence[Quality], after: Sequence[Quality]) -> bool:
    """Say whether a network lost beyond chance: it came closer to its teacher, and one decision more or less is none."""
    was, now = quality_drop(before), quality_drop(after)
    if was is None or now is None:
        return False
    found = main_metrics(after)
    share = next((found[name] for name in (*TASK_METRICS, *KEPT_SHARES) if name in found), None)
    return now - was > (0.0 if share is None else share.standard_error)


def plan_for(
    model: ir.Model, teacher: ir.Model, weights: Sequence[str], settings: DistillSettings, context: Context
) -> MemoryPlan | Refusal:
    """Plan batch and memory of a training of some weights, or refuse it, before anything is made."""
    assert context.calibration is not None
    fixed = fixed_batch(model, context.calibration)
    samples = len(context.calibration)
    batch = settings.batch or min(_LARGEST_BATCH, max(_SMALLEST_BATCH, samples // _LEAST_BATCHES))
    chosen = set(weights)
    tensors = (value.const_value for _, value in io.initializers(model) if value.name in chosen)
    found = plan(
        model,
        teacher,
        trained_bytes=4 * sum(tensor.size for tensor in tensors if tensor is not None),
        feed=padded(next(iter(context.calibration.batches(fixed or 1))), fixed),
        batch=_multiple(min(batch, samples), fixed),
        limit=context.memory_limit,
        fixed=fixed,
    )
    device = framework.device()
    if device.type != "cuda" or fixed is not None or isinstance(found, Refusal):
        return found
    return within_device(found, torch.cuda.mem_get_info(device)[0])


def teach(
    student: Student,
    model: ir.Model,
    teacher: ir.Model,
    settings: DistillSettings,
    context: Context,
    *,
    inner: Sequence[str] = (),
) -> Taught | Refusal:
    """Train a student on what a teacher says of the calibration samples, within the job's memory and time.

    `inner`: tensors inside that are compared whatever else is, where the teacher has them in the same shape.
    """
    assert context.calibration is not None
    found = plan_for(model, teacher, list(student.parameters), settings, context)
    if isinstance(found, Refusal):
        return found
    context.progress(0.0, "asking the teacher")
    taught = TeacherLesson(
        student, model, teacher, context, settings=settings.lesson, plan=found, device=framework.device(), inner=inner
    )
    if not taught.learns:
        return Refusal(
            code="not_applicable",
            reason="Nothing of the network can be learnt: "
            + "; ".join(f"`{each.output}`: {each.reason or 'no weight leads to it'}" for each in taught.outputs()),
        )
    if settings.training.steps is None:
        context.progress(0.0, "timing a step")
        each = _seconds_per_sample(taught, context.checkpoint)
        if settings.batch is None:
            least = _SMALLEST_BATCH_OF_MAPS if taught.maps else _SMALLEST_BATCH
            fixed = fixed_batch(model, context.calibration)
            found = _within_time(found, fixed, each, settings.training.seconds, least)
            taught.cut(found)
        taught.most_judged = max(_FEWEST_JUDGED, int(_JUDGED_SHARE * settings.training.seconds / each))
    around = Surroundings(
        folder=context.checkpoint,
        working=context.working,
        tell=lambda share, message: context.progress(_TOLD_OF * share, message),
        deadline=_deadline(context.deadline),
    )
    record = loop.train(taught, settings.training, around)
    trained = sum(value.numel() for value in student.parameters.values())
    return Taught(record, _told(record, taught, found, trained, context))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have PyTorch compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name() -> str:
    """Name what is trained on, for the report."""
    found = framework.device()
    return "cpu" if found.type == "cpu" else str(torch.cuda.get_device_name(found))


# How much at once


def _with_rate(settings: DistillSettings, drop: float | None) -> DistillSettings:
    """Take the usual rate for a network that is near its teacher; others may learn faster, which a short trial tells."""
    if settings.training.learning_rate is not None:
        return settings
    far = drop is None or drop > _FAR
    training = replace(settings.training, learning_rate=None if far else _USUAL_RATE, candidates=_RATES_FROM_AFAR)
    return replace(settings, training=training)


def _ends_of_pieces(student: Twin, model: ir.Model) -> list[str]:
    """Name what the parts give that onnxruntime's nodes read: no gradient comes back to them from there."""
    if not student.cuts():
        return []
    outputs = set(student.outputs)
    return [name for piece in pieces(model, student) for name in piece.outputs if name not in outputs]


def _multiple(batch: int, fixed: int | None) -> int:
    return batch if fixed is None else max(fixed, batch // fixed * fixed)


def _within_time(found: MemoryPlan, fixed: int | None, each: float, seconds: float, least: int) -> MemoryPlan:
    """Halve the batch until the budget is enough for some hundred steps."""
    batch = found.batch
    while batch > least and _LEAST_STEPS * batch * each > seconds:
        batch //= 2
    batch = _multiple(batch, fixed)
    return replace(found, batch=batch, micro=min(found.micro, batch))


def _seconds_per_sample(lesson: TeacherLesson, folder: Path) -> float:
    """Give what a sample costs; another attempt plans with what the first one saw, for its checkpoint fits no other plan."""
    path = folder / "timed.pt"
    kept = checkpoint.load(path)
    if kept is not None:
        return float(kept["seconds_per_sample"])
    seconds = lesson.seconds_per_sample()
    checkpoint.save(path, {"seconds_per_sample": seconds})
    return seconds


def _deadline(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    return deadline - max(_RESERVE * (deadline - time.monotonic()), _LEAST_RESERVE_S)


# What is said


def teacher_of(context: Context) -> ir.Model:
    """Give the network that a student learns from: the original, or the one that the job names."""
    teacher = context.original if context.teacher is None else io.load(context.teacher)
    ir.external_data.load_to_model(teacher)
    return teacher


def _told(record: Record, lesson: TeacherLesson, found: MemoryPlan, trained: int, context: Context) -> TrainingRecord:
    return TrainingRecord(
        device=device_name(),
        threads=context.untimed.threads,
        parameters=trained,
        samples=len(lesson),
        batch=found.batch,
        parts=found.parts,
        planned_bytes=found.fixed_bytes + found.micro * found.sample_bytes,
        learning_rate=record.learning_rate,
        tried_rates={f"{rate:g}": _finite(loss) or 0.0 for rate, loss in record.tried.items() if np.isfinite(loss)},
        augmentation=tuple(lesson.augmentation.declared()),
        outputs=tuple(lesson.outputs()),
        boundaries=lesson.inner,
        labels=lesson.labels_told,
        metric=record.metric,
        points=tuple(
            TrainingPoint(
                step=point.step,
                seconds=round(point.seconds, 2),
                train_loss=point.train_loss,
                select_loss=_finite(point.select_loss),
                quality=point.quality,
                learning_rate=point.rate,
            )
            for point in record.points
        ),
        best_step=record.best.step,
        steps=record.steps,
        seconds=round(record.seconds, 2),
        stopped=record.stopped,
        resumed_from=record.resumed_from,
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def summary(taught: Taught, before: float | None, after: float | None) -> str:
    """Say in a sentence how long was trained, and what it did."""
    record = taught.record
    first, best = record.points[0], record.best
    said = f"Trained for {record.seconds:.0f} s ({record.steps} steps)"
    if record.metric is not None and first.quality is not None and best.quality is not None:
        said += f": {record.metric} went from {first.quality:.4g} to {best.quality:.4g} on the samples to choose on"
    if before is not None and after is not None:
        said += f", what is lost from {before:.4g} to {after:.4g}"
    return f"{said}."


def no_gain(reason: str, details: DistillDetails | QuantizeAwareDetails) -> Refusal:
    """Refuse what training made no better."""
    return Refusal(
        code="no_gain",
        reason=f"Training did not help: {reason}.",
        hint="Give it more unlabelled samples or more seconds, or a lower learning_rate.",
        details=details,
    )
