"""What to ask for: recipe files, their shorthand names, and gates as people type them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.errors import UsageError

# Names that stand for the recipes that most people start with.
RECIPES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "simplify": ({"type": "simplify"},),
    "int8": ({"type": "simplify"}, {"type": "quantize_static"}),
}
# Chains that the service knows by name; `onnxpress recipes` shows them.
SERVICE_RECIPES = ("small", "fast", "fastest")
NAMES = (*RECIPES, *SERVICE_RECIPES)
RULES = ("max_drop", "max_ratio", "min", "max")
GATE_FORM = (
    "METRIC RULE VALUE [confidence=C] [warn], such as 'top1 max_drop 0.01', 'latency_p95 max_ratio 80% warn' or"
    " 'latency_p99 max 5ms'"
)
TARGET_FORM = (
    "PROVIDER[:threads=N][,batch=N][,inputs_on_device][,OPTION=VALUE...] with the provider's own options, such as 'cpu',"
    " 'openvino:threads=4,batch=8' or 'cuda:batch=32,prefer_nhwc=1'"
)


def read_spec(recipe: str) -> dict[str, Any]:
    """Give a job's spec from a name or a file; a file holds `{"passes": [...]}` or a whole job."""
    if recipe in SERVICE_RECIPES and not Path(recipe).is_file():
        return {"kind": "compress", "recipe": recipe}
    if recipe in RECIPES and not Path(recipe).is_file():
        return {"kind": "compress", "recipe": {"passes": [dict(one) for one in RECIPES[recipe]]}}
    document = _read_json(recipe)
    if "passes" in document:
        return {"kind": "compress", "recipe": document}
    if "recipe" in document or "kind" in document:
        return {"kind": "compress", **document}
    raise UsageError(f'{recipe} holds neither a recipe ({{"passes": [...]}}) nor a job ({{"recipe": {{...}}, ...}})')


def _read_json(path: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no file {path}, and no recipe of that name: {', '.join(NAMES)}") from None
    except OSError as error:
        raise UsageError(f"{path} is not readable: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return document


def parse_gate(text: str) -> dict[str, Any]:
    """Give a gate from `METRIC RULE VALUE [confidence=C] [warn|error]`; a value may end in %, a latency's in ms or s."""
    words = text.split()
    if len(words) < 3 or words[1] not in RULES:
        raise UsageError(f"gate {text!r} is not of the form {GATE_FORM}; rules: {', '.join(RULES)}")
    gate: dict[str, Any] = {"metric": words[0], "rule": words[1], "value": _value(words, text)}
    for word in words[3:]:
        name, _, value = word.partition("=")
        if word in {"warn", "error"}:
            gate["level"] = word
        elif name == "confidence" and value:
            gate["confidence"] = parse_number(value, text)
        else:
            raise UsageError(f"gate {text!r}: {word!r} is not known; the form is {GATE_FORM}")
    return gate


def _value(words: Sequence[str], context: str) -> float:
    timed = words[0].startswith("latency_") and words[1] in {"min", "max"}
    return parse_milliseconds(words[2], context) if timed else parse_number(words[2], context)


def parse_milliseconds(text: str, context: str) -> float:
    """Give a time in milliseconds, the unit of a latency's limits; `5ms`, `0.005s` and `5` are the same."""
    if text.endswith("ms"):
        return parse_number(text[:-2], context)
    return 1e3 * parse_number(text[:-1], context) if text.endswith("s") else parse_number(text, context)


def parse_target(text: str) -> dict[str, Any]:
    """Give a target from `PROVIDER[:threads=N][,batch=N][,inputs_on_device][,OPTION=VALUE...]`."""
    provider, _, rest = text.partition(":")
    target: dict[str, Any] = {"provider": provider}
    for word in rest.split(",") if rest else ():
        name, _, value = word.partition("=")
        if name in {"threads", "batch"} and value.isdecimal():
            target[name] = int(value)
        elif word == "inputs_on_device":
            target[word] = True
        elif name and value and name not in {"threads", "batch", "inputs_on_device"}:
            # Whether the provider has it the service knows.
            target.setdefault("provider_options", {})[name] = value
        else:
            raise UsageError(f"target {text!r}: {word!r} is not known; the form is {TARGET_FORM}")
    if not provider:
        raise UsageError(f"target {text!r} is not of the form {TARGET_FORM}")
    return target


def read_profile(path: str) -> dict[str, Any]:
    """Give the spec of a profile from a file that holds a whole job."""
    document = _read_json(path)
    if document.get("kind", "profile") != "profile" or "targets" not in document:
        raise UsageError(f'{path} holds no profile ({{"kind": "profile", "targets": [...], ...}})')
    return {"kind": "profile", **document}


def parse_number(text: str, context: str) -> float:
    """Give a number; `1%` is 0.01."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"{context!r}: {text!r} is not a number") from None


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Give labels from `key=value` words."""
    pairs = [label.partition("=") for label in labels]
    for label, (key, sign, _) in zip(labels, pairs, strict=True):
        if not key or not sign:
            raise UsageError(f"label {label!r} is not of the form key=value")
    return {key: value for key, _, value in pairs}
