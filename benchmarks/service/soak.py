"""See whether memory and open descriptors of every process stay flat while small work comes and goes.

    python -m benchmarks.service.soak [--seconds 3600] [--every 60] [--quick]

Starts the embedded service. In each round a network is uploaded, a job made of it and read in every way, and each third job
cancelled; before the next round, when nothing works, all processes are looked at. The first tenth warms up; the second is held
against the last. Ends with code 1 where one has grown by more than a twentieth and 4 MB, or has more than two descriptors more. Those
of SQLite do not count among them, but may be two more: two of a worker's threads read, and from the first time on that both do so at the
same moment there is a connection for each (the file and its write-ahead log).
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxpress
from benchmarks import documents
from benchmarks.http.server import rss_bytes
from standalone.serve import Embedded

PROCESSES = ("api", "broker", "inspect", "worker")
RECIPE: dict[str, Any] = {"passes": [{"type": "simplify"}]}
CANCELLED = 3
PATIENCE_S = 600.0
GROWTH = 0.05
SLACK_BYTES = 4_000_000
MORE_DESCRIPTORS, MORE_OF_DATABASE = 2, 2
DATABASE = "onnxpress.db"


@dataclass(frozen=True)
class Look:
    """A service's process with its children: resident bytes, open descriptors, seconds since the start."""

    at_s: float
    rss_bytes: int
    # How many, by what they are: `socket`, `pipe`, a file's name.
    opened: dict[str, int]

    @property
    def descriptors(self) -> int:
        """How many there are."""
        return sum(self.opened.values())

    @property
    def of_database(self) -> int:
        """How many are SQLite's."""
        return sum(count for name, count in self.opened.items() if name.startswith(DATABASE))


@dataclass
class Counts:
    """What was done."""

    jobs: int = 0
    cancelled: int = 0
    requests: int = 0


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, metavar="S", help="for how long (default: %(default)g)")
    parser.add_argument(
        "--every", type=float, default=60, metavar="S", help="from round to round (default: %(default)g)"
    )
    parser.add_argument("--quick", action="store_true", help="two minutes: a trial, no result")
    asked = parser.parse_args()
    seconds, every = (120.0, 5.0) if asked.quick else (asked.seconds, asked.every)
    folder = Path(tempfile.mkdtemp(prefix="onnxpress-soak-"))
    try:
        looks, counts = soak(folder, seconds, every)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    spans = {name: span(seen) for name, seen in looks.items()}
    grown = [name for name, (first, last) in spans.items() if _grown(first, last)]
    markdown = _markdown(spans, counts, seconds)
    content = {
        "seconds": seconds,
        **asdict(counts),
        "looks": {name: [*map(asdict, seen)] for name, seen in looks.items()},
    }
    documents.store("service", "soak", content, markdown, quick=asked.quick)
    print(markdown)
    return int(bool(grown))


def soak(folder: Path, seconds: float, every: float) -> tuple[dict[str, list[Look]], Counts]:
    """Serve and work for so long; give what was seen of each process, and what was done."""
    looks: dict[str, list[Look]] = {name: [] for name in PROCESSES}
    counts = Counts()
    with Embedded(folder / "var", host="127.0.0.1", port=0, workers=1, say=_say) as service:
        pids = {name: service.pid(name) for name in PROCESSES}
        with onnxpress.Client(service.url, service.key_file.read_text().strip()) as client:
            start = time.monotonic()
            for number in range(round(seconds / every)):
                work(client, folder, number, counts)
                time.sleep(max(every / 4, start + (number + 1) * every - time.monotonic()))
                service.tend()
                if {name: service.pid(name) for name in PROCESSES} != pids:
                    raise RuntimeError(f"a process died and was started again; see {folder / 'var' / 'log'}")
                for name, pid in pids.items():
                    looks[name].append(look(time.monotonic() - start, pid))
                if time.monotonic() - start > seconds:
                    break
    return looks, counts


