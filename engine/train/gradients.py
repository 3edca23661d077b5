"""What a network's loss beside its teacher tells of each channel: how it changes when the channel goes, by gradients.

A channel is imagined with a gate that all weights reading it are multiplied with. The derivative for the gate is the sum of
gradient times weight over these weights (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771), whatever the layers are, and
over all layers that lose the channel together (Liu et al. 2021, https://arxiv.org/abs/2108.00708).

Of the original itself the divergence from the original is at its least and has no gradient. So `taylor` takes the loss beside
the original's decisions, which has one, and `fisher` the second derivative: gradients of what the network's own outputs
could have been, drawn at random, whose mean square is exactly that of the divergence (the Fisher information).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context
from engine.data.batches import padded, sample_count
from engine.errors import ModelUnsupportedError
from engine.graph import io
from engine.graph.groups import Group, Slice
from engine.report.values import OutputReport
from engine.train import framework
from engine.train.framework import Tensor, torch
from engine.train.losses import BinaryDivergence, Direction, Divergence, OutputLoss, ScaledError, scores, teacher_loss
from engine.train.teacher import Teacher
from engine.train.twin.module import Twin

Criterion = Literal["taylor", "fisher"]
Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

# Few samples make a gradient: their squares are what is averaged.
_BATCH = 8
_SAMPLES = 512
# Of what outputs could have been, for each batch.
_DRAWS = 2


@dataclass(frozen=True)
class GradientSettings:
    """How gradients are taken: by which criterion, on how many samples, and what is drawn from which seed."""

    criterion: Criterion
    samples: int = _SAMPLES
    draws: int = _DRAWS
    seed: int = 0


def channel_effects(
    model: ir.Model, teacher: ir.Model, groups: Sequence[Group], settings: GradientSettings, context: Context
) -> list[dict[int, float]]:
    """Give for each group by atom how much the loss changes without it: a mean square of gate derivatives.

    With `fisher`, half the number is the second-order estimate of the divergence that zeroing the channel causes, in nats.

    Raises:
        ModelUnsupportedError: the network cannot be differentiated, or its outputs give `taylor` no gradient.
    """
    twin = Twin.of(model, trainable=_read_by(model, groups), device=framework.device())
    unsupported = twin.unsupported()
    if unsupported:
        first = unsupported[0]
        raise ModelUnsupportedError(f"{first.operator} cannot be differentiated: {first.reason}.", node=first.node)
    work = _Effects(twin, model, teacher, settings, context)
    gates = [[_Gate.of(part, group) for part in _gated(group)] for group in groups]
    sums = [np.zeros(len(group.atoms)) for group in groups]
    for gradients in work.gradients():
        for number, parts in enumerate(gates):
            slope = np.zeros(len(sums[number]))
            for gate in parts:
                gate.add(slope, twin.parameters[gate.initializer], gradients[gate.initializer])
            sums[number] += np.square(slope)
    return [
        dict(zip(group.atoms, (total / max(work.count, 1)).tolist(), strict=True))
        for group, total in zip(groups, sums, strict=True)
    ]


def _read_by(model: ir.Model, groups: Sequence[Group]) -> set[str]:
    floats = {
        str(value.name)
        for _, value in io.initializers(model)
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    }
    return {part.initializer for group in groups for part in _gated(group)} & floats


def _gated(group: Group) -> Sequence[Slice]:
    """Give the slices that a gate on each channel multiplies: those of the layers that read it, else of those that make it."""
    readers = [part for part in group.slices if part.role == "in"]
    return readers or [part for part in group.slices if part.role == "out"]


@dataclass(frozen=True)
class _Gate:
    """Which places of an initializer belong to which of a group's atoms."""

    initializer: str
    axis: int
    # By line and place, the atom's number in the group; the number of atoms where it is none of them.
    numbers: npt.NDArray[np.int64]
    atoms: int

    @classmethod
    def of(cls, part: Slice, group: Group) -> "_Gate":
        order = np.argsort(group.atoms)
        known = np.asarray(group.atoms)[order]
        labels = part.atoms if part.atoms.ndim == 2 else part.atoms[None]
        place = np.clip(np.searchsorted(known, labels), 0, len(known) - 1)
        numbers = np.where(known[place] == labels, order[place], len(known))
        return cls(part.initializer, part.axis, numbers.astype(np.int64), len(known))

    def add(self, slope: Array, weight: Tensor, gradient: Tensor) -> None:
        """Add what this initializer contributes to the derivative for each gate."""
        product = (weight.detach() * gradient).movedim(self.axis, -1)
        lines, places = self.numbers.shape
        if places != product.shape[-1] or product.numel() % (lines * places):
            return
        summed = product.reshape(lines, -1, places).sum(1).double().cpu().numpy()
        slope += np.bincount(self.numbers.ravel(), summed.ravel(), self.atoms + 1)[: self.atoms]


