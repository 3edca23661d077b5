"""Whether the service's parts do what it needs of them: each finding says what is wrong and what to do."""

import hashlib
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

import engine
from models import ApiKey, Chore, Unit, UnitStatus
from services import db, workers
from services.backup import snapshot
from services.errors import BackupError, ServiceError
from services.publisher import BrokerPublisher
from services.routing import INSPECT_QUEUE, is_train_queue
from services.storage import open_store
from settings import Settings

State = Literal["ok", "warning", "problem"]
# Leases live on the database's clock; keys expire by ours.
_SKEW_WARNING_S = 1.0
_SKEW_PROBLEM_S = 10.0
_FREE_WARNING = 10 << 30
_FREE_PROBLEM = 1 << 30
# Retention comes every hour; so long without it nobody reconciles either.
_RETENTION_LATE = timedelta(hours=3)
_PROBE_TENANT = "probe"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what to do about it."""

    check: str
    state: State
    message: str
    advice: str | None = None


def database(settings: Settings) -> Iterator[Finding]:
    """Look at the connection, the revision, whether what is committed survives a power cut, and the clock."""
    try:
        opened = db.Database.from_settings(settings)
    except ValueError as error:
        yield Finding("database", "problem", str(error))
        return
    try:
        found = db.revision(opened)
        with opened.reading() as session:
            yield _version(session)
            yield _revision(found)
            yield from _durability(session)
            yield _clock(session)
            yield from _backup_program(opened, session)
    except SQLAlchemyError as error:
        told = str(getattr(error, "orig", error)).strip()
        yield Finding(
            "database", "problem", f"It does not answer: {told}", "Start it, or correct ONNXPRESS_DATABASE_URL."
        )
    finally:
        opened.dispose()


def _version(session: Session) -> Finding:
    if db.is_postgres(session):
        return Finding("database", "ok", f"Postgres {session.scalar(text('SHOW server_version'))}")
    return Finding("database", "ok", f"SQLite {session.scalar(text('SELECT sqlite_version()'))}")


def _revision(found: db.Revision) -> Finding:
    where = f"revision {found.found}, this version needs {found.head}"
    if found.state == "current":
        return Finding("revision", "ok", f"revision {found.found}")
    if found.state == "newer":
        return Finding("revision", "problem", where, "Install the version of onnxpress that migrated it.")
    return Finding("revision", "problem", where, "Run `onnxpress-server migrate`.")


def _durability(session: Session) -> Iterator[Finding]:
    if db.is_postgres(session):
        asked = ("fsync", "full_page_writes", "synchronous_commit")
        off = [name for name in asked if session.scalar(text(f"SHOW {name}")) == "off"]
        advice = "Turn on in postgresql.conf: without it a power cut loses what was acknowledged."
    else:
        synchronous = session.scalar(text("PRAGMA synchronous"))
        mode = session.scalar(text("PRAGMA journal_mode"))
        off = [f"{name}={value}" for name, value, right in
               (("synchronous", synchronous, 2), ("journal_mode", mode, "wal")) if value != right]  # fmt: skip
        advice = "Put the database on a local file system that can do shared memory."
    if off:
        yield Finding("durability", "problem", f"not in force: {', '.join(off)}", advice)
    else:
        yield Finding("durability", "ok", "what is committed is on disk")


def _clock(session: Session) -> Finding:
    if not db.is_postgres(session):
        return Finding("clock", "ok", "the database's clock is this machine's")
    before = datetime.now(UTC)
    there = db.now(session)
    after = datetime.now(UTC)
    skew = (there - (before + (after - before) / 2)).total_seconds()
    told = f"the database's clock is {abs(skew):.3f} s {'ahead' if skew > 0 else 'behind'}"
    if abs(skew) < _SKEW_WARNING_S:
        return Finding("clock", "ok", told)
    state: State = "problem" if abs(skew) >= _SKEW_PROBLEM_S else "warning"
    return Finding("clock", state, told, "Run an NTP client on this machine and on the database's.")


def _backup_program(opened: db.Database, session: Session) -> Iterator[Finding]:
    if opened.is_sqlite:
        return
    server = int(session.scalar(text("SHOW server_version_num")) or 0) // 10000
    try:
        path = snapshot.find("pg_dump", server)
    except BackupError as error:
        yield Finding(
            "pg_dump", "warning", error.message, "Needed where `onnxpress-server backup` is to run, only there."
        )
    else:
        yield Finding("pg_dump", "ok", str(path))


def broker(settings: Settings) -> Iterator[Finding]:
    """Look at the connection, at a message's way there and back, and at what the broker may forget."""
    publisher = BrokerPublisher(settings)
    started = time.monotonic()
    told = publisher.probe()
    seconds = time.monotonic() - started
    publisher.close()
    if told is None:
        yield Finding("broker", "problem", "It does not answer.", "Start it (`onnxpress-server serve` brings one), or correct ONNXPRESS_BROKER_URL.")  # fmt: skip
        return
    version = told.get("valkey_version") or told.get("redis_version") or "of unknown version"
    yield Finding("broker", "ok", f"{version}, a message there and back in {1000 * seconds:.0f} ms with the connection")
    policy = told.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding("broker_memory", "warning", f"maxmemory-policy is {policy}", "Set noeviction: messages that it evicts come late.")  # fmt: skip