def work(client: onnxpress.Client, folder: Path, number: int, counts: Counts) -> None:
    """Upload a network that nobody has seen, make a job of it, read it in every way, or cancel it."""
    path = folder / "network.onnx"
    path.write_bytes(network(number))
    model = client.models.upload(path, timeout=PATIENCE_S)
    job = client.jobs.submit({"model": model.id, "recipe": RECIPE, "cache": "refuse", "labels": {"round": str(number)}})
    counts.jobs += 1
    if number % CANCELLED == CANCELLED - 1:
        client.jobs.cancel(job.id)
        counts.cancelled += 1
    *_, last = client.jobs.updates(job.id, timeout=PATIENCE_S)
    for _ in client.jobs.events(job.id, timeout=PATIENCE_S):
        pass
    for _ in client.jobs.list(limit=50):
        pass
    for _ in client.models.list(limit=50):
        pass
    client.capacity()
    counts.requests += 8
    if last.status == "succeeded":
        client.jobs.report(job.id)
        client.jobs.report_as(job.id, "html")
        client.jobs.download(job.id, folder / "result.onnx")
        counts.requests += 4
    elif last.status != "cancelled":
        raise RuntimeError(f"the job ended as {last.status}: {last.problem}")


def network(number: int) -> bytes:
    """Give two layers with weights of their own."""
    random = np.random.default_rng(number)
    weights = {"w1": random.normal(size=(32, 64)), "w2": random.normal(size=(64, 8))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["y"]),
        ],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def look(at_s: float, pid: int) -> Look:
    """Give what a process and those below it have."""
    pids = [pid, *_below(pid)]
    opened = Counter(name for one in pids for name in _opened(one))
    return Look(at_s, sum(map(rss_bytes, pids)), dict(opened))


def _opened(pid: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        # One may be closed while it is looked at.
        with suppress(FileNotFoundError):
            yield str(descriptor.readlink()).removesuffix(" (deleted)").partition(":[")[0].rpartition("/")[2]


def _below(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _below(int(child))


def span(looks: list[Look]) -> tuple[Look, Look]:
    """Give the medians of the second tenth and of the last."""
    tenth = max(1, len(looks) // 10)
    return _median(looks[tenth : 2 * tenth] or looks), _median(looks[-tenth:])


def _median(looks: list[Look]) -> Look:
    names = sorted({name for one in looks for name in one.opened})
    return Look(
        statistics.median(one.at_s for one in looks),
        round(statistics.median(one.rss_bytes for one in looks)),
        {name: round(statistics.median(one.opened.get(name, 0) for one in looks)) for name in names},
    )


def _grown(first: Look, last: Look) -> bool:
    return (
        last.rss_bytes > first.rss_bytes + max(GROWTH * first.rss_bytes, SLACK_BYTES)
        or last.of_database > first.of_database + MORE_OF_DATABASE
        or last.descriptors - last.of_database > first.descriptors - first.of_database + MORE_DESCRIPTORS
    )


def _came(first: Look, last: Look) -> str:
    more = {name: count - first.opened.get(name, 0) for name, count in last.opened.items()}
    return ", ".join(f"{count} {name}" for name, count in sorted(more.items()) if count > 0)


def _markdown(spans: dict[str, tuple[Look, Look]], counts: Counts, seconds: float) -> str:
    rows = [
        [
            name,
            *(f"{one.rss_bytes / 1e6:.1f} MB" for one in (first, last)),
            f"{100 * (last.rss_bytes / first.rss_bytes - 1):+.1f} %",
            *(str(one.descriptors) for one in (first, last)),
            _came(first, last),
        ]
        for name, (first, last) in spans.items()
    ]
    return (
        "### Memory and descriptors over time\n\n"
        f"{counts.jobs} uploads and jobs ({counts.cancelled} of them cancelled) and at least {counts.requests} reads in"
        f" {seconds / 60:.0f} minutes, embedded service; each process with its children when nothing works. Medians of the second"
        " tenth of the looks and of the last.\n\n"
        + documents.table(
            ("process", "memory before", "after", "change", "descriptors before", "after", "what came"),
            rows,
        )
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
