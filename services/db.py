"""The database of one process: short transactions, and messages that are sent only after COMMIT."""

import fcntl
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from sqlalchemy import (
    URL,
    Connection,
    Dialect,
    Engine,
    ExceptionContext,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from services.errors import ServiceError
from settings import Settings
from settings.private_folder import private_folder

if TYPE_CHECKING:
    from alembic.config import Config

_log = logging.getLogger(__name__)
# Longest wait for another writer.
BUSY_S = 10
# What a transaction has locked on Postgres is freed when its process stood still for this long in the middle of it: a machine
# that is suspended, or a debugger. Ours take milliseconds. Those that hold a lock on purpose say that they do.
_IDLE_S = 60
# Installed beside this room.
_MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
_MESSAGES = "messages"
_AFTER_COMMIT = "after_commit"
_DATABASE = "database"
# SQLite's locks do not hold on these.
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs", "afs"}
)

# The class of SQLSTATE whose sentences quote what could not be stored.
_DATA_EXCEPTION = "22"
# Postgres' SQLSTATE for who was ended by `_IDLE_S`.
_STOOD_STILL = "25P03"
_MIGRATING = "migrate"
# Alembic's table of one row.
_REVISIONS = "alembic_version"

_MAY_STAND_STILL = text("SET LOCAL idle_in_transaction_session_timeout = 0")

RevisionState = Literal["empty", "older", "current", "newer"]


class RevisionError(ServiceError):
    """The database is not at the revision that this version of the service works with."""

    code = "database_revision"


@dataclass(frozen=True)
class Revision:
    """Where a database is in the history of revisions, and where this version of the service is."""

    found: str | None
    head: str
    state: RevisionState


class Publisher(Protocol):
    """Whoever can send a unit's message to its queue. It never raises: a lost message is sent again by the reconciler."""

    def publish(self, queue: str, unit_id: str) -> bool:
        """Send, and tell whether the broker took the message."""
        ...


class Database:
    """A write engine, a read engine, and the publisher of what transactions enqueue."""

    def __init__(self, url: str, publisher: Publisher | None = None) -> None:
        parsed = make_url(url)
        self.url = parsed
        self.publisher = publisher
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            _refuse_network_file_system(parsed)
            # One writer at a time in this process: waiting in our pool is fair, SQLite's own busy polling is not.
            self._writing = _engine(parsed, pool_size=1, max_overflow=0, pool_timeout=BUSY_S + 5)
            # One for each thread of the pool that reads: opening one costs more than what most reads do.
            self._reading = _engine(parsed, pool_size=40, max_overflow=10)
            _prepare_sqlite(self._writing, begin="BEGIN IMMEDIATE")
            _prepare_sqlite(self._reading, begin="BEGIN", read_only=True)
        else:
            self._writing = _engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_size=5,
                max_overflow=35,
                pool_pre_ping=True,
                connect_args={"connect_timeout": BUSY_S},
            )
            event.listen(self._writing, "connect", _free_what_stands_still)
            self._reading = self._writing
        _dispose_after_fork(self)

    @classmethod
    def from_settings(cls, settings: Settings, publisher: Publisher | None = None) -> "Database":
        """Open the database that the settings name."""
        return cls(settings.database, publisher)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Give a session, commit when the block ends, then send what it enqueued; an exception rolls all of it back.

        Only this commits. On SQLite the write lock is taken at the start, so a transaction never fails half way for it.
        """
        with Session(self._writing, expire_on_commit=False, info={_DATABASE: self}) as session:
            with session.begin():
                # Now, not at the first statement: what is read after this cannot change before the commit on SQLite.
                session.connection()
                yield session
            self._sent(session)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session that only reads; it waits for no writer on SQLite."""
        with Session(self._reading, expire_on_commit=False) as session:
            yield session

    def _sent(self, session: Session) -> None:
        for action in session.info.pop(_AFTER_COMMIT, ()):
            action()
        for queue, unit_id in session.info.pop(_MESSAGES, ()):
            if self.publisher is None or not self.publisher.publish(queue, unit_id):
                _log.warning("unit %s: message not sent, the reconciler will", unit_id)

    @property
    def dialect(self) -> Dialect:
        """What SQLAlchemy knows of this kind of database."""
        return self._writing.dialect

    def connect(self) -> Connection:
        """Give a plain connection, for migrations."""
        return self._writing.connect()

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold a named lock alone, for longer than a transaction may take; waits for whoever has it. A death frees it.

        Unlike `lock` it keeps no writer waiting on SQLite: there it is a lock on a file beside the database.
        """
        if self.is_sqlite:
            with self._lock_file(name) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
            return
        with self._writing.connect() as connection, connection.begin():
            # A transaction's lock rather than a session's: a pooler between us and the server may share sessions.
            connection.execute(_MAY_STAND_STILL)
            connection.execute(select(func.pg_advisory_xact_lock(_key_of(name))))
            yield
            # Raises where the connection, and the lock with it, was lost on the way.
            connection.execute(text("SELECT 1"))

    @contextmanager
    def sharing(self, name: str) -> Iterator[bool]:
        """Share a named lock with others that share it, and tell whether it was to be had: not while somebody holds it."""
        if self.is_sqlite:
            with self._lock_file(name) as file:
                yield _flocked(file)
            return
        with self._writing.connect() as connection, connection.begin():
            connection.execute(_MAY_STAND_STILL)
            yield bool(connection.scalar(select(func.pg_try_advisory_xact_lock_shared(_key_of(name)))))

    def _lock_file(self, name: str) -> IO[bytes]:
        return Path(f"{self.url.database}.{name}.lock").open("ab")

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Give a connection on which a table may be made anew and take another one's place.

        It commits when the block ends. On SQLite rows that refer to a table are in the way of that, so foreign keys are
        checked at the end instead.
        """
        with self.connect() as connection:
            # Before the transaction: inside one it changes nothing.
            driver = connection.connection.cursor()
            if self.is_sqlite:
                driver.execute("PRAGMA foreign_keys = OFF")
            try:
                yield connection
                if self.is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                    raise RuntimeError(
                        "The migration would leave rows that refer to what is not there; nothing was changed."
                    )
                connection.commit()
            finally:
                connection.rollback()
                if self.is_sqlite:
                    driver.execute("PRAGMA foreign_keys = ON")
                driver.close()

    def dispose(self, *, close: bool = True) -> None:
        """Close the pools; without `close` only forget them (after a fork they belong to the parent)."""
        for engine in {self._writing, self._reading}:
            engine.dispose(close=close)


