"""The verdict: each gate's limit held against a one-sided confidence bound.

Pass when even the unfavourable bound is inside the limit, fail when even the favourable one is outside, else inconclusive: the
data cannot tell. A gate whose metric was not measured is inconclusive too. One on latency that a busy machine measured is
decided only where the effect is far larger than the noise, by every clock that there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log

from engine.gate import LOWER_IS_BETTER, TASK_METRICS, Gate
from engine.measure.intervals import one_sided, rescale, rescale_ratio, tango
from engine.report.counted_time import BY_WALL_ALONE, counted
from engine.report.values import GateResult, LatencyComparison, MemoryComparison, Quality, Size, Verdict
from engine.report.wording import gate_value

# The least that an interval of a median can be made of: the true one lies between the extremes of six in 97 of 100 cases.
FEWEST_RUNS = 6
_QUANTILES = {"latency_p50": 0.5, "latency_p90": 0.9, "latency_p95": 0.95, "latency_p99": 0.99}


@dataclass(frozen=True)
class Costs:
    """What the verdict knows beside quality; None where it was not measured. Parameters: original, compressed.

    With `strict_tails`, a percentile of latency counts only where enough runs were kept to bound it.
    """

    size: Size | None = None
    latency: LatencyComparison | None = None
    # Of a decoder's runs that write.
    decode: LatencyComparison | None = None
    memory: MemoryComparison | None = None
    parameters: tuple[int, int] | None = None
    strict_tails: bool = False
    # What a ratio is of, in words.
    ratio: str = "compressed / original"


@dataclass(frozen=True)
class _Measured:
    """A value with its one-sided bounds; a value that is exact is its own bound."""

    value: float
    low: float
    high: float
    # Why it cannot be judged.
    doubt: str | None = None
    # What disturbed the measurement, where it did.
    disturbed: str | None = None
    # How the value was measured, where that is not the usual way.
    how: str = ""


def verdict(gates: Sequence[Gate], quality: Sequence[Quality], costs: Costs) -> Verdict:
    """Judge all gates. Those of level `warn` are reported, but do not decide."""
    return Verdict.of([judge(gate, quality, costs) for gate in gates])


def judge(gate: Gate, quality: Sequence[Quality], costs: Costs) -> GateResult:
    """Hold one gate against what was measured: of several outputs that have its metric, against the worst."""
    about = outputs_of(gate, quality)
    if about:
        several = len({each.output for each in quality if each.output is not None}) > 1
        results = [
            _held(gate, _of_quality(gate, each), costs, _named(each, about) if several else "") for each in about
        ]
        return max(results, key=_badness)
    measured = _of_costs(gate, costs)
    if measured is None:
        return GateResult(
            gate=gate,
            measured=None,
            bound=None,
            outcome="inconclusive",
            reason=f"{gate.label} {_missing(gate, quality)}",
        )
    return _held(gate, measured, costs, "")


def held(gate: Gate, value: float, low: float, high: float) -> GateResult:
    """Hold a gate against a value that was measured elsewhere, with the bounds of a one-sided interval at its confidence."""
    return _held(gate, _Measured(value, low, high), Costs(), "")


def outputs_of(gate: Gate, quality: Sequence[Quality]) -> list[Quality]:
    """Give what a gate on quality is about: its output's metric, or without one that of all outputs but states."""
    found = [each for each in quality if each.metric == gate.metric and gate.output in {None, each.output}]
    return [each for each in found if each.kind != "state"] or found


def labelled_output(gates: Sequence[Gate]) -> str | None:
    """Give the output that a gate on a task's metric names: labels are for that one, then."""
    return next((gate.output for gate in gates if gate.metric in TASK_METRICS and gate.output is not None), None)


def _named(quality: Quality, among: Sequence[Quality]) -> str:
    more = f", the worst of {len(among)} outputs" if len(among) > 1 else ""
    return f" of output `{quality.output}`{more}"


def _badness(result: GateResult) -> tuple[int, float]:
    distance = abs((result.bound or 0.0) - result.gate.value)
    inside = result.outcome == "pass"
    return ("pass", "inconclusive", "fail").index(result.outcome), -distance if inside else distance


