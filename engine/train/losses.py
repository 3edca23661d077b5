"""How far a student's outputs are from its teacher's, differentiable, by what each output is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.measure import metrics
from engine.measure.kinds import Subject
from engine.measure.kinds.classes import read_scores
from engine.measure.kinds.mask import read_mask
from engine.outputs import OutputKind
from engine.report.values import OutputReport
from engine.train.framework import Tensor, functional, torch

Array = npt.NDArray[Any]

# Scores that rule a class out are written as minus infinity; differences of them are no numbers.
_RULED_OUT = 1e4
_LEAST_PROBABILITY = 1e-7
# Outputs (samples, few numbers) are measured each by its own variance.
_MOST_COLUMNS = 64
_LEAST_VARIANCE = 1e-4
_UNLABELLED = -1


class OutputLoss(ABC):
    """A loss between one output of two networks, samples on the first axis; a mean over samples and positions."""

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Give the loss. `valid`: which positions (samples, positions) count; None: all."""


@dataclass(frozen=True)
class Divergence(OutputLoss):
    """KL divergence of the student's distribution over classes from the teacher's, both softened by a temperature.

    Times the square of the temperature, which keeps gradients of one size (Hinton, Vinyals, Dean 2015,
    https://arxiv.org/abs/1503.02531). `probabilities`: the outputs are distributions already.
    """

    axis: int
    temperature: float = 1.0
    probabilities: bool = False

    def __call__(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Give it in nats."""
        own, other = (
            functional.log_softmax(scores(each, probabilities=self.probabilities) / self.temperature, dim=self.axis)
            for each in (student, teacher)
        )
        return self.temperature**2 * mean((other.exp() * (other - own)).sum(self.axis), valid)


@dataclass(frozen=True)
class BinaryDivergence(OutputLoss):
    """KL divergence of decisions that are made one by one, each by a logit or, with `probabilities`, by its sigmoid."""

    temperature: float = 1.0
    probabilities: bool = False

    def __call__(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Give it in nats per decision."""
        own, other = (self.logits(each) / self.temperature for each in (student, teacher))
        wanted = torch.sigmoid(other)
        cross = functional.binary_cross_entropy_with_logits(own, wanted, reduction="none")
        entropy = functional.binary_cross_entropy_with_logits(other, wanted, reduction="none")
        return self.temperature**2 * mean(cross - entropy, valid)

    def logits(self, values: Tensor) -> Tensor:
        """Give the logit of each decision."""
        values = values.float()
        if not self.probabilities:
            return torch.nan_to_num(values, neginf=-_RULED_OUT, posinf=_RULED_OUT)
        return torch.logit(values, eps=_LEAST_PROBABILITY)


@dataclass(frozen=True)
class Direction(OutputLoss):
    """What the cosine on the last axis lacks to 1, plus the squared error as a share of the teacher's variance."""

    error: "ScaledError"

    def __call__(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Give it; 0 where nothing differs."""
        cosine = functional.cosine_similarity(student.float(), teacher.float(), dim=-1)
        return mean(1 - cosine, valid) + self.error(student, teacher, valid)


@dataclass(frozen=True)
class ScaledError(OutputLoss):
    """Squared error as a share of the teacher's variance, which is one number or one for each column."""

    variance: Array

    def __call__(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Give it; 1 is what the teacher's mean would reach."""
        scale = torch.as_tensor(self.variance, dtype=torch.float32, device=student.device)
        student, teacher = (torch.nan_to_num(each.float()) for each in (student, teacher))
        return mean((student - teacher).square() / scale, valid)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with class numbers (samples) or (samples, positions); -1 does not count."""

    axis: int
    probabilities: bool = False

    def __call__(self, student: Tensor, labels: Tensor) -> Tensor:
        """Give it for each sample."""
        given = scores(student, probabilities=self.probabilities).movedim(self.axis, 1)
        each = functional.cross_entropy(given, labels, ignore_index=_UNLABELLED, reduction="none")
        rows, counted = each.reshape(len(each), -1), (labels != _UNLABELLED).reshape(len(labels), -1)
        return rows.sum(1) / counted.sum(1).clamp(min=1)


def scores(values: Tensor, *, probabilities: bool) -> Tensor:
    """Give values whose softmax is the distribution that an output stands for."""
    if probabilities:
        return values.float().clamp(min=_LEAST_PROBABILITY).log()
    return torch.nan_to_num(values.float(), neginf=-_RULED_OUT, posinf=_RULED_OUT)


def mean(each: Tensor, valid: Tensor | None) -> Tensor:
    """Average over samples what is averaged over each sample's positions (samples, positions, ...); padded ones do not count."""
    if valid is None or each.ndim < 2 or each.shape[:2] != valid.shape:
        return each.mean()
    marks = valid.to(each.dtype)
    positions = each.reshape(*valid.shape, -1).mean(-1)
    return ((positions * marks).sum(1) / marks.sum(1).clamp(min=1)).mean()


# --- by what an output is -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighted:
    """The loss of one output and how much it counts; `told` says in words what is measured."""

    loss: OutputLoss
    weight: float
    told: str


@dataclass(frozen=True)
class TeacherLoss:
    """The losses of all outputs that can be learnt, and why others cannot."""

    outputs: Mapping[str, Weighted]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], valid: Tensor | None) -> Tensor:
        """Give the weighted sum."""
        parts = [each.weight * each.loss(student[name], teacher[name], valid) for name, each in self.outputs.items()]
        return torch.stack(parts).sum()


def teacher_loss(
    outputs: Sequence[OutputReport], said: Mapping[str, Sequence[Array]], temperature: float
) -> TeacherLoss:
    """Choose a loss for each output, from what it was taken for and some batches of what the teacher says."""
    chosen: dict[str, Weighted] = {}
    left_out: dict[str, str] = {}
    for report in outputs:
        reason = _objection(report, said.get(report.name, ()))
        if reason is not None:
            left_out[report.name] = reason
            continue
        assert report.kind is not None
        loss, told = _of_kind(report.kind, report.name, said[report.name], temperature)
        chosen[report.name] = Weighted(loss, report.weight, told)
    return TeacherLoss(chosen, left_out)


def _objection(report: OutputReport, said: Sequence[Array]) -> str | None:
    if report.ignored:
        return "nobody reads it"
    if report.kind is None:
        return report.reason
    if not said:
        return "the teacher does not give it"
    if not metrics.is_float(said[0]):
        return "whole numbers have no gradient"
    if len({each.shape[1:] for each in said}) > 1 and report.kind == "boxes":
        return "the data decide how many rows it has"
    return None


def _of_kind(kind: OutputKind, name: str, said: Sequence[Array], temperature: float) -> tuple[OutputLoss, str]:
    if kind in {"classes", "tokens"}:
        how = read_scores(Subject(name), [{name: each} for each in said])
        axis = metrics.class_axis(said[0]) - said[0].ndim
        if how.one_each or said[0].ndim == 1 or said[0].shape[axis] == 1:
            return _binary(temperature, said)
        return _divergence(axis, temperature, probabilities=how.probabilities)
    if kind == "mask":
        how = read_mask(Subject(name), said)
        if said[0].ndim == 4 and said[0].shape[1] > 1 and not how.one_each:
            return _divergence(-3, temperature, probabilities=how.probabilities)
        return _binary(temperature, said)
    error = ScaledError(variance(said))
    if kind == "embedding" and said[0].ndim > 1:
        return Direction(error), "cosine, and squared error as a share of the teacher's variance"
    return error, "squared error as a share of the teacher's variance"


def _divergence(axis: int, temperature: float, *, probabilities: bool) -> tuple[OutputLoss, str]:
    return Divergence(axis, temperature, probabilities), f"KL divergence at temperature {temperature:g}"


def _binary(temperature: float, said: Sequence[Array]) -> tuple[OutputLoss, str]:
    unit = all(float(each.min()) >= 0 and float(each.max()) <= 1 for each in said if each.size)
    told = f"KL divergence of each decision at temperature {temperature:g}"
    return BinaryDivergence(temperature, unit), told


def variance(said: Sequence[Array]) -> Array:
    """Give the variance of an output over samples: of each column of few, else of all numbers together."""
    rows = [np.nan_to_num(np.asarray(each, np.float64), posinf=0, neginf=0) for each in said]
    if rows[0].ndim == 2 and rows[0].shape[1] <= _MOST_COLUMNS:
        found: Array = np.concatenate(rows).var(axis=0)
        largest = float(found.max())
        return np.maximum(found, _LEAST_VARIANCE * largest if largest > 0 else 1.0)
    numbers = np.concatenate([each.ravel() for each in rows])
    spread = float(numbers.var())
    return np.asarray(spread if spread > 0 else max(float(np.square(numbers).mean()), 1.0))


# --- labels and tensors inside ------------------------------------------------------------------------------------------


def boundary_losses(said: Mapping[str, Sequence[Array]]) -> Iterator[tuple[str, ScaledError]]:
    """Yield a loss for each tensor inside the networks, by some batches of the teacher's."""
    for name, batches in said.items():
        spread = float(np.concatenate([np.asarray(each, np.float64).ravel() for each in batches]).var())
        if np.isfinite(spread) and spread > 0:
            yield name, ScaledError(np.asarray(spread))
