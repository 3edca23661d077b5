"""Who works and what they can run."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from models import Worker
from services import db
from services.errors import RejectedError

# A worker that was silent for so long does not count as live.
LIVE = timedelta(seconds=60)
# A job may wait for a target that was seen in this time.
SEEN = timedelta(days=7)


def heartbeat(
    session: Session,
    worker_id: str,
    *,
    host: str,
    pid: int,
    queues: list[str],
    concurrency: int,
    targets: list[dict[str, Any]],
    isolation: str,
) -> None:
    """Note a sign of life and what the worker can run."""
    db.lock(session, f"worker {worker_id}")
    moment = db.now(session)
    row = session.get(Worker, worker_id)
    if row is None:
        row = Worker(id=worker_id, started_at=moment)
        session.add(row)
    row.host, row.pid, row.queues, row.concurrency = host, pid, queues, concurrency
    row.targets, row.isolation, row.seen_at = targets, isolation, moment


def leave(session: Session, worker_id: str) -> None:
    """Note that a worker has stopped: it is no longer live, but its targets were seen."""
    row = session.get(Worker, worker_id)
    if row is not None:
        row.seen_at = min(row.seen_at, db.now(session) - LIVE)


def live(session: Session) -> list[Worker]:
    """Give the workers with a recent sign of life."""
    return list(session.scalars(_seen_since(db.now(session) - LIVE)))


def targets(session: Session) -> list[dict[str, Any]]:
    """Give what workers of the last days can run, each once, with `live` and the time it was last seen."""
    moment = db.now(session)
    found: dict[str, dict[str, Any]] = {}
    for worker in session.scalars(_seen_since(moment - SEEN)):
        for target in worker.targets:
            name = repr(sorted((key, str(value)) for key, value in target.items()))
            entry = found.setdefault(name, {**target, "live": False, "workers": 0, "seen_at": worker.seen_at})
            entry["seen_at"] = max(entry["seen_at"], worker.seen_at)
            if worker.seen_at > moment - LIVE:
                entry["live"] = True
                entry["workers"] += 1
    return sorted(found.values(), key=lambda entry: (not entry["live"], str(entry.get("provider"))))


def check_target(session: Session, provider: str) -> None:
    """Raise RejectedError for a provider that no worker had in the last days; `cpu` is always accepted."""
    if provider == "cpu":
        return
    known = sorted({"cpu", *(str(target.get("provider")) for target in targets(session))})
    if provider not in known:
        raise RejectedError(
            f"No worker has had the target `{provider}` in the last {SEEN.days} days.",
            code="target_unavailable",
            hint=f"There is {', '.join(f'`{name}`' for name in known)}.",
        )


def expire(session: Session) -> None:
    """Forget workers that nobody has seen for long."""
    session.execute(delete(Worker).where(Worker.seen_at < db.now(session) - SEEN))


def _seen_since(moment: datetime) -> Any:
    return select(Worker).where(Worker.seen_at > moment).order_by(Worker.id)
