"""The work of the `prune_channels` pass: choose, cut, check against the oracle, repair; in rounds, up to a requirement."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.contract import Context
from engine.data.subsets import First
from engine.errors import ModelUnsupportedError, SpecInvalidError
from engine.graph import io, macs
from engine.graph.coupling import Coupling, analyse
from engine.graph.groups import Group, Unit
from engine.graph.losses import by_initializer, losses_by_axis, removed
from engine.graph.masking import mask
from engine.graph.names import require_nodes
from engine.graph.slicing import remove
from engine.measure.acceptance import quality_drop
from engine.prune import gradient_importance, oracle, schedule
from engine.prune.importance import Importance, Seen, observe, scores
from engine.prune.reconstruct import repair
from engine.prune.refittable import refittable
from engine.prune.widths import Cuts, by_name, kernel_step, require_reached
from engine.report.detail_parts import counted
from engine.report.pruning_details import (
    ChannelGroup,
    FrozenChannels,
    OracleAgreement,
    PruneChannelsDetails,
    RefittedLayer,
    TriedImportance,
)
from engine.report.values import Change, Refusal

# So much goes in one round; what is left is repaired and ranked anew before the next.
_ROUND = 0.2
_MOST_LISTED = 64

Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class ChannelSettings:
    """What may be cut, how much of it, and what decides which channels go."""

    amount: schedule.Amount
    # Ranked in each group alone, or all together.
    scope: Literal["per_group", "global"]
    # "auto": whichever costs least on the samples to choose on.
    importance: Importance | Literal["auto"]
    kinds: tuple[str, ...]
    # Widths become multiples of this; "auto": of what the target's kernels fill.
    round_to: int | Literal["auto"]
    min_width: int
    reconstruct: bool
    exclude: frozenset[str]
    # By name of a group, how many channels it keeps; where there are any, these groups are cut, and no others.
    widths: Mapping[str, int] = field(default_factory=dict)
    # None: one for each fifth that goes.
    rounds: int | None = None
    # Most calibration samples that rank channels and refit layers.
    samples: int | None = None


@dataclass(frozen=True)
class PrunedCandidate:
    """A network that was cut to some widths, and what happened on the way."""

    model: ir.Model
    widths: Mapping[Key, int]
    agreement: oracle.Agreement
    refits: Sequence[RefittedLayer]
    rounds: int


def check(model: ir.Model, exclude: Sequence[str]) -> Refusal | None:
    """Refuse names in `exclude` that the network does not have."""
    require_nodes(model, exclude)
    return None


def prune(model: ir.Model, settings: ChannelSettings, context: Context) -> Change | Refusal:
    """Prune in place."""
    ir.external_data.load_to_model(model)
    if settings.samples is not None and context.calibration is not None:
        context = replace(context, calibration=First(context.calibration, settings.samples))
    refusal = gradient_importance.objection(settings.importance, context)
    if refusal is not None:
        return refusal
    try:
        found = _by_importance(model, settings, context)
    except ModelUnsupportedError as error:
        if settings.importance not in gradient_importance.CRITERIA:
            raise
        return gradient_importance.not_differentiable(error)
    if isinstance(found, Refusal):
        return found
    work, pruned, tried, compared = found
    if all(pruned.widths[key] == len(group.atoms) for key, group in work.groups.items()):
        return Refusal(
            code="no_gain",
            reason="No group loses a channel: widths are rounded, and this share of them is less than one step.",
            hint="Ask for a higher sparsity or a smaller `round_to`.",
        )
    details = _details(work, pruned, tried, compared)
    model.graph = pruned.model.graph
    taken = sum(layer.taken for layer in pruned.refits)
    repaired = (
        f" {counted(taken, 'layer')} {'was' if taken == 1 else 'were'} refitted to make up for it." if taken else ""
    )
    macs_left = details.macs_after / max(1, details.macs_before)
    bytes_left = details.weight_bytes_after / max(1, details.weight_bytes_before)
    return Change(
        summary=(
            f"{1 - macs_left:.0%} of the multiply-accumulates are gone, and {_weights_said(bytes_left)}.{repaired}"
        ),
        details=details,
    )


Found = tuple["Pruning", PrunedCandidate, schedule.Tried, tuple[TriedImportance, ...]]


def _by_importance(model: ir.Model, settings: ChannelSettings, context: Context) -> Found | Refusal:
    """Prune by the importance that is asked for, or by each that can be had, and take what costs least."""
    if settings.importance != "auto":
        return _pruned(model, settings, context)
    first = _pruned(model, replace(settings, importance="reconstruction"), context)
    if isinstance(first, Refusal):
        return first
    found: dict[Importance, Found] = {"reconstruction": first}
    why_not: dict[Importance, str | None] = dict.fromkeys(
        gradient_importance.CRITERIA, gradient_importance.reason_against(context)
    )
    for importance in gradient_importance.CRITERIA:
        if why_not[importance] is None:
            try:
                other = _pruned(io.copy(model), replace(settings, importance=importance), context)
            except ModelUnsupportedError as error:
                why_not[importance] = error.message
                continue
            if isinstance(other, Refusal):
                why_not[importance] = other.reason
            else:
                found[importance] = other
    costs = {name: _cost(each[1], context) for name, each in found.items()} if len(found) > 1 else {}
    # A limit on the drop is met by all: then what matters is how much could go.
    order = (lambda cost: (cost[1], cost[0])) if settings.amount.max_drop is not None else (lambda cost: cost)
    best: Importance = min(costs, key=lambda name: order(costs[name])) if costs else "reconstruction"
    compared = tuple(
        TriedImportance(
            importance=name,
            drop=None if name not in costs or not math.isfinite(costs[name][0]) else round(costs[name][0], 5),
            macs_after=costs[name][1] if name in costs else None,
            chosen=name == best,
            why_not=reason,
        )
        for name, reason in {"reconstruction": None, **why_not}.items()
    )
    return (*found[best][:3], compared)


def _pruned(model: ir.Model, settings: ChannelSettings, context: Context) -> Found | Refusal:
    work = Pruning(model, settings, context)
    if settings.widths:
        return work, work.cut(), [], ()
    if not work.groups:
        return _nothing_to_prune(work.coupling, settings)
    outcome = schedule.meet(work, settings.amount, context)
    return outcome if isinstance(outcome, Refusal) else (work, *outcome, ())


def _cost(pruned: PrunedCandidate, context: Context) -> tuple[float, int]:
    """Give what a candidate loses on the samples to choose on, and the work that it leaves."""
    drop = quality_drop(context.evaluate(pruned.model))
    return math.inf if drop is None else drop, macs.total(pruned.model)


def _weights_said(left: float) -> str:
    """Say what became of the weights' bytes: where layers shared some and do no longer, there may be more."""
    if left > 1:
        return f"the weights take {left - 1:.0%} more bytes"
    return f"{1 - left:.0%} of the weights' bytes"


