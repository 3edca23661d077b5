"""Limits as people type them, as the gates that a job has; what could never fail, or never hold, is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from onnxpress.errors import UsageError
from onnxpress.metrics import SHARES
from onnxpress.quantities import parse_bytes, parse_factor, parse_milliseconds, parse_number

RULES = ("max_drop", "max_ratio", "min", "max")
GATE_FORM = (
    "METRIC RULE VALUE [confidence=C] [warn], such as 'top1 max_drop 1%', 'latency_p95 max_ratio 80% warn',"
    " 'latency_p99 max 5ms' or 'size_bytes max 2MB'"
)
COSTS = frozenset(
    {
        *(f"latency_{statistic}" for statistic in ("mean", "p50", "p90", "p95", "p99", "decode")),
        "size_bytes",
        "peak_memory",
        "parameters",
    }
)
_OF_BYTES = frozenset({"size_bytes", "peak_memory"})


def parse_gate(text: str) -> dict[str, Any]:
    """Give a gate from `METRIC RULE VALUE [confidence=C] [warn|error]`.

    A value may end in %, a latency's in ms or s, and one of bytes in KB, MB, MiB and the like.
    """
    words = text.split()
    if len(words) < 3 or words[1] not in RULES:
        raise UsageError(f"gate {text!r} is not of the form {GATE_FORM}; rules: {', '.join(RULES)}")
    gate: dict[str, Any] = {"metric": words[0], "rule": words[1], "value": _value(words, text)}
    _refuse_idle(gate, text)
    for word in words[3:]:
        name, _, value = word.partition("=")
        if word in {"warn", "error"}:
            gate["level"] = word
        elif name == "confidence" and value:
            gate["confidence"] = parse_number(value, text)
        else:
            raise UsageError(f"gate {text!r}: {word!r} is not known; the form is {GATE_FORM}")
    return gate


def read_gate(gate: Any, context: str) -> Any:
    """Give a gate of a file: as `METRIC RULE VALUE`, or an object whose value may have a unit; anything else as it is."""
    if isinstance(gate, str):
        return parse_gate(gate)
    if not isinstance(gate, Mapping) or not isinstance(gate.get("value"), str):
        return gate
    words = [str(gate.get("metric")), str(gate.get("rule")), str(gate["value"])]
    found = {**gate, "value": _value(words, f"{context}: {' '.join(words)}")}
    _refuse_idle(found, " ".join(words))
    return found


def _value(words: Sequence[str], context: str) -> float:
    if words[1] in {"min", "max"}:
        if words[0].startswith("latency_"):
            return parse_milliseconds(words[2], context)
        if words[0] in _OF_BYTES:
            return parse_bytes(words[2], context)
    return parse_number(words[2], context)


def _refuse_idle(gate: Mapping[str, Any], text: str) -> None:
    """Raise UsageError for a limit on a share of samples that every network holds, or none."""
    value = gate["value"]
    if gate["metric"].partition("@")[0] not in SHARES:
        return
    meant = f"; did you mean {value:g}%?" if value <= 100 and "%" not in text else ""
    if gate["rule"] == "max_drop" and value >= 1:
        raise UsageError(f"gate {text!r} allows a loss of {100 * value:g} points, which nothing can exceed{meant}")
    if gate["rule"] == "min" and value > 1:
        raise UsageError(f"gate {text!r} asks for {100 * value:g} %, which no network reaches{meant}")


def cost_limits(
    *,
    min_speedup: str | None = None,
    max_size: str | None = None,
    max_memory: str | None = None,
    max_p99: str | None = None,
) -> list[dict[str, Any]]:
    """Give the gates that the options of these names stand for; a share, such as 50%, is of the original's."""
    found: list[dict[str, Any]] = []
    if min_speedup is not None:
        factor = parse_factor(min_speedup, f"--min-speedup {min_speedup}")
        found.append({"metric": "latency_p50", "rule": "max_ratio", "value": 1 / factor})
    if max_size is not None:
        found.append(_cost("size_bytes", max_size, f"--max-size {max_size}"))
    if max_memory is not None:
        found.append(_cost("peak_memory", max_memory, f"--max-memory {max_memory}"))
    if max_p99 is not None:
        found.append(_cost("latency_p99", max_p99, f"--max-p99 {max_p99}"))
    return found


def _cost(metric: str, text: str, context: str) -> dict[str, Any]:
    if text.endswith("%"):
        return {"metric": metric, "rule": "max_ratio", "value": _positive(parse_number(text, context), context)}
    parse = parse_bytes if metric in _OF_BYTES else parse_milliseconds
    if metric in _OF_BYTES and text.isdecimal() and int(text) < 1000:
        raise UsageError(f"{context!r} means {text} bytes; say the unit, such as {text}MB")
    return {"metric": metric, "rule": "max", "value": _positive(parse(text, context), context)}


def _positive(value: float, context: str) -> float:
    if not value > 0:
        raise UsageError(f"{context!r} is a limit that no network holds; it has to be above 0")
    return value
