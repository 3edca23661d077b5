"""`python -m worker`: works on units until SIGTERM, then gives back what does not end soon.

`--queues work` takes the jobs for the targets that this environment's runtime has proven at start, `--queues inspect` looks
at uploads; `--targets` says which of the proven targets it takes jobs for.
"""

import argparse
import gc
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kombu.entity import Queue

import engine
import sandbox
from services import logs
from services.db import Database, RevisionError, check_revision
from services.routing import INSPECT_QUEUE, run_queues
from settings import Settings, get_settings
from settings.private_folder import keep_private
from worker import tasks
from worker.app import app
from worker.presence import Identity, tell
from worker.proof import ALL, OWN, Proof, prove

_log = logging.getLogger(__name__)
_WORK = "work"
# Where nothing that it is to take has been proven: a driver may come up after the worker.
_AGAIN_S = 30.0


def main(argv: list[str] | None = None) -> int:
    """Run a worker; returns when it is told to stop."""
    keep_private()
    settings = get_settings()
    asked = _parser(settings).parse_args(argv)
    logs.configure(settings)
    try:
        check_revision(settings)
    except RevisionError as error:
        sys.exit(f"onnxpress: {error}")
    sandbox.compile_engine()
    identity = _prepare(settings, asked)
    tasks.enter(identity)
    app.conf.worker_concurrency = identity.concurrency
    app.conf.task_queues = [Queue(name) for name in identity.queues]
    # Not by its command line, which loads all of Celery's commands and what draws them in a terminal.
    worker = app.Worker(
        pool="prefork",
        loglevel=settings.log_level,
        # Workers need not know of each other: the rows do.
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    # Pool processes share what is loaded by now: a collector that went through it would copy it, and find nothing to free.
    gc.freeze()
    worker.start()
    return int(worker.exitcode or 0)


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worker", description="Work on queued units.")
    parser.add_argument(
        "--queues",
        type=_words(INSPECT_QUEUE, _WORK),
        default=f"{INSPECT_QUEUE},{_WORK}",
        help="`inspect` (uploads), `work` (jobs), or both by comma (default: %(default)s)",
    )
    parser.add_argument("--concurrency", type=int, default=1, help="units at the same time (default: %(default)s)")
    parser.add_argument(
        "--targets",
        type=_targets,
        default=settings.worker_targets,
        help="take jobs for these targets, by comma; `all`: for every proven one; `own`: for accelerators, and for cpu"
        " where there is none (default: %(default)s)",
    )
    parser.add_argument(
        "--training",
        choices=("auto", "never"),
        default=settings.worker_training,
        help="take jobs that train where PyTorch has been proven, or leave them to other workers (default: %(default)s)",
    )
    return parser


def _words(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        unknown = sorted(set(text.split(",")) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there is {', '.join(known)}")
        return text

    return read


def _targets(text: str) -> str:
    return text if text in {ALL, OWN} else _words(*engine.PROVIDER_NAMES)(text)


def _prepare(settings: Settings, asked: argparse.Namespace) -> Identity:
    """Find out what this worker can run, and wait until there is something for it to do."""
    workspaces = tasks.workspaces(settings)
    kinds = asked.queues.split(",")
    host, pid = socket.gethostname(), os.getpid()
    # Two machines of one name may have the same process ids.
    name = f"wrk_{host}_{pid}_{secrets.token_hex(3)}"
    while True:
        proof = _proof(workspaces, asked, settings) if _WORK in kinds else prove(workspaces, ())
        _check_isolation(proof, settings)
        runs = [name for target in proof.targets for name in run_queues(target)]
        queues = [INSPECT_QUEUE] * (INSPECT_QUEUE in kinds) + runs
        identity = Identity(name, host, pid, tuple(queues), asked.concurrency, proof)
        if runs or _WORK not in kinds:
            return identity
        _log.error("none of the targets `%s` runs here: %s", asked.targets, _reasons(proof))
        database = Database.from_settings(settings)
        tell(database, identity)
        database.dispose()
        time.sleep(_AGAIN_S)


def _check_isolation(proof: Proof, settings: Settings) -> None:
    """Refuse to work with walls that the operator finds too low."""
    if not proof.confinement.reaches(settings.isolation):
        sys.exit(
            f"onnxpress: ONNXPRESS_ISOLATION={settings.isolation}, but here a child reaches only `{proof.confinement.level}`: "
            f"{'; '.join(proof.confinement.missing)}. Run this worker where the kernel has Landlock and seccomp filters, or"
            " demand less."
        )


def _proof(workspaces: Path, asked: argparse.Namespace, settings: Settings) -> Proof:
    proof = prove(workspaces, trains=asked.training == "auto", devices=settings.isolation != "strict")
    proof = proof.taking(asked.targets)
    for one in proof.unavailable:
        if one["listed"]:
            _log.warning("the target %s is listed but does not run: %s", one["provider"], one["reason"])
    _log.info("takes jobs for %s", ", ".join(str(target["provider"]) for target in proof.targets) or "nothing")
    return proof


def _reasons(proof: Proof) -> str:
    return "; ".join(f"{one['provider']}: {one['reason']}" for one in proof.unavailable)


if __name__ == "__main__":
    sys.exit(main())
