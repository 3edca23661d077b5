"""Do no harm: whether a step's result is worth keeping, given what was asked and what it costs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from engine.gate import FIDELITY_METRICS, LOWER_IS_BETTER, TASK_METRICS, Gate
from engine.measure.gates import Costs, judge, outputs_of
from engine.measure.kinds import KINDS
from engine.outputs import OutputKind
from engine.report.counted_time import counted
from engine.report.values import Change, LatencyComparison, Quality, Refusal, Size

# What is worth having, as a share of the file. A lossless step may cost as much where it saves operators.
_MATERIAL = 0.01
# What is worth having of operators that a step without loss saves, as a share: the runtime loads and plans each of them.
_MATERIAL_OPERATORS = 0.05
# Slower than this is slower, whatever the noise; only asked for where no gate says what matters.
_SLOWER = 1.05
# The ratios of times that decide about a step.
DECIDES = (1.0, _SLOWER)
# Allowance where no gate limits quality: one point of a metric between 0 and 1. For fidelity each kind has its floors.
_DROP = 0.01
# Allowances below this are taken for it where a loss is told as a multiple of them.
_LEAST_ALLOWED = 1e-4
_SHARES = frozenset({"top1", "top5", "f1", "iou"})
# Fidelity that is a share of what stays, for outputs whose noise has no size.
KEPT_SHARES = ("box_f1", "mask_iou", "token_agreement", "top1_agreement")


def decide(
    change: Change,
    size: Size,
    latency: LatencyComparison | None,
    quality: Sequence[Quality],
    gates: Sequence[Gate],
    *,
    of_original: Size | None = None,
) -> Refusal | None:
    """Refuse a step that does not gain what is worth having of what was asked, or costs more quality than is allowed.

    `size` and `latency` compare with the network before the step, `quality` and the size `of_original` with the original.
    """
    if change.lossless:
        return _harm_without_loss(size, latency, quality, gates, of_original)
    if change.repair:
        # The pass itself made sure that quality rose; what is lost was allowed to earlier steps.
        return None
    told = _told_size(change, size)
    loss = next(losses(quality, gates), None)
    if loss is None and change.download and told.compressed >= told.original:
        return Refusal(code="no_gain", reason="The network is not smaller to download.")
    return loss or _without_gain(told, latency, gates)


def in_doubt(latency: LatencyComparison) -> bool:
    """Say whether a measurement was too noisy to tell if a step makes the network slower."""
    interval = counted(latency).ratio.interval
    return not latency.stable and interval.low < _SLOWER < interval.high


def _harm_without_loss(
    size: Size,
    latency: LatencyComparison | None,
    quality: Sequence[Quality],
    gates: Sequence[Gate],
    of_original: Size | None,
) -> Refusal | None:
    """Say what a step without loss makes worse. Others may need what it does, so what it gains is asked at the end."""
    if size.compressed > size.original * (1 + _MATERIAL):
        return Refusal(code="no_gain", reason=f"The file grew from {size.original} to {size.compressed} bytes.")
    for gate in gates:
        broken = _breaks(gate, quality, size, of_original)
        if broken is not None:
            return Refusal(code="no_gain", reason=f"It would break a gate that held before: {broken}.")
    time = None if latency is None else counted(latency)
    if time is not None and time.slower(_SLOWER):
        said = f"a run takes {time.ratio.value:.2f} times as long as before{time.said}"
        return Refusal(code="no_gain", reason=f"Nothing is lost, but {said}.")
    return None


def decide_alone(
    size: Size, operators: tuple[int, int], latency: LatencyComparison | None, gates: Sequence[Gate]
) -> Refusal | None:
    """Refuse steps without loss that nothing was built on, where what they gain by themselves is not worth having.

    `size`, `latency` and `operators` (how many before and after) compare the network before the first with that after the last.
    """
    refusal = _without_gain(size, latency, gates)
    before, after = operators
    slower = latency is not None and counted(latency).slower(_SLOWER)
    return None if not slower and after <= before * (1 - _MATERIAL_OPERATORS) else refusal


def _breaks(gate: Gate, quality: Sequence[Quality], size: Size, of_original: Size | None) -> str | None:
    """Say why a gate fails that did not fail before; what the original itself does not keep, no step has broken."""
    if gate.metric == "size_bytes" and of_original is not None:
        before = of_original.model_copy(update={"compressed": size.original})
        held = judge(gate, (), Costs(size=before)).outcome != "fail"
        found = judge(gate, (), Costs(size=of_original))
        return found.reason if held and found.outcome == "fail" else None
    if gate.metric not in (*TASK_METRICS, *FIDELITY_METRICS):
        return None
    found = judge(gate, quality, Costs())
    if found.outcome != "fail":
        return None
    values = [each.original for each in outputs_of(gate, quality) if each.original is not None]
    beyond = (value > gate.value if gate.rule == "max" else value < gate.value for value in values)
    return None if gate.rule in {"min", "max"} and any(beyond) else found.reason


def breaks_quality(quality: Sequence[Quality], gates: Sequence[Gate]) -> bool:
    """Say whether a gate on quality speaks against a step without loss."""
    on_quality = (gate for gate in gates if gate.metric in (*TASK_METRICS, *FIDELITY_METRICS))
    # Such a gate looks at no size.
    return any(_breaks(gate, quality, Size(original=1, compressed=1), None) is not None for gate in on_quality)


def _told_size(change: Change, size: Size) -> Size:
    """Give the sizes that a step is judged by: zeros do not make the file smaller, but its download."""
    if not change.download or size.original_download is None or size.compressed_download is None:
        return size
    if size.compressed < size.original:
        return size
    return Size(original=size.original_download, compressed=size.compressed_download)


def losses(quality: Sequence[Quality], gates: Sequence[Gate]) -> Iterator[Refusal]:
    """Yield what speaks against a network: a gate on quality that fails, and of outputs without one what nobody allowed."""
    covered: set[str | None] = set()
    for gate in gates:
        if gate.metric not in (*TASK_METRICS, *FIDELITY_METRICS):
            continue
        covered |= {each.output for each in outputs_of(gate, quality)}
        result = judge(gate, quality, Costs())
        if result.outcome == "fail":
            yield Refusal(code="too_lossy", reason=f"A gate forbids it: {result.reason}.")
    yield from _unasked(quality, covered)


def unasked_losses(quality: Sequence[Quality], gates: Sequence[Gate]) -> Iterator[Refusal]:
    """Yield what nobody allowed: too much loss of outputs that no gate on quality is about."""
    on_quality = [gate for gate in gates if gate.metric in (*TASK_METRICS, *FIDELITY_METRICS)]
    yield from _unasked(quality, {each.output for gate in on_quality for each in outputs_of(gate, quality)})


def _unasked(quality: Sequence[Quality], covered: AbstractSet[str | None]) -> Iterator[Refusal]:
    for output, metrics in by_output(quality).items():
        if output not in covered:
            yield from _unasked_losses(metrics)


def strain(quality: Sequence[Quality], gates: Sequence[Gate]) -> float:
    """Give the loss as a multiple of what is allowed, of the limit on quality that is strained most; 1 is just inside.

    Limits are those of the gates, and of outputs without one the floors of their kinds, as in `losses`; 0 without any.
    """
    found = [0.0]
    covered: set[str | None] = set()
    for gate in gates:
        about = outputs_of(gate, quality) if gate.metric in (*TASK_METRICS, *FIDELITY_METRICS) else []
        covered |= {each.output for each in about}
        found += [_strain_of_gate(gate, each) for each in about]
    for output, metrics in by_output(quality).items():
        if output not in covered:
            found += _unasked_strains(metrics)
    return max(found)


def _strain_of_gate(gate: Gate, quality: Quality) -> float:
    if gate.rule == "max_drop":
        if quality.difference is None:
            return 0.0
        lost = quality.difference if gate.metric in LOWER_IS_BETTER else -quality.difference
        return max(0.0, lost / max(gate.value, _LEAST_ALLOWED))
    return _strain_of_limit(gate.metric, quality, gate.value, at_least=gate.rule == "min")


def _strain_of_limit(metric: str, quality: Quality, limit: float, *, at_least: bool) -> float:
    value = quality.compressed
    if metric == "sqnr_db":
        return math.pow(10, (limit - value) / 10)
    # What the original itself has: of fidelity, what a network has to itself.
    best = quality.original if quality.original is not None else (1.0 if at_least else 0.0)
    allowed, lost = (best - limit, best - value) if at_least else (limit - best, value - best)
    if allowed <= 0:
        return 0.0 if (value >= limit if at_least else value <= limit) else 1.0 + abs(limit - value) / _LEAST_ALLOWED
    return max(0.0, lost / max(allowed, _LEAST_ALLOWED))


def _unasked_strains(metrics: Mapping[str, Quality]) -> list[float]:
    task = _shared_task(metrics)
    if task is not None and task.difference is not None:
        return [max(0.0, -task.difference / _DROP)]
    first = next(iter(metrics.values()))
    floors = KINDS[first.kind or _kind_of_older(metrics)].floors
    return [
        _strain_of_limit(floor.metric, metrics[floor.metric], floor.limit, at_least=floor.at_least)
        for floor in floors
        if floor.metric in metrics
    ]


def _shared_task(metrics: Mapping[str, Quality]) -> Quality | None:
    return next((metrics[name] for name in metrics if name in _SHARES and metrics[name].difference is not None), None)


def by_output(quality: Sequence[Quality]) -> dict[str | None, dict[str, Quality]]:
    """Give the metrics of each output by name, the main output's first."""
    found: dict[str | None, dict[str, Quality]] = {}
    for each in quality:
        found.setdefault(each.output, {})[each.metric] = each
    return found


