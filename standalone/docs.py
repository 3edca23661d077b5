"""Writes the reference that is generated from the code: docs/passes.md, docs/recipes.md, docs/settings.md and docs/openapi.json."""

import json
import sys
from pathlib import Path
from typing import Any

import engine
from api.app import create_app
from settings import Settings

FOLDER = Path(__file__).resolve().parent.parent / "docs"


def docs(*, check: bool) -> int:
    """Write the reference anew, or with `check` only tell what is stale. Gives the exit code."""
    stale = []
    for name, text in {
        "passes.md": _passes(),
        "recipes.md": _recipes(),
        "settings.md": _settings(),
        "openapi.json": _openapi(),
    }.items():
        path = FOLDER / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text)
    if check and stale:
        print(f"stale: {', '.join(f'docs/{name}' for name in stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


def _openapi() -> str:
    return json.dumps(create_app(Settings()).openapi(), indent=1, sort_keys=True) + "\n"


def _settings() -> str:
    lines = [
        "# Settings",
        "",
        "Generated from the code by `make docs`. Every process reads them from its environment, once, at its start; one that",
        "is out of its bounds stops it. What they are for stands in [operations.md](operations.md).",
        "",
        "| variable | default | what it does |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_json_schema()["properties"].items():
        default = json.dumps(field.get("default"))
        lines.append(f"| `ONNXPRESS_{name.upper()}` | `{default}` | {_meaning(field)} |")
    return "\n".join(lines) + "\n"


def _passes() -> str:
    lines = ["# Passes", "", "Generated from the code by `make docs`. A recipe lists them in order.", ""]
    for item in engine.list_passes():
        lines += _one_pass(item)
    return "\n".join(lines).rstrip() + "\n"


def _recipes() -> str:
    lines = [
        "# Recipes by name",
        "",
        'Generated from the code by `make docs`. A job asks for one by its name (`"recipe": "fast"`, `--recipe fast`); `GET /v1/recipes`',
        "and `onnxpress recipes` list them, with `?model=` (`--model ID`) also what each would take for a network. Steps that the network does not",
        "let be done, or that train where no worker has PyTorch, are left out, and job and report say which and why. A recipe that you write out",
        "is never changed: what cannot be done is refused. All need data; labels are not needed.",
        "",
        "Where you would rather say what you need than how to get there, give a goal: [search.md](search.md).",
        "",
    ]
    for item in engine.list_recipes():
        steps = [json.dumps(_beside_defaults(step)) for step in item["passes"]]
        lines += [f"## `{item['name']}`", "", item["summary"], "", item["documentation"], "", "```json"]
        lines += ["[", *(f"  {step}{',' * (step is not steps[-1])}" for step in steps), "]", "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _beside_defaults(step: dict[str, Any]) -> dict[str, Any]:
    """Give a pass as somebody would write it: with what is not its default."""
    defaults = next(item["defaults"] for item in engine.list_passes() if item["type"] == step["type"])
    return {name: value for name, value in step.items() if name == "type" or value != defaults[name]}


def _one_pass(item: dict[str, Any]) -> list[str]:
    lines = [f"## `{item['type']}`", "", item["documentation"].strip(), ""]
    fields = {name: field for name, field in item["schema"].get("properties", {}).items() if name != "type"}
    if not fields:
        return [*lines, "No parameters.", ""]
    lines += ["| parameter | default | what it does |", "|---|---|---|"]
    for name, field in fields.items():
        default = json.dumps(field["default"]) if "default" in field else "required"
        lines.append(f"| `{name}` | `{default}` | {_meaning(field)} |")
    return [*lines, ""]


def _meaning(field: dict[str, Any]) -> str:
    words = [field.get("description", "").replace("|", "\\|")]
    if "enum" in field:
        words.append("One of " + ", ".join(f"`{choice}`" for choice in field["enum"]) + ".")
    bounds = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]}" for key, sign in bounds.items() if key in field]
    if limits:
        words.append("Bounds: " + ", ".join(limits) + ".")
    return " ".join(word for word in words if word)
