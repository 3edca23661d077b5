"""Pages from templates: filters, what every page has, the headers that keep everything else out."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import engine
from api.pages.assets import address, plotly_style_ids
from api.pages.session import key_in_cookie
from services import overview

# What pages may load is said where it is said for every answer, in `api.security_headers`.
_HEADERS = {
    # Forms send where they come from, which is how ours are told from others'.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}


def render(request: Request, template: str, values: Mapping[str, Any], *, status: int = 200) -> HTMLResponse:
    """Give a page."""
    every = {"path": request.url.path, "signed_in": key_in_cookie(request) is not None}
    text = _templates().get_template(template).render({**every, **values})
    return HTMLResponse(text, status_code=status, headers=_HEADERS)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("api.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.globals |= {"asset": address, "plotly_style_ids": plotly_style_ids, "layers_caption": engine.LAYERS_CAPTION}
    found.filters |= {
        "bytes": engine.size,
        "bytes_or_nothing": engine.size_or_nothing,
        "ms": engine.milliseconds,
        "duration": duration,
        "moment": moment,
        "place": place_text,
        "left": lambda seconds: f"about {engine.rough_duration(seconds)} left",
        "ago": ago,
        "share": engine.share,
        "decibel": engine.decibel,
        "gate": engine.gate_text,
        "target": engine.target_name,
        "speed": engine.speed_between,
        "json_data": json_data,
        "metric": lambda quality: engine.metric_value(quality["metric"], quality["compressed"]),
        "change": change,
        "words": lambda text: str(text).replace("_", " "),
    }
    return found


def json_data(value: Any) -> Markup:
    """Give JSON for a data block: nothing in it ends the block."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704 - no markup is left


def duration(seconds: float | None) -> str:
    """Give a span of time in the one or two units that say most, as the client does (`onnxpress.formatting`)."""
    if seconds is None:
        return ""
    if seconds < 60:
        value, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
        return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days"


def place_text(place: overview.Place) -> str:
    """Say in a sentence where a queued job stands and when it may begin."""
    told = engine.place_text(place.ahead, place.seconds, place.slots)
    return f"{told[0].upper()}{told[1:]}."


def moment(at: datetime | None) -> str:
    """Give a moment in UTC."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def ago(at: datetime | None) -> str:
    """Say how long ago a moment was."""
    if at is None:
        return ""
    seconds = (datetime.now(UTC) - at).total_seconds()
    return "just now" if seconds < 5 else f"{f'{seconds:.0f} s' if seconds < 60 else duration(seconds)} ago"


def change(quality: dict[str, Any]) -> str:
    """Say how a metric of a job's summary changed, or what it is where it compares with the original."""
    return engine.metric_change(quality["metric"], quality["compressed"], quality.get("difference"))
