"""A report as OpenMetrics, which Prometheus reads as its own text format too."""

from collections.abc import Iterable, Iterator
from typing import assert_never

from engine.report.values import AnyReport, Latency, LatencyComparison, ProfileReport, Quality, Report

_PREFIX = "onnxpress_report"
_OUTCOMES = ("pass", "fail", "inconclusive", "none")


_HELP = {
    "verdict": "1 for the outcome of the gates, 0 for the others.",
    "unfinished": "1: the job ended without a result.",
    "size_bytes": "Of the stored network.",
    "latency_seconds": "Time of a run.",
    "tokens_per_second": "Of a decoder, by load.",
    "peak_memory_bytes": "Of a fresh process that loads the network and runs it once.",
    "peak_device_memory_bytes": "Of the GPU, likewise.",
    "quality": "A metric of the result, on the samples that judge.",
}
_UNITS = ("bytes", "seconds")


def family(name: str, samples: "Samples") -> Iterator[str]:
    """Yield the lines of one family of gauges; its samples come as labels with a value."""
    full, unit = f"{_PREFIX}_{name}", name.rpartition("_")[2]
    yield f"# TYPE {full} gauge"
    if unit in _UNITS:
        yield f"# UNIT {full} {unit}"
    yield f"# HELP {full} {_HELP[name]}"
    yield from (f"{full}{{{labels}}} {value:.9g}" for labels, value in samples)


def verdict_family(verdict: str | None) -> Iterator[str]:
    """Yield the family of the verdict; None: there is none."""
    return family("verdict", [(f'outcome="{outcome}"', float(outcome == verdict)) for outcome in _OUTCOMES])


def openmetrics(families: Iterable[str]) -> str:
    """Give the text of families."""
    return "\n".join([*families, "# EOF"]) + "\n"


def prometheus(report: AnyReport) -> str:
    """Give the verdict and the main figures as gauges, in seconds and bytes, for a push gateway or a text collector."""
    figures = (line for name, samples in _gauges(report) for line in family(name, samples))
    return openmetrics([*verdict_family(report.verdict.outcome), *figures])


Samples = list[tuple[str, float]]


def _gauges(report: AnyReport) -> Iterator[tuple[str, Samples]]:
    match report:
        case Report():
            yield from _of_compression(report)
        case ProfileReport():
            yield from _of_profile(report)
        case _:
            assert_never(report)


def _of_compression(report: Report) -> Iterator[tuple[str, Samples]]:
    yield "size_bytes", _both(report.size.original, report.size.compressed)
    if report.latency is not None:
        yield "latency_seconds", _latencies(report.latency)
    if report.generation is not None:
        loads = (("prefill", report.generation.prefill), ("decode", report.generation.decode))
        yield (
            "tokens_per_second",
            [
                (f'load="{load}",network="{network}"', value)
                for load, rate in loads
                for network, value in (
                    ("original", rate.original_tokens_per_s),
                    ("compressed", rate.compressed_tokens_per_s),
                )
            ],
        )
    if report.memory is not None:
        original, compressed = report.memory.original.peak_rss_bytes, report.memory.compressed.peak_rss_bytes
        yield "peak_memory_bytes", _both(original, compressed)
        device = report.memory.original.device_peak_bytes, report.memory.compressed.device_peak_bytes
        if device[0] is not None and device[1] is not None:
            yield "peak_device_memory_bytes", _both(device[0], device[1])
    if report.quality:
        yield "quality", [(_quality_labels(each), each.compressed) for each in report.quality]


def _of_profile(report: ProfileReport) -> Iterator[tuple[str, Samples]]:
    measured = [(each, each.measured) for each in report.targets if each.measured is not None]
    if measured:
        yield (
            "latency_seconds",
            [
                (f'target="{each.index}",provider="{each.target.provider}",statistic="{name}"', value / 1000)
                for each, costs in measured
                for name, value in _statistics(costs.latency)
            ],
        )
        yield (
            "peak_memory_bytes",
            [
                (f'target="{each.index}",provider="{each.target.provider}"', costs.memory.peak_rss_bytes)
                for each, costs in measured
            ],
        )
        on_device = [
            (f'target="{each.index}",provider="{each.target.provider}"', float(costs.memory.device_peak_bytes))
            for each, costs in measured
            if costs.memory.device_peak_bytes is not None
        ]
        if on_device:
            yield "peak_device_memory_bytes", on_device


def _quality_labels(quality: Quality) -> str:
    if quality.output is None:
        return f'metric="{quality.metric}"'
    escaped = quality.output.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'metric="{quality.metric}",output="{escaped}"'


def _both(original: float, compressed: float) -> Samples:
    return [('network="original"', original), ('network="compressed"', compressed)]


def _latencies(compared: LatencyComparison) -> Samples:
    return [
        (f'network="{network}",statistic="{name}"', value / 1000)
        for network, latency in (("original", compared.original), ("compressed", compared.compressed))
        for name, value in _statistics(latency)
    ]


def _statistics(latency: Latency) -> list[tuple[str, float]]:
    return [(name, float(getattr(latency, f"{name}_ms"))) for name in ("mean", "p50", "p90", "p95", "p99")]
