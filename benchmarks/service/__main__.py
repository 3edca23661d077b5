"""Measure what the service costs: overhead over the engine alone, pick-up of a unit, cancelling of a running job.

    python -m benchmarks.service [--runs 5] [--quick]

Starts the embedded service on a free port with its data in a temporary folder. Service and command line do the same job in
turn. Results go to var/benchmarks/service.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxpress
from benchmarks import documents
from benchmarks.service import pick_up
from standalone.serve import Embedded

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion-mnist"
NETWORK, DATA = EXAMPLE / "residual_cnn.onnx", EXAMPLE / "data.npz"
# A job whose own time varies little: nothing in it is tried and measured step by step.
JOB: dict[str, Any] = {"recipe": {"passes": [{"type": "simplify"}]}, "target": {"provider": "cpu", "threads": 1}}
LONG_JOB: dict[str, Any] = {"recipe": {"passes": [{"type": "simplify"}, {"type": "quantize_static"}]}}
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Way:
    """One way through: wall time from asking to having the result, and how much of it was `engine.run` itself."""

    wall_s: float
    engine_s: float

    @property
    def around_s(self) -> float:
        """What was spent around the engine."""
        return self.wall_s - self.engine_s


@dataclass(frozen=True)
class Inputs:
    """The stored network and data."""

    model: str
    dataset: str


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each way, in turn")
    parser.add_argument("--quick", action="store_true", help="one run of each: a trial, no result")
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    folder = Path(tempfile.mkdtemp(prefix="onnxpress-benchmark-"))
    try:
        content, markdown = measure(folder, runs, quick=options.quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    documents.store("service", "service", content, markdown, quick=options.quick)
    print(markdown)
    return 0


def measure(folder: Path, runs: int, *, quick: bool) -> tuple[dict[str, Any], str]:
    """Start the service, measure, stop it."""
    with Embedded(folder / "var", host="127.0.0.1", port=0, workers=1, say=_say) as service:
        with onnxpress.Client(service.url, service.key_file.read_text().strip()) as client:
            inputs = Inputs(
                client.models.upload(NETWORK, timeout=PATIENCE_S).id,
                client.datasets.upload(DATA, timeout=PATIENCE_S).id,
            )
            by_service(client, inputs)  # the first job of a worker imports what later ones have
            pairs = [(by_service(client, inputs), by_command(folder, at)) for at in range(runs)]
            cancelled = [cancel(client, inputs) for _ in range(runs)]
        waits = pick_up.waits(folder / "var")
    served, commanded = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    content = {
        "service": [asdict(way) for way in served],
        "command": [asdict(way) for way in commanded],
        "cancel_s": cancelled,
        "pick_up_ms": waits,
    }
    return content, _markdown(served, commanded, cancelled, waits, quick=quick)


def by_service(client: onnxpress.Client, inputs: Inputs) -> Way:
    """Submit a job and wait until it has succeeded."""
    start = time.monotonic()
    # Every job is to do the work: none may be answered from the one before.
    job = client.jobs.submit({**JOB, **asdict(inputs), "cache": "refuse"})
    client.jobs.wait(job.id, timeout=PATIENCE_S)
    wall = time.monotonic() - start
    return Way(wall, float(client.jobs.report(job.id)["seconds"]))


def by_command(folder: Path, number: int) -> Way:
    """Run the same job by `python -m engine run`."""
    spec, out = folder / "job.json", folder / f"out-{number}"
    spec.write_text(json.dumps(JOB))
    words = ["engine", "run", NETWORK, spec, "--data", DATA, "--out", out]
    command = [sys.executable, "-m", *map(str, words)]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.monotonic() - start
    if done.returncode != 0:
        raise RuntimeError(f"the engine ended with code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return Way(wall, float(json.loads((out / "report.json").read_text())["seconds"]))


def cancel(client: onnxpress.Client, inputs: Inputs) -> float:
    """Cancel a job that works on its network; give the seconds until its last state."""
    job = client.jobs.submit({**LONG_JOB, **asdict(inputs)})
    for seen in client.jobs.updates(job.id, timeout=PATIENCE_S):
        if seen.status == "running" and seen.progress is not None:
            break
    start = time.monotonic()
    client.jobs.cancel(job.id)
    *_, last = client.jobs.updates(job.id, timeout=PATIENCE_S)
    if last.status != "cancelled":
        raise RuntimeError(f"the job ended as {last.status} before it could be cancelled")
    return time.monotonic() - start


def _markdown(
    served: Sequence[Way], commanded: Sequence[Way], cancelled: Sequence[float], waits: Sequence[float], *, quick: bool
) -> str:
    median = statistics.median
    around = median(way.around_s for way in served) - median(way.around_s for way in commanded)
    rows = [
        ["job by the service, submit to succeeded", f"{median(way.wall_s for way in served):.2f} s", _spread([way.wall_s for way in served], "s")],
        ["the same by `python -m engine run`", f"{median(way.wall_s for way in commanded):.2f} s", _spread([way.wall_s for way in commanded], "s")],
        ["around the engine: service", f"{median(way.around_s for way in served):.2f} s", _spread([way.around_s for way in served], "s")],
        ["around the engine: command line", f"{median(way.around_s for way in commanded):.2f} s", _spread([way.around_s for way in commanded], "s")],
        ["**overhead of the service**", f"**{around:+.2f} s**", ""],
        ["pick-up of a unit, sent to claimed", f"{median(waits):.1f} ms", _spread(waits, "ms")],
        ["cancelling a running job", f"{median(cancelled):.2f} s", _spread(cancelled, "s")],
    ]  # fmt: skip
    return (
        "### The service beside the engine alone\n\n"
        + ("**A trial run: no result.** " if quick else "")
        + "Residual CNN with 1,512 images, recipe `simplify`, embedded service with one worker; service and command line in"
        " turn, medians. How long the engine measures differs from job to job, so the overhead compares what was spent around"
        " `engine.run`: there importing and copying files by the command line, here claiming, starting a child, storing and"
        " telling the client.\n\n" + documents.table(("what", "median", "least to most"), rows)
    )


def _spread(values: Sequence[float], unit: str) -> str:
    return f"{min(values):.2f} to {max(values):.2f} {unit}, {len(values)} times"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