def main_metrics(quality: Sequence[Quality]) -> Mapping[str, Quality]:
    """Give the metrics of the output that speaks for the network."""
    return next(iter(by_output(quality).values()), {})


def broken_beside_main(quality: Sequence[Quality]) -> str | None:
    """Say which output other than the main one fell under its kind's floor, in a sentence; None where all hold."""
    others = list(by_output(quality).values())[1:]
    return next((refusal.reason for metrics in others for refusal in _unasked_losses(metrics)), None)


def quality_drop(quality: Sequence[Quality]) -> float | None:
    """Give what was lost: of the task's metric, else the share of changed decisions, else of the outputs' energy."""
    if broken_beside_main(quality) is not None:
        return math.inf
    by_name = main_metrics(quality)
    for metric in TASK_METRICS:
        task = by_name.get(metric)
        if task is not None and task.difference is not None:
            return task.difference if metric in LOWER_IS_BETTER else -task.difference
    for metric in KEPT_SHARES:
        if metric in by_name:
            return 1 - by_name[metric].compressed
    if "sqnr_db" in by_name:
        return math.pow(10, -by_name["sqnr_db"].compressed / 10)
    return None


def noise_share(quality: Sequence[Quality]) -> float:
    """Give one number of how far a network is from the original: noise as a share of each output, by the outputs' weights."""
    shares: list[tuple[float, float]] = []
    for metrics in by_output(quality).values():
        if "sqnr_db" in metrics:
            shares.append((metrics["sqnr_db"].weight, 10 ** (-metrics["sqnr_db"].compressed / 10)))
            continue
        kept = next((each for name, each in metrics.items() if name in KEPT_SHARES), None)
        if kept is not None:
            shares.append((kept.weight, 1 - kept.compressed))
    total = sum(weight for weight, _ in shares)
    return sum(weight * share for weight, share in shares) / total if total else 0.0


