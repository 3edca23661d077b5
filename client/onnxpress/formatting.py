"""Numbers as people read them: three significant digits and a unit."""


def size(bytes_: float) -> str:
    """Give bytes in decimal units, as the service's reports do."""
    value = float(bytes_)
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def milliseconds(value: float) -> str:
    """Give a latency, as the service's reports do."""
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def speed(ratio: float, low: float, high: float) -> str:
    """Give a ratio of times and its bounds as a speed, as the service's reports do."""
    return f"{1 / ratio:.2f}x as fast ({1 / high:.2f} to {1 / low:.2f})"


def duration(seconds: float) -> str:
    """Give a span of time: 0.85 ms, 1.2 s, 3 min 05 s."""
    if seconds < 1e-3:
        return f"{_digits(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{_digits(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _digits(value: float) -> str:
    magnitude = abs(value)
    return f"{value:.0f}" if magnitude >= 100 else f"{value:.1f}" if magnitude >= 10 else f"{value:.2f}"