def _engine(url: URL, **options: Any) -> Engine:
    """Make an engine whose errors say what went wrong with which statement, and not with whose data."""
    made = create_engine(url, hide_parameters=True, **options)
    event.listen(made, "handle_error", _hide_values)
    event.listen(made, "handle_error", _tell_that_it_was_lost)
    return made


def _free_what_stands_still(connection: Any, _record: object) -> None:
    """Have the server end a session that stands still inside a transaction."""
    connection.autocommit = True
    connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_S}s'")
    connection.autocommit = False


def _hide_values(context: ExceptionContext) -> None:
    """Leave what Postgres says of values out of an error: its detail names keys and rows, and bad data stand in the sentence itself."""
    original, told = context.original_exception, context.sqlalchemy_exception
    diagnosis = getattr(original, "diag", None)
    if diagnosis is None or diagnosis.message_primary is None:
        return
    said = str(original)
    state = diagnosis.sqlstate or ""
    sentence = "the data are not valid" if state.startswith(_DATA_EXCEPTION) else diagnosis.message_primary
    original.args = (f"{sentence} (SQLSTATE {state})",)
    if told is not None:
        told.args = tuple(word.replace(said, str(original)) if isinstance(word, str) else word for word in told.args)


def _tell_that_it_was_lost(context: ExceptionContext) -> None:
    """Raise OperationalError, as for any other lost connection, where the server ended one that stood still."""
    original = context.original_exception
    if getattr(original, "sqlstate", None) == _STOOD_STILL:
        context.is_disconnect = True
        raise OperationalError(context.statement, None, original, hide_parameters=True, connection_invalidated=True)


def enqueue(session: Session, queue: str, unit_id: str) -> None:
    """Have the unit's message sent once the transaction is committed; a rollback drops it."""
    session.info.setdefault(_MESSAGES, []).append((queue, unit_id))


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Have something done once the transaction is committed; a rollback drops it."""
    session.info.setdefault(_AFTER_COMMIT, []).append(action)


def database_of(session: Session) -> Database:
    """Give the database that the transaction belongs to."""
    found = session.info[_DATABASE]
    assert isinstance(found, Database)
    return found


def now(session: Session) -> datetime:
    """Give the time that all processes agree on: Postgres' clock, and on SQLite (one machine) our own."""
    if session.get_bind().dialect.name == "postgresql":
        told: datetime = session.scalars(select(func.clock_timestamp())).one()
        return told.astimezone(UTC)
    return datetime.now(UTC)


