"""Figures as people read them: in the words of the service's own reports, which `tests/test_wording.py` compares."""

import re
from collections.abc import Mapping
from typing import Any

from onnxpress.metrics import SHARES

Json = Mapping[str, Any]
_SAME = 5e-3


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


def share(value: float | None, *, digits: int = 1) -> str:
    """Give a share in per cent; nothing where it is not known."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def metric_value(metric: str, value: float) -> str:
    """Give a metric's value with the digits that say something."""
    if metric in SHARES:
        return share(value, digits=2)
    if metric == "sqnr_db":
        return f"{value:.1f} dB"
    # A cosine says something only by how far it is from 1.
    return f"{value:.6f}" if metric == "cosine" else f"{value:.4g}"


def change(metric: str, by: float) -> str:
    """Give by how much a metric changed."""
    return _signed(metric, by) + (" points" if metric in SHARES else "")


def _signed(metric: str, by: float) -> str:
    # What is zero has no sign that says something.
    return f"{100 * by + 0.0:+.2f}" if metric in SHARES else f"{by + 0.0:+.4g}"


def metric_change(quality: Json) -> str:
    """Give a metric with how it changed from the original's; of one that compares both, its value."""
    metric, by = quality["metric"], quality.get("difference")
    return f"{metric} {metric_value(metric, quality['compressed']) if by is None else change(metric, by)}"


def quality_change(quality: Json) -> str:
    """Give how a metric changed, with its interval; of one that compares both networks, between what it lies."""
    metric, interval, by = quality["metric"], quality["interval"], quality["difference"]
    if by is None:
        low, high = (metric_value(metric, interval[side]) for side in ("low", "high"))
        return f"between {low} and {high}"
    low, high = (_signed(metric, interval[side]) for side in ("low", "high"))
    return f"{change(metric, by)} ({low} to {high})"


def limit_value(value: float) -> str:
    """Give a gate's limit: whole numbers, such as bytes, as they are."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def gate_text(gate: Json) -> str:
    """Write a gate as a job may: metric, output if it names one, rule and value."""
    output = f"@{gate['output']}" if gate.get("output") else ""
    return f"{gate['metric']}{output} {gate['rule']} {limit_value(gate['value'])}"


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


def target_name(target: Json) -> str:
    """Name what a network ran on."""
    threads = target["threads"]
    return f"{target['provider']}, {threads} thread{'s' * (threads > 1)}, batch {target['batch']}"


def speed(ratio: Json) -> str:
    """Give a ratio of times as a speed with its interval."""
    return speed_between(ratio["value"], ratio["interval"]["low"], ratio["interval"]["high"])


def speed_between(ratio: float, low: float | None = None, high: float | None = None) -> str:
    """Give a ratio of times as a speed, with its interval where there is one."""
    told = f"{1 / ratio:.2f}x as fast"
    return f"{told} ({1 / high:.2f} to {1 / low:.2f})" if low and high else told


def times_smaller(before: float, after: float) -> str:
    """Say how a file's size changed."""
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


def status(job: Json) -> str:
    """Give a job's status; of a queued one with its place."""
    place = job.get("queue")
    if job["status"] != "queued" or not place:
        return str(job["status"])
    return f"queued, {place_text(place['ahead'], place.get('begins_in_s'), place['slots'])}"
