"""The API's description as one page for people: every operation with its parameters, bodies, answers and a line for curl.

It is made here from the same document that programs read, so that it needs no script and nothing from elsewhere.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

Node = Mapping[str, Any]

STYLE_PATH = "/docs/reference.css"
STYLE = """\
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
code, pre { font: 0.9em/1.45 ui-monospace, monospace; }
pre { background: var(--soft); overflow-x: auto; padding: 0.6rem; }
nav ul { columns: 14rem; list-style: none; padding: 0; }
details { border: 1px solid var(--line); border-radius: 0.3rem; margin: 0.4rem 0; padding: 0.3rem 0.6rem; }
details[open] summary { border-bottom: 1px solid var(--line); margin-bottom: 0.4rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary b { display: inline-block; min-width: 4.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
h3 { margin-top: 1.6rem; }
:target { outline: 2px solid; }
"""
_FOR_PROGRAMS = (
    '<p>For programs: <a href="/openapi.json">openapi.json</a>, from which clients can be generated. Every line for curl below'
    " takes the service's address from <code>URL</code> and a key from <code>KEY</code>.</p>"
)
_BOUNDS = {
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "exclusiveMinimum": "> {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} letters",
    "maxLength": "at most {} letters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches `{}`",
}


def reference_page(document: Node) -> str:
    """Give the page of an OpenAPI document."""
    info = document["info"]
    title = f"{_text(info['title'])} {_text(info['version'])}"
    by_tag = _by_tag(document)
    tags = {tag["name"]: tag.get("description", "") for tag in document.get("tags", ())}
    return "".join(
        [
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}: the API</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="stylesheet" href="{STYLE_PATH}"></head><body><h1>{title}</h1>',
            *(f"<p>{_prose(paragraph)}</p>" for paragraph in info.get("description", "").split("\n\n")),
            _FOR_PROGRAMS,
            "<nav><ul>",
            *(f'<li><a href="#{_anchor(tag)}">{_text(tag)}</a></li>' for tag in by_tag),
            '<li><a href="#schemas">schemas</a></li></ul></nav>',
            *(part for tag, found in by_tag.items() for part in _section(tag, tags.get(tag, ""), found, document)),
            '<h2 id="schemas">Schemas</h2>',
            *(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())),
            "</body></html>\n",
        ]
    )


def _by_tag(document: Node) -> dict[str, list[tuple[str, str, Node]]]:
    found: dict[str, list[tuple[str, str, Node]]] = {tag["name"]: [] for tag in document.get("tags", ())}
    for path, ways in document["paths"].items():
        for method, operation in ways.items():
            found.setdefault(operation.get("tags", ["other"])[0], []).append((method.upper(), path, operation))
    return {tag: operations for tag, operations in found.items() if operations}


def _section(tag: str, says: str, operations: list[tuple[str, str, Node]], document: Node) -> Iterator[str]:
    yield f'<h2 id="{_anchor(tag)}">{_text(tag)}</h2><p>{_prose(says)}</p>'
    for method, path, operation in operations:
        yield _operation(method, path, operation, document)


def _operation(method: str, path: str, operation: Node, document: Node) -> str:
    says = operation.get("description", operation.get("summary", ""))
    first, _, rest = says.partition("\n\n")
    parameters = operation.get("parameters", [])
    body = operation.get("requestBody", {})
    parts = [
        f'<details id="{_anchor(operation["operationId"])}"><summary><b>{method}</b> <code>{_text(path)}</code> {_prose(first)}</summary>',
        *(f"<p>{_prose(paragraph)}</p>" for paragraph in rest.split("\n\n") if paragraph),
        f"<pre>{_text(_curl(method, path, parameters, body, document))}</pre>",
    ]
    if parameters:
        rows = ((one["name"], one["in"], one.get("schema", {}), one, one.get("required", False)) for one in parameters)
        parts.append("<h4>Parameters</h4>" + _table(("name", "where", "type", "what"), map(_parameter_row, rows)))
    if body:
        parts.append(f"<h4>Body</h4><p>{_prose(body.get('description', ''))}</p><ul>")
        parts += (
            f"<li><code>{_text(kind)}</code>: {_type(one.get('schema', {}))}</li>"
            for kind, one in body["content"].items()
        )
        parts.append("</ul>")
    parts.append(
        "<h4>Answers</h4>" + _table(("status", "what", "body"), map(_answer_row, operation["responses"].items()))
    )
    return "".join([*parts, "</details>"])


def _parameter_row(row: tuple[str, str, Node, Node, bool]) -> tuple[str, ...]:
    name, where, schema, parameter, required = row
    says = _prose(parameter.get("description", schema.get("description", "")))
    return f"<code>{_text(name)}</code>", _text(where) + (", required" if required else ""), _type(schema), says


def _answer_row(item: tuple[str, Node]) -> tuple[str, ...]:
    status, answer = item
    kinds = (
        f"<code>{_text(kind)}</code>: {_type(one.get('schema', {}))}" for kind, one in answer.get("content", {}).items()
    )
    return _text(status), _prose(answer.get("description", "")), "<br>".join(kinds)


def _schema(name: str, schema: Node) -> str:
    required = schema.get("required", ())
    rows = (
        (
            f"<code>{_text(field)}</code>" + (" (required)" if field in required else ""),
            _type(one),
            " ".join(filter(None, (_prose(one.get("description", "")), _default(one)))),
        )
        for field, one in schema.get("properties", {}).items()
    )
    inside = _table(("field", "type", "what"), rows) if schema.get("properties") else f"<p>{_type(schema)}</p>"
    return (
        f'<details id="{_anchor(f"schema-{name}")}"><summary><code>{_text(name)}</code> {_prose(schema.get("description", ""))}'
        f"</summary>{inside}</details>"
    )


def _type(schema: Node) -> str:
    """Say in words what a schema takes, with links to those that have a name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{_anchor(f"schema-{name}")}">{_text(name)}</a>'
    for together in ("anyOf", "oneOf", "allOf"):
        if together in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[together])))
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if values:
        return " | ".join(f"<code>{_text(json.dumps(one))}</code>" for one in values)
    kind = schema.get("type", "anything")
    bounds = "".join(f", {_prose(said.format(schema[key]))}" for key, said in _BOUNDS.items() if key in schema)
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}{bounds}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}{bounds}"
    form = f" ({_text(schema['format'])})" if "format" in schema else ""
    return f"{_text(kind)}{form}{bounds}"


