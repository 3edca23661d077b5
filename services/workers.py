"""Who works and what they can run."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

import engine
from models import Unit, UnitStatus, Worker
from services import db
from services.errors import RejectedError
from services.routing import can_train, provider_of, run_queues, target_classes

State = Literal["live", "draining", "gone"]
# A worker that was silent for so long does not count as live.
LIVE = timedelta(seconds=60)
# A job may wait for a target that was seen in this time.
SEEN = timedelta(days=7)
# Workers that are gone are listed for so long, and no longer remembered where others had their targets later.
_LISTED = timedelta(hours=1)


@dataclass(frozen=True)
class Seen:
    """A worker as it is now: what it told of itself, whether it still lives, and how many units it works on."""

    worker: Worker
    state: State
    busy: int


def heartbeat(
    session: Session,
    worker_id: str,
    *,
    host: str,
    pid: int,
    queues: Sequence[str],
    concurrency: int,
    targets: Sequence[dict[str, Any]],
    isolation: str,
    unavailable: Sequence[dict[str, Any]] = (),
    cores: int = 0,
    draining: bool = False,
) -> None:
    """Note a sign of life and what the worker can run, or that it takes no more units."""
    db.lock(session, f"worker {worker_id}")
    moment = db.now(session)
    row = session.get(Worker, worker_id)
    if row is None:
        row = Worker(id=worker_id, started_at=moment)
        session.add(row)
    row.host, row.pid, row.queues, row.concurrency, row.cores = host, pid, list(queues), concurrency, cores
    row.targets, row.unavailable = list(targets), list(unavailable)
    row.target_classes = target_classes(targets)
    row.isolation, row.seen_at = isolation, moment
    row.state = "draining" if draining else "live"


def leave(session: Session, worker_id: str) -> None:
    """Note that one of a worker's processes has stopped; it is gone with its last unit, but its targets were seen."""
    row = session.get(Worker, worker_id)
    if row is not None:
        row.state = "draining" if _busy(session)[worker_id] else "gone"


def live(session: Session) -> list[Worker]:
    """Give the workers with a recent sign of life that take units."""
    moment = db.now(session)
    return [worker for worker in session.scalars(_seen_since(moment - LIVE)) if _state(worker, moment) == "live"]


def listed(session: Session) -> list[Seen]:
    """Give the workers of the last hour, those that live first."""
    moment, busy = db.now(session), _busy(session)
    found = [
        Seen(worker, _state(worker, moment), busy[worker.id])
        for worker in session.scalars(_seen_since(moment - _LISTED))
    ]
    order: tuple[State, ...] = ("live", "draining", "gone")
    return sorted(found, key=lambda seen: (order.index(seen.state), seen.worker.id))


def targets(session: Session) -> list[dict[str, Any]]:
    """Give what workers of the last days can run, each once: whether one lives, their slots, how many are busy with it."""
    moment = db.now(session)
    busy = _busy_by_queue(session)
    found: dict[str, dict[str, Any]] = {}
    for worker in session.scalars(_seen_since(moment - SEEN)):
        is_live = _state(worker, moment) == "live"
        for target in worker.targets:
            none = {"live": False, "workers": 0, "slots": 0, "busy": 0, "seen_at": worker.seen_at}
            entry = found.setdefault(json.dumps(target, sort_keys=True), {**target, **none})
            entry["seen_at"] = max(entry["seen_at"], worker.seen_at)
            entry["busy"] += sum(busy[worker.id, name] for name in run_queues(target))
            if is_live:
                entry["live"] = True
                entry["workers"] += 1
                entry["slots"] += worker.concurrency
    return sorted(found.values(), key=lambda entry: (not entry["live"], str(entry.get("provider"))))


