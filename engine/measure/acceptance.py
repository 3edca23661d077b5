"""Do no harm: whether a step's result is worth keeping, given what was asked and what it costs."""

from collections.abc import Iterator, Sequence

from engine.gate import FIDELITY_METRICS, TASK_METRICS, Gate
from engine.measure.gates import Costs, judge
from engine.report.values import Change, LatencyComparison, Quality, Refusal, Size

# A lossless step may cost a little size where it saves operators.
_GROWTH = 1.01
# Slower than this is slower, whatever the noise; only asked for where no gate says what matters.
_SLOWER = 1.05
# Allowances where no gate limits quality: one point of a metric between 0 and 1, or these for fidelity.
_DROP = 0.01
_LEAST_AGREEMENT = 0.98
_LEAST_SQNR_DB = 15.0
_SHARES = frozenset({"top1", "top5", "f1", "iou"})


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
    """Yield what speaks against a network: a gate on quality that fails, or where there is none, what nobody allowed."""
    limits = [gate for gate in gates if gate.metric in (*TASK_METRICS, *FIDELITY_METRICS)]
    for gate in limits:
        result = judge(gate, quality, Costs())
        if result.outcome == "fail":
            yield Refusal(code="too_lossy", reason=f"A gate forbids it: {result.reason}.")
    if not limits:
        yield from _unasked_losses({each.metric: each for each in quality})


def _unasked_losses(quality: dict[str, Quality]) -> Iterator[Refusal]:
    hint = "Put a gate on the metric into the job to say how much it may cost."
    task = next((quality[name] for name in quality if name in _SHARES and quality[name].difference is not None), None)
    if task is not None and task.difference is not None:
        if task.difference < -_DROP:
            drop = -100 * task.difference
            yield Refusal(
                code="too_lossy", reason=f"{task.metric} drops by {drop:.2f} points; 1 is allowed.", hint=hint
            )
        return
    agreement, sqnr = quality.get("top1_agreement"), quality.get("sqnr_db")
    if agreement is not None:
        if agreement.compressed < _LEAST_AGREEMENT:
            yield Refusal(
                code="too_lossy",
                reason=f"Only {agreement.compressed:.1%} of the decisions stay the same; {_LEAST_AGREEMENT:.0%} have to.",
                hint=hint,
            )
    elif sqnr is not None and sqnr.compressed < _LEAST_SQNR_DB:
        yield Refusal(
            code="too_lossy",
            reason=f"The outputs' signal-to-noise ratio is {sqnr.compressed:.1f} dB; {_LEAST_SQNR_DB:.0f} are required.",
            hint=hint,
        )


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
