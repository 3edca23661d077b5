"""What a student learns from a teacher: batches, what the teacher says of them, the losses, and how well it is learnt."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context, Labels, Samples
from engine.data.batches import padded, sample_count
from engine.data.labels import CLASS_METRICS
from engine.data.padding import valid_positions
from engine.gate import TASK_METRICS
from engine.graph import io
from engine.measure.acceptance import KEPT_SHARES, main_metrics
from engine.report.training_details import TrainedOutput
from engine.report.values import OutputReport, Quality
from engine.train.ahead import Ahead
from engine.train.augmentation import Augmentation, Mixed
from engine.train.batches import Feed, Place, Places, Stream, random_access
from engine.train.framework import Tensor, torch
from engine.train.inner_tensors import Shared
from engine.train.losses import CrossEntropy, Divergence, boundary_losses, teacher_loss
from engine.train.memory_plan import MemoryPlan
from engine.train.teacher import Teacher

Array = npt.NDArray[Any]

# Samples by which it is told what the teacher's outputs are.
_LOOKED_AT, _FEWEST_LOOKED_AT, _LOOKED_AT_BYTES = 64, 8, 32 << 20
_MOST_SELECT, _MOST_SELECT_BYTES = 1024, 192 << 20
# Labels that the teacher itself does not agree with were not read as they were meant.
_LEAST_AGREEMENT = 0.5
# They say where things are: two images on top of each other are nothing that the teacher ever saw.
_OF_PLACES = frozenset({"boxes", "mask"})
# What a sample costs is timed on so many, twice where that is quick.
_TIMED, _TIMED_S = 8, 2.0
_METRICS = (*TASK_METRICS, *KEPT_SHARES, "cosine", "sqnr_db")


def student_threads(cores: int) -> int:
    """Give how many threads a student computes with, where its teacher is asked at the same time."""
    return cores - cores // 3 if cores > 2 else 1


class Student(Protocol):
    """A network in training; its twin, or one that rounds as well."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What is trained, by the name of the initializer."""
        ...

    def feed(self, arrays: Feed) -> dict[str, Tensor]:
        """Copy arrays to where it runs."""
        ...

    def run(self, feeds: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Give values of the graph by name."""
        ...

    def write_back(self, model: ir.Model) -> None:
        """Put what was learnt into the network."""
        ...


@dataclass(frozen=True)
class LessonSettings:
    """What is learnt.

    Args:
        temperature: that softens distributions.
        boundaries: how much tensors inside count that both networks have by name and shape; 0: not at all.
        labels: how much labels count beside the teacher, where the samples have some.
        shift: see Augmentation, as `flip`, `mixup` and `noise`.
        flip: mirror images.
        mixup: None: where all inputs are images, and no output says where something is in them.
        noise: of inputs.
        seed: what all that is drawn follows from.
    """

    temperature: float = 2.0
    boundaries: float = 1.0
    labels: float = 0.1
    shift: int | None = None
    flip: bool = False
    mixup: bool | None = None
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class _Judged:
    """A batch of the samples to choose on, with what the teacher says of it."""

    feed: dict[str, Tensor]
    said: dict[str, Tensor]
    valid: Tensor | None
    count: int


@dataclass(frozen=True)
class _Part:
    """Some samples of a batch as they are learnt, with what the teacher says of them."""

    places: Places
    feed: Feed
    said: Mapping[str, Tensor]
    mixed: Mixed | None = None


class TeacherLesson:
    """One student and one teacher over the calibration samples. See engine.train.loop.Lesson.

    Args:
        student: what is trained.
        model: the network that the student's parameters are written into to be judged.
        teacher: the network that is learnt from.
        context: the job.
        settings: what is learnt.
        plan: how a batch is cut.
        device: where the student runs.
        inner: tensors inside that are compared in any case, where both have them in one shape.
    """

    def __init__(
        self,
        student: Student,
        model: ir.Model,
        teacher: ir.Model,
        context: Context,
        *,
        settings: LessonSettings,
        plan: MemoryPlan,
        device: Any,
        inner: Sequence[str] = (),
    ) -> None:
        assert context.calibration is not None
        assert context.select is not None
        self.parameters = student.parameters
        self._student, self._model, self._context = student, model, context
        self._settings, self._plan, self._device = settings, plan, device
        self._fixed = fixed = fixed_batch(model, context.calibration)
        self._stream = Stream(context.calibration, plan.batch, settings.seed, fixed)
        first = padded(next(iter(context.calibration.batches(fixed or 1))), fixed)
        shared = Shared.of(model, teacher, first)
        wanted = shared.blocks() if settings.boundaries else ()
        inside = list(dict.fromkeys([*(name for name in inner if name in shared), *wanted]))
        reports = context.recognised or _unrecognised(model)
        outputs = [str(value.name) for value in teacher.graph.outputs]
        learnable = [report.name for report in reports if report.name in outputs]
        cores = context.untimed.threads
        # Beside a student on the CPU the teacher takes a third of the cores.
        target = context.untimed.model_copy(update={"threads": max(1, cores - student_threads(cores))})
        self._teacher = Teacher(teacher, [*learnable, *inside], target, device)
        self._ahead: Ahead[list[_Part]] = Ahead(beside=cores > 1)
        with context.working():
            looked = list(self._looked_at(min(plan.micro, _FEWEST_LOOKED_AT)))
        said = {name: [each[name] for _, _, each in looked] for name in [*learnable, *inside]}
        self.loss_of_outputs = teacher_loss(reports, said, settings.temperature)
        self._inner = dict(boundary_losses({name: said[name] for name in inside}))
        self._wanted = [*self.loss_of_outputs.outputs, *self._inner]
        kinds = {report.kind for report in reports if report.name in self.loss_of_outputs.outputs}
        # A sample's outputs are decisions by the thousand, so few samples make a step.
        self.maps = kinds == {"mask"}
        mixup = False if settings.mixup is None and kinds & _OF_PLACES else settings.mixup
        self.augmentation = Augmentation.of(
            first, shift=settings.shift, flip=settings.flip, mixup=mixup, noise=settings.noise
        )
        self.labels_told: str | None = None
        self._cross_entropy, self._main = self._labels(context.labels, reports, looked)
        # Of the samples to choose on, how many the loss is judged on.
        self.most_judged = _MOST_SELECT

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(self._stream)

    def cut(self, plan: MemoryPlan) -> None:
        """Take batches of another size."""
        assert self._context.calibration is not None
        self._ahead.forget()
        self._plan = plan
        self._stream = Stream(self._context.calibration, plan.batch, self._settings.seed, self._fixed)

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn from, and weights lead to it."""
        if not self._wanted:
            return False
        return bool(self._part(1).requires_grad)

    def seconds_per_sample(self) -> float:
        """Time what a few samples take, forward and back; the first time it takes longer."""
        taken = math.inf
        for _ in range(2):
            with self._context.working():
                started = time.monotonic()
                self._part(_TIMED).backward()
                taken = min(taken, time.monotonic() - started)
            if taken > _TIMED_S:
                break
        for value in self.parameters.values():
            value.grad = None
        return taken / (self._fixed or min(_TIMED, self._plan.micro))

    def _part(self, count: int) -> Tensor:
        """Give the loss of some samples, no more than run at once."""
        chosen = np.arange(min(count, len(self._stream)))
        places, feed = next(self._stream.feeds(chosen, self._plan.micro))
        return self._loss(self._asked(places, feed, np.random.default_rng(self._settings.seed)))

    @property
    def inner(self) -> tuple[str, ...]:
        """Name the tensors inside that are compared."""
        return tuple(self._inner)

    def outputs(self) -> Iterator[TrainedOutput]:
        """Say what is learnt of each output."""
        for name, each in self.loss_of_outputs.outputs.items():
            yield TrainedOutput(output=name, loss=each.told)
        for name, reason in self.loss_of_outputs.left_out.items():
            yield TrainedOutput(output=name, reason=reason)

    # What the loop asks for

    def batches(self, place: Place) -> Iterator[tuple[Place, Places]]:
        """Yield batches without end, from a place on; while one is learnt, the teacher is asked about the next."""
        stream = self._stream.from_place(place)
        coming = next(stream)
        self._prepare(*coming)
        while True:
            current, coming = coming, next(stream)
            self._prepare(*coming)
            yield current

    def _prepare(self, place: Place, samples: Places) -> None:
        # What comes in parts does so for want of memory.
        if self._plan.parts == 1:
            self._ahead.prepare(place, lambda: list(self._parts(place, samples)))

    def losses(self, place: Place, samples: Places) -> Iterator[Tensor]:
        """Yield the loss of a batch in parts that add up to it."""
        whole = self._plan.parts == 1
        parts: Iterable[_Part] = self._parts(place, samples)
        for part in self._ahead.take(place, lambda: list(parts)) if whole else parts:
            yield self._loss(part) * (len(part.places) / len(samples))

    def rest(self) -> None:
        """Wait until the teacher has said what it was asked, so that nothing runs."""
        self._ahead.wait()

    def loss(self) -> float:
        """Give the loss on the samples that things are chosen on, as they are."""
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self._judged:
                given = self._student.run(batch.feed, self._wanted)
                total += batch.count * float(self._beside(given, batch.said, batch.valid))
                count += batch.count
        return total / max(count, 1)

    def quality(self) -> tuple[str, float] | None:
        """Give the metric that speaks for the network on those samples, and its name."""
        return headline(self._context.evaluate(self.written()))

    def written(self) -> ir.Model:
        """Give a copy of the network with what the student has learnt by now."""
        model = io.copy(self._model)
        self._student.write_back(model)
        return model

    # Losses

    def _parts(self, place: Place, samples: Places) -> Iterator[_Part]:
        """Yield the parts of a batch as student and teacher see it, with what the teacher says."""
        for number, (places, feed) in enumerate(self._stream.feeds(samples, self._plan.micro)):
            random = np.random.default_rng([self._settings.seed, 1, place.epoch, place.number, number])
            yield self._asked(places, feed, random)

    def _asked(self, places: Places, feed: Feed, random: np.random.Generator) -> _Part:
        if not self.augmentation.active:
            return _Part(places, feed, self._teacher.of_samples(places, feed))
        feed, mixed = self.augmentation(feed, random)
        return _Part(places, feed, self._teacher(feed), mixed)

    def _loss(self, part: _Part) -> Tensor:
        given = self._student.run(self._student.feed(part.feed), self._wanted)
        loss = self._beside(given, part.said, self._valid(part.feed, sample_count(part.feed)))
        if self._cross_entropy is not None:
            right = self._right(given[self._main][: len(part.places)], part.places, part.mixed)
            loss = loss + self._settings.labels * right
        return loss

    def _beside(self, given: Mapping[str, Tensor], said: Mapping[str, Tensor], valid: Tensor | None) -> Tensor:
        parts = [self.loss_of_outputs(given, said, valid)] if self.loss_of_outputs.outputs else []
        if self._inner:
            inside = [loss(given[name], said[name], valid) for name, loss in self._inner.items()]
            parts.append((self._settings.boundaries or 1.0) * torch.stack(inside).mean())
        return torch.stack(parts).sum()

    def _right(self, given: Tensor, places: Places, mixed: Mixed | None) -> Tensor:
        assert self._cross_entropy is not None
        assert self._context.labels is not None
        labels = torch.as_tensor(self._context.labels.values[places].astype(np.int64), device=given.device)
        own = self._cross_entropy(given, labels)
        if mixed is None:
            return own.mean()
        share = torch.as_tensor(mixed.share, dtype=own.dtype, device=own.device)
        other = self._cross_entropy(given, labels[torch.as_tensor(mixed.other, device=labels.device)])
        return (share * own + (1 - share) * other).mean()

    def _valid(self, feed: Feed, count: int) -> Tensor | None:
        found = valid_positions(feed, count)
        return None if found is None else torch.as_tensor(found, device=self._device)

    def _labels(
        self,
        labels: Labels | None,
        reports: Sequence[OutputReport],
        looked: Sequence[tuple[Places, Feed, Mapping[str, Array]]],
    ) -> tuple[CrossEntropy | None, str]:
        """Find out whether labels can be learnt from, and say so."""
        main = next((report.name for report in reports if report.main), "")
        if labels is None or not self._settings.labels:
            return None, main
        known = self.loss_of_outputs.outputs.get(main)
        divergence = known.loss if known is not None else None
        if (
            labels.metric not in CLASS_METRICS
            or not isinstance(divergence, Divergence)
            or labels.values.dtype.kind not in "iu"
        ):
            self.labels_told = f"not used: those of {labels.metric} are no class numbers beside scores of classes"
            return None, main
        right = [
            (said[main][: len(places)].argmax(divergence.axis) == labels.values[places])[labels.values[places] >= 0]
            for places, _, said in looked
            if said[main][: len(places)].argmax(divergence.axis).shape == labels.values[places].shape
        ]
        agreed = float(np.concatenate([each.ravel() for each in right]).mean()) if right else 0.0
        if agreed < _LEAST_AGREEMENT:
            self.labels_told = f"not used: the teacher agrees with {agreed:.0%} of them"
            return None, main
        self.labels_told = f"cross-entropy, counted {self._settings.labels:g} times"
        return CrossEntropy(divergence.axis, divergence.probabilities), main

    def _looked_at(self, most: int) -> Iterator[tuple[Places, Feed, dict[str, Array]]]:
        """Yield some samples with what the teacher says of them: many, unless that is large."""
        room = _LOOKED_AT_BYTES
        for places, feed in self._stream.feeds(np.arange(min(_LOOKED_AT, len(self._stream))), most):
            said = self._teacher.arrays(feed)
            yield places, feed, said
            room -= sum(array.nbytes for array in said.values())
            if room <= 0 and places[-1] + 1 >= _FEWEST_LOOKED_AT:
                return

    # Judging

    @cached_property
    def _judged(self) -> list[_Judged]:
        assert self._context.select is not None
        return list(self._judging(self._context.select, fixed_batch(self._model, self._context.select)))

    def _judging(self, samples: Samples, fixed: int | None) -> Iterator[_Judged]:
        """Keep some of the samples to choose on, spread over all, with what the teacher says of them."""
        places = np.unique(np.linspace(0, len(samples) - 1, min(self.most_judged, len(samples))).astype(np.int64))
        room, asked = _MOST_SELECT_BYTES, 0
        for feed in random_access(samples).subset(places).batches(fixed or self._plan.micro):
            count, full = sample_count(feed), padded(feed, fixed)
            with self._context.working():
                said = self._teacher(full)
            batch = _Judged(self._student.feed(full), said, self._valid(full, sample_count(full)), count)
            yield batch
            asked += count
            self._context.progress(0.0, f"asking the teacher: {asked} of {len(places)} samples to choose on")
            room -= sum(value.nbytes for value in (*batch.feed.values(), *said.values()))
            if room <= 0:
                return


def headline(quality: Sequence[Quality]) -> tuple[str, float] | None:
    """Give the metric that speaks for a network: the task's, else what stays of its decisions, else how near it is."""
    found = main_metrics(quality)
    return next(((name, found[name].compressed) for name in _METRICS if name in found), None)


def _unrecognised(model: ir.Model) -> list[OutputReport]:
    """Where nobody looked at the outputs, their numbers have to stay."""
    return [
        OutputReport(name=str(value.name), kind="values", reason="", weight=1.0, ignored=False, main=number == 0)
        for number, value in enumerate(model.graph.outputs)
    ]
