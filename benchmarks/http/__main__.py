"""Measure the HTTP edge: 1 GB in and out, 200 long polls and 50 streams, 10,000 jobs.

    python -m benchmarks.http [--quick] [--strangers]

Every figure is a ratio to something measured in the same run, so that it means the same on every machine. Results go to
var/benchmarks/http.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import documents
from benchmarks.http import crowd, jobs, server, strangers, transfer

LIVEZ_MS = 100


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: a trial, no result")
    parser.add_argument("--strangers", action="store_true", help="only idle connections and posts without a key")
    asked = parser.parse_args()
    part = 10 if asked.quick else 1
    if asked.strangers:
        return _among_strangers(part, quick=asked.quick)
    with tempfile.TemporaryDirectory(prefix="onnxpress-http-") as folder, server.serving(Path(folder)) as api:
        content = measure(api, Path(folder), part)
    markdown = _markdown(content)
    documents.store("http", "http", content, markdown, quick=asked.quick)
    print(markdown)
    return 0


def _among_strangers(part: int, *, quick: bool) -> int:
    with tempfile.TemporaryDirectory(prefix="onnxpress-http-") as folder, server.serving(Path(folder)) as api:
        felt = strangers.measure(api, Path(folder) / "api.log", 2000 // part, 4)
    content = {name: asdict(one) for name, one in felt.items()}
    markdown = "\n".join(["### Strangers at the door", "", *strangers.rows(content)]) + "\n"
    documents.store("http", "strangers", content, markdown, quick=quick)
    print(markdown)
    return int(any(one.livez_p99_ms > LIVEZ_MS for one in felt.values()))


def measure(api: server.Api, folder: Path, part: int) -> dict[str, Any]:
    """Measure all of it, or a part."""
    size = (1024 // part) << 20
    up, down = transfer.measure(api, folder, size)
    model = jobs.ready_model(api)
    heard = crowd.measure(api, model, 200 // part, 50 // part)
    with api.client() as client, server.bare() as bare:
        job = jobs.new_job(client, model)
        client.post(f"/v1/jobs/{job}:cancel").raise_for_status()
        look, plain = jobs.beside_bare(client, job, bare)
        # As many as fill a page: what a page's items cost is not what is asked here.
        jobs.fill(api, job, 25)
        few = jobs.measure(client, job)
        jobs.fill(api, job, 10_000 // part)
        many = jobs.measure(client, job)
    return {
        "bytes": size,
        "upload": {"cpu_ratio": up.ratio, "extra_rss_bytes": up.extra_rss_bytes, "cpu_s": up.cpu_s},
        "download": {"cpu_ratio": down.ratio, "extra_rss_bytes": down.extra_rss_bytes, "cpu_s": down.cpu_s},
        "plain_cpu_s": up.plain_cpu_s,
        "crowd": {"clients": heard.clients, "last_s": heard.last_s, "livez_p99_ms": heard.livez_p99_ms},
        "look": {"job_ms": look, "bare_ms": plain, "ratio": look / plain},
        "jobs": {"count": 10_000 // part, "few_ms": few, "many_ms": many},
    }


def _markdown(found: dict[str, Any]) -> str:
    rows = [
        ("upload: CPU / (sha256 + write)", f"{found['upload']['cpu_ratio']:.2f}", "2.5"),
        ("upload: extra memory, MiB", f"{found['upload']['extra_rss_bytes'] / (1 << 20):.0f}", "32"),
        ("download: CPU / (sha256 + write)", f"{found['download']['cpu_ratio']:.2f}", "2.5"),
        ("download: extra memory, MiB", f"{found['download']['extra_rss_bytes'] / (1 << 20):.0f}", "32"),
        (f"{found['crowd']['clients']} who wait: the last one hears after, s", f"{found['crowd']['last_s']:.2f}", "1"),
        ("meanwhile /livez p99, ms", f"{found['crowd']['livez_p99_ms']:.0f}", "100"),
        ("GET job / bare route", f"{found['look']['ratio']:.2f}", "4"),
    ]
    few, many = found["jobs"]["few_ms"], found["jobs"]["many_ms"]
    rows += [
        (f"{found['jobs']['count']} jobs, {name}: time / that with few", f"{many[name] / few[name]:.2f}", "2")
        for name in few
    ]
    lines = [
        "### The HTTP edge",
        "",
        f"{found['bytes'] >> 20} MiB each way.",
        "",
        "| what | measured | at most |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {what} | {value} | {limit} |" for what, value, limit in rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
