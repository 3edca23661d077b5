"""Tables and numbers as reports for people write them: in every format, and on the terminal in the same words (`onnxpress.wording`)."""

import re
from collections.abc import Iterable, Iterator, Sequence

from engine.gate import Gate, ProfileGate
from engine.report.values import AnyReport, Environment, ProfileReport, Quality, Ratio, Report
from engine.target import Target

# Metrics that are shares of samples.
SHARES = frozenset(
    {"top1", "top5", "f1", "iou", "top1_agreement", "neighbours", "r2", "mask_iou", "box_f1", "token_agreement"}
)
_SAME = 5e-3
CONFIDENCE = "What stands in brackets behind a figure, or between which it lies, holds with 95 % confidence."
# What stands in a table for what is not known.
UNKNOWN = "\N{EN DASH}"
# What an outcome is called in a table.
MARKS = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive", "none": "none"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def difference(quality: Quality) -> str:
    """Give how a metric changed, with its interval."""
    assert quality.difference is not None
    low, high = (_signed(quality.metric, each) for each in (quality.interval.low, quality.interval.high))
    return f"{change(quality.metric, quality.difference)} ({low} to {high})"


def quality_change(quality: Quality) -> str:
    """Give how a metric changed; of one that compares both networks, between what it lies."""
    if quality.difference is not None:
        return difference(quality)
    low, high = (metric_value(quality.metric, each) for each in (quality.interval.low, quality.interval.high))
    return f"between {low} and {high}"


def change(metric: str, by: float) -> str:
    """Give by how much a metric changed."""
    return _signed(metric, by) + (" points" if metric in SHARES else "")


def _signed(metric: str, by: float) -> str:
    # What is zero has no sign that says something.
    return f"{100 * by + 0.0:+.2f}" if metric in SHARES else f"{by + 0.0:+.4g}"


def metric_change(metric: str, compressed: float, by: float | None) -> str:
    """Give a metric with how it changed from the original's; of one that compares both, its value."""
    return f"{metric} {metric_value(metric, compressed) if by is None else change(metric, by)}"


def metric_value(metric: str, value: float) -> str:
    """Give a metric's value with the digits that say something."""
    if metric in SHARES:
        return share(value, digits=2)
    if metric == "sqnr_db":
        return decibel(value)
    # A cosine says something only by how far it is from 1.
    return f"{value:.6f}" if metric == "cosine" else f"{value:.4g}"


def share(value: float | None, *, digits: int = 1) -> str:
    """Give a share in per cent; nothing where it is not known."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def decibel(value: float | None) -> str:
    """Give a ratio of signal to noise; nothing where it is not known."""
    return "" if value is None else f"{value:.1f} dB"


def gate_text(gate: Gate | ProfileGate) -> str:
    """Write a gate as a job may: metric, output if it names one, rule and value."""
    return f"{gate.label} {gate.rule} {limit_value(gate.value)}"


def gate_value(metric: str, rule: str, value: float) -> str:
    """Give a value that a gate is about in its unit: the limit, what was measured, or the bound that was held against it."""
    # Limits are round numbers: zeros at the end say nothing.
    told = re.sub(r"\.0+(?= |$)|(\.\d*?[1-9])0+(?= |$)", r"\1", _gate_value(metric, rule, value))
    return told.removesuffix("s") if told == "1 points" else told


def _gate_value(metric: str, rule: str, value: float) -> str:
    if rule == "max_ratio":
        return share(value)
    if metric in {"size_bytes", "peak_memory"}:
        return size(value)
    if metric == "parameters":
        return f"{value:,.0f}"
    if metric.startswith("latency"):
        return milliseconds(value)
    if rule == "max_drop":
        # Nothing lost is no loss below zero.
        lost = value + 0.0
        return f"{100 * lost:.2f} points" if metric in SHARES else f"{lost:.4g}{' dB' * (metric == 'sqnr_db')}"
    return metric_value(metric, value)


def target_name(target: Target) -> str:
    """Name what a network ran on."""
    return f"{target.provider}, {target.threads} thread{'s' * (target.threads > 1)}, batch {target.batch}"


def limit_value(value: float) -> str:
    """Give a gate's limit: whole numbers, such as bytes, as they are."""
    return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"


def target_names(report: AnyReport) -> dict[int, str]:
    """Give what a profile's targets are called, by their index."""
    return {} if isinstance(report, Report) else {each.index: target_name(each.target) for each in report.targets}


def speed(ratio: Ratio) -> str:
    """Give a ratio of times as a speed with its interval."""
    return speed_between(ratio.value, ratio.interval.low, ratio.interval.high)


