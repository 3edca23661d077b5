"""Do no harm: whether a step's result is worth keeping, given what was asked and what it costs."""

from collections.abc import Iterator, Mapping, Sequence

from engine.gate import FIDELITY_METRICS, TASK_METRICS, Gate
from engine.measure.gates import Costs, judge, outputs_of
from engine.measure.kinds import KINDS
from engine.outputs import OutputKind
from engine.report.values import Change, LatencyComparison, Quality, Refusal, Size

# A lossless step may cost a little size where it saves operators.
_GROWTH = 1.01
# Slower than this is slower, whatever the noise; only asked for where no gate says what matters.
_SLOWER = 1.05
# Allowance where no gate limits quality: one point of a metric between 0 and 1. For fidelity each kind has its floors.
_DROP = 0.01
_SHARES = frozenset({"top1", "top5", "f1", "iou"})
# Fidelity that is a share of what stays, for outputs whose noise has no size.
KEPT_SHARES = ("box_f1", "mask_iou", "token_agreement", "top1_agreement")


def decide(
    change: Change,
    size: Size,
    latency: LatencyComparison | None,
    quality: Sequence[Quality],
    gates: Sequence[Gate],
) -> Refusal | None:
    """Refuse a step that does not gain on what was asked, or costs more quality than is allowed.

    `size` and `latency` compare with the network before the step, `quality` with the original.
    """
    if change.lossless:
        if size.compressed > size.original * _GROWTH:
            return Refusal(code="no_gain", reason=f"The file grew from {size.original} to {size.compressed} bytes.")
        return None
    if change.repair:
        # The pass itself made sure that quality rose; what is lost was allowed to earlier steps.
        return None
    told = _told_size(change, size)
    loss = next(losses(quality, gates), None)
    if loss is None and change.download and told.compressed >= told.original:
        return Refusal(code="no_gain", reason="The network is not smaller to download.")
    return loss or _without_gain(told, latency, gates)


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
    for output, metrics in by_output(quality).items():
        if output not in covered:
            yield from _unasked_losses(metrics)


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
    task = next((quality[name] for name in quality if name in _SHARES and quality[name].difference is not None), None)
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
    smaller = size.compressed < size.original
    ratio = _time_ratio(latency)
    slower = ratio is not None and ratio > (1.0 if "latency" in asked else _SLOWER)
    said = "" if ratio is None else f"a run takes {ratio:.2f} times as long as before"
    if "latency" in asked and slower:
        return Refusal(code="no_gain", reason=f"Latency was asked for, but {said} on this target.")
    if asked & {"size_bytes", "peak_memory", "parameters"}:
        return None if smaller else Refusal(code="no_gain", reason="Size was asked for, but the file is not smaller.")
    if slower:
        return Refusal(
            code="no_gain",
            reason=f"It does not pay on this target: {said}.",
            hint="A gate on size_bytes asks for size alone.",
        )
    if not smaller and (ratio is None or ratio > 1.0):
        return Refusal(code="no_gain", reason="The network is neither smaller nor faster.")
    return None


def _time_ratio(latency: LatencyComparison | None) -> float | None:
    """Give the best-known ratio of times: by the wall's clock where the machine was quiet, else by the CPU's."""
    if latency is None:
        return None
    trusted = latency.ratios["p50"] if latency.stable else latency.cpu_ratio
    # Only what is slower beyond its own interval counts as slower.
    return trusted.value if trusted.interval.low > 1.0 or trusted.value <= 1.0 else 1.0
