"""Commands about the service: passes, targets."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from onnxpress.terminal import give, give_json, people, session
from onnxpress.verbs.options import AsJson, Url
from onnxpress.words import words


def passes(*, as_json: AsJson = False, url: Url = None) -> None:
    """List what a recipe can be made of: a table on a terminal, bare names in a pipe."""
    with session(url, as_json=as_json) as client:
        _show(client.passes(), "type", ("type", "summary", "lossless", "needs_data", "defaults"), as_json=as_json)


def targets(*, as_json: AsJson = False, url: Url = None) -> None:
    """List what workers can optimise for, what does not run and why, and who works: tables on a terminal, providers in a pipe."""
    with session(url, as_json=as_json) as client:
        found = client.capacity()
    if as_json:
        give_json(found)
    elif sys.stdout.isatty():
        for table in capacity_tables(found):
            people().print(table)
    else:
        for name in dict.fromkeys(str(item["provider"]) for item in found["items"]):
            give(name)


def capacity_tables(found: Mapping[str, Any]) -> list[Table]:
    """Give the tables of targets, of what is listed but does not run, and of workers; empty ones are left out."""
    targets = [{**item, "state": "live" if item["live"] else "away"} for item in found["items"]]
    broken = [item for item in found["unavailable"] if item["listed"]]
    columns = ("provider", "state", "busy", "slots", "device", "cpu", "flags", "onnxruntime", "distribution")
    tables = [
        _table("targets", targets, columns),
        _table("listed by a runtime, but it does not run", broken, ("provider", "reason", "workers")),
        _table("workers", found["workers"], ("id", "state", "targets", "busy", "slots", "cores", "isolation")),
    ]
    return [table for table in tables if table.row_count]


def _show(items: list[dict[str, Any]], name: str, columns: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        give_json({"items": items})
        return
    if not sys.stdout.isatty():
        for item in items:
            give(str(item[name]))
        return
    people().print(_table(None, items, columns))


def _table(title: str | None, items: list[dict[str, Any]], columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for item in items:
        table.add_row(*(words(_text(item.get(column))) for column in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={one}" for key, one in value.items())
    return "" if value is None else str(value)