def _unasked_losses(quality: Mapping[str, Quality]) -> Iterator[Refusal]:
    """Yield what nobody allowed of one output."""
    first = next(iter(quality.values()))
    kind = first.kind or _kind_of_older(quality)
    named = f"Output `{first.output}` ({kind}): " if first.output is not None else f"The output ({kind}): "
    gate = "Put a gate on the metric into the job to say how much it may cost"
    hint = f"{gate}, or declare what the output is, if it was taken for the wrong kind."
    task = _shared_task(quality)
    if task is not None and task.difference is not None:
        if task.difference < -_DROP:
            drop = -100 * task.difference
            said = f"{named}{task.metric} drops by {drop:.2f} points; 1 is allowed."
            yield Refusal(code="too_lossy", reason=said, hint=f"{gate}.")
        return
    for floor in KINDS[kind].floors:
        broken = floor.broken_by(quality[floor.metric]) if floor.metric in quality else None
        if broken is not None:
            yield Refusal(code="too_lossy", reason=f"{named}{broken}.", hint=hint)


def _kind_of_older(quality: Mapping[str, Quality]) -> OutputKind:
    return "classes" if "top1_agreement" in quality else "values"


def _without_gain(size: Size, latency: LatencyComparison | None, gates: Sequence[Gate]) -> Refusal | None:
    asked = {"latency" if gate.metric.startswith("latency_") else gate.metric for gate in gates}
    smaller = size.compressed <= size.original * (1 - _MATERIAL)
    time = None if latency is None else counted(latency)
    slower = time is not None and time.slower(1.0 if "latency" in asked else _SLOWER)
    faster = time is not None and time.faster
    said = "" if time is None else f"a run takes {time.ratio.value:.2f} times as long as before{time.said}"
    if "latency" in asked and slower:
        return Refusal(code="no_gain", reason=f"Latency was asked for, but on this target {said}.")
    small = sorted(asked & {"size_bytes", "peak_memory", "parameters"})
    if small:
        if smaller or (faster and "latency" in asked):
            return None
        wanted = " and ".join(small)
        return Refusal(code="no_gain", reason=f"A gate asks for {wanted}, but {_told_growth(size)}.")
    if slower:
        return Refusal(
            code="no_gain",
            reason=f"It does not pay on this target: {said}.",
            hint="A gate on size_bytes asks for size alone.",
        )
    if not smaller and not faster:
        speed = "was not measured" if time is None else f"is the same beyond noise: {said}"
        return Refusal(code="no_gain", reason=f"Nothing is gained: {_told_growth(size)}, and the speed {speed}.")
    return None


def _told_growth(size: Size) -> str:
    """Say how the file changed, where it did not become materially smaller."""
    if size.compressed >= size.original:
        grown = size.compressed / size.original - 1
        return "the file has the same size" if size.compressed == size.original else f"the file is {grown:.1%} larger"
    return f"the file is only {1 - size.compressed / size.original:.2%} smaller, less than {_MATERIAL:.0%}"
