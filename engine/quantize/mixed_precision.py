"""Mixed precision: a few networks are made, raced side by side, and the best that is good enough is kept."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from engine.contract import Context, Observe
from engine.graph import io
from engine.graph.names import require_nodes
from engine.measure.acceptance import losses
from engine.quantize import dynamic, effort, static, weights
from engine.quantize.candidate_fidelity import CandidateFidelity, least_sqnr
from engine.quantize.candidates import (
    Candidate,
    CandidateMaker,
    Kind,
    dynamic_settings,
    static_settings,
    stored_size,
    weights_settings,
)
from engine.quantize.static_plan import make_plan
from engine.report.quantization_details import MixedDetails
from engine.report.values import Change, Refusal
from engine.runtime import processor

# Several networks are in memory at a time.
_LARGEST_BYTES = 1 << 30
# What a race of a few seconds can tell from noise.
_GAIN = 0.02
_AS_FAST = 1.03
# Fewer bytes than this are not worth any loss.
_AS_SMALL = 1.05
_FEWEST_SAMPLES = 2
_DEFAULT_DROP = 0.01
_SHARES = frozenset({"top1", "top5", "f1", "iou"})


@dataclass(frozen=True)
class MixedSettings:
    """Which networks to make, and what the best of them is."""

    # Largest loss of the dataset's metric; None: what the job's gates allow.
    max_drop: float | None
    minimise: Literal["latency", "size"]
    candidates: tuple[Kind, ...]
    # Names of nodes that stay in float.
    exclude: tuple[str, ...]

    def drop(self, context: Context) -> float:
        """Give the loss of the dataset's metric that is allowed."""
        allowed = [gate.value for gate in context.gates if gate.rule == "max_drop"]
        return self.max_drop if self.max_drop is not None else min(allowed, default=_DEFAULT_DROP)


def prepare(model: ir.Model, exclude: Collection[str] = ()) -> None:
    """Bring the network into the form that all candidates start from."""
    static.prepare(model, exclude)
    taken = {node.name for node in model.graph.all_nodes() if node.name}
    for node in model.graph.all_nodes():
        if not node.name:
            node.name = io.unused_name(taken, f"{node.op_type}_")


def check(model: ir.Model, settings: MixedSettings) -> Refusal | None:
    """Refuse what no candidate can be made of."""
    require_nodes(model, settings.exclude)
    if io.weight_bytes(model) > _LARGEST_BYTES:
        return Refusal(
            code="unsupported",
            reason="The weights take more than 1 GiB, and this pass holds several networks in memory.",
            hint="Use quantize_weights or quantize_dynamic, which stream weights from disk to disk.",
        )
    refusals = [
        static.check(model, static_settings()),
        dynamic.check(model, dynamic_settings(settings.exclude)),
        weights.check(model, weights_settings(8, settings.exclude)),
    ]
    return (
        refusals[0]
        if all(refusals)
        else next((each for each in refusals if each and each.code == "already_done"), None)
    )


def observes(model: ir.Model, settings: MixedSettings) -> Sequence[Observe]:
    """Ask for the ranges of all tensors that any candidate may quantize."""
    if not {"static", "regions"} & set(settings.candidates):
        return ()
    plain = [Observe(str(value.name)) for value in make_plan(model, frozenset(settings.exclude)).tensors]
    return list(dict.fromkeys([*static.observes(model, static_settings(settings.exclude)), *plain]))


def mix(
    model: ir.Model, settings: MixedSettings, observations: Mapping[Observe, Any], context: Context
) -> Change | Refusal:
    """Put the best candidate in the network's place."""
    if context.select is None or len(context.select) < _FEWEST_SAMPLES:
        return Refusal(
            code="needs_data",
            reason=f"Candidates can only be compared on {_FEWEST_SAMPLES} or more samples that set no range.",
        )
    drop = settings.drop(context)
    layers = len(make_plan(model, frozenset(settings.exclude)).layers)
    spent = effort.choose(model, layers, context)
    fidelity = CandidateFidelity(model, context.select, context, drop=drop, most=spent.fidelity_samples)
    given = Candidate("float32", model, "all layers in float32", size=stored_size(model))
    maker = CandidateMaker(
        model, observations, context, fidelity, kinds=settings.candidates, exclude=settings.exclude, effort=spent
    )
    candidates = [given, *maker.candidates()]
    context.progress(0.7, f"racing {len(candidates)} networks")
    for candidate, ratio in zip(candidates, context.race([each.model for each in candidates]), strict=True):
        candidate.time = ratio
    chosen = _Choice(settings.minimise, drop, fidelity, context).among(candidates)
    front = _front(candidates)
    told = tuple(each.told(chosen=each is chosen, on_front=each in front) for each in candidates)
    details = MixedDetails(
        front=told,
        sensitivity=maker.sensitivity,
        processor=processor.cpu_profile().dot,
        not_made=tuple(maker.not_made),
        duplicates=tuple(maker.duplicates),
        effort=spent.said,
        steps=() if chosen is None else chosen.steps,
    )
    if chosen is None:
        hint = None if settings.minimise == "size" else _hint(candidates)
        return Refusal(code="no_gain", reason=_nothing_pays(candidates), hint=hint, details=details)
    model.graph = chosen.model.graph
    model.ir_version = max(model.ir_version or 0, chosen.model.ir_version or 0)
    return Change(
        summary=(
            f"Of {len(candidates)} networks, this one is the best within the allowed loss: {chosen.what};"
            f" {1 / chosen.time:.2f}x as fast and {given.size / chosen.size:.2f}x smaller than before."
            + _said_of_integers(candidates, chosen)
        ),
        details=details,
    )