class _Effects:
    def __init__(
        self, twin: Twin, model: ir.Model, teacher: ir.Model, settings: GradientSettings, context: Context
    ) -> None:
        assert context.calibration is not None
        self._twin, self._settings, self._context = twin, settings, context
        self._fixed = fixed_batch(model, context.calibration)
        self._samples = context.calibration
        self._random = torch.Generator().manual_seed(settings.seed)
        names = [str(value.name) for value in model.graph.outputs]
        self._teacher = Teacher(teacher, names, context.target, twin.device)
        with context.working():
            looked = [self._teacher.arrays(feed) for _, feed in zip(range(_BATCH), self._feeds(), strict=False)]
        reports = context.recognised or tuple(
            OutputReport(name=name, kind="values", reason="", weight=1.0, ignored=False, main=not number)
            for number, name in enumerate(names)
        )
        loss = teacher_loss(reports, {name: [each[name] for each in looked] for name in names}, 1.0)
        self._losses = {name: (each.loss, each.weight) for name, each in loss.outputs.items()}
        if not self._losses:
            raise ModelUnsupportedError("None of the network's outputs has a loss beside the original's.")
        decides = any(isinstance(each, Divergence | BinaryDivergence) for each, _ in self._losses.values())
        if settings.criterion == "taylor" and not decides:
            raise ModelUnsupportedError(
                "The outputs make no decisions, and beside the original itself their error has no slope: `fisher` needs none."
            )
        self.count = 0

    def gradients(self) -> Iterator[Mapping[str, Tensor]]:
        """Yield the gradient for each batch and draw, by initializer."""
        wanted = list(self._losses)
        for feed in self._feeds():
            with self._context.working():
                given = self._twin.run(self._twin.feed(feed), wanted)
                said = self._teacher(feed) if self._settings.criterion == "taylor" else given
                draws = self._settings.draws if self._settings.criterion == "fisher" else 1
                for draw in range(draws):
                    surrogate = torch.stack([self._surrogate(name, given[name], said[name]) for name in wanted]).sum()
                    found = torch.autograd.grad(
                        surrogate,
                        list(self._twin.parameters.values()),
                        retain_graph=draw + 1 < draws,
                        allow_unused=True,
                    )
                    self.count += 1
                    yield {
                        name: torch.zeros_like(value) if slope is None else slope
                        for (name, value), slope in zip(self._twin.parameters.items(), found, strict=True)
                    }

    def _feeds(self) -> Iterator[Feed]:
        taken = 0
        for feed in self._samples.batches(self._fixed or _BATCH):
            yield padded(feed, self._fixed)
            taken += sample_count(feed)
            if taken >= self._settings.samples:
                return

    def _surrogate(self, name: str, given: Tensor, said: Tensor) -> Tensor:
        """Give a number whose gradient is that of the loss (`taylor`), or has its second derivative as mean square (`fisher`)."""
        loss, weight = self._losses[name]
        if self._settings.criterion == "taylor":
            return weight * _slope_of_decisions(loss, given, said.detach())
        return weight**0.5 * self._drawn(loss, given)

    def _drawn(self, loss: OutputLoss, given: Tensor) -> Tensor:
        if isinstance(loss, Divergence):
            logits = scores(given, probabilities=loss.probabilities).movedim(loss.axis, -1)
            share = torch.softmax(logits.detach(), -1)
            rows = share.reshape(-1, share.shape[-1])
            drawn = torch.multinomial(rows.cpu(), 1, generator=self._random).to(rows.device)
            apart = (torch.zeros_like(rows).scatter_(1, drawn, 1.0) - rows).reshape(share.shape)
            return (apart * logits).sum() / len(rows) ** 0.5
        if isinstance(loss, BinaryDivergence):
            logits = loss.logits(given)
            share = torch.sigmoid(logits.detach())
            drawn = torch.bernoulli(share.cpu(), generator=self._random).to(share.device)
            return ((drawn - share) * logits).sum() / share.numel() ** 0.5
        scale = _variance(loss, given)
        normal = torch.randn(given.shape, generator=self._random).to(given.device)
        return (normal * torch.nan_to_num(given.float()) * (2 / scale).sqrt()).sum() / given.numel() ** 0.5


def _slope_of_decisions(loss: OutputLoss, given: Tensor, said: Tensor) -> Tensor:
    """Give the loss beside what the teacher decides; beside what it says where it decides nothing."""
    if isinstance(loss, Divergence):
        logits = scores(given, probabilities=loss.probabilities).movedim(loss.axis, -1)
        decided = scores(said, probabilities=loss.probabilities).movedim(loss.axis, -1).argmax(-1)
        found: Tensor = framework.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), decided.reshape(-1))
        return found
    if isinstance(loss, BinaryDivergence):
        decided = (loss.logits(said) > 0).float()
        return framework.functional.binary_cross_entropy_with_logits(loss.logits(given), decided)
    return loss(given, said, None)


def _variance(loss: OutputLoss, given: Tensor) -> Tensor:
    error = loss.error if isinstance(loss, Direction) else loss
    assert isinstance(error, ScaledError)
    return torch.as_tensor(error.variance, dtype=torch.float32, device=given.device)
