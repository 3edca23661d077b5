"""What to ask for: recipe files and their shorthand names, targets and labels as people type them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from onnxpress.errors import UsageError
from onnxpress.gates import read_gate

# Names that stand for the recipes that most people start with.
RECIPES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "simplify": ({"type": "simplify"},),
    "int8": ({"type": "simplify"}, {"type": "quantize_static"}),
}
# Chains that the service knows by name; `onnxpress recipes` shows them.
SERVICE_RECIPES = ("small", "fast", "fastest")
NAMES = (*RECIPES, *SERVICE_RECIPES)
TARGET_FORM = (
    "PROVIDER[:threads=N][,batch=N][,inputs_on_device][,OPTION=VALUE...] with the provider's own options, such as 'cpu',"
    " 'openvino:threads=4,batch=8' or 'cuda:batch=32,prefer_nhwc=1'"
)


def read_spec(recipe: str) -> dict[str, Any]:
    """Give a job's spec from a name or a file; a file holds `{"passes": [...]}`, or a whole job with a recipe or a goal."""
    if recipe in SERVICE_RECIPES and not Path(recipe).is_file():
        return {"kind": "compress", "recipe": recipe}
    if recipe in RECIPES and not Path(recipe).is_file():
        return {"kind": "compress", "recipe": {"passes": [dict(one) for one in RECIPES[recipe]]}}
    document = read_document(recipe, f"no file {recipe}, and no recipe of that name: {', '.join(NAMES)}")
    if "passes" in document:
        return {"kind": "compress", "recipe": document}
    if "goal" in document and "recipe" not in document:
        return search_job(document, recipe)
    if "recipe" in document or "kind" in document:
        return {"kind": "compress", **document}
    raise UsageError(
        f'{recipe} holds neither a recipe ({{"passes": [...]}}) nor a job ({{"recipe": {{...}}, ...}} or {{"goal": {{...}}, ...}})'
    )


def search_job(document: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Give the spec of a search from a whole job; raises UsageError where its goal is no object or its kind another one."""
    if not isinstance(document["goal"], Mapping):
        raise UsageError(f'{path}: "goal" must be an object, such as {{"minimise": "latency"}}')
    if document.get("kind", "search") not in {"search", "compress"}:
        raise UsageError(f'{path} has a goal, but is of the kind {document["kind"]}; a goal is for the kind "search"')
    return {**document, "kind": "search"}


def read_document(path: str, absent: str) -> dict[str, Any]:
    """Give the object that a JSON or YAML file holds, its limits read as people type them.

    Raises UsageError, with the words of `absent` where there is no file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = yaml.safe_load(text) if Path(path).suffix in {".yaml", ".yml"} else json.loads(text)
    except FileNotFoundError:
        raise UsageError(absent) from None
    except OSError as error:
        raise UsageError(f"{path} is not readable: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}; YAML is read from files that end in .yaml or .yml") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} must hold an object, as a JSON object or YAML mapping")
    for holder, name in ((document, "gates"), (document.get("goal"), "subject_to"), (document, "subject_to")):
        if isinstance(holder, dict) and isinstance(holder.get(name), list):
            holder[name] = [read_gate(gate, f"{path}: {name}") for gate in holder[name]]
    return document


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
    document = read_document(path, f"no file {path}")
    if document.get("kind", "profile") != "profile" or "targets" not in document:
        raise UsageError(f'{path} holds no profile ({{"kind": "profile", "targets": [...], ...}})')
    return {"kind": "profile", **document}


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Give labels from `key=value` words."""
    pairs = [label.partition("=") for label in labels]
    for label, (key, sign, _) in zip(labels, pairs, strict=True):
        if not key or not sign:
            raise UsageError(f"label {label!r} is not of the form key=value")
    return {key: value for key, _, value in pairs}