@dataclass(frozen=True)
class _Choice:
    """Goes through candidates from the best down."""

    minimise: Literal["latency", "size"]
    drop: float
    fidelity: CandidateFidelity
    context: Context

    def among(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Take the best one that is near enough and that the dataset's metric accepts; note of the others why not."""
        given, rest = candidates[0], candidates[1:]
        useful = [each for each in rest if self._gains(each, given)]
        for candidate in rest:
            slow = candidate.time > 1 + _GAIN
            candidate.why_not = (
                f"it takes {candidate.time:.2f} times as long as float32" if slow else "it gains too little"
            )
        for candidate in useful:
            candidate.why_not = "it is larger or slower than the chosen one"
        while useful:
            candidate = self._best(useful)
            useful.remove(candidate)
            if not self.fidelity.accepts(candidate.fidelity):
                candidate.why_not = f"it is too far from the original: {_told(candidate.fidelity)}"
                continue
            self.context.progress(0.75, f"evaluating: {candidate.name}")
            candidate.quality = self.context.evaluate(candidate.model)
            candidate.why_not = next(self._faults(candidate), None)
            if candidate.why_not is None:
                for other in useful:
                    if other.size < candidate.size and other.time <= candidate.time:
                        other.why_not = (
                            "it is hardly smaller or faster than the chosen one, and further from the original"
                        )
                return candidate
        return None

    def _gains(self, candidate: Candidate, given: Candidate) -> bool:
        faster = candidate.time < 1 - _GAIN and self.minimise == "latency"
        return faster or (candidate.time <= 1 + _GAIN and candidate.size < given.size)

    def _best(self, candidates: Sequence[Candidate]) -> Candidate:
        """Give the fastest; of those that are as fast as it, as far as a short race can tell, the smallest; of those the nearest."""
        if self.minimise == "size":
            return min(candidates, key=lambda each: each.size)
        fastest = min(each.time for each in candidates)
        fast = [each for each in candidates if each.time <= fastest * _AS_FAST]
        smallest = min(each.size for each in fast)
        return max((each for each in fast if each.size <= smallest * _AS_SMALL), key=_closeness)

    def _faults(self, candidate: Candidate) -> Iterator[str]:
        """Yield what the job's gates and the dataset's metric say against a candidate."""
        for refusal in losses(candidate.quality, self.context.gates):
            yield refusal.reason.rstrip(".")
        measured = (each for each in candidate.quality if each.metric in _SHARES and each.difference is not None)
        drop, metric = next(((-float(each.difference or 0.0), each.metric) for each in measured), (0.0, ""))
        if drop > self.drop:
            yield f"{metric} drops by {100 * drop:.2f} points; {100 * self.drop:.2f} are allowed"


def _front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Give the candidates that no other one beats in time, size and closeness together."""

    def beaten(one: Candidate, other: Candidate) -> bool:
        pairs = [
            (other.time, one.time),
            (other.size, one.size),
            (-_closeness(other), -_closeness(one)),
        ]
        return all(left <= right for left, right in pairs) and any(left < right for left, right in pairs)

    return [one for one in candidates if not any(beaten(one, other) for other in candidates if other is not one)]


def _closeness(candidate: Candidate) -> float:
    """Give one number that is larger the nearer the outputs are to the original's."""
    return least_sqnr(candidate.fidelity)


def _nothing_pays(candidates: Sequence[Candidate]) -> str:
    tried = candidates[1:]
    if not tried:
        return "No smaller or faster network could be made of it: keep float32."
    fastest = min(tried, key=lambda each: each.time)
    integers = min((each for each in tried if each.integers), key=lambda each: each.time, default=None)
    if fastest.time >= 1 - _GAIN:
        what = "INT8 does not pay" if fastest is integers else "None of them pays"
        return (
            f"{what} on this target: of {len(tried)} networks in fewer bits the fastest ({fastest.name}) takes"
            f" {fastest.time:.2f} times as long as float32, and {_why_not_smaller(tried, candidates[0])}: keep float32."
        )
    return (
        f"Fewer bits within the allowed loss do not pay on this target: {fastest.name} takes {fastest.time:.2f} times as"
        f" long as float32, but {fastest.why_not or 'it gains too little'}: keep float32."
    )


def _why_not_smaller(tried: Sequence[Candidate], given: Candidate) -> str:
    """Say why the smallest network was not taken for its size."""
    smallest = min(tried, key=lambda each: each.size)
    if smallest.size >= given.size:
        return "none is smaller"
    return f"the smallest ({smallest.name}) was left: {smallest.why_not or 'it gains too little'}"


def _said_of_integers(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """Say why nothing computes in integers where that is so."""
    tried = [each for each in candidates[1:] if each.integers]
    if chosen.integers or not tried:
        return ""
    best = min(tried, key=lambda each: each.time)
    if best.time * _AS_FAST < chosen.time:
        return f" The fastest network that computes in integers ({best.name}) was left: {best.why_not}."
    pays = "does not pay" if best.time >= 1 - _GAIN else "pays less"
    return (
        f" Computing in integers {pays} on this target: the fastest such network ({best.name}) takes"
        f" {best.time:.2f} times as long as float32, this one {chosen.time:.2f} times."
    )


def _hint(candidates: Sequence[Candidate]) -> str | None:
    smallest = min(candidates, key=lambda each: each.size)
    if smallest is candidates[0]:
        return None
    return f"The smallest is `{smallest.name}`: {candidates[0].size / smallest.size:.1f}x smaller at {smallest.time:.2f} of the time."


def _told(fidelity: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in fidelity.items())