def _default(schema: Node) -> str:
    if "default" not in schema:
        return ""
    return f"Default: <code>{_text(json.dumps(schema['default']))}</code>."


def _curl(method: str, path: str, parameters: list[Node], body: Node, document: Node) -> str:
    needed = [one["name"] for one in parameters if one["in"] == "query" and one.get("required")]
    query = "?" + "&".join(f"{quote(name)}=..." for name in needed) if needed else ""
    words = ["curl", '-H "Authorization: Bearer $KEY"']
    if method == "HEAD":
        words.append("--head")
    elif method not in {"GET", "POST"} or (method == "POST" and not body):
        words.append(f"-X {method}")
    content = body.get("content", {})
    if "application/octet-stream" in content:
        words += ['-H "Content-Type: application/octet-stream"', "--data-binary @FILE"]
    elif "application/json" in content:
        words += [
            '-H "Content-Type: application/json"',
            f"-d {_quoted(json.dumps(_example(content['application/json'], document)))}",
        ]
    # Braces would be curl's own.
    address = re.sub(r"{(\w+)}", lambda name: name[1].upper(), path)
    return " ".join([*words, f'"$URL{address}{query}"'])


def _example(content: Node, document: Node) -> Any:
    """Give the first example that stands with the body's schema, or with one that it is made of."""
    schemas, seen = [content.get("schema", {})], set()
    while schemas:
        schema = schemas.pop(0)
        if schema.get("examples"):
            return schema["examples"][0]
        if "$ref" in schema and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            schemas.append(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        schemas += [*schema.get("oneOf", ()), *schema.get("anyOf", ())]
    return {}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _anchor(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _text(text: object) -> str:
    return html.escape(str(text))


def _prose(text: str) -> str:
    """Give a sentence with its `code` marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _table(heads: tuple[str, ...], rows: Any) -> str:
    head = "".join(f"<th>{one}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
