"""A profile for people: the summary sentences, and the whole as Markdown."""

from collections.abc import Iterator, Sequence

from engine.report.counted_time import counted
from engine.report.folded import folded
from engine.report.outputs_markdown import output_lines, quality_rows
from engine.report.run_facts import Memory, OpCost
from engine.report.tuning_markdown import tuning_lines
from engine.report.values import (
    LatencyComparison,
    ProfileReport,
    TargetMeasurement,
    TargetProfile,
)
from engine.report.wording import (
    MARKS,
    data_sentence,
    gate_text,
    machine,
    milliseconds,
    profiled_parts_sentence,
    share,
    size,
    speed,
    table,
    target_name,
    target_names,
    tf32_sentence,
)

_PERCENTILES = ("p50", "p90", "p95", "p99")
_MOST_ROWS = 10


def summarise_profile(targets: Sequence[TargetProfile]) -> str:
    """Say in a sentence for each target how long a run takes there, and how that compares."""
    return " ".join(f"{_name(each)}: {_sentence(each)}." for each in targets)


def profile_lines(report: ProfileReport) -> Iterator[str]:
    """Yield the whole report's lines."""
    yield f"# Profile: {MARKS[report.verdict.outcome]}"
    yield ""
    yield report.summary
    yield ""
    yield from table(
        ("target", "p50", "p99", "max", "runs/s", "cold load", "warm load", "peak memory", "beside the baseline"),
        (_row(each) for each in report.targets),
    )
    if report.verdict.gates:
        yield from ("", "## Gates", "")
        names = target_names(report)
        yield from table(
            ("target", "gate", "outcome", "reason"),
            (
                (
                    names.get(result.target if result.target is not None else -1, ""),
                    gate_text(result.gate),
                    MARKS[result.outcome] + (" (warning only)" if result.gate.level == "warn" else ""),
                    result.reason,
                )
                for result in report.verdict.gates
            ),
        )
    yield from folded(line for each in report.targets for line in ("", f"## {_name(each)}", "", *_target(each)))
    for sentence in (*profiled_parts_sentence(report), *data_sentence(report)):
        yield from ("", sentence)
    for warning in report.warnings:
        yield from ("", f"> {warning}")
    if report.estimate is not None:
        told = f"When it began, the job was expected to take this: {report.estimate.summary}"
        yield from ("", f"{told} It took {report.seconds:.0f} s.")


def _name(profile: TargetProfile) -> str:
    return target_name(profile.target)


def _sentence(profile: TargetProfile) -> str:
    measured = profile.measured
    if measured is None:
        return f"not measured, {profile.refusal.reason.rstrip('.') if profile.refusal else 'for no known reason'}"
    text = f"a run takes {milliseconds(measured.latency.p50_ms)} (p99 {milliseconds(measured.latency.p99_ms)})"
    if measured.comparison is not None:
        time = counted(measured.comparison)
        return f"{text}, {speed(time.ratio)} as the baseline{time.said}"
    return text if measured.stable else f"{text}, measured on a busy machine"


def _row(profile: TargetProfile) -> tuple[str, ...]:
    measured = profile.measured
    if measured is None:
        return (_name(profile), "refused", *[""] * 7)
    latency, memory = measured.latency, measured.memory
    return (
        _name(profile),
        milliseconds(latency.p50_ms),
        milliseconds(latency.p99_ms),
        "" if latency.max_ms is None else milliseconds(latency.max_ms),
        f"{max(each.runs_per_s for each in measured.throughput):.0f}",
        milliseconds(memory.load_ms),
        "" if memory.warm_load_ms is None else milliseconds(memory.warm_load_ms),
        size(memory.peak_rss_bytes),
        _beside(measured.comparison),
    )


def _beside(comparison: LatencyComparison | None) -> str:
    if comparison is None:
        return ""
    time = counted(comparison)
    return f"{speed(time.ratio)}{time.said}"


