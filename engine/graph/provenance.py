"""What a network's file says of itself: what it was made from, how, with what, and what was measured of it."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

from engine.inspection import Preprocessing
from engine.report.values import Environment, Quality, StepReport
from engine.runtime.network_files import load_structure
from engine.target import Target

PREFIX = "onnxpress."
# Steps of a search may name hundreds of nodes, and data thousands of classes: what is larger is told by the report alone.
_MOST_BYTES = 4096
_DIGITS = 6


def properties(
    source: str,
    steps: Sequence[StepReport],
    *,
    quality: Sequence[Quality],
    target: Target,
    environment: Environment,
    preprocessing: Preprocessing | None,
) -> dict[str, str]:
    """Give what the file is to say, by key; the same work gives the same words, so times are not among them.

    Args:
        source: sha256 of the file that everything was measured beside.
        steps: that were done; those that were kept are the recipe.
        quality: of the result, on samples that judge.
        target: that it is for.
        environment: where it was made.
        preprocessing: what was done to the data.
    """
    recipe = [{"type": step.type, **step.parameters} for step in steps if step.status == "applied"]
    text = _json(recipe)
    said = {
        "source": f"sha256:{source}",
        "recipe": text if len(text) <= _MOST_BYTES else _json([{"type": step["type"]} for step in recipe]),
        "versions": _json({"onnxpress": metadata.version("onnxpress-server"), "onnxruntime": environment.onnxruntime}),
        "target": target.provider,
    }
    figures = _figures(quality)
    if figures:
        said["quality"] = _json(figures)
    if preprocessing is not None:
        made = preprocessing.model_dump(mode="json", exclude_none=True)
        text = _json(made)
        said["preprocessing"] = (
            text if len(text) <= _MOST_BYTES else _json({"kind": made["kind"], "summary": made["summary"]})
        )
    return {PREFIX + name: value for name, value in said.items()}


def fitting(said: Mapping[str, str], room: int) -> dict[str, str]:
    """Give the first of these words that take no more than so many bytes of a file; the report has all of them.

    Args:
        said: by key, what matters most first.
        room: bytes that the words may take.
    """
    kept: dict[str, str] = {}
    for key, value in said.items():
        if _appended({**kept, key: value}).ByteSize() > room:
            break
        kept[key] = value
    return kept


def write_properties(path: Path, said: Mapping[str, str]) -> None:
    """Add to a stored network's metadata what it says of itself; what an earlier job said in it goes."""
    structure = load_structure(path)
    if any(entry.key.startswith(PREFIX) for entry in structure.metadata_props):
        kept = [(entry.key, entry.value) for entry in structure.metadata_props if not entry.key.startswith(PREFIX)]
        del structure.metadata_props[:]
        for key, value in kept:
            structure.metadata_props.add(key=key, value=value)
        path.write_bytes(structure.SerializeToString(deterministic=True))
    # Messages of Protocol Buffers that stand one after the other are one message: nothing of the network is read or written.
    with path.open("ab") as stream:
        stream.write(_appended(said).SerializeToString(deterministic=True))
        stream.flush()
        os.fsync(stream.fileno())


def _appended(said: Mapping[str, str]) -> onnx.ModelProto:
    more = onnx.ModelProto()
    for key, value in said.items():
        more.metadata_props.add(key=key, value=value)
    return more


def _figures(quality: Sequence[Quality]) -> list[dict[str, Any]]:
    """Give the figures of the output that speaks for the network."""
    main = [each for each in quality if each.output == quality[0].output]
    return [
        {
            "metric": each.metric,
            **({} if each.original is None else {"original": round(each.original, _DIGITS)}),
            "result": round(each.compressed, _DIGITS),
            "samples": each.samples,
        }
        for each in main
    ]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
