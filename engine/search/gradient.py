"""Widths by slopes through the network itself: a distribution over the widths of every group, trained beside the library's costs.

Each group's channels are put in the order in which they would go. A width then is a mask over that order, and the mask of a
distribution over widths is the mean of theirs, so that one run of the network through the twin says how its divergence from the
original depends on every width at once (Wan et al. 2020, https://arxiv.org/abs/2004.05565). The cost that is expected of two
distributions is bilinear in them over the library's tables (Wu et al. 2019, https://arxiv.org/abs/1812.03443). Their balance is a
point of the front; another weight of the cost, another point. Whether blocks stay is a share likewise, with the damage that the library
measured of their loss: a mask inside of a block does not say what the sum is without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context
from engine.data.batches import padded, sample_count
from engine.errors import ModelUnsupportedError
from engine.goal import Minimised, Precision
from engine.graph import io
from engine.graph.coupling import Coupling, analyse
from engine.graph.groups import Group, Slice
from engine.prune.widths import names_of
from engine.report.values import OutputReport
from engine.search.architecture import Architecture
from engine.search.choices import COSTS, Choice, Quantity, Tables
from engine.search.prediction import Prediction
from engine.search.tabulation import is_possible, point_of, tables
from engine.search.values import Point
from engine.train import framework
from engine.train.framework import Tensor, torch
from engine.train.gradients import GradientSettings, channel_effects
from engine.train.losses import OutputLoss, teacher_loss
from engine.train.teacher import Teacher
from engine.train.twin.module import Twin

Array = npt.NDArray[np.int64]

_BATCH = 16
_SAMPLES = 128
_STEPS = 48
_FEWEST_STEPS = 12
# Multiply-accumulates that one point may take: more steps or samples of a small network, fewer of a large one.
_WORK = 2e11
_RATE = 0.15
# Distributions are sharpened while they are trained.
_HOT, _COLD = 1.0, 0.3
# Widths begin near to what the network is.
_LEANING = 1.0
# Weights of the cost, as powers of ten.
_FROM, _TO = -2.5, 1.0


def trade(place: int) -> float:
    """Give the weight of the cost for a point: a sequence that fills the front ever more finely (van der Corput's)."""
    share, base, number = 0.0, 0.5, place + 1
    while number:
        share += base * (number & 1)
        number, base = number >> 1, base / 2
    return float(10.0 ** (_FROM + (_TO - _FROM) * share))


@dataclass(frozen=True)
class _Masked:
    """An initializer that a group's mask is multiplied with, and which place of the order each of its places has."""

    initializer: str
    axis: int
    # (lines, places): places in the order of removal, 0 for what goes last; the number of channels where it is no channel.
    order: Array

    def apply(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Multiply with a mask over the order; it has a 1 behind the last channel."""
        moved = weight.movedim(self.axis, -1)
        lines, places = self.order.shape
        gates = mask[torch.as_tensor(self.order, device=mask.device)]
        masked = moved.reshape(lines, -1, places) * gates[:, None, :]
        return masked.reshape(moved.shape).movedim(-1, self.axis)


class Relaxation:
    """One network with soft widths. Made once, it gives the point for any weight of the cost.

    Raises:
        ModelUnsupportedError: the network cannot be differentiated, there are no data, or no output has a loss.
    """

    def __init__(
        self, architecture: Architecture, prediction: Prediction, model: ir.Model, context: Context, *, seed: int = 0
    ) -> None:
        if context.calibration is None:
            raise ModelUnsupportedError(
                "Widths by slopes need data to run the network on, and there are none.",
                hint="Give the job data, or take another strategy.",
            )
        self._architecture, self._prediction, self._context = architecture, prediction, context
        model = io.copy(model)
        with context.working():
            coupling = analyse(model)
        named = {name: group for group, names in names_of(coupling.groups) for name in names}
        self._groups = {name: named[name] for name in architecture.groups if name in named}
        effects = channel_effects(
            model,
            context.original,
            list(self._groups.values()),
            GradientSettings("fisher", samples=_SAMPLES, draws=1, seed=seed),
            context,
        )
        self._masked = {
            name: [_masked(part, order) for part in _gated(group)]
            for (name, group), scores in zip(self._groups.items(), effects, strict=True)
            for order in [_order(coupling, group, scores)]
        }
        self._twin = Twin.of(
            model,
            trainable={each.initializer for parts in self._masked.values() for each in parts},
            device=framework.device(),
        )
        for parameter in self._twin.parameters.values():
            parameter.requires_grad_(False)
        self._batches, self._losses = self._beside_the_original(model)
        passes = 3 * max(architecture.macs, 1) * _BATCH
        self._steps = int(np.clip(_WORK / passes, _FEWEST_STEPS, _STEPS))

    def _beside_the_original(
        self, model: ir.Model
    ) -> tuple[list[tuple[dict[str, Tensor], dict[str, Tensor]]], dict[str, tuple[OutputLoss, float]]]:
        samples = self._context.calibration
        assert samples is not None
        fixed = fixed_batch(model, samples)
        names = [str(value.name) for value in model.graph.outputs]
        teacher = Teacher(self._context.original, names, self._context.target, self._twin.device)
        batches, looked, taken = [], [], 0
        for feed in samples.batches(fixed or _BATCH):
            given = padded(feed, fixed)
            with self._context.working():
                looked.append(teacher.arrays(given))
            batches.append((self._twin.feed(given), self._twin.feed(looked[-1])))
            taken += sample_count(feed)
            if taken >= _SAMPLES:
                break
        reports = self._context.recognised or tuple(
            OutputReport(name=name, kind="values", reason="", weight=1.0, ignored=False, main=not number)
            for number, name in enumerate(names)
        )
        loss = teacher_loss(reports, {name: [each[name] for each in looked] for name in names}, 1.0)
        losses = {name: (each.loss, each.weight) for name, each in loss.outputs.items()}
        if not losses:
            raise ModelUnsupportedError("None of the network's outputs has a loss beside the original's.")
        return batches, losses

    def solve(self, weight: float, minimise: Minimised) -> Point:
        """Give the point at which damage and `weight` times the cost, as a share of the whole network's, are in balance.

        Its precision is the one in which the network as it is costs least.
        """
        precision = self._cheapest(minimise)
        made = tables(self._architecture, self._prediction.library, precision)
        soft = _Soft(made, self._twin.device)
        # What nobody can predict of memory is taken to follow the weights.
        quantity: Quantity = "size" if minimise == "memory" else minimise
        optimiser = torch.optim.Adam(soft.parameters(), lr=_RATE)
        for step in range(self._steps):
            heat = _HOT * (_COLD / _HOT) ** (step / max(1, self._steps - 1))
            with self._context.working():
                widths, stay = soft.shares(heat)
                feed, said = self._batches[step % len(self._batches)]
                damage = self._divergence(feed, said, made, widths, stay) + soft.block_damage(stay)
                loss = damage + weight * soft.cost(quantity, widths, stay)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return point_of(self._architecture, made, soft.choice())

    def _cheapest(self, minimise: Minimised) -> Precision:
        def cost(precision: Precision) -> float:
            predicted = self._prediction.predict(Point(precision=precision))
            if minimise == "latency":
                return predicted.latency_ratio
            return float(predicted.macs if minimise == "macs" else predicted.size_bytes)

        able = [each for each in self._architecture.precisions if is_possible(self._prediction.library, each)]
        return min(able, key=cost, default="float32")

    def _divergence(
        self,
        feed: Mapping[str, Tensor],
        said: Mapping[str, Tensor],
        made: Tables,
        widths: Sequence[Tensor],
        stay: Mapping[str | None, Tensor],
    ) -> Tensor:
        weights: dict[str, Tensor] = {}
        for group, shares in zip(made.groups, widths, strict=True):
            if group.name not in self._masked:
                continue
            size = group.widths[0]
            # A channel is there with the probability that the width is above its place.
            kept = torch.as_tensor(np.arange(size)[None] < np.array(group.widths)[:, None], device=shares.device)
            mask = torch.cat([shares @ kept.to(shares.dtype), shares.new_ones(1)])
            # Where the block is gone, what its groups keep does no harm.
            there = stay[group.block]
            mask = there * mask + (1 - there)
            for part in self._masked[group.name]:
                plain = self._twin.parameters[part.initializer]
                weights[part.initializer] = part.apply(weights.get(part.initializer, plain), mask)
        given = self._twin.run({**feed, **weights}, list(self._losses))
        parts = [share * loss(given[name], said[name], None) for name, (loss, share) in self._losses.items()]
        return torch.stack(parts).sum()


class _Soft:
    """Distributions over the widths of groups, and the chance of each block to stay."""

    def __init__(self, made: Tables, device: torch.device) -> None:
        self._made = made
        self._widths = [
            torch.nn.Parameter(-_LEANING * torch.arange(len(group.widths), device=device, dtype=torch.float32))
            for group in made.groups
        ]
        self._stay = torch.nn.Parameter(torch.full((len(made.blocks),), 2.0, device=device))
        self._tables = [
            torch.as_tensor(layer.variants[0].costs, dtype=torch.float32, device=device) for layer in made.layers
        ]
        whole = made.total(made.whole)
        self._whole = {quantity: max(whole[quantity], 1e-30) for quantity in COSTS}

    def parameters(self) -> list[Tensor]:
        """Give what is trained."""
        return [*self._widths, self._stay]

    def shares(self, heat: float) -> tuple[list[Tensor], dict[str | None, Tensor]]:
        """Give the distributions, and by block the chance that it and those round it stay; 1 for no block."""
        stay: dict[str | None, Tensor] = {None: self._stay.new_ones(())}
        own = torch.sigmoid(self._stay / heat)

        def chance(block: str | None) -> Tensor:
            if block not in stay:
                place = self._made.block_at[str(block)]
                stay[block] = own[place] * chance(self._made.blocks[place].inside)
            return stay[block]

        for block in self._made.blocks:
            chance(block.name)
        return [torch.softmax(logits / heat, -1) for logits in self._widths], stay

    def cost(self, quantity: Quantity, widths: Sequence[Tensor], stay: Mapping[str | None, Tensor]) -> Tensor:
        """Give what is expected, as a share of the whole network's."""
        number = COSTS.index(quantity)
        total = self._stay.new_tensor(self._made.rest[number])
        for layer, table in zip(self._made.layers, self._tables, strict=True):
            first, second = (
                table.new_ones(1) if group is None else widths[self._made.group_at[group]] for group in layer.axes
            )
            total = total + stay[layer.block] * (first @ table[number] @ second)
        return total / self._whole[quantity]

    def block_damage(self, stay: Mapping[str | None, Tensor]) -> Tensor:
        """Give the damage that is expected of blocks that go."""
        total = self._stay.new_zeros(())
        for block in self._made.blocks:
            total = total + block.damage * (stay[block.inside] - stay[block.name])
        return total

    def choice(self) -> Choice:
        """Give what is likeliest."""
        whole = self._made.whole
        return Choice(
            tuple(int(logits.argmax()) for logits in self._widths),
            tuple(bool(each < 0) for each in self._stay.detach()),
            whole.variants,
        )


def _gated(group: Group) -> Sequence[Slice]:
    """Give the slices that a mask on the channels multiplies: those of the layers that read them, else of those that make them."""
    readers = [part for part in group.slices if part.role == "in"]
    return readers or [part for part in group.slices if part.role == "out"]


def _order(coupling: Coupling, group: Group, scores: Mapping[int, float]) -> dict[int, int]:
    """Give each channel's place in the order: what goes first comes last, what cannot go comes first."""
    gone = [atom for unit in coupling.units(group, scores) for atom in unit.atoms]
    fixed = sorted(set(group.atoms) - set(gone))
    return {atom: place for place, atom in enumerate([*fixed, *gone[::-1]])}


def _masked(part: Slice, order: Mapping[int, int]) -> _Masked:
    labels = part.atoms if part.atoms.ndim > 1 else part.atoms[None]
    places = np.array([order.get(int(label), len(order)) for label in labels.ravel()], np.int64)
    return _Masked(part.initializer, part.axis, places.reshape(labels.shape))
