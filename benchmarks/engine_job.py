"""Run a recipe or a search of ours through the engine's front door, in a process of its own, as the command line does.

The request has `model`, `data` (an .npz for the engine, or None), `metric`, `spec`, `networks` (others that the spec speaks of,
by their role: {"student": path}), and `out`, the file to write.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import engine


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Do the job and copy the artifact; tell what became of each step."""
    out = Path(request["out"])
    spec = engine.read_spec(request["spec"])
    with tempfile.TemporaryDirectory(prefix="job-") as folder:
        workspace = Path(folder)
        _fill(workspace, request)
        started = time.monotonic()
        report = engine.run(spec, workspace, lambda event: print(event, flush=True))
        seconds = time.monotonic() - started
        for file in (workspace / "out").iterdir():
            shutil.copyfile(file, out.parent / (out.name if file.name == "model.onnx" else file.name))
    return {
        "summary": report.summary,
        "unchanged": report.unchanged,
        "seconds": seconds,
        "steps": [_step(step.model_dump(mode="json")) for step in report.steps],
        "search": None if report.search is None else report.search.model_dump(mode="json"),
    }


def _fill(workspace: Path, request: dict[str, Any]) -> None:
    (workspace / "model").mkdir()
    model = Path(request["model"])
    shutil.copyfile(model, workspace / "model" / "model.onnx")
    for name in request.get("external", []):
        shutil.copyfile(model.with_name(name), workspace / "model" / name)
    for role, path in request.get("networks", {}).items():
        (workspace / role).mkdir()
        shutil.copyfile(path, workspace / role / "model.onnx")
    if request.get("data"):
        (workspace / "data").mkdir()
        shutil.copyfile(request["data"], workspace / "data" / "data.npz")
        if request.get("metric"):
            (workspace / "data" / "dataset.json").write_text(json.dumps({"metric": request["metric"]}))


def _step(step: dict[str, Any]) -> dict[str, Any]:
    refusal = step["refusal"] or {}
    return {
        "type": step["type"],
        "status": step["status"],
        "seconds": step["seconds"],
        "reason": refusal.get("reason"),
        "change": (step["change"] or {}).get("summary"),
    }