def _missing(gate: Gate, quality: Sequence[Quality]) -> str:
    others = sorted({f"`{each.output}`" for each in quality if each.metric == gate.metric and each.output is not None})
    if others:
        return f"was not measured for this output, only for {', '.join(others)}"
    return "needs labelled held-out data" if gate.metric in TASK_METRICS else "was not measured for this network"


def _held(gate: Gate, measured: _Measured | None, costs: Costs, named: str) -> GateResult:
    if measured is None:
        reason = f"{gate.label} needs labelled held-out data"
        return GateResult(gate=gate, measured=None, bound=None, outcome="inconclusive", reason=reason)
    at_least = gate.rule == "min"
    unfavourable, favourable = (measured.low, measured.high) if at_least else (measured.high, measured.low)
    value, allowed, at_worst = _told_apart(gate, measured.value, unfavourable)
    limit = f"{'at least' if at_least else 'at most'} {allowed}"
    said = f"{_subject(gate, costs)}{named} is {value}{measured.how}, allowed is {limit}"
    sure = f"with {100 * gate.confidence:g} % confidence it is {_worse(at_least)} {at_worst}"
    bound = "" if measured.low == measured.high else f"; {sure}"
    if measured.doubt is not None:
        outcome, reason = "inconclusive", f"undecided: {said}; {measured.doubt}"
    elif _inside(unfavourable, gate.value, at_least=at_least):
        outcome, reason = "pass", f"{said}{bound}"
    elif _inside(favourable, gate.value, at_least=at_least):
        outcome, reason = (
            "inconclusive",
            f"undecided: {said}, but it may be as {'low' if at_least else 'high'} as {at_worst}",
        )
    else:
        outcome, reason = "fail", said
    if measured.disturbed is not None:
        so = ", so that this cannot be told" if outcome == "inconclusive" else "; the effect is far larger than that"
        reason = f"{reason}; {measured.disturbed}{so}"
    return GateResult.model_validate(
        {"gate": gate, "measured": measured.value, "bound": unfavourable, "outcome": outcome, "reason": reason}
    )


def _told_apart(gate: Gate, measured: float, unfavourable: float) -> list[str]:
    """Write what was measured, the limit and the bound in the gate's unit; where that hides a difference that decides, in full."""
    values = (measured, gate.value, unfavourable)
    told = [gate_value(gate.metric, gate.rule, value) for value in values]
    # What was measured and its bound may read the same: each is held against the limit.
    apart = all((text == told[1]) == (value == gate.value) for text, value in zip(told, values, strict=True))
    return told if apart else [f"{value:.9g}" for value in values]


def _worse(at_least: bool) -> str:
    return "not below" if at_least else "not above"


def _inside(bound: float, limit: float, *, at_least: bool) -> bool:
    return bound >= limit if at_least else bound <= limit


def _subject(gate: Gate, costs: Costs) -> str:
    return {"max_drop": f"the loss of {gate.metric}", "max_ratio": f"{gate.metric} {costs.ratio}"}.get(
        gate.rule, gate.metric
    )


def _of_quality(gate: Gate, found: Quality) -> _Measured | None:
    if gate.rule == "max_drop":
        return _drop(gate, found)
    interval = found.compressed_interval or found.interval
    low, high = (rescale(found.compressed, interval, gate.confidence, upper=upper) for upper in (False, True))
    return _Measured(found.compressed, low, high)


def _drop(gate: Gate, found: Quality) -> _Measured | None:
    """Give how much worse the metric got, positive for a loss."""
    if found.difference is None:
        return None
    if found.discordant is not None:
        # Right and wrong were counted, so the bound is exact at any confidence.
        net = round(found.difference * found.samples)
        gained = (found.discordant + net) // 2
        exact = tango(gained, found.discordant - gained, found.samples, one_sided(gate.confidence))
        low, high = exact.low, exact.high
    else:
        low, high = (rescale(found.difference, found.interval, gate.confidence, upper=upper) for upper in (False, True))
    if gate.metric in LOWER_IS_BETTER:
        return _Measured(found.difference, low, high)
    # 0 - 0 is 0, but its negation is written as -0.
    return _Measured(0.0 - found.difference, 0.0 - high, 0.0 - low)


