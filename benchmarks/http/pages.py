"""Measure the pages with 10,000 jobs in the database: what the server takes for each, the first time and then.

    python -m benchmarks.http.pages [--quick]

Results go to var/benchmarks/http.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks import documents
from benchmarks.http import jobs, server

JOBS = 10_000
ROUNDS = 30
# Of the first page, in milliseconds.
LIMIT_MS = 300


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http.pages", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs: a trial, no result")
    asked = parser.parse_args()
    count = JOBS // 10 if asked.quick else JOBS
    with tempfile.TemporaryDirectory(prefix="onnxpress-pages-") as folder, server.serving(Path(folder)) as api:
        content = measure(api, count)
    markdown = _markdown(content)
    documents.store("http", "pages", content, markdown, quick=asked.quick)
    print(markdown)
    return int(content["first_ms"] > LIMIT_MS)


def measure(api: server.Api, count: int) -> dict[str, Any]:
    """Give the milliseconds of each page with so many jobs in the database."""
    model = jobs.ready_model(api)
    with api.client() as client:
        job = jobs.new_job(client, model)
        client.post(f"/v1/jobs/{job}:cancel").raise_for_status()
    jobs.fill(api, job, count)
    with httpx.Client(base_url=api.url, headers={"Accept": "text/html"}, timeout=60, trust_env=False) as browser:
        browser.post("/sign-in", data={"key": api.key}, headers={"Origin": api.url})
        first = _look(browser, "/jobs")
        ways = {
            "jobs": "/jobs",
            "jobs, failed ones": "/jobs?status=failed",
            "jobs of a label": "/jobs?label=run%3D7",
            "a job": f"/jobs/{job}",
            "models": "/models",
            "a model": f"/models/{model}",
            "new job": "/jobs/new",
            "trend of a label": "/trend?label=run%3D7",
        }
        found = {name: statistics.median(_look(browser, path) for _ in range(ROUNDS)) for name, path in ways.items()}
    return {"jobs": count, "first_ms": first, "pages_ms": found}


def _look(browser: httpx.Client, path: str) -> float:
    started = time.perf_counter()
    answer = browser.get(path)
    passed = 1e3 * (time.perf_counter() - started)
    assert answer.status_code == 200, answer.text
    return passed


def _markdown(found: dict[str, Any]) -> str:
    rows = [("the first page of a process, jobs", found["first_ms"], str(LIMIT_MS))]
    rows += [(name, value, "") for name, value in found["pages_ms"].items()]
    lines = [
        "### Pages",
        "",
        f"Milliseconds with {found['jobs']} jobs in the database; the median of {ROUNDS}, but for the first.",
        "",
        "| page | measured, ms | at most |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {what} | {value:.0f} | {limit} |" for what, value, limit in rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