class Pruning:
    """One analysed network and what may be cut from it; makes pruned copies of any sparsity."""

    def __init__(self, model: ir.Model, settings: ChannelSettings, context: Context) -> None:
        self.model, self.settings, self.context = model, settings, context
        with context.working():
            self.coupling = analyse(model)
        # Of the settings' widths, by the name that they use.
        self._asked: dict[str, Group] = {}
        if settings.widths:
            self._asked = by_name(self.coupling.groups, settings.widths, field="widths")
        self.groups = self._groups(self.coupling)
        self._fits = context.has_data and context.calibration is not None
        self._made: dict[tuple[int, ...], PrunedCandidate] = {}

    @property
    def importance(self) -> Importance:
        """What decides which channels go: without data, the weights alone."""
        asked = self.settings.importance
        return asked if asked != "auto" and self._fits else "magnitude"

    def prune(self, sparsity: float) -> PrunedCandidate:
        """Give a copy without this share of the channels, repaired; equal widths are made once."""
        widths = self._widths(sparsity)
        key = tuple(widths.values())
        if key not in self._made:
            self._made[key] = self._in_rounds(widths, repaired=self.settings.reconstruct)
        return self._made[key]

    def cut(self) -> PrunedCandidate:
        """Give a copy of exactly the widths that the settings name, repaired."""
        asked = self.settings.widths
        for name, group in self._asked.items():
            if asked[name] > len(group.atoms):
                raise SpecInvalidError(
                    f"`widths` asks for {asked[name]} channels of `{name}`, which has {len(group.atoms)}."
                )
        keys = {name: (group.kind, group.producers) for name, group in self._asked.items()}
        made = self._in_rounds({keys[name]: asked[name] for name in keys}, repaired=self.settings.reconstruct)
        require_reached(
            asked,
            {name: made.widths[key] for name, key in keys.items()},
            {name: Cuts.of(self.coupling, group) for name, group in self._asked.items()},
        )
        return made

    def sketch(self, sparsity: float) -> ir.Model:
        """Give a copy of the same widths without repair: good for its size and speed only."""
        return self._in_rounds(self._widths(sparsity), repaired=False).model

    # --- how much ----------------------------------------------------------------------------------------------------

    def _groups(self, coupling: Coupling) -> dict[Key, Group]:
        found: dict[Key, Group] = {}
        if self._asked:
            named = {(group.kind, group.producers) for group in self._asked.values()}
            return {key: group for group in coupling.groups if (key := (group.kind, group.producers)) in named}
        for group in coupling.groups:
            nodes = {*group.producers, *(part.node for part in group.slices)}
            if group.kind in self.settings.kinds and not nodes & self.settings.exclude:
                found[group.kind, group.producers] = group
        return found

    def _widths(self, sparsity: float) -> dict[Key, int]:
        """Say how many channels each group keeps."""
        shares = (
            self._global_shares(sparsity) if self.settings.scope == "global" else dict.fromkeys(self.groups, sparsity)
        )
        return {key: self._kept(group, shares[key]) for key, group in self.groups.items()}

    def _kept(self, group: Group, share: float) -> int:
        width = len(group.atoms)
        step = self._step(group)
        exact = width * (1 - share)
        kept = step * math.floor(exact / step + 0.5) if width > step else math.floor(exact + 0.5)
        return min(width, max(kept, self.settings.min_width, 1))

    def _step(self, group: Group) -> int:
        """Give the step that widths are rounded to."""
        rounded = self.settings.round_to
        return kernel_step(group.kind, self.context.target) if rounded == "auto" else rounded

    def _global_shares(self, sparsity: float) -> dict[Key, float]:
        """Rank the units of all groups together, by what they cost the network for what they save."""
        ranked: list[tuple[float, int, Key]] = []
        total = 0
        ranked_by = self._ranking(self.model, self.coupling, self.groups)
        for key, group in self.groups.items():
            with self.context.working():
                found = ranked_by(key)
            worst = 0.0
            for unit in self.coupling.units(group, found):
                cost = max(found[atom] for atom in unit.atoms)
                worst = max(worst, cost / max(unit.macs, 1.0))
                ranked.append((worst, len(unit.atoms), key))
            total += len(group.atoms)
        gone = dict.fromkeys(self.groups, 0)
        left = sparsity * total
        for _, size, key in sorted(ranked, key=lambda each: each[0]):
            if left < size:
                break
            if gone[key] + size <= schedule.LARGEST_SPARSITY * len(self.groups[key].atoms):
                gone[key] += size
                left -= size
        return {key: gone[key] / len(group.atoms) for key, group in self.groups.items()}

    # --- which ones --------------------------------------------------------------------------------------------------

    def _ranking(
        self, candidate: ir.Model, coupling: Coupling, groups: Mapping[Key, Group]
    ) -> Callable[[Key], dict[int, float]]:
        """Give what tells for a group how much the network would miss each of its channels."""
        if self.settings.importance in gradient_importance.CRITERIA and self._fits:
            importance = self.settings.importance
            own = candidate is self.model
            by_key = self._effects if own else gradient_importance.effects(candidate, groups, importance, self.context)
            return lambda key: by_key[key]
        seen = self._seen if candidate is self.model else self._look(candidate, groups)
        return lambda key: scores(candidate, coupling, groups[key], seen, self.importance)

    @cached_property
    def _effects(self) -> Mapping[Key, dict[int, float]]:
        assert self.settings.importance in {"taylor", "fisher"}
        return gradient_importance.effects(self.model, self.groups, self.settings.importance, self.context)

    @cached_property
    def _seen(self) -> Mapping[str, Seen]:
        return self._look(self.model, self.groups)

    def _look(self, model: ir.Model, groups: Mapping[Key, Group]) -> Mapping[str, Seen]:
        if self.settings.importance == "magnitude" or not self._fits or self.context.calibration is None:
            return {}
        wanted = frozenset(part.initializer for group in groups.values() for part in group.slices if part.role == "in")
        return observe(model, self.context.calibration, self.context.untimed, wanted, working=self.context.working)

    def _in_rounds(self, widths: Mapping[Key, int], *, repaired: bool) -> PrunedCandidate:
        repaired = repaired and self._fits
        largest = max(1 - kept / len(self.groups[key].atoms) for key, kept in widths.items())
        rounds = (self.settings.rounds or max(1, math.ceil(largest / _ROUND - 1e-9))) if repaired else 1
        candidate, kept = self.model, dict[str, npt.NDArray[np.intp]]()
        agreement = oracle.Agreement(0.0, oracle.ROUNDING)
        refits: Sequence[RefittedLayer] = ()
        left = {key: len(group.atoms) for key, group in self.groups.items()}
        for number in range(rounds):
            coupling = self.coupling if number == 0 else self._analysed(candidate)
            groups = self.groups if number == 0 else self._groups(coupling)
            atoms = self._choose(candidate, coupling, groups, widths, (number + 1) / rounds)
            if not atoms:
                continue
            left |= {key: len(set(group.atoms) - atoms) for key, group in groups.items()}
            with self.context.working():
                pruned = remove(candidate, coupling, atoms)
            agreement = agreement.worse(self._check(candidate, pruned, coupling, atoms))
            follow(kept, candidate, coupling, atoms)
            candidate = pruned
            if repaired:
                refits = self._repair(candidate, kept, number / rounds, rounds)
        return PrunedCandidate(candidate, left | self._left(candidate), agreement, refits, rounds)

    def _analysed(self, model: ir.Model) -> Coupling:
        with self.context.working():
            return analyse(model)

    def _left(self, candidate: ir.Model) -> dict[Key, int]:
        """Count what each group has left, in the same channels as `groups` counts."""
        if candidate is self.model:
            return {key: len(group.atoms) for key, group in self.groups.items()}
        # A group of which nothing more can go is none any more.
        return {key: len(group.atoms) for key, group in self._groups(self._analysed(candidate)).items()}

    def _choose(
        self,
        candidate: ir.Model,
        coupling: Coupling,
        groups: Mapping[Key, Group],
        widths: Mapping[Key, int],
        done: float,
    ) -> set[int]:
        ranked_by = self._ranking(candidate, coupling, groups)
        atoms: set[int] = set()
        for key, group in groups.items():
            if key not in widths:
                continue
            original = len(self.groups[key].atoms)
            wanted = original - round((original - widths[key]) * done)
            excess = len(group.atoms) - wanted
            if excess <= 0:
                continue
            with self.context.working():
                found = ranked_by(key)
                count = _count(coupling.units(group, found), excess)
                chosen = coupling.choose(group, count, found, beside=atoms)
            atoms.update(atom for unit in chosen for atom in unit.atoms)
        return atoms

    def _check(self, candidate: ir.Model, pruned: ir.Model, coupling: Coupling, atoms: set[int]) -> oracle.Agreement:
        samples = self.context.calibration
        assert samples is not None
        with self.context.working():
            return oracle.compare(mask(candidate, coupling, atoms), pruned, samples, self.context.untimed)

    def _repair(
        self, candidate: ir.Model, kept: Mapping[str, npt.NDArray[np.intp]], done: float, rounds: int
    ) -> Sequence[RefittedLayer]:
        assert self.context.calibration is not None
        return repair(
            candidate,
            self.model,
            kept,
            self.context.calibration,
            self.context.untimed,
            exclude=self.settings.exclude,
            progress=lambda share: self.context.progress(0.75 * (done + share / rounds), "refitting layers"),
            working=self.context.working,
        )


