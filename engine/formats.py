"""A report for other programs: JUnit XML for pipelines, and the text format of Prometheus."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from engine.markdown import markdown
from engine.report import AnyReport, GateResult, Latency, LatencyComparison, Report

_PREFIX = "onnxpress_report"
_OUTCOMES = ("pass", "fail", "inconclusive", "none")


def report_files(report: AnyReport) -> dict[str, bytes]:
    """Give a report in every format, by the name of its file."""
    return {
        "report.md": markdown(report).encode(),
        "report.junit.xml": junit(report),
        "report.prom": prometheus(report).encode(),
        # Last: who finds it finds the others.
        "report.json": report.model_dump_json(indent=2).encode(),
    }


def junit(report: AnyReport) -> bytes:
    """Give a test suite with a case for each gate; a job without gates is one case that passed.

    A gate of level `error` that failed is a failure. What is inconclusive, or failed at level `warn`, is skipped with its
    reason, because the job's verdict does not fail on it either.
    """
    gates = report.verdict.gates
    suite = ET.Element("testsuite", name=f"onnxpress {report.kind}", time=f"{report.seconds:.3f}")
    for gate in gates:
        _case(suite, gate)
    if not gates:
        ET.SubElement(suite, "testcase", classname=f"onnxpress.{report.kind}", name="the job ended")
    for attribute, tag in (("failures", "failure"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(max(1, len(gates))))
    suite.set("errors", "0")
    ET.SubElement(suite, "system-out").text = _printable(report.summary)
    return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def _case(suite: ET.Element, result: GateResult) -> None:
    gate = result.gate
    where = "" if result.target is None else f" on target {result.target}"
    case = ET.SubElement(
        suite, "testcase", classname="onnxpress.gates", name=f"{gate.metric} {gate.rule} {gate.value:g}{where}"
    )
    if result.outcome == "pass":
        return
    failed = result.outcome == "fail" and gate.level == "error"
    said = f"{result.outcome}: {_printable(result.reason)}"
    ET.SubElement(case, "failure" if failed else "skipped", message=said)


def _printable(text: str) -> str:
    """Leave out what XML cannot hold."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def prometheus(report: AnyReport) -> str:
    """Give the verdict and the main figures as gauges, in seconds and bytes, for a push gateway or a text collector."""
    lines = ["# TYPE onnxpress_report_verdict gauge"]
    lines += [
        f'{_PREFIX}_verdict{{outcome="{outcome}"}} {int(outcome == report.verdict.outcome)}' for outcome in _OUTCOMES
    ]
    for name, samples in _gauges(report):
        lines.append(f"# TYPE {_PREFIX}_{name} gauge")
        lines += [f"{_PREFIX}_{name}{{{labels}}} {value:.9g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


Samples = list[tuple[str, float]]


def _gauges(report: AnyReport) -> Iterator[tuple[str, Samples]]:
    if isinstance(report, Report):
        yield "size_bytes", _both(report.size.original, report.size.compressed)
        if report.latency is not None:
            yield "latency_seconds", _latencies(report.latency)
        if report.memory is not None:
            yield (
                "peak_memory_bytes",
                _both(report.memory.original.peak_rss_bytes, report.memory.compressed.peak_rss_bytes),
            )
        if report.quality:
            yield "quality", [(f'metric="{each.metric}"', each.compressed) for each in report.quality]
        return
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
