"""Measure how many more candidates two workers try than one: what turns, queues and messages of a search cost.

    python -m benchmarks.search.workers [--runs 1] [--quick]

Candidates wait some seconds instead of computing, so that the machine's cores are no limit; all else is as ever, a child process
for each of them included. On the database, broker and store of the settings: by default SQLite, Valkey and a folder, all in a
temporary folder. Ends with code 1 where two workers try less than 1.8 times as many as one.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

import engine
from benchmarks import documents
from benchmarks.search.waiting_child import ROUND, WAIT_S
from benchmarks.service.drain import serving, until
from models import Model, Trial, TrialState
from services import db, jobs, keys, trials, uploads, workers
from services.publisher import BrokerPublisher
from services.storage import open_store
from settings import Settings

NETWORK = Path(__file__).resolve().parents[2] / "examples" / "fashion-mnist" / "residual_cnn.onnx"
TRIALS = 2 * ROUND
TWICE = 1.8
SPEC: dict[str, Any] = {
    "goal": {"minimise": "size"},
    "space": {"train": False},
    "budget": {"max_seconds": 1800},
}


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.workers", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="of each number of workers, in turn")
    parser.add_argument("--quick", action="store_true", help="one round of candidates: a trial, no result")
    options = parser.parse_args()
    most = ROUND if options.quick else TRIALS
    folder = Path(tempfile.mkdtemp(prefix="onnxpress-benchmark-"))
    rates: dict[int, list[float]] = {1: [], 2: []}
    try:
        with serving(folder) as settings:
            for _ in range(options.runs):
                for count, found in rates.items():
                    found.append(tried_per_second(settings, count, most))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratio = statistics.median(rates[2]) / statistics.median(rates[1])
    markdown = _markdown(rates, ratio, most, quick=options.quick)
    content: dict[str, Any] = {"rates": rates, "ratio": ratio, "trials": most, "wait_s": WAIT_S}
    documents.store("search", "workers", content, markdown, quick=options.quick)
    print(markdown)
    return 0 if ratio >= TWICE else 1


def tried_per_second(settings: Settings, count: int, most: int) -> float:
    """Search with so many workers until enough candidates are tried; gives how many each second from the first one's start."""
    publisher = BrokerPublisher(settings)
    database = db.Database.from_settings(settings, publisher)
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(settings.data_dir), "ONNXPRESS_BROKER_URL": settings.broker}
    env |= {"ONNXPRESS_WORKER_TRAINING": "never"}
    argv = [sys.executable, "-m", "benchmarks.search.waiting_worker", "--queues", "inspect,work", "--targets", "all"]
    with (settings.data_dir / "workers.log").open("ab") as log:
        started = [subprocess.Popen(argv, env=env, stdout=log, stderr=log) for _ in range(count)]
    try:
        until(database, lambda session: len(workers.live(session)) == count)
        job_id = _submit(settings, database)
        until(database, lambda session: session.scalar(_ended(job_id)) >= most)
        with database.reading() as session:
            done = trials.list_trials(session, keys.DEFAULT_TENANT, job_id, limit=most)
            began = min(trial.started_at for trial in done if trial.started_at)
            last = max(trial.finished_at for trial in done if trial.finished_at)
        with database.transaction() as session:
            jobs.cancel(session, keys.DEFAULT_TENANT, job_id)
        return most / (last - began).total_seconds()
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait(60)
        publisher.close()
        database.dispose()


def _submit(settings: Settings, database: db.Database) -> str:
    store = open_store(settings)
    with store.writer(keys.DEFAULT_TENANT, limit=1 << 30) as writer, database.transaction() as session:
        keys.ensure_tenant(session, keys.DEFAULT_TENANT)
        writer.write(NETWORK.read_bytes())
        writer.finish()
        model_id = uploads.register_model(session, keys.DEFAULT_TENANT, writer, name="waiting").id
    until(database, lambda session: _state(session, model_id) == "ready")
    request = jobs.Request(model_id, None, engine.read_spec(SPEC), {}, cache="refuse")
    with database.transaction() as session:
        return jobs.submit(session, keys.DEFAULT_TENANT, request).job.id


def _state(session: Session, model_id: str) -> str:
    return session.get_one(Model, model_id).state


def _ended(job_id: str) -> Any:
    return select(func.count()).where(Trial.job_id == job_id, Trial.state == TrialState.SUCCEEDED)


def _markdown(rates: dict[int, list[float]], ratio: float, most: int, *, quick: bool) -> str:
    rows = [
        [f"{count} worker{'s' if count > 1 else ''}", f"{60 * statistics.median(found):.1f}"]
        for count, found in rates.items()
    ]
    return (
        "### A search on several workers\n\n"
        + ("**A trial run: no result.** " if quick else "")
        + f"Candidates that wait {WAIT_S:g} s instead of computing, {ROUND} in a round, {most} counted: two workers try"
        f" **{ratio:.2f} times** as many as one.\n\n" + documents.table(("workers", "candidates a minute"), rows)
    )


if __name__ == "__main__":
    sys.exit(main())
