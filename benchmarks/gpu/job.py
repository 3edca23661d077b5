"""Run one job of the table through the engine's front door, in a process of its own, as a worker does.

The request has `model` and `data` (files), `spec`, `lock` (the file that all jobs of the benchmark share) and `out`, a folder.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import engine


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Do the job; keep its report in JSON and Markdown, and give the report."""
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="job-") as folder:
        workspace = Path(folder)
        for name, source in (("model", "model.onnx"), ("data", "data.npz")):
            (workspace / name).mkdir()
            shutil.copyfile(request[name], workspace / name / source)
        report = engine.run(
            engine.read_spec(request["spec"]),
            workspace,
            lambda event: print(event, flush=True),
            lock_file=Path(request["lock"]),
        )
        for name in ("report.json", "report.md"):
            shutil.copyfile(workspace / "out" / name, out / name)
    return report.model_dump(mode="json")
