"""A search as pictures: what there is to choose from, and the story of its trials."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.goal import Minimised
from engine.report.figures.figure import (
    ACCENT,
    BAD,
    COMPRESSED,
    GOOD,
    LEGEND,
    QUIET,
    Figure,
    axis,
    sizes,
    with_room,
    wrapped,
)
from engine.report.search import Level, Measured, MeasuredQuality, SearchReport
from engine.report.wording import SHARES, metric_change, speed_between
from engine.report.wording import size as size_text

_COST: Mapping[Minimised, str] = {
    "latency": "time of a run, as a share of the original's",
    "size": "size",
    "memory": "peak memory",
    "macs": "multiply-accumulates",
}
# Said where a point can be picked: on the service's page.
PICK = " Choose a point to see its recipe and to make it."
_LEVELS: Mapping[Level, str] = {"refit": "refitted", "short": "trained for a while", "full": "trained"}
_SYMBOLS: Mapping[Level, str] = {"refit": "circle", "short": "diamond", "full": "square"}


@dataclass(frozen=True)
class Candidate:
    """A trial of a search as far as it is known; `on_front`: no other one beats it in everything."""

    trial: int
    tried: str
    level: Level
    state: str
    measured: Measured | None
    recipe: Sequence[Mapping[str, Any]] | None = None
    holds: bool | None = None
    on_front: bool = False
    because: str = ""
    why: str = ""


def candidates(search: SearchReport) -> tuple[Candidate, ...]:
    """Give a finished search's trials."""
    front = {point.trial: point for point in search.front}
    found = {
        line.trial: Candidate(
            line.trial,
            line.tried,
            line.level,
            line.state,
            line.measured,
            front[line.trial].recipe if line.trial in front else None,
            line.holds,
            line.trial in front,
            line.because,
            line.why,
        )
        for line in search.story
    }
    for point in search.front:
        # A story may be shortened, the front never is.
        found.setdefault(
            point.trial,
            Candidate(
                point.trial,
                point.tried,
                point.level,
                "succeeded",
                point.measured,
                point.recipe,
                point.holds,
                on_front=True,
            ),
        )
    return tuple(found[trial] for trial in sorted(found))


def front_figure(
    minimise: Minimised, tried: Sequence[Candidate], chosen: int | None, *, live: bool = False
) -> Figure | None:
    """Show what there is to choose from: cost against quality, the front joined by a line; None where nothing is measured.

    While the search is `live`, nothing can be picked.
    Each point's `customdata` is the number of its trial, which is what `:pick` takes.
    """
    metric = _speaks(tried)
    placed = [
        (one, cost, quality)
        for one in tried
        if one.measured is not None
        and (cost := _cost(minimise, one.measured)) is not None
        and (quality := _quality(metric, one.measured)) is not None
    ]
    if not placed or metric is None:
        return None
    best = sorted((each for each in placed if each[0].on_front), key=lambda each: each[1])
    rest = [each for each in placed if not each[0].on_front]
    made = next((each for each in placed if each[0].trial == chosen), None)
    title = _axis_title(metric)
    layout: dict[str, Any] = {
        "height": 420,
        "xaxis": _cost_axis(minimise, **with_room([cost for _, cost, _ in placed])),
        "yaxis": axis(title),
        "hovermode": "closest",
        "legend": LEGEND,
    }
    data: list[dict[str, Any]] = []
    if rest:
        data.append(_points("others", rest, metric, {"color": QUIET, "size": 8}))
    data.append(
        {
            **_points("the front", best, metric, {"color": COMPRESSED, "size": 12}),
            "mode": "lines+markers",
            "line": {"color": COMPRESSED, "width": 1.5, "dash": "dot"},
        }
    )
    if made is not None:
        star = {"color": "rgba(0,0,0,0)", "size": 20, "line": {"color": ACCENT, "width": 3}}
        data.append(_points("the result", [made], metric, star))
    verb = "is" if len(best) == 1 else "are"
    count = f"{len(best)} of {len(placed)} measured candidates {verb} beaten by no other in everything."
    told = "" if made is None else f" Trial {made[0].trial} made the result: {made[0].tried}."
    return Figure(
        name="front",
        title="What there is to choose from",
        caption=f"{title} against {_COST[minimise]}. {count}{told}{'' if live else PICK}",
        data=tuple(data),
        layout=layout,
        head=("trial", "what it is", "cost", metric.metric, "size", "recipe"),
        rows=tuple(
            (
                str(one.trial),
                one.tried,
                _cost_text(minimise, cost),
                _quality_text(metric, quality),
                size_text(one.measured.size_bytes) if one.measured else "",
                _recipe(one),
            )
            for one, cost, quality in best
        ),
    )


