"""The tables of a contest: one row per network, and in words who won by how much."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.contest import OURS, Result
from benchmarks.documents import megabytes, seconds, table

HEADER = (
    "network", "size", "smaller", "quality", "change (95 %)", "speed of fp32 (95 %)", "by CPU clock", "made with", "peak memory",
)  # fmt: skip


def section(case: Case, results: Sequence[Result], *, quick: bool) -> str:
    """Give the Markdown of one case."""
    original = results[0]
    assert original.score is not None
    assert original.bytes is not None
    parts = [f"### {case.title} (`{case.name}`)", _beginning(original, quick=quick)]
    parts.append(table(HEADER, [_row(each, original.bytes) for each in results[1:] if each.path is not None]))
    parts += ["\n".join(f"* {line}" for line in lines) for lines in [list(_remarks(results))] if lines]
    parts += [conclusion for conclusion in [conclude(case, results)] if conclusion]
    return "\n\n".join(parts)


def speed(result: Result) -> float | None:
    """Give how many times as fast as the original a network is; 1 where it is the original.

    By the CPU's clock where the machine was disturbed, because the wall's then says little.
    """
    if result.unchanged:
        return 1.0
    if result.latency is None:
        return None
    by_cpu = result.latency.get("counts", "wall" if result.latency["stable"] else "cpu") == "cpu"
    ratio = result.latency["cpu_ratio"] if by_cpu else result.latency["ratios"]["p50"]
    return 1 / float(ratio["value"])


def fastest(case: Case, results: Sequence[Result], *, ours: bool) -> Result | None:
    """Give the fastest network within the case's allowed loss, of ours or of the peers."""
    fit = [
        each
        for each in results[1:]
        if (each.maker == OURS) == ours
        and each.score is not None
        and speed(each) is not None
        and -each.score["change"] <= case.allowed_loss + 1e-9
    ]
    return max(fit, key=lambda each: speed(each) or 0.0, default=None)


def conclude(case: Case, results: Sequence[Result]) -> str:
    """Say how our best compares with the best of the peers, both within the allowed loss."""
    ours, theirs = fastest(case, results, ours=True), fastest(case, results, ours=False)
    allowed = f"Within {100 * case.allowed_loss:.1f} points of loss"
    peers = (
        "no peer's network is"
        if theirs is None
        else f"the fastest peer is {theirs.name}, {_times(speed(theirs))} of fp32"
    )
    own = "none of ours is" if ours is None else f"ours is {ours.setting}, {_times(speed(ours))} of fp32"
    words = f"{allowed}: {peers}; {own}"
    if ours is not None and theirs is not None:
        words += f", {(speed(ours) or 0) / (speed(theirs) or 1):.2f} times as fast as that peer"
    disturbed = any(each.latency and not each.latency["stable"] for each in (ours, theirs) if each is not None)
    return words + (" (by CPU clock, because the machine was disturbed)." if disturbed else ".")


def _beginning(original: Result, *, quick: bool) -> str:
    assert original.score is not None
    words = f"Original: {megabytes(original.bytes)}"
    raced = original.latency
    if original.score["metric"] == "top1":
        words += f", top1 {100 * original.score['value']:.2f} %"
    words += "." if raced is None else f", p50 {raced['original']['p50_ms']:.2f} ms."
    return words + (" **A trial run on few samples: no result.**" if quick else "")


def _row(result: Result, original_bytes: int) -> list[str]:
    score, latency = result.score or {}, result.latency
    return [
        f"**{result.name}**" if result.maker == OURS else result.name,
        megabytes(result.bytes),
        "" if not result.bytes else f"{original_bytes / result.bytes:.2f}x",
        _quality(score),
        "" if not score else f"{_points(score['change'])} ({_points(score['low'])} to {_points(score['high'])})",
        "fp32 kept" if result.unchanged else "" if latency is None else _ratio(latency["ratios"]["p50"], latency),
        ""
        if latency is None or result.unchanged or latency["cpu_ratio"] is None
        else _times(1 / latency["cpu_ratio"]["value"]),
        "" if result.cpu_seconds is None else f"{seconds(result.cpu_seconds)} CPU",
        "" if not result.peak_rss_bytes else f"{result.peak_rss_bytes / 1e6:,.0f} MB",
    ]


def _quality(score: dict[str, Any]) -> str:
    also = "".join(f", {name} {100 * value:.2f}" for name, value in score.get("also", {}).items())
    return f"{score['metric']} {100 * score['value']:.2f}{also}" if score else ""


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _ratio(ratio: dict[str, Any], latency: dict[str, Any]) -> str:
    interval = ratio["interval"]
    mark = "" if latency["stable"] else " (unstable)"
    return f"{1 / ratio['value']:.2f}x ({1 / interval['high']:.2f} to {1 / interval['low']:.2f}){mark}"


def _remarks(results: Sequence[Result]) -> Iterator[str]:
    for each in results:
        if each.problem:
            yield f"{each.name}: {each.problem}"
        if each.note:
            yield f"{each.name}: {each.note}"
    reasons = {each.latency["unstable_because"] for each in results if each.latency and not each.latency["stable"]}
    yield from (f"Unstable: {reason}" for reason in sorted(reasons))