def _of_costs(gate: Gate, costs: Costs) -> _Measured | None:
    if gate.metric == "latency_decode":
        return _of_latency(gate, costs.decode, strict_tails=costs.strict_tails)
    if gate.metric.startswith("latency_"):
        return _of_latency(gate, costs.latency, strict_tails=costs.strict_tails)
    pair = _pair(gate.metric, costs)
    if pair is None:
        return None
    original, compressed = pair
    value = compressed / max(original, 1) if gate.rule == "max_ratio" else float(compressed)
    return _Measured(value, value, value)


def _pair(metric: str, costs: Costs) -> tuple[int, int] | None:
    if metric == "size_bytes" and costs.size:
        return costs.size.original, costs.size.compressed
    if metric == "peak_memory" and costs.memory:
        return costs.memory.original.peak_rss_bytes, costs.memory.compressed.peak_rss_bytes
    return costs.parameters if metric == "parameters" else None


def runs_needed(gate: Gate) -> int:
    """Give how many runs a percentile of latency takes before the slowest of them bounds it; 1 for other metrics.

    With fewer, all runs may lie below the percentile: the chance of that, q^n, has to be below 1 - confidence.
    """
    share = _QUANTILES.get(gate.metric)
    return 1 if share is None else ceil(log(1 - gate.confidence) / log(share))


def _of_latency(gate: Gate, latency: LatencyComparison | None, *, strict_tails: bool) -> _Measured | None:
    if latency is None:
        return None
    statistic = {"latency_decode": "p50"}.get(gate.metric, gate.metric.removeprefix("latency_"))
    doubt = _distrust(gate, latency, strict_tails=strict_tails)
    if not latency.stable:
        return _of_disturbed(gate, latency, statistic, doubt)
    if gate.rule == "max_ratio":
        value, interval = latency.ratios[statistic].value, latency.ratios[statistic].interval
    else:
        value, interval = float(getattr(latency.compressed, f"{statistic}_ms")), latency.compressed.intervals[statistic]
    low, high = (rescale_ratio(value, interval, gate.confidence, upper=upper) for upper in (False, True))
    # Where even the original beside itself excludes 1, that much of any ratio is the machine's and not the network's.
    floor = latency.noise_floor
    beyond = 1 + max(0.0, floor.low - 1, 1 - floor.high)
    return _Measured(value, low / beyond, high * beyond, doubt)


def _of_disturbed(gate: Gate, latency: LatencyComparison, statistic: str, doubt: str | None) -> _Measured:
    """Bound what a busy machine measured: by all clocks that there are, with all of the noise on both sides."""
    why = latency.unstable_because or "the machine was too disturbed"
    disturbed = f"{why[0].lower()}{why[1:]}"
    floor = latency.noise_floor
    if gate.rule != "max_ratio":
        # Others can only have made it slower, by how much nobody knows: it may keep a limit that it seems to break.
        value = float(getattr(latency.compressed, f"{statistic}_ms"))
        high = rescale_ratio(value, latency.compressed.intervals[statistic], gate.confidence, upper=True)
        return _Measured(value, 0.0, high * max(floor.high, 1.0), doubt, disturbed)
    time = counted(latency)
    read, margin = [(latency.ratios[statistic], floor)], BY_WALL_ALONE
    if time.clock == "cpu":
        # The processor's clock was only read for p50. It has a say about tails too: they are tails of the same work.
        read, margin = [*read, (time.ratio, time.noise)], 1.0
    lows, highs = [], []
    for ratio, noise in read:
        low, high = (
            rescale_ratio(ratio.value, ratio.interval, gate.confidence, upper=upper) for upper in (False, True)
        )
        low, high = low * min(noise.low, 1.0), high * max(noise.high, 1.0)
        lows.append(ratio.value * (low / ratio.value) ** margin)
        highs.append(ratio.value * (high / ratio.value) ** margin)
    told = time.ratio.value if statistic == "p50" else latency.ratios[statistic].value
    return _Measured(told, min(lows), max(highs), doubt, disturbed, time.said if statistic == "p50" else "")


def _distrust(gate: Gate, latency: LatencyComparison, *, strict_tails: bool) -> str | None:
    fewest = min(latency.original.samples, latency.compressed.samples)
    if fewest < FEWEST_RUNS:
        return f"{fewest} runs are too few for an interval, {FEWEST_RUNS} are needed"
    kept, needed = latency.compressed.samples, runs_needed(gate)
    if strict_tails and kept < needed:
        return f"{kept} runs are too few to bound it, {needed} are needed"
    return None