def _points(
    name: str, placed: Sequence[tuple[Candidate, float, float]], metric: MeasuredQuality, marker: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [cost for _, cost, _ in placed],
        "y": [quality for _, _, quality in placed],
        "customdata": [one.trial for one, _, _ in placed],
        "marker": {"symbol": [_SYMBOLS[one.level] for one, _, _ in placed], **marker},
        "text": [_hover(one, metric, quality) for one, _, quality in placed],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _hover(one: Candidate, metric: MeasuredQuality, quality: float) -> str:
    measured = one.measured
    assert measured is not None
    figures = [_quality_text(metric, quality), size_text(measured.size_bytes)]
    if measured.latency_ratio:
        figures.insert(0, speed_between(measured.latency_ratio, measured.latency_low, measured.latency_high))
    lines = [f"Trial {one.trial}, {_LEVELS[one.level]}", wrapped(one.tried), ", ".join(figures)]
    if one.recipe is not None:
        lines.append(wrapped(_recipe(one)))
    return "<br>".join(lines)


def _recipe(one: Candidate) -> str:
    return "" if one.recipe is None else " → ".join(str(step.get("type")) for step in one.recipe) or "as it is"


def _speaks(tried: Sequence[Candidate]) -> MeasuredQuality | None:
    """Give the metric that speaks for the networks: that of the labels, else a share, else the first."""
    measured = next((one.measured for one in tried if one.measured is not None and one.measured.quality), None)
    if measured is None:
        return None
    labelled = [each for each in measured.quality if each.difference is not None]
    shares = [each for each in measured.quality if each.metric in SHARES]
    return (labelled or shares or list(measured.quality))[0]


def _quality(metric: MeasuredQuality | None, measured: Measured) -> float | None:
    for each in measured.quality:
        if metric is not None and (each.metric, each.output) == (metric.metric, metric.output):
            found = each.compressed if metric.difference is None else each.difference
            if found is None or not math.isfinite(found):
                return None
            return 100 * found if metric.metric in SHARES else found
    return None


def _axis_title(metric: MeasuredQuality) -> str:
    if metric.difference is None:
        return f"{metric.metric}{' in %' if metric.metric in SHARES else ''}"
    return f"change of {metric.metric}{' in points' if metric.metric in SHARES else ''}"


def _quality_text(metric: MeasuredQuality, quality: float) -> str:
    found = quality / 100 if metric.metric in SHARES else quality
    return metric_change(metric.metric, found, None if metric.difference is None else found)


def _cost(minimise: Minimised, measured: Measured) -> float | None:
    match minimise:
        case "latency":
            return measured.latency_ratio
        case "size":
            return measured.size_bytes
        case "memory":
            return measured.peak_memory
        case "macs":
            return measured.macs


def _cost_axis(minimise: Minimised, **more: Any) -> dict[str, Any]:
    if minimise in {"size", "memory"}:
        return sizes(_COST[minimise], **more)
    return axis(_COST[minimise], **({"tickformat": "~s"} if minimise == "macs" else {}), **more)


def _cost_text(minimise: Minimised, cost: float) -> str:
    match minimise:
        case "latency":
            return speed_between(cost) if cost else ""
        case "macs":
            return f"{cost:,.0f}"
        case _:
            return size_text(cost)


def story_figure(minimise: Minimised, tried: Sequence[Candidate], chosen: int | None) -> Figure | None:
    """Show how the search went, trial by trial, and the best that held every limit so far; None before the first has ended."""
    placed = [(one, _cost(minimise, one.measured)) for one in tried if one.measured is not None]
    measured = [(one, cost) for one, cost in placed if cost is not None]
    costs = {one.trial: cost for one, cost in measured}
    best: list[tuple[int, float]] = []
    for one, cost in measured:
        if one.holds and (not best or cost < best[-1][1]):
            best.append((one.trial, cost))
    failed = [one for one in tried if one.state == "failed"]
    if not measured and not failed:
        return None
    base = min((cost for _, cost in measured), default=0.0)
    # While the search goes on nobody holds them against the limits.
    judged = any(one.holds is not None for one in tried)
    held = sum(one.holds is True for one in tried)
    within = f", {held} within the limits" if judged else ""
    data: list[dict[str, Any]] = [
        _trials("within the limits", [each for each in measured if each[0].holds], GOOD),
        _trials("not shown to be" if judged else "tried", [each for each in measured if not each[0].holds], QUIET),
        {
            "type": "scatter",
            "mode": "markers",
            "name": "failed",
            "x": [one.trial for one in failed],
            "y": [base for _ in failed],
            "marker": {"symbol": "x", "size": 9, "color": BAD},
            "text": [wrapped(f"Trial {one.trial}: {one.tried}. {one.why}") for one in failed],
            "hovertemplate": "%{text}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": [*(trial for trial, _ in best), *([tried[-1].trial] if best else [])],
            "y": [*(cost for _, cost in best), *([best[-1][1]] if best else [])],
            "line": {"shape": "hv", "color": ACCENT, "width": 2},
            "hoverinfo": "skip",
        },
    ]
    made = "" if chosen is None else f" Trial {chosen} made the result."
    ended = len(measured) + len(failed)
    tried_text = f"{ended} trial{'s have' if ended != 1 else ' has'} ended"
    return Figure(
        name="story",
        title="How the search went",
        caption=f"Candidates in the order in which they were tried, each by its {_COST[minimise]}: {tried_text}"
        f"{within}, {len(failed)} failed.{made}",
        data=tuple(trace for trace in data if trace["x"]),
        layout={
            "height": 340,
            "xaxis": axis("trial", tickformat="d", dtick=max(1, tried[-1].trial // 12)),
            "yaxis": _cost_axis(minimise, rangemode="tozero"),
            "legend": LEGEND,
            "hovermode": "closest",
        },
        head=("trial", "what was tried", "because", "cost", "within the limits", "what came of it"),
        rows=tuple(
            (
                str(one.trial),
                one.tried,
                one.because,
                _cost_text(minimise, costs[one.trial]) if one.trial in costs else "",
                "" if one.holds is None else "yes" if one.holds else "not shown",
                one.why or one.state,
            )
            for one in tried
        ),
    )


def _trials(name: str, placed: Sequence[tuple[Candidate, float]], colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [one.trial for one, _ in placed],
        "y": [cost for _, cost in placed],
        "marker": {"color": colour, "size": 9, "symbol": [_SYMBOLS[one.level] for one, _ in placed]},
        "text": [wrapped(f"Trial {one.trial}: {one.tried}. {one.why}") for one, _ in placed],
        "hovertemplate": "%{text}<extra></extra>",
    }
