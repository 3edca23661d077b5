"""Whether a trial holds a goal's limits on the samples to choose by: with the gates' own rule, limit by limit, and by how much not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.gate import FIDELITY_METRICS, TASK_METRICS, Gate
from engine.goal import Goal, Minimised
from engine.measure.acceptance import strain, unasked_losses
from engine.measure.gates import Costs, held, judge
from engine.measure.intervals import rescale_ratio
from engine.report.values import GateResult, Ratio, Size
from engine.report.wording import gate_value
from engine.search.values import Told, TrialValues

# How sure of a limit a search has to be to choose by it. The verdict is as sure as its gate says; asking as much of every
# trial, on few samples, would leave nothing to choose from.
CHOOSING_CONFIDENCE = 0.9
_QUALITY = (*TASK_METRICS, *FIDELITY_METRICS)
# `holds`: as sure as it is chosen by. `may`: the value is inside, but the samples or runs are too few to be sure.
Hold = Literal["holds", "may", "fails"]
_ORDER: tuple[Hold, ...] = ("holds", "may", "fails")


@dataclass(frozen=True)
class Original:
    """What limits that are ratios are ratios of."""

    size_bytes: int
    parameters: int
    macs: int = 0


@dataclass(frozen=True)
class Standing:
    """A trial at one limit. `missing`: how far the value is outside, as a share of what is allowed; 0 inside."""

    limit: str
    hold: Hold
    missing: float
    # None: nobody asked, but no output may lose so much unasked.
    gate: Gate | None = None
    measured: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Feasibility:
    """A trial at every limit that decides, and its loss of quality as a multiple of what is allowed."""

    standings: tuple[Standing, ...]
    strain: float

    @property
    def hold(self) -> Hold:
        """The worst of its standings."""
        return max((each.hold for each in self.standings), key=_ORDER.index, default="holds")

    @property
    def hold_of_quality(self) -> Hold:
        """The worst of its standings at limits on quality that were measured."""
        asked = (
            each
            for each in self.standings
            if each.gate is not None and each.gate.metric in _QUALITY and each.measured is not None
        )
        return max((each.hold for each in asked), key=_ORDER.index, default="holds")

    @property
    def missing(self) -> float:
        """How far it is outside of the limit that it breaks most."""
        return max((each.missing for each in self.standings), default=0.0)

    @property
    def rank(self) -> int:
        """0 for a trial that holds everything, 2 for one that does not."""
        return _ORDER.index(self.hold)


def cost(values: TrialValues, minimise: Minimised) -> float | None:
    """Give what a goal minimises of a trial: a ratio of times, bytes, or multiply-accumulates; None where it was not measured."""
    match minimise:
        case "latency":
            return None if values.latency is None else values.latency.value
        case "memory":
            return None if values.peak_memory is None else float(values.peak_memory)
        case "size":
            return float(values.size_bytes)
        case "macs":
            return float(values.macs)


def feasibility(values: TrialValues, goal: Goal, original: Original, told: Sequence[Told] = ()) -> Feasibility:
    """Hold a trial against every limit of the goal, and outputs without one against the floors of their kinds.

    Args:
        values: of the trial.
        goal: whose gates of level `warn` decide nothing.
        original: what was given.
        told: trials among which the network as it is may have been measured: ratios of memory are to that.
    """
    gates = [gate for gate in goal.subject_to if gate.level == "error"]
    memory = next((each.values.peak_memory for each in told if each.values is not None and _is_original(each)), None)
    standings = [_standing(gate, values, original, memory) for gate in gates]
    return Feasibility((*standings, *_unasked(values, gates)), strain(values.quality, gates))


def in_words(gate: Gate) -> str:
    """Say a limit as a person would: `top1 drops by at most 1 point`."""
    label = gate.label.replace("_bytes", "").replace("_", " ")
    if gate.rule == "max_drop":
        if gate.metric in {"top1", "top5", "f1", "iou"}:
            points = f"{100 * gate.value:g}"
            return f"{label} drops by at most {points} point{'' if points == '1' else 's'}"
        return f"{label} gets worse by at most {gate_value(gate.metric, gate.rule, gate.value)}"
    if gate.rule == "max_ratio":
        return f"{label} at most {gate_value(gate.metric, gate.rule, gate.value)} of the original's"
    value = gate_value(gate.metric, gate.rule, gate.value)
    return f"{label} {'at least' if gate.rule == 'min' else 'at most'} {value}"


def _is_original(told: Told) -> bool:
    point = told.proposal.point
    changed = point.dropped or point.widths or point.ranks or point.precision != "float32"
    return not changed and not told.proposal.train_s


def _standing(gate: Gate, values: TrialValues, original: Original, memory: int | None) -> Standing:
    lenient = gate.model_copy(update={"confidence": min(gate.confidence, CHOOSING_CONFIDENCE)})
    found = _judged(lenient, values, original, memory)
    if found is None or found.measured is None:
        # What no trial measures, such as a metric of labels that are not there, does not tell them apart.
        return Standing(in_words(gate), "may", 0.0, gate, None, f"{gate.label} was not measured")
    inside = found.measured >= gate.value if gate.rule == "min" else found.measured <= gate.value
    hold: Hold = "holds" if found.outcome == "pass" else "may" if inside else "fails"
    return Standing(in_words(gate), hold, _missing(gate, found.measured, values), gate, found.measured, found.reason)


def _judged(gate: Gate, values: TrialValues, original: Original, memory: int | None) -> GateResult | None:
    if gate.metric in _QUALITY:
        return judge(gate, values.quality, Costs())
    if gate.metric.startswith("latency_"):
        return _judged_latency(gate, values)
    if gate.metric == "peak_memory":
        if values.peak_memory is None or (gate.rule == "max_ratio" and memory is None):
            return None
        value = values.peak_memory / memory if gate.rule == "max_ratio" and memory else float(values.peak_memory)
        return held(gate, value, value, value)
    size = Size(original=original.size_bytes, compressed=values.size_bytes)
    return judge(gate, (), Costs(size=size, parameters=(original.parameters, values.parameters)))


def _judged_latency(gate: Gate, values: TrialValues) -> GateResult | None:
    """Hold a limit on latency against the ratio that was measured; a time in ms is as uncertain as that."""
    tail = gate.metric in {"latency_p99", "latency_p95", "latency_p90"} and values.p99 is not None
    ratio: Ratio | None = values.p99 if tail else values.latency
    if ratio is None:
        return None
    low, high = (rescale_ratio(ratio.value, ratio.interval, gate.confidence, upper=upper) for upper in (False, True))
    if gate.rule == "max_ratio":
        return held(gate, ratio.value, low, high)
    measured = values.p99_ms if tail else values.p50_ms
    if measured is None:
        return None
    scale = measured / ratio.value
    return held(gate, measured, low * scale, high * scale)


def _missing(gate: Gate, measured: float, values: TrialValues) -> float:
    if gate.metric in _QUALITY:
        return max(0.0, strain(values.quality, [gate]) - 1)
    beyond = gate.value - measured if gate.rule == "min" else measured - gate.value
    return max(0.0, beyond / max(abs(gate.value), 1e-12))


def _unasked(values: TrialValues, gates: Sequence[Gate]) -> Iterator[Standing]:
    """Yield what nobody allowed: an output without a limit of its own that lost too much."""
    for refusal in unasked_losses(values.quality, gates):
        missing = max(0.0, strain(values.quality, gates) - 1)
        yield Standing("no output loses more than its kind allows", "fails", missing, reason=refusal.reason)