def store(settings: Settings) -> Iterator[Finding]:
    """Have bytes written, read and removed; look at the room that is left on this machine."""
    content = f"A probe of `onnxpress-server doctor`. {secrets.token_hex(8)}".encode()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        opened = open_store(settings)
        opened.put(_PROBE_TENANT, [content], limit=len(content))
        same = b"".join(opened.read(_PROBE_TENANT, sha256)) == content
        opened.remove(_PROBE_TENANT, sha256)
        gone = not opened.exists(_PROBE_TENANT, sha256)
    except (ServiceError, OSError) as error:
        yield Finding("store", "problem", f"A probe failed: {error}", "See that its folder or bucket is there and ours to write.")  # fmt: skip
        return
    where = settings.store_url or str(settings.data_dir / "store")
    if same and gone:
        yield Finding("store", "ok", f"{where}: written, read and removed")
    else:
        yield Finding("store", "problem", f"{where}: a probe was {'not removed' if same else 'read back otherwise'}", "Use a store that reads what was written.")  # fmt: skip
    yield _disk(settings)


def _disk(settings: Settings) -> Finding:
    usage = shutil.disk_usage(settings.data_dir)
    told = f"{usage.free / (1 << 30):.1f} GiB of {usage.total / (1 << 30):.1f} GiB are free at {settings.data_dir}"
    advice = "Uploads and jobs need room there: make some, or set the keep_ settings."
    if usage.free < _FREE_PROBLEM:
        return Finding("disk", "problem", told, advice)
    return Finding("disk", "warning" if usage.free < _FREE_WARNING else "ok", told, advice if usage.free < _FREE_WARNING else None)  # fmt: skip


def work(settings: Settings) -> Iterator[Finding]:
    """Look at who works, what waits for somebody who does not, who may ask, and whether somebody cleans up."""
    opened = db.Database.from_settings(settings)
    try:
        if db.revision(opened).state != "current":
            return
        with opened.reading() as session:
            yield from _workers(session)
            yield _keys(session)
            yield from _retention(session)
    except SQLAlchemyError:
        # `database` tells of it.
        return
    finally:
        opened.dispose()


def _workers(session: Session) -> Iterator[Finding]:
    live = workers.live(session)
    queues = {name for worker in live for name in worker.queues}
    if not live:
        yield Finding("workers", "problem", "No worker lives.", "Start one: `onnxpress-server worker`.")
    else:
        slots = sum(worker.concurrency for worker in live)
        yield Finding(
            "workers", "ok", f"{len(live)} live, {slots} units at the same time, on {', '.join(sorted(queues))}"
        )
    asked = select(Unit.queue, func.count()).where(Unit.status == UnitStatus.QUEUED).group_by(Unit.queue)
    waiting = {row[0]: int(row[1]) for row in session.execute(asked)}
    if live and INSPECT_QUEUE not in queues:
        waiting.setdefault(INSPECT_QUEUE, 0)
    for name in sorted(waiting.keys() - queues) if live else ():
        told = f"{waiting[name]} units wait in {name}, which no live worker listens to"
        start = "Start a worker for it: see `onnxpress-server worker --help`."
        yield Finding("queues", "problem", told, f"{engine.TRAINING_HINT}. {start}" if is_train_queue(name) else start)


def _keys(session: Session) -> Finding:
    moment = datetime.now(UTC)
    valid: list[Any] = [
        key
        for key in session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)))
        if key.expires_at is None or key.expires_at > moment
    ]
    admins = sum("admin" in key.scopes for key in valid)
    told = f"{len(valid)} valid keys, {admins} of them may administer"
    if admins:
        return Finding("keys", "ok", told)
    return Finding("keys", "problem", told, "Make one: `onnxpress-server keys create --scope admin`.")


def _retention(session: Session) -> Iterator[Finding]:
    last = session.scalar(select(func.max(Chore.done_at)))
    if last is None:
        return
    since = db.now(session) - last
    if since > _RETENTION_LATE:
        told = f"nobody has looked at what is to be removed for {since}"
        yield Finding("retention", "warning", told, "It runs in every API and worker process: see their logs.")
    else:
        yield Finding("retention", "ok", "what is to be removed was looked at in the last hours")
