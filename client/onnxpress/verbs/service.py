"""Commands about the service: passes, targets."""

import sys
from typing import Any

from rich.table import Table

from onnxpress.render import words
from onnxpress.terminal import give, give_json, people, session
from onnxpress.verbs.options import AsJson, Url


def passes(*, as_json: AsJson = False, url: Url = None) -> None:
    """List what a recipe can be made of: a table on a terminal, bare names in a pipe."""
    with session(url, as_json=as_json) as client:
        _show(client.passes(), "type", ("type", "summary", "lossless", "needs_data", "defaults"), as_json=as_json)


def targets(*, as_json: AsJson = False, url: Url = None) -> None:
    """List what live workers can optimise for: a table on a terminal, bare providers in a pipe."""
    with session(url, as_json=as_json) as client:
        _show(client.targets(), "provider", ("provider", "device", "cpu", "flags", "onnxruntime"), as_json=as_json)


def _show(items: list[dict[str, Any]], name: str, columns: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        give_json({"items": items})
        return
    if not sys.stdout.isatty():
        for item in items:
            give(str(item[name]))
        return
    table = Table()
    for column in columns:
        table.add_column(column)
    for item in items:
        table.add_row(*(words(_text(item.get(column))) for column in columns))
    people().print(table)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={one}" for key, one in value.items())
    return "" if value is None else str(value)
