"""A page of the documentation for each pass, from its class alone: what it does, what it takes, what a search turns, parameters."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import engine

_Item = Mapping[str, Any]


def pass_pages() -> dict[str, str]:
    """Give every page by its path below docs, and the list of all."""
    items = engine.list_passes()
    pages = {f"passes/{item['type']}.md": "\n".join(_page(item)).rstrip() + "\n" for item in items}
    return {"passes.md": "\n".join(_index(items)) + "\n", **pages}


def meaning(field: _Item) -> str:
    """Say what a parameter is, its choices and its bounds."""
    words = [field.get("description", "").replace("|", "\\|")]
    if "enum" in field:
        words.append("One of " + ", ".join(f"`{choice}`" for choice in field["enum"]) + ".")
    bounds = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]}" for key, sign in bounds.items() if key in field]
    if limits:
        words.append("Bounds: " + ", ".join(limits) + ".")
    return " ".join(word for word in words if word)


def _index(items: list[dict[str, Any]]) -> Iterator[str]:
    yield from (
        "# Passes",
        "",
        "Generated from the code by `make docs`. A recipe lists them in order; each has a page of its own.",
        "",
    )
    yield from ("| pass | what it does | loses | takes |", "|---|---|---|---|")
    for item in items:
        yield f"| [`{item['type']}`](passes/{item['type']}.md) | {item['summary']} | {_loses(item)} | {_takes(item)} |"
    yield ""
    yield "What a recipe would take for your network, step by step, `onnxpress recipes --model ID` and a dry run (`--dry-run`) say."
    yield "Where you would rather say what you need than how to get there, give a goal: [search.md](search.md)."


def _page(item: _Item) -> Iterator[str]:
    yield from (
        f"# `{item['type']}`",
        "",
        "Generated from the code by `make docs`.",
        "",
        item["documentation"].strip(),
        "",
    )
    yield from ("## What it costs", "", f"* It loses {_loses(item)}.", f"* It takes {_takes(item)}.")
    yield "* Whatever it does is verified on the target and measured beside the original. Where it does not gain on what was asked, or loses"
    yield "  more than is allowed, it is rolled back, and the report says why."
    if item["search_space"]:
        yield from ("", "## What a search turns", "")
        yield from (f"* `{name}`: {_space(space)}" for name, space in item["search_space"].items())
    yield from ("", "## In a recipe", "", "```json", json.dumps({"passes": [_example(item)]}), "```", "")
    yield from _parameters(item)


def _parameters(item: _Item) -> Iterator[str]:
    fields = {name: field for name, field in item["schema"].get("properties", {}).items() if name != "type"}
    yield from ("## Parameters", "")
    if not fields:
        yield "None."
        return
    yield from ("| parameter | default | what it does |", "|---|---|---|")
    for name, field in fields.items():
        default = json.dumps(field["default"]) if "default" in field else "required"
        yield f"| `{name}` | `{default}` | {meaning(field)} |"


def _loses(item: _Item) -> str:
    return "nothing: outputs stay as they are but for rounding" if item["lossless"] else "something, which is measured"


def _takes(item: _Item) -> str:
    said = ["data"] if item["needs_data"] else []
    said += ["a worker with PyTorch"] if item["trains"] else []
    return " and ".join(said) or "the network alone"


def _space(space: _Item) -> str:
    if "choices" in space:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in space["choices"])
    return ", ".join(f"{key} {value}" for key, value in space.items())


def _example(item: _Item) -> dict[str, Any]:
    """Give the pass with the first of its parameters that has a default worth saying, as somebody would write it."""
    numbers = {
        name: value
        for name, value in item["defaults"].items()
        if isinstance(value, int | float | str) and not isinstance(value, bool) and value not in ("", 0)
    }
    first = next(iter(numbers.items()), None)
    return {"type": item["type"], **(dict([first]) if first else {})}