def unavailable(session: Session) -> list[dict[str, Any]]:
    """Give what live workers have not proven, each with the reason and who says so; first what a runtime claims to have."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for worker in live(session):
        for told in worker.unavailable:
            name = (str(told.get("provider")), str(told.get("reason")))
            entry = found.setdefault(name, {"provider": name[0], "reason": name[1], "listed": False, "workers": []})
            entry["listed"] = entry["listed"] or bool(told.get("listed"))
            entry["workers"].append(worker.id)
    return sorted(found.values(), key=lambda entry: (not entry["listed"], entry["provider"], entry["reason"]))


def has_live(session: Session, queue: str, target_class: str | None = None) -> bool:
    """Tell whether a live worker listens to a queue, and is of a class of machines where one is asked for."""
    return any(
        queue in worker.queues and (target_class is None or target_class in worker.target_classes)
        for worker in live(session)
    )


def slots(session: Session, provider: str, target_class: str | None) -> int:
    """Give how many units for a provider live workers take at a time, those of one class of machines where one is asked for."""
    return sum(
        worker.concurrency
        for worker in live(session)
        if any(provider_of(name) == provider for name in worker.queues)
        and (target_class is None or target_class in worker.target_classes)
    )


def check_target(session: Session, provider: str) -> None:
    """Raise RejectedError for a provider that no worker had in the last days; `cpu` is always accepted."""
    if provider == "cpu":
        return
    known = sorted({"cpu", *(str(target.get("provider")) for target in targets(session))})
    if provider in known:
        return
    hint = f"There is {', '.join(f'`{name}`' for name in known)}."
    told = next((one for one in unavailable(session) if one["listed"] and one["provider"] == provider), None)
    if told is not None:
        hint += f" A worker's runtime lists `{provider}`, but it does not run there: {told['reason']}"
    raise RejectedError(
        f"No worker has had the target `{provider}` in the last {SEEN.days} days.",
        code="target_unavailable",
        hint=hint,
        problem={"targets": known},
    )


def trains(session: Session, spec: "engine.Spec") -> bool:
    """Tell whether a job that trained would find workers for its targets: of the last days, and with PyTorch.

    Before the first worker of a target has come nobody knows, and the job would wait as any other.
    """
    return all(_trains(session, target.provider) for target in engine.targets_of(spec))


def _trains(session: Session, provider: str) -> bool:
    known = [target for target in targets(session) if target.get("provider") == provider]
    return not known or any(map(can_train, known))


def check_training(session: Session, spec: "engine.Spec") -> None:
    """Raise RejectedError for a job that trains, where no worker of its targets had PyTorch in the last days."""
    index = engine.first_training_step(spec)
    if index is None:
        return
    for target in engine.targets_of(spec):
        if not _trains(session, target.provider):
            raise RejectedError(
                f"Step {index} ({engine.steps_of(spec)[index]}) trains the network, and no worker for `{target.provider}` has"
                f" had PyTorch in the last {SEEN.days} days.",
                code="training_unavailable",
                hint=f"{engine.TRAINING_HINT}, and start that worker anew.",
                problem={"step": index},
            )


def expire(session: Session) -> None:
    """Forget workers that nobody has seen for long, and sooner those whose targets others had later."""
    moment = db.now(session)
    session.execute(delete(Worker).where(Worker.seen_at < moment - SEEN))
    covered: set[tuple[str, bool]] = set()
    for worker in session.scalars(_seen_since(moment - SEEN).order_by(None).order_by(Worker.seen_at.desc())).all():
        had = {(str(target.get("provider")), can_train(target)) for target in worker.targets}
        if worker.seen_at < moment - _LISTED and had <= covered:
            session.delete(worker)
        covered |= had | {(provider, False) for provider, _ in had}


def _state(worker: Worker, moment: datetime) -> State:
    if worker.state == "gone" or worker.seen_at <= moment - LIVE:
        return "gone"
    return "draining" if worker.state == "draining" else "live"


def _busy(session: Session) -> Counter[str]:
    total: Counter[str] = Counter()
    for (worker_id, _), number in _busy_by_queue(session).items():
        total[worker_id] += number
    return total


def _busy_by_queue(session: Session) -> Counter[tuple[str, str]]:
    running = select(Unit.worker_id, Unit.queue, func.count()).where(Unit.status == UnitStatus.RUNNING)
    asked = session.execute(running.group_by(Unit.worker_id, Unit.queue))
    return Counter({(str(worker_id), name): number for worker_id, name, number in asked})


def _seen_since(moment: datetime) -> Any:
    return select(Worker).where(Worker.seen_at > moment).order_by(Worker.id)
