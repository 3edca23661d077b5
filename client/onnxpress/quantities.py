"""Numbers with units as people type them: shares, bytes, times and factors. A number that may mean two things is refused."""

import re

from onnxpress.errors import UsageError

_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_WITH_UNIT = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?) *([a-z]*)", re.IGNORECASE)


def parse_number(text: str, context: str) -> float:
    """Give a number; `1%` is 0.01."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"{context!r}: {text!r} is not a number") from None


def parse_loss(text: str, context: str) -> float:
    """Give how much of a share may be lost, above 0 and below 1: `1%` and `0.01` are one point of a hundred.

    Raises UsageError for what cannot be exceeded: 1 means 100 points, and whoever types it most likely means 1 %.
    """
    value = parse_number(text, context)
    if value >= 1:
        meant = "" if text.endswith("%") or value >= 100 else f"; {value:g} points are written {value:g}%"
        raise UsageError(f"{context!r} allows a loss of {100 * value:g} points, which nothing can exceed{meant}")
    if not value > 0:
        raise UsageError(f"{context!r}: the loss that is allowed has to be above 0, such as 1% or 0.01")
    return value


def parse_factor(text: str, context: str) -> float:
    """Give how many times as fast something has to be: `3` and `3x` are the same."""
    if text.endswith("%"):
        raise UsageError(f"{context!r}: say how many times as fast, such as 1.5 for 50 % faster")
    value = parse_number(text[:-1] if text.endswith(("x", "X")) else text, context)
    if not value > 0:
        raise UsageError(f"{context!r}: how many times as fast has to be above 0, such as 3")
    return value


def parse_bytes(text: str, context: str) -> float:
    """Give bytes from `100KB`, `2MB` (powers of 1000), `2MiB` (of 1024) or a bare number of bytes."""
    number, unit = _split(text, context, "a size such as 100KB, 2MB or 2MiB")
    if unit.lower() not in {"", *_BYTES}:
        raise UsageError(f"{context!r}: {unit!r} is no unit of bytes; known are B, KB, MB, GB and KiB, MiB, GiB")
    return round(number * _BYTES.get(unit.lower(), 1))


def parse_seconds(text: str, context: str) -> float:
    """Give seconds from `90s`, `10m`, `2h`, or several such parts, as in `1h30m`; a bare number is refused."""
    parts = re.findall(r"([0-9.]+) *([a-z]*)", text.lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.lower().replace(" ", ""):
        raise UsageError(f"{context!r}: {text!r} is not a time such as 90s, 10m or 1h30m")
    total = 0.0
    for number, unit in parts:
        if not unit:
            raise UsageError(f"{context!r}: say the unit, such as {number}s or {number}m")
        if unit not in _SECONDS:
            raise UsageError(f"{context!r}: {unit!r} is no unit of time; known are ms, s, m, h and d")
        total += parse_number(number, context) * _SECONDS[unit]
    return total


def parse_patience(text: str) -> float:
    """Give the seconds of a waiting time: a bare number of seconds, or one with its unit; at least 0.1."""
    bare = re.fullmatch(r"[0-9.]+", text) is not None
    value = parse_number(text, text) if bare else parse_seconds(text, text)
    if value < 0.1:
        raise UsageError(f"{text!r} is too short a time to wait; at least 0.1 s")
    return value


def parse_milliseconds(text: str, context: str) -> float:
    """Give a time in milliseconds, the unit of a latency's limits; `5ms`, `0.005s` and `5` are the same."""
    if text.endswith("us"):
        return 1e-3 * parse_number(text[:-2], context)
    if text.endswith("ms"):
        return parse_number(text[:-2], context)
    return 1e3 * parse_number(text[:-1], context) if text.endswith("s") else parse_number(text, context)


def _split(text: str, context: str, wanted: str) -> tuple[float, str]:
    found = _WITH_UNIT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{context!r}: {text!r} is not {wanted}")
    return parse_number(found[1], context), found[2]
