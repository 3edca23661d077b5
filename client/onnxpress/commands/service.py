"""Commands about the service: passes, recipes, targets."""

import json
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from onnxpress.commands.options import AsJson, Url
from onnxpress.errors import UsageError
from onnxpress.terminal import give, give_json, people, session
from onnxpress.terminal_text import safe_text

# Names that somebody may copy.
_WHOLE = frozenset({"provider", "id", "state", "busy", "name"})
_DRIVEN_BY = (("driver", "driver"), ("CUDA", "cuda"), ("cuDNN", "cudnn"))


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this one with its parameters.", show_default=False)
    ] = None,
    *,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List what a recipe can be made of: a table on a terminal, bare names in a pipe; or show one with its parameters."""
    with session(url, as_json=as_json) as client:
        if name is not None:
            _show_pass(client.passes(), name, as_json=as_json)
            return
        _show(client.passes(), "type", ("type", "summary", "lossless", "needs_data", "defaults"), as_json=as_json)


def _show_pass(known: list[dict[str, Any]], name: str, *, as_json: bool) -> None:
    found = next((one for one in known if one["type"] == name), None)
    if found is None:
        near = get_close_matches(name, [one["type"] for one in known], 3)
        meant = f"did you mean {' or '.join(near)}?" if near else "`onnxpress passes` lists them"
        raise UsageError(f"there is no pass {name}; {meant}")
    if as_json:
        give_json(found)
        return
    people().print(safe_text(f"{name}: {found['summary']}"))
    needs = ["needs data" if found["needs_data"] else "needs no data", "without loss" if found["lossless"] else "lossy"]
    people().print(safe_text(", ".join(needs), style="dim"))
    table = Table("parameter", "default", "may be", "what")
    for parameter, schema in found["schema"].get("properties", {}).items():
        if parameter != "type":
            default = json.dumps(found["defaults"].get(parameter))
            table.add_row(parameter, default, safe_text(may_be(schema)), safe_text(schema.get("description") or ""))
    people().print(table)
    give(json.dumps({"type": name, **found["defaults"]}))


def may_be(schema: Mapping[str, Any]) -> str:
    """Say in a few words what a JSON schema allows."""
    if schema.get("anyOf"):
        return " or ".join(may_be(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {schema[bound]:g}" for bound, word in bounds.items() if bound in schema]
    kind = {"null": "nothing", "array": "a list", "object": "an object", "string": "text"}
    return " ".join([kind.get(str(schema.get("type")), str(schema.get("type", ""))), *said]).strip()


def recipes(
    *,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Say what each would be for this stored model, and take.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="ID", help="The stored dataset that a job would have.")] = None,
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="Execution provider of the target.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List the recipes that --recipe takes by name: their steps and what they take, on a terminal; bare names in a pipe."""
    with session(url, as_json=as_json) as client:
        found = client.recipes(model=model, dataset=data, provider=provider)
    if as_json or not sys.stdout.isatty():
        _show(found, "name", (), as_json=as_json)
        return
    for part in offered(found):
        people().print(part)


def offered(found: list[dict[str, Any]]) -> list[RenderableType]:
    """Give the table of recipes, and under it what of them cannot be done now, and why."""
    items = [
        {
            **item,
            "steps": " > ".join(step["type"] for step in item["passes"]),
            "takes": (item.get("estimate") or {}).get("summary"),
        }
        for item in found
    ]
    columns = ("name", "summary", "steps", *(("takes",) if any(item["takes"] for item in items) else ()))
    without = [
        f"{item['name']} without {each['type']}: {each['reason']}" for item in found for each in item["left_out"]
    ]
    refused = [f"{item['name']} cannot be done: {item['problem']['detail']}" for item in found if item.get("problem")]
    return [_table(None, items, columns), *(safe_text(told, style="dim") for told in (*without, *refused))]


def targets(*, as_json: AsJson = False, url: Url = None) -> None:
    """List what workers can optimise for, what does not run and why, and who works: tables on a terminal, providers in a pipe."""
    with session(url, as_json=as_json) as client:
        found = client.capacity()
    if as_json:
        give_json(found)
    elif sys.stdout.isatty():
        for part in capacity(found):
            people().print(part)
    else:
        for name in dict.fromkeys(str(item["provider"]) for item in found["items"]):
            give(name)


def capacity(found: Mapping[str, Any]) -> list[RenderableType]:
    """Give the tables of targets, of what is listed but does not run, and of workers; empty ones are left out."""
    providers = [{**_with_load(item), "state": "live" if item["live"] else "away"} for item in found["items"]]
    for item in providers:
        item["runtime"] = f"{item.get('distribution') or 'onnxruntime'} {item.get('onnxruntime') or ''}".strip()
        item["on"] = _hardware(item)
    broken = [item for item in found["unavailable"] if item["listed"]]
    workers = [_with_load(item) for item in found["workers"]]
    tables = [
        _table("targets", providers, ("provider", "state", "busy", "runtime", "device", "on")),
        _table("listed by a runtime, but it does not run", broken, ("provider", "reason", "workers")),
        _table("workers", workers, ("id", "state", "targets", "busy", "cores", "isolation")),
    ]
    flags = {str(item.get("cpu")): _text(item.get("flags")) for item in providers if item.get("flags")}
    return [
        *(table for table in tables if table.row_count),
        *(safe_text(f"{cpu} has {names}", style="dim") for cpu, names in flags.items()),
        *(safe_text(told, style="dim") for item in providers if item["live"] for told in _training(item)),
    ]


def _hardware(item: Mapping[str, Any]) -> str:
    """Name the GPU and what drives it, or the processor."""
    if not item.get("gpu"):
        return str(item.get("cpu") or "")
    versions = [f"{name} {item[key]}" for name, key in _DRIVEN_BY if item.get(key)]
    return ", ".join([str(item["gpu"]), *versions])


def _training(item: Mapping[str, Any]) -> Iterator[str]:
    """Say what trains networks for a target, and on what, or why nothing does; a service of a version before says nothing."""
    told = item.get("training")
    if told and told["available"]:
        on = f" on {told['gpu']}, CUDA {told.get('cuda')}" if told.get("gpu") else ""
        yield f"{item['provider']} trains networks with PyTorch {told.get('torch')}{on}"
    elif told:
        yield f"{item['provider']} trains no networks: {told.get('reason')}"


def _with_load(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "busy": f"{item['busy']} of {item['slots']}"}


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
        table.add_column(column, no_wrap=column in _WHOLE)
    for item in items:
        table.add_row(*(safe_text(_text(item.get(column))) for column in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={one}" for key, one in value.items())
    return "" if value is None else str(value)