def follow(kept: dict[str, npt.NDArray[np.intp]], model: ir.Model, coupling: Coupling, atoms: set[int]) -> None:
    """Update which outputs of the original's layers are left after these atoms go."""
    gone = removed(coupling, atoms)
    members = by_initializer(coupling, gone)
    for layer in refittable(model)[0]:
        labels = [member.labels for member in members.get(str(layer.weight.name), ())]
        loss = losses_by_axis(labels, gone).get(layer.axis)
        if loss is None:
            continue
        before = kept.get(layer.name, np.arange(layer.outputs))
        # Outputs that differ from line to line have no place in the original: the layer is left alone.
        whole = loss.size == loss.shape[layer.axis] == len(before)
        kept[layer.name] = before[~loss.reshape(-1)] if whole else before[:0]


def _count(units: Sequence[Unit], excess: int) -> int:
    """Say how many of the first units hold at most `excess` channels."""
    total = 0
    for number, unit in enumerate(units):
        total += len(unit.atoms)
        if total > excess:
            return number
    return len(units)


def _nothing_to_prune(coupling: Coupling, settings: ChannelSettings) -> Refusal:
    others = sorted({group.kind for group in coupling.groups} - set(settings.kinds))
    if others:
        return Refusal(
            code="not_applicable",
            reason=f"The network has no channels of the kinds {', '.join(settings.kinds)} that the recipe does not exclude.",
            hint=f"It has {', '.join(others)}: name them in `kinds`.",
        )
    first = max(coupling.frozen, key=lambda item: item.channels, default=None)
    if first is None and coupling.unsized is not None:
        node = coupling.unsized
        return Refusal(
            code="not_applicable",
            reason=f"The sizes behind {node.op_type} `{node.name}` are unknown, so no channels behind it can be followed, and"
            " before it there are none.",
            node=node.name,
            hint="Export the network with fixed sizes there, or without that operator.",
        )
    if first is None:
        return Refusal(code="not_applicable", reason="The network has no layers with channels that could go.")
    return Refusal(
        code="not_applicable",
        reason=f"No channel can go; most are kept by {first.op_type} `{first.node}`: {first.reason}.",
        node=first.node,
    )