def _target(profile: TargetProfile) -> Iterator[str]:
    measured = profile.measured
    if measured is None:
        refusal = profile.refusal
        yield "Not measured." if refusal is None else f"{refusal.reason} {refusal.hint or ''}".strip()
        return
    if measured.comparison is not None:
        yield from table(("latency", "baseline", "network", "change"), _compared(measured.comparison))
    else:
        yield from table(("latency", ""), _percentiles(measured))
    yield ""
    yield from table(
        ("callers", "runs/s", "samples/s", "p50", "p99"),
        (
            (
                str(each.concurrency),
                f"{each.runs_per_s:.1f}",
                f"{each.samples_per_s:.1f}",
                milliseconds(each.p50_ms),
                milliseconds(each.p99_ms),
            )
            for each in measured.throughput
        ),
    )
    yield ""
    yield from table(("", *(("baseline",) if measured.baseline_memory else ()), "network"), _memory(measured))
    if measured.quality:
        yield ""
        yield from table(
            ("quality", "baseline", "network", "change"),
            quality_rows(measured.quality),
        )
    yield from output_lines(measured.outputs)
    yield ""
    yield from table(("operator", "provider", "nodes", "time", "share"), (_cost(each) for each in measured.by_type))
    yield from ("", "The most expensive nodes:", "")
    yield from table(
        ("node", "operator", "provider", "time", "share"),
        (
            (f"`{each.node}`", each.op_type, each.provider, milliseconds(each.ms), share(each.share))
            for each in measured.slowest[:_MOST_ROWS]
        ),
    )
    yield from _placement(measured)
    if measured.tuning is not None:
        yield from tuning_lines(measured.tuning, "### Session options")
    yield from ("", *_conditions(profile, measured))


def _compared(comparison: LatencyComparison) -> Iterator[tuple[str, ...]]:
    before, after = comparison.original, comparison.compressed
    for name in _PERCENTILES:
        yield (
            name,
            milliseconds(getattr(before, f"{name}_ms")),
            milliseconds(getattr(after, f"{name}_ms")),
            speed(comparison.ratios[name]),
        )
    if before.max_ms is not None and after.max_ms is not None:
        yield "max", milliseconds(before.max_ms), milliseconds(after.max_ms), ""


def _percentiles(measured: TargetMeasurement) -> Iterator[tuple[str, ...]]:
    for name in _PERCENTILES:
        interval = measured.latency.intervals[name]
        value = getattr(measured.latency, f"{name}_ms")
        yield name, f"{milliseconds(value)} ({milliseconds(interval.low)} to {milliseconds(interval.high)})"
    if measured.latency.max_ms is not None:
        yield "max", milliseconds(measured.latency.max_ms)


def _memory(measured: TargetMeasurement) -> Iterator[tuple[str, ...]]:
    both = [each for each in (measured.baseline_memory, measured.memory) if each is not None]
    yield "cold load", *(milliseconds(each.load_ms) for each in both)
    yield "warm load", *(_warm(each) for each in both)
    yield "first run", *(milliseconds(each.first_run_ms) for each in both)
    yield "peak memory", *(size(each.peak_rss_bytes) for each in both)
    if any(each.device_peak_bytes is not None for each in both):
        yield "peak GPU memory", *(size(each.device_peak_bytes or 0) for each in both)


def _warm(memory: Memory) -> str:
    return "" if memory.warm_load_ms is None else milliseconds(memory.warm_load_ms)


def _cost(cost: OpCost) -> tuple[str, ...]:
    return cost.op_type, cost.provider, str(cost.count), milliseconds(cost.ms), share(cost.share)


def _placement(measured: TargetMeasurement) -> Iterator[str]:
    placement = measured.placement
    counts: dict[str, int] = {}
    for node in placement.nodes:
        counts[node.provider] = counts.get(node.provider, 0) + 1
    told = ", ".join(f"{count} on {provider}" for provider, count in sorted(counts.items()))
    yield from ("", f"Nodes by provider: {told}.")
    for node in placement.fallbacks[:_MOST_ROWS]:
        yield from ("", f"`{node.node}` ({node.op_type}) fell back to {node.provider}.")
    if len(placement.fallbacks) > _MOST_ROWS:
        yield from ("", f"{len(placement.fallbacks) - _MOST_ROWS} more fell back; report.json names them all.")


def _conditions(profile: TargetProfile, measured: TargetMeasurement) -> Iterator[str]:
    where, latency = measured.environment, measured.latency
    package = f" ({where.distribution})" if where.distribution else ""
    yield (
        f"Measured on {machine(where)}, {_name(profile)}, ONNX Runtime"
        f" {where.onnxruntime}{package}, Python {where.python}, {where.system}."
    )
    yield from tf32_sentence(where)
    yield (
        f"Latency from {latency.samples:,} runs; {latency.dropped:,} disturbed runs dropped; the network beside itself reads"
        f" {measured.noise_floor.low:.3f} to {measured.noise_floor.high:.3f}."
    )
