"""Tables and numbers as reports for people write them."""

from collections.abc import Iterable, Iterator, Sequence

from engine.report.values import AnyReport, Environment, ProfileReport, Quality, Ratio, Report

# Metrics that are shares of samples.
SHARES = frozenset(
    {"top1", "top5", "f1", "iou", "top1_agreement", "neighbours", "r2", "mask_iou", "box_f1", "token_agreement"}
)
_SAME = 5e-3
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
    low, high, value = quality.interval.low, quality.interval.high, quality.difference
    if quality.metric in SHARES:
        return f"{100 * value:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
    return f"{value:+.4g} ({low:+.4g} to {high:+.4g})"


def metric_value(metric: str, value: float) -> str:
    """Give a metric's value with the digits that say something."""
    if metric in SHARES:
        return f"{100 * value:.2f} %"
    # A cosine says something only by how far it is from 1.
    return f"{value:.6f}" if metric == "cosine" else f"{value:.4g}"


def limit_value(value: float) -> str:
    """Give a gate's limit: whole numbers, such as bytes, as they are."""
    return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"


def speed(ratio: Ratio) -> str:
    """Give a ratio of times as a speed with its interval."""
    low, high = 1 / ratio.interval.high, 1 / ratio.interval.low
    return f"{1 / ratio.value:.2f}x as fast ({low:.2f} to {high:.2f})"


def times_smaller(before: int, after: int) -> str:
    """Say how a file's size changed: which way is part of the fact."""
    if before == after:
        return "of the same size"
    if f"{max(before, after) / min(before, after):.2f}" == "1.00":
        return "of about the same size"
    return f"{before / after:.2f}x smaller" if after < before else f"{after / before:.2f}x larger"


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
    judged = f", quality is on the {report.samples} that judge one" if report.samples else "; quality was not judged"
    yield f"Runs take their inputs from the {parts.calibrate} samples that calibrate a job{judged}. {parts.reason}."


def parts_sentence(report: Report) -> str:
    """Say how many samples did what."""
    parts = report.parts
    if parts is None and not report.held_out_samples:
        return "There were no data: outputs were compared on random inputs."
    if parts is None:
        return f"Calibrated with {report.calibration_samples} samples, judged on {report.held_out_samples} others."
    # Where nothing was kept that calibrates, the samples for it were only at hand.
    calibrated = f"{'Calibrated with' if _calibrated(report) else 'For calibration'} {parts.calibrate} samples"
    if parts.select_is_judge:
        return f"{calibrated}, chosen and judged on the same {parts.judge}: {parts.reason}."
    return f"{calibrated}, chosen on {parts.select} and judged on {parts.judge} others. {parts.reason}."
