"""Measure how long a page in a browser takes to show what happened: from an event's commit to the change on the page.

    python -m benchmarks.http.live [--quick]

It takes Debian's Chromium (`apt-get install chromium`). Results go to var/benchmarks/http.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from sqlalchemy import select

from benchmarks import documents
from benchmarks.http import jobs, server
from models import Unit
from services import db, queue

ROUNDS = 40
LIMIT_MS = 1000
# Tells when a text came to be on the page, by the clock that the event was committed by.
_WATCH = """
window.seen = new Map();
const look = () => {
  const text = document.body?.innerText ?? "";
  for (const [word] of text.matchAll(/mark-\\d+-end/g)) if (!window.seen.has(word)) window.seen.set(word, Date.now());
};
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
});
"""


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http.live", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rounds: a trial, no result")
    asked = parser.parse_args()
    rounds = 4 if asked.quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="onnxpress-live-") as folder, server.serving(Path(folder)) as api:
        content = measure(api, rounds)
    markdown = _markdown(content)
    documents.store("http", "live", content, markdown, quick=asked.quick)
    print(markdown)
    return int(max(each["p95"] for each in content["pages"].values()) > LIMIT_MS)


def measure(api: server.Api, rounds: int) -> dict[str, Any]:
    """Give the milliseconds from commit to change, of a job's own page and of the list of jobs."""
    model = jobs.ready_model(api)
    with api.client() as client:
        job = jobs.new_job(client, model)
    with _progress(api, job) as tell:
        pages = {
            name: _changes(api, path, tell, rounds) for name, path in (("a job", f"/jobs/{job}"), ("jobs", "/jobs"))
        }
    return {"rounds": rounds, "pages": pages}


def _changes(api: server.Api, path: str, tell: Callable[[str], None], rounds: int) -> dict[str, float]:
    with _signed_in(api) as page:
        page.goto(path)
        page.locator(".badge.running").first.wait_for()
        # The stream is open when a first event has come through.
        _change(page, tell)
        found = sorted(_change(page, tell) for _ in range(rounds))
    return {"median": statistics.median(found), "p95": found[int(0.95 * (len(found) - 1))], "slowest": found[-1]}


def _change(page: Page, tell: Callable[[str], None]) -> float:
    """Give the milliseconds from the commit of a message to the moment at which it is on the page."""
    mark = f"mark-{time.monotonic_ns()}-end"
    tell(mark)
    committed = 1e3 * time.time()
    while (seen := page.evaluate("(mark) => window.seen.get(mark)", mark)) is None:
        page.wait_for_timeout(10)
        if 1e3 * time.time() - committed > 20 * LIMIT_MS:
            raise TimeoutError(f"{page.url} does not show what was committed")
    # A commit and a look at the clock are two things.
    return max(0.0, float(seen) - committed)


@contextmanager
def _progress(api: server.Api, job: str) -> Iterator[Callable[[str], None]]:
    """Take a job as a worker does; gives what commits that it goes on, with a message."""
    database = db.Database.from_settings(api.settings)
    with database.transaction() as session:
        unit = session.scalars(select(Unit.id).where(Unit.job_id == job)).one()
        claim = queue.claim(session, unit, worker_id="wrk_benchmark", lease_s=3600)
    assert claim is not None

    def tell(message: str) -> None:
        with database.transaction() as session:
            told = {"type": "progress", "step": 0, "fraction": 0.5, "message": message}
            if not queue.progress(session, claim.unit_id, claim.token, [told]):
                raise RuntimeError("the job is no longer ours")

    yield tell
    database.dispose()


@contextmanager
def _signed_in(api: server.Api) -> Iterator[Page]:
    """Give a page in a browser that is signed in and tells what it shows."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(base_url=api.url).new_page()
        page.add_init_script(_WATCH)
        page.goto("/sign-in")
        page.get_by_label("API key").fill(api.key)
        page.keyboard.press("Enter")
        page.wait_for_url("**/jobs")
        yield page
        browser.close()


def _markdown(found: dict[str, Any]) -> str:
    lines = [
        "### Live pages",
        "",
        f"Milliseconds from the commit of an event to the change on a page in Chromium, of {found['rounds']} events one after the other.",
        "",
        "| page | median | of 95 in 100, at most | slowest | at most |",
        "|---|---|---|---|---|",
    ]
    rows = (
        f"| {name} | {each['median']:.0f} | {each['p95']:.0f} | {each['slowest']:.0f} | {LIMIT_MS} |"
        for name, each in found["pages"].items()
    )
    return "\n".join([*lines, *rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
