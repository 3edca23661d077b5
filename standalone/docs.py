"""Writes the reference that is generated from the code: passes, recipes, settings, error codes and openapi.json, in docs."""

import json
import sys
from pathlib import Path
from typing import Any

import engine
from api.app import create_app
from settings import Settings
from standalone.error_codes import error_page
from standalone.pass_pages import meaning, pass_pages

FOLDER = Path(__file__).resolve().parent.parent / "docs"


def docs(*, check: bool) -> int:
    """Write the reference anew, or with `check` only tell what is stale. Gives the exit code."""
    stale = []
    pages = {
        **pass_pages(),
        "errors.md": error_page(),
        "recipes.md": _recipes(),
        "settings.md": _settings(),
        "openapi.json": _openapi(),
    }
    for name, text in pages.items():
        path = FOLDER / name
        path.parent.mkdir(exist_ok=True)
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text)
    # Of passes that there are no more.
    gone = [path for path in (FOLDER / "passes").glob("*.md") if f"passes/{path.name}" not in pages]
    stale += [f"passes/{path.name}" for path in gone]
    if not check:
        for path in gone:
            path.unlink()
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
        lines.append(f"| `ONNXPRESS_{name.upper()}` | `{default}` | {meaning(field)} |")
    return "\n".join(lines) + "\n"


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