def speed_between(ratio: float, low: float | None = None, high: float | None = None) -> str:
    """Give a ratio of times as a speed, with its interval where there is one."""
    told = f"{1 / ratio:.2f}x as fast"
    return f"{told} ({1 / high:.2f} to {1 / low:.2f})" if low and high else told


def times_smaller(before: int, after: int) -> str:
    """Say how a file's size changed: which way is part of the fact."""
    if before == after:
        return "of the same size"
    if f"{max(before, after) / min(before, after):.2f}" == "1.00":
        return "of about the same size"
    return f"{before / after:.2f}x smaller" if after < before else f"{after / before:.2f}x larger"


def parameters_left(before: int, after: int) -> str:
    """Say how many parameters are left; nothing where all are."""
    return "" if before == after or not before else f"{share(after / before)} left"


def times_less(before: float, after: float) -> str:
    """Say how what is taken of a machine changed."""
    ratio = after / before
    if abs(ratio - 1) < _SAME:
        return "same"
    return f"{1 / ratio:.2f}x less" if ratio < 1 else f"{ratio:.2f}x more"


def size(count: float) -> str:
    """Give bytes in decimal units."""
    left = float(count)
    for unit in ("B", "kB", "MB"):
        if left < 1000:
            return f"{left:.0f} {unit}" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1000
    return f"{left:.2f} GB"


def size_or_nothing(count: float | None) -> str:
    """Give bytes in decimal units; nothing where they are not known."""
    return "" if count is None else size(count)


def milliseconds(value: float) -> str:
    """Give a time with the digits that say something."""
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def rough_duration(seconds: float) -> str:
    """Give a span of time that is an estimate, with no more digits than it deserves."""
    if seconds < 1:
        return f"{1e3 * seconds:.2g} ms" if seconds < 0.1 else f"{1e3 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def place_text(ahead: int, seconds: float | None, slots: int) -> str:
    """Say where a job stands that is queued: how much goes before it, and when it may begin."""
    told = "next in line" if not ahead else f"behind {ahead} other{'s' * (ahead > 1)}"
    if not slots:
        return f"{told}; no worker that takes it is there now"
    return f"{told}, begins in about {rough_duration(seconds)}" if seconds is not None and seconds >= 1 else told


def machine(where: Environment) -> str:
    """Name what did the work: the GPU and what drives it, then the processor."""
    processor = f"{where.cpu} ({', '.join(where.cpu_flags)})"
    if where.gpu is None:
        return processor
    versions = (("driver", where.driver), ("CUDA", where.cuda), ("cuDNN", where.cudnn))
    told = ", ".join(f"{name} {version}" for name, version in versions if version)
    return f"{where.gpu}{f' ({told})' if told else ''} beside {processor}"


def tf32_sentence(where: Environment) -> Iterator[str]:
    """Say how products of float32 numbers were computed, where there is a choice."""
    if where.tf32 is not None:
        how = "in TF32, as ONNX Runtime does by itself" if where.tf32 else "in float32: the job switched TF32 off"
        yield f"Products of float32 numbers were computed {how}; what lossless steps change was compared without TF32."


def _calibrated(report: Report) -> bool:
    """Say whether a step that was kept changes weights or ranges by data: one that is without loss does not."""
    return any(step.status == "applied" and step.change and not step.change.lossless for step in report.steps)


def data_sentence(report: AnyReport) -> Iterator[str]:
    """Yield what was done to raw data before, where the dataset says it: somebody's words, kept to one line of text."""
    if report.preprocessing is not None:
        yield "Data: " + " ".join(report.preprocessing.summary.split()).replace("<", "&lt;")


def profiled_parts_sentence(report: ProfileReport) -> Iterator[str]:
    """Yield how many samples of the data fed the runs that were measured, and how many judged."""
    parts = report.parts
    if parts is None:
        return
    judged = f", quality is on the {report.samples:,} that judge one" if report.samples else "; quality was not judged"
    yield f"Runs take their inputs from the {parts.calibrate:,} samples that calibrate a job{judged}. {parts.reason}."


def parts_sentence(report: Report) -> str:
    """Say how many samples did what."""
    parts = report.parts
    if parts is None and not report.held_out_samples:
        return "There were no data: outputs were compared on random inputs."
    if parts is None:
        return f"Calibrated with {report.calibration_samples:,} samples, judged on {report.held_out_samples:,} others."
    # Where nothing was kept that calibrates, the samples for it were only at hand.
    calibrated = f"{'Calibrated with' if _calibrated(report) else 'For calibration'} {parts.calibrate:,} samples"
    if parts.select_is_judge:
        return f"{calibrated}, chosen and judged on the same {parts.judge:,}: {parts.reason}."
    return f"{calibrated}, chosen on {parts.select:,} and judged on {parts.judge:,} others. {parts.reason}."