def is_postgres(session: Session) -> bool:
    """Tell which of the two databases this is."""
    return session.get_bind().dialect.name == "postgresql"


def lock(session: Session, name: str) -> None:
    """Hold a named lock until the transaction ends; on SQLite every write transaction holds the only lock there is."""
    if is_postgres(session):
        session.execute(select(func.pg_advisory_xact_lock(_key_of(name))))


def try_lock(session: Session, name: str) -> bool:
    """Take the named lock if it is free."""
    if not is_postgres(session):
        return True
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(_key_of(name)))))


def upgrade(settings: Settings) -> None:
    """Bring the settings' database to the newest revision, creating it where there is none."""
    if not settings.database_url:
        private_folder(settings.data_dir)
    database = Database.from_settings(settings)
    try:
        upgrade_database(database)
    finally:
        database.dispose()


def upgrade_database(database: Database, to: str = "head") -> None:
    """Bring an open database to a later revision; one process at a time. Raises RevisionError where it is newer than all."""
    from alembic import command  # noqa: PLC0415 - a process that only works on the tables loads none of it

    with database.holding(_MIGRATING), database.migrating() as connection:
        refuse_newer(_revision(connection))
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, to)


def revision(database: Database) -> Revision:
    """Tell at which revision a database is."""
    with database.reading() as session:
        return _revision(session.connection())


def check_revision(settings: Settings) -> None:
    """Raise RevisionError unless the settings' database is at the revision that this version works with.

    A database that is away is no reason to refuse: whoever needs it says so then.
    """
    database = Database.from_settings(settings)
    try:
        found = revision(database)
    except OperationalError as error:
        _log.warning("database not reached, its revision is not checked: %s", error.orig)
        return
    finally:
        database.dispose()
    refuse_newer(found)
    if found.state != "current":
        where = "has no tables yet" if found.found is None else f"is at revision {found.found}"
        raise RevisionError(f"The database {where}; this version needs {found.head}. Run `onnxpress-server migrate`.")


def refuse_newer(found: Revision) -> None:
    """Raise RevisionError for a database that a newer version has migrated."""
    if found.state == "newer":
        raise RevisionError(
            f"The database is at revision {found.found}, which this version does not know (it knows up to {found.head}):"
            " a newer version of onnxpress has migrated it. Start that version, or restore a backup from before."
        )


def _revision(connection: Connection) -> Revision:
    known = revisions()
    head = known[-1]
    has_table = inspect(connection).has_table(_REVISIONS)
    found = connection.scalar(text(f"SELECT version_num FROM {_REVISIONS}")) if has_table else None  # noqa: S608 - ours
    if found is None:
        return Revision(None, head, "empty")
    return Revision(found, head, "current" if found == head else "older" if found in known else "newer")


def revisions() -> list[str]:
    """Give all revisions, the newest last. Each one's file begins with its number; Alembic would have to import them all."""
    return sorted(path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def alembic_config() -> "Config":
    """Give Alembic's configuration from within the installed package; no file beside it is needed."""
    from alembic.config import Config  # noqa: PLC0415 - only who migrates needs it

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def ping(session: Session) -> None:
    """Raise where the database does not answer."""
    session.execute(text("SELECT 1"))


def _key_of(name: str) -> Any:
    return func.hashtextextended(name, 0)


def _flocked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prepare_sqlite(engine: Engine, *, begin: str, read_only: bool = False) -> None:
    def connected(connection: Any, _record: Any) -> None:
        # The driver would begin transactions by itself, deferred and late.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        if read_only:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def _dispose_after_fork(database: Database) -> None:
    seen = weakref.ref(database)

    def in_child() -> None:
        alive = seen()
        if alive is not None:
            alive.dispose(close=False)

    os.register_at_fork(after_in_child=in_child)


def _refuse_network_file_system(url: URL) -> None:
    mounts = Path("/proc/self/mountinfo")
    if not url.database or not mounts.exists():
        return
    path = Path(url.database).resolve()
    fields = [line.split(" - ") for line in mounts.read_text().splitlines()]
    types = {Path(left.split()[4]): right.split()[0] for left, right in fields}
    mount = max((point for point in types if path.is_relative_to(point)), key=lambda point: len(point.parts))
    if types[mount] in _NETWORK_FILE_SYSTEMS:
        raise ValueError(
            f"{path} is on {types[mount]}: SQLite is not safe on a network file system; use a local folder or Postgres"
        )
