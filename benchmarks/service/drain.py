"""Measure how much faster two workers drain a queue than one: what the service's own locks and messages cost.

    python -m benchmarks.service.drain [--runs 5] [--quick]

Forty units that sleep half a second each, on the database, broker and store of the settings: by default SQLite, Valkey and a
folder, all in a temporary folder. Workers are started before and wait. Ends with code 1 where two are less than 1.9 times as
fast as one.
"""

import argparse
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from benchmarks import documents
from benchmarks.service.sleeper import SLEEP_S
from models import Unit
from services import db, keys, uploads, workers
from services.publisher import BrokerPublisher
from services.storage import open_store
from settings import Settings
from standalone import broker

UNITS = 40
TWICE = 1.9
PATIENCE_S = 300.0


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.drain", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each number of workers, in turn")
    parser.add_argument("--quick", action="store_true", help="one run of each: a trial, no result")
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    folder = Path(tempfile.mkdtemp(prefix="onnxpress-benchmark-"))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    try:
        with serving(folder) as settings:
            for _ in range(runs):
                for count, taken in seconds.items():
                    taken.append(drain(settings, count))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    markdown = _markdown(seconds, ratio, settings, quick=options.quick)
    content: dict[str, Any] = {"seconds": seconds, "ratio": ratio, "units": UNITS, "sleep_s": SLEEP_S}
    documents.store("service", "drain", content, markdown, quick=options.quick)
    print(markdown)
    return 0 if ratio >= TWICE else 1


@contextmanager
def serving(folder: Path) -> Iterator[Settings]:
    """Give the settings of a service without workers."""
    with ExitStack() as stack:
        settings = Settings(data_dir=folder)
        if not settings.broker_url:
            sock = broker.socket_path(folder)
            sock.parent.mkdir(mode=0o700)
            server = subprocess.Popen(broker.command(broker.find_binary(), sock), stdout=subprocess.DEVNULL)
            stack.callback(server.wait)
            stack.callback(server.kill)
            broker.wait_until_ready(sock)
            settings = Settings(data_dir=folder, broker_url=broker.url(sock))
        db.upgrade(settings)
        yield settings


def drain(settings: Settings, count: int) -> float:
    """Queue all units before so many workers; give the seconds until the last one is done."""
    publisher = BrokerPublisher(settings)
    database = db.Database.from_settings(settings, publisher)
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(settings.data_dir), "ONNXPRESS_BROKER_URL": settings.broker}
    argv = [sys.executable, "-m", "benchmarks.service.sleeper", "--queues", "inspect"]
    with (settings.data_dir / "workers.log").open("ab") as log:
        started = [subprocess.Popen(argv, env=env, stdout=log, stderr=log) for _ in range(count)]
    try:
        until(database, lambda session: len(workers.live(session)) == count)
        # Alive is not yet at the broker.
        time.sleep(2)
        begin = time.monotonic()
        names = _queue(settings, database)
        until(database, lambda session: session.scalar(_left(names)) == 0)
        return time.monotonic() - begin
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait(60)
        publisher.close()
        database.dispose()


def _queue(settings: Settings, database: db.Database) -> list[str]:
    """Register uploads in one transaction, so that all units are there at once."""
    store = open_store(settings)
    with ExitStack() as stack, database.transaction() as session:
        keys.ensure_tenant(session, keys.DEFAULT_TENANT)
        names = []
        for _ in range(UNITS):
            writer = stack.enter_context(store.writer(keys.DEFAULT_TENANT, limit=1 << 20))
            writer.write(secrets.token_bytes(1000))
            writer.finish()
            names.append(uploads.register_model(session, keys.DEFAULT_TENANT, writer, name="sleeper").id)
    return names


def _left(names: list[str]) -> Any:
    return select(func.count()).select_from(Unit).where(Unit.model_id.in_(names), Unit.status != "succeeded")


def until(database: db.Database, ask: Any) -> None:
    """Wait until the database answers a question with yes."""
    end = time.monotonic() + PATIENCE_S
    while True:
        with database.reading() as session:
            if ask(session):
                return
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE_S:g} s; the units may have failed")
        time.sleep(0.01)


def _markdown(seconds: dict[int, list[float]], ratio: float, settings: Settings, *, quick: bool) -> str:
    parts = ["SQLite" if not settings.database_url else "Postgres", "a bucket" if settings.store_url else "a folder"]
    rows = [
        [f"{count} worker{'s' if count > 1 else ''}", f"{statistics.median(taken):.2f} s", f"{min(taken):.2f} to {max(taken):.2f} s"]
        for count, taken in seconds.items()
    ]  # fmt: skip
    return (
        "### Workers side by side\n\n"
        + ("**A trial run: no result.** " if quick else "")
        + f"{UNITS} units that sleep {SLEEP_S:g} s each, on {' and '.join(parts)}, from their commit to the end of the last:"
        f" two workers are **{ratio:.2f} times** as fast as one.\n\n"
        + documents.table(("workers", "median", "least to most"), rows)
    )


if __name__ == "__main__":
    sys.exit(main())
