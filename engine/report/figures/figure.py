"""A figure: Plotly's traces and layout as JSON, and the same in words and as a table for who does not see it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# Colours are names that the page gives a value to, so that one figure does in light and in dark.
ORIGINAL = "var(--chart-original)"
COMPRESSED = "var(--chart-compressed)"
GOOD = "var(--chart-good)"
BAD = "var(--chart-bad)"
UNSURE = "var(--chart-unsure)"
QUIET = "var(--chart-quiet)"
ACCENT = "var(--chart-accent)"

# Above the plot, where lines of it grow upwards.
LEGEND: Mapping[str, Any] = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}

# Of the values, to both sides of them.
_ROOM = 0.05
# Pixels between an axis' title and its labels.
_STANDOFF = 12
_BAR = 34
_FRAME = 90


class Figure(BaseModel):
    """One picture of a report."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str = Field(description="Of the figure on its page: an anchor.")
    title: str
    caption: str = Field(description="What there is to see, in a sentence or two: it stands for the picture.")
    data: tuple[dict[str, Any], ...] = Field(description="Plotly's traces; colours are CSS's `var(--chart-...)`.")
    layout: dict[str, Any] = Field(description="Plotly's layout, without fonts and background.")
    head: tuple[str, ...] = Field(description="Head of the table of its numbers.")
    rows: tuple[tuple[str, ...], ...]


def bars_height(count: int) -> int:
    """Give the height in pixels of a figure with so many horizontal bars."""
    return _FRAME + _BAR * max(1, count)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Give an axis that makes room for its labels."""
    return {"title": {"text": title, "standoff": _STANDOFF}, "automargin": True, **more}


def sizes(title: str, **more: Any) -> dict[str, Any]:
    """Give an axis of bytes, whose ticks have their units."""
    return axis(title, tickformat="~s", ticksuffix="B", **more)


def with_room(values: Sequence[float]) -> dict[str, Any]:
    """Give the range of an axis whose values lie so near to each other that ticks between them would say nothing; else none."""
    low, high = min(values), max(values)
    room = _ROOM * max(abs(low), abs(high))
    return {} if not room or high - low >= room else {"range": [low - room, high + room]}


def shortened(name: str, most: int = 40) -> str:
    """Give a node's name with its middle left out where it is long: both ends tell nodes apart."""
    short = name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
    return _plain(short)


def wrapped(text: str, width: int = 60) -> str:
    """Break a text into lines for a figure's hover, which knows `<br>`; what would be markup in the text is none."""
    lines: list[str] = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return "<br>".join(map(_plain, lines))


def _plain(text: str) -> str:
    # Plotly reads a few tags in texts, and entities.
    return text.replace("&", "&amp;").replace("<", "&lt;")