def _details(
    work: Pruning, pruned: PrunedCandidate, tried: schedule.Tried, compared: tuple[TriedImportance, ...]
) -> PruneChannelsDetails:
    coupling = work.coupling
    return PruneChannelsDetails(
        importance=work.importance,
        importances=compared,
        groups=tuple(
            ChannelGroup(
                name=group.name,
                kind=group.kind,
                producers=group.producers[:8],
                channels=len(group.atoms),
                kept=pruned.widths[key],
                lossy=group.lossy,
            )
            for key, group in work.groups.items()
        ),
        prunable_parameters=round(coupling.prunable_parameters, 4),
        prunable_macs=round(coupling.prunable_macs, 4),
        frozen=tuple(
            FrozenChannels(node=item.node, op=item.op_type, reason=item.reason, channels=item.channels)
            for item in sorted(coupling.frozen, key=lambda item: -item.channels)[:_MOST_LISTED]
        ),
        oracle=OracleAgreement(difference=pruned.agreement.difference, tolerance=pruned.agreement.tolerance),
        rounds=pruned.rounds,
        layers=tuple(pruned.refits),
        macs_before=macs.total(work.model),
        macs_after=macs.total(pruned.model),
        weight_bytes_before=io.weight_bytes(work.model),
        weight_bytes_after=io.weight_bytes(pruned.model),
        tried=tuple(tried),
    )
