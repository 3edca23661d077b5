"""Measure what a tenant's job takes while another tenant does all it can to hold the machine.

    python -m benchmarks.service.neighbours [--runs 5] [--quick]

The embedded service with two jobs at a time. The other tenant has a dozen jobs of networks with a Loop that goes round for ever, which pass
every check and are stopped only by their limits: of 20 s, and where somebody waits, of the operator's 10 s for a measurement. Ends with
code 1 where the job, without its waiting, takes more than 1.5 times its time alone.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import onnxpress
from benchmarks import documents
from benchmarks.service.soak import network
from services import db, keys
from settings import Settings
from standalone.serve import Embedded

HOSTILE_JOBS = 12
RUNTIME_S = 20
MEASURING_S = 10
MOST = 1.5
PATIENCE_S = 600.0
JOB: dict[str, Any] = {"recipe": {"passes": [{"type": "simplify"}]}, "cache": "refuse"}
HOSTILE: dict[str, Any] = {
    "kind": "profile",
    "targets": [{"provider": "cpu"}],
    "limits": {"max_runtime_s": RUNTIME_S},
}


@dataclass(frozen=True)
class Took:
    """Seconds of one job from submit to end: until a worker took it, waiting for others' measurements, and all else."""

    queued_s: float
    waited_s: float
    worked_s: float

    @property
    def total_s(self) -> float:
        """From submit to end."""
        return self.queued_s + self.waited_s + self.worked_s


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.neighbours", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="alone, and beside the other (default: %(default)d)"
    )
    parser.add_argument("--quick", action="store_true", help="one run of each: a trial, no result")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="onnxpress-neighbours-"))
    try:
        alone, beside, cancels = measure(folder, 1 if asked.quick else asked.runs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratio = _median(beside, lambda one: one.worked_s) / _median(alone, lambda one: one.worked_s)
    markdown = _markdown(alone, beside, cancels, ratio)
    content = {"alone": [*map(asdict, alone)], "beside": [*map(asdict, beside)], "cancel_s": cancels, "ratio": ratio}
    documents.store("service", "neighbours", content, markdown, quick=asked.quick)
    print(markdown)
    return int(ratio > MOST)


def measure(folder: Path, runs: int) -> tuple[list[Took], list[Took], list[float]]:
    """Give what the job took alone and beside the other tenant, and how long it took to cancel one of that one's."""
    os.environ["ONNXPRESS_MAX_MEASURING_TURN_S"] = str(MEASURING_S)
    with Embedded(folder / "var", host="127.0.0.1", port=0, workers=2, say=_say) as service:
        one, other = (
            onnxpress.Client(service.url, _key(service.data_dir, tenant)) for tenant in ("neighbour", "hostile")
        )
        with one, other:
            mine, endless = _stored(one, folder, network(0)), _stored(other, folder, endless_network())
            job(one, mine)  # the first one imports what later ones have
            alone = [job(one, mine) for _ in range(runs)]
            beside = []
            for _ in range(runs):
                hostile = [other.jobs.submit({**HOSTILE, "model": endless}).id for _ in range(HOSTILE_JOBS)]
                _until_running(other, hostile)
                beside.append(job(one, mine))
                for job_id in hostile:
                    _cancel(other, job_id)
            cancels = []
            for _ in range(runs):
                endless_job = other.jobs.submit({**HOSTILE, "model": endless}).id
                _until_running(other, [endless_job])
                time.sleep(MEASURING_S / 2)
                cancels.append(_cancel(other, endless_job))
    return alone, beside, cancels


def job(client: onnxpress.Client, model: str) -> Took:
    """Have the job done."""
    started = time.monotonic()
    asked = client.jobs.submit({**JOB, "model": model})
    moments: dict[str, list[float]] = {"running": [], "waiting_for_quiet": [], "quiet": []}
    for event in client.jobs.events(asked.id, timeout=PATIENCE_S):
        moments.setdefault(event.type, []).append(time.monotonic())
    total = time.monotonic() - started
    if "succeeded" not in moments:
        raise RuntimeError(f"the job ended as {client.jobs.get(asked.id)}")
    queued = moments["running"][0] - started
    waited = sum(moments["quiet"]) - sum(moments["waiting_for_quiet"])
    _say(f"queued {queued:.1f} s, waited {waited:.1f} s in {len(moments['quiet'])} times, in all {total:.1f} s")
    return Took(queued, waited, total - queued - waited)


def _cancel(client: onnxpress.Client, job_id: str) -> float:
    """End a job, and give the seconds until it had; its process is dead by then."""
    started = time.monotonic()
    try:
        client.jobs.cancel(job_id)
    except onnxpress.ConflictError:
        # Its limit has ended it.
        return 0.0
    *_, _last = client.jobs.updates(job_id, timeout=PATIENCE_S)
    return time.monotonic() - started


def _until_running(client: onnxpress.Client, job_ids: list[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not any(client.jobs.get(job_id).status == "running" for job_id in job_ids):
        if time.monotonic() > end:
            raise TimeoutError("no job of the other tenant was begun")
        time.sleep(0.1)


def _stored(client: onnxpress.Client, folder: Path, content: bytes) -> str:
    path = folder / "network.onnx"
    path.write_bytes(content)
    return client.models.upload(path, timeout=PATIENCE_S).id


def _key(data_dir: Path, tenant: str) -> str:
    database = db.Database.from_settings(Settings(data_dir=data_dir))
    with database.transaction() as session:
        keys.ensure_tenant(session, tenant)
        text = keys.create(session, tenant, "benchmark", ("read", "write")).text
    database.dispose()
    return str(text)


def endless_network() -> bytes:
    """Give a network whose Loop goes round for ever: it passes every check, and never answers."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_again"]), helper.make_node("Add", ["sum", "one"], ["next"])],
        "body",
        [value("round", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, ["n", 2])],
        [value("on_again", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.zeros((1, 1), np.float32), "one")],
    )  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["first"]),
            helper.make_node("Loop", ["", "true", "first"], ["y"], body=body),
        ],
        "endless",
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(np.ones((3, 2), np.float32), "w"),
            numpy_helper.from_array(np.array(True), "true"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def _median(taken: list[Took], value: Callable[[Took], float]) -> float:
    return statistics.median(map(value, taken))


def _markdown(alone: list[Took], beside: list[Took], cancels: list[float], ratio: float) -> str:
    ways: list[tuple[str, Callable[[Took], float]]] = [
        ("until a worker took it", lambda one: one.queued_s),
        ("waiting for others' measurements", lambda one: one.waited_s),
        ("all else", lambda one: one.worked_s),
        ("submit to end", lambda one: one.total_s),
    ]
    rows = []
    for name, value in ways:
        spread = [value(one) for one in beside]
        rows.append(
            [
                name,
                f"{_median(alone, value):.1f} s",
                f"{_median(beside, value):.1f} s",
                f"{min(spread):.1f} to {max(spread):.1f} s",
            ]
        )
    return (
        "### A neighbour that never ends\n\n"
        f"A job of one tenant, alone and beside another tenant's {HOSTILE_JOBS} jobs of networks that loop for ever, each ended by its limit of"
        f" {RUNTIME_S} s, or after {MEASURING_S} s of measuring while somebody waits; embedded service, two jobs at a time, medians of {len(beside)}."
        f" Without its waiting the job takes **{ratio:.2f} times** its time alone (at most {MOST}).\n\n"
        + documents.table(("seconds", "alone", "beside it", "least to most"), rows)
        + f"\n\nCancelling one of those that never end, until it is `cancelled` and its process dead: {statistics.median(cancels):.2f} s"
        f" ({min(cancels):.2f} to {max(cancels):.2f} s, {len(cancels)} times)."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
