"""`python -m worker --queues work --concurrency 1`: works on units until SIGTERM, then gives back what does not end soon."""

import argparse
import sys

from services import logs
from settings import get_settings
from worker.app import QUEUES, app


def main(argv: list[str] | None = None) -> int:
    """Run a worker; returns when it is told to stop."""
    parser = argparse.ArgumentParser(prog="worker", description="Work on queued units.")
    parser.add_argument("--queues", default=",".join(QUEUES), help="names, by comma (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=1, help="units at the same time (default: %(default)s)")
    asked = parser.parse_args(argv)
    logs.configure(get_settings())
    app.conf.worker_concurrency = asked.concurrency
    app.worker_main(
        [
            "worker",
            f"--queues={asked.queues}",
            "--pool=prefork",
            f"--loglevel={get_settings().log_level}",
            # Workers need not know of each other: the rows do.
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
