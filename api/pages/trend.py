"""What the jobs with a label came to, one after the other: how a network does from commit to commit."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

import engine
from api.dependencies import ReadScope
from api.errors import ApiError
from api.pages.rendering import moment, render
from models import Job, JobStatus
from services import aliases, jobs, overview

router = APIRouter(include_in_schema=False)

_MOST = 200
# Of a value, to both sides of it.
_ROOM = 0.1
_POINT = {"pass": "var(--chart-good)", "fail": "var(--chart-bad)", "inconclusive": "var(--chart-unsure)"}
# Labels that name a commit, in the order in which they are looked for.
_COMMIT = ("commit", "sha", "revision")


@router.get("/trend")
def trend_page(request: Request, scope: ReadScope, label: str = "") -> Response:
    """Show the jobs with a label, or those that an alias has named, over time."""
    session, tenant_id = scope.session, scope.tenant_id
    rows = [job for job in _named(scope, label) if job.summary]
    values = {
        "label": label,
        "labels": overview.label_values(session, tenant_id),
        "aliases": aliases.list_aliases(session, tenant_id),
        "rows": rows,
        "figures_shown": trends(rows),
        "commit": _commit,
    }
    return render(request, "trend.html", values)


def _named(scope: ReadScope, label: str) -> Sequence[Job]:
    """Give the jobs with a label, or those that an alias has named, the oldest first."""
    if not label:
        return ()
    if label.startswith("@"):
        return overview.promoted(scope.session, scope.tenant_id, label[1:])
    name, equals, value = label.partition("=")
    if not (name and equals):
        raise ApiError(422, "A label is looked for as name=value, such as branch=main, an alias as @prod.")
    wanted = {name: value}
    found = jobs.list_jobs(scope.session, scope.tenant_id, status=JobStatus.SUCCEEDED, labels=wanted, limit=_MOST)
    return found[::-1]


def _commit(job: Job) -> str:
    return next((str(job.labels[name])[:12] for name in _COMMIT if job.labels.get(name)), job.id[-8:])


def trends(rows: Sequence[Job]) -> tuple[engine.Figure, ...]:
    """Give a figure for each cost and metric that the jobs have, the oldest job first."""
    metrics = dict.fromkeys(each["metric"] for job in rows for each in (job.summary or {}).get("quality") or ())
    found = (
        _trend(rows, "size", ("Size of the result", "size"), _size, _size_text),
        _trend(rows, "speed", ("Speed beside the original", "times as fast"), _speed, _speed_text),
        *(_trend(rows, name, (f"{name} of the result", name), _quality(name), _metric_text(name)) for name in metrics),
    )
    return tuple(figure for figure in found if figure is not None)


def _metric_text(metric: str) -> Callable[[dict[str, Any]], str]:
    value = _quality(metric)
    return lambda summary: engine.metric_value(metric, value(summary) or 0.0)


def _size_text(summary: dict[str, Any]) -> str:
    return engine.size(_size(summary) or 0.0)


def _size(summary: dict[str, Any]) -> float | None:
    return (summary.get("size") or {}).get("compressed")


def _speed(summary: dict[str, Any]) -> float | None:
    ratio = (summary.get("latency_ratio") or {}).get("value")
    return 1 / ratio if ratio else None


def _speeds(summary: dict[str, Any]) -> tuple[float, float] | None:
    """Give between what the speed lies."""
    interval = (summary.get("latency_ratio") or {}).get("interval") or {}
    low, high = interval.get("low"), interval.get("high")
    return (1 / high, 1 / low) if low and high else None


def _speed_text(summary: dict[str, Any]) -> str:
    ratio = summary.get("latency_ratio") or {}
    interval = ratio.get("interval") or {}
    return engine.speed_between(ratio.get("value") or 1.0, interval.get("low"), interval.get("high"))


def _quality(metric: str) -> Callable[[dict[str, Any]], float | None]:
    def of(summary: dict[str, Any]) -> float | None:
        return next((each["compressed"] for each in summary.get("quality") or () if each["metric"] == metric), None)

    return of


def _around(values: Sequence[float]) -> dict[str, Any]:
    """Give an axis on which what hardly changed is one line, and nothing of its own size around it."""
    low, high = min(values), max(values)
    room = _ROOM * max(abs(low), abs(high))
    return {"range": [low - room, high + room], "nticks": 5} if room and high - low < room else {}


def _trend(
    rows: Sequence[Job],
    name: str,
    titles: tuple[str, str],
    value: Callable[[dict[str, Any]], float | None],
    text: Callable[[dict[str, Any]], str],
) -> engine.Figure | None:
    told = [(job, found, text(job.summary or {})) for job in rows if (found := value(job.summary or {})) is not None]
    if not told:
        return None
    title, unit = titles
    first, last = told[0][2], told[-1][2]
    went = f"{len(told)} jobs, from {first} to {last}" if len(told) > 1 else f"One job, {first}"
    caption = f"{went}. Colours are the verdicts."
    return engine.Figure(
        name=f"trend-{name}",
        title=title,
        caption=caption,
        data=(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(range(1, len(told) + 1)),
                "y": [found for _, found, _ in told],
                **(_intervals([job for job, _, _ in told]) if name == "speed" else {}),
                "customdata": [job.id for job, _, _ in told],
                "line": {"color": "var(--chart-quiet)"},
                "marker": {
                    "size": 10,
                    "color": [_POINT.get(job.verdict, "var(--chart-compressed)") for job, _, _ in told],
                },
                "text": [f"{_commit(job)}, {moment(job.created_at)}: {words}" for job, _, words in told],
                "hovertemplate": "%{text}<extra></extra>",
            },
        ),
        layout={
            "height": 260,
            "xaxis": {
                "automargin": True,
                "tickvals": list(range(1, len(told) + 1)),
                "ticktext": [_commit(job) for job, _, _ in told],
                "nticks": 12,
            },
            "yaxis": {
                "title": {"text": unit, "standoff": 12},
                "automargin": True,
                **({"tickformat": ".2%"} if unit in engine.SHARES else {}),
                **({"tickformat": "~s", "ticksuffix": "B"} if name == "size" else {}),
                **_around([found for _, found, _ in told]),
            },
            "showlegend": False,
        },
        head=("commit or job", "when", unit, "verdict"),
        rows=tuple((_commit(job), moment(job.created_at), words, job.verdict) for job, _, words in told),
    )


def _intervals(rows: Sequence[Job]) -> dict[str, Any]:
    """Give the bars of speeds, each as far as it is known."""
    found = [(_speed(job.summary or {}) or 0.0, _speeds(job.summary or {})) for job in rows]
    above = [0.0 if bounds is None else bounds[1] - speed for speed, bounds in found]
    below = [0.0 if bounds is None else speed - bounds[0] for speed, bounds in found]
    colour = "var(--chart-quiet)"
    return {"error_y": {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour}}
