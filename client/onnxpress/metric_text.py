"""Metrics and their changes as people read them."""

from collections.abc import Mapping
from typing import Any

from onnxpress.metrics import SHARES


def value_text(metric: str, value: float) -> str:
    """Give a metric's value with the digits that say something."""
    if metric in SHARES:
        return f"{value * 100:.2f} %"
    # Cosines live so near to 1 that the usual digits would not tell them apart.
    forms = {"sqnr_db": ".1f", "cosine": ".6f"}
    return f"{value:{forms.get(metric, '.4g')}}" + " dB" * (metric == "sqnr_db")


def limit_text(value: float) -> str:
    """Give a gate's limit: whole numbers, such as bytes, as they are."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def change_text(quality: Mapping[str, Any]) -> str:
    """Give a metric with how it changed from the original's; of one that compares both, its value."""
    metric, difference = quality["metric"], quality.get("difference")
    if difference is None:
        return f"{metric} {value_text(metric, quality['compressed'])}"
    # What is zero has no sign.
    return f"{metric} {100 * difference + 0.0:+.2f} points" if metric in SHARES else f"{metric} {difference + 0.0:+.4g}"


def speed_text(ratio: float) -> str:
    """Give a ratio of times as a speed."""
    return f"{1 / ratio:.2f}x as fast"
