"""The database in one file, as it was at one moment, and back."""

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Connection, inspect, select, text

from models import Base, Blob
from services import db
from services.backup.manifest import BlobName, Kind
from services.errors import BackupError

# Where Debian keeps the programs of each version, besides PATH.
_DEBIAN = Path("/usr/lib/postgresql")
_VERSION_TABLE = "alembic_version"


@dataclass(frozen=True)
class Snapshot:
    """A database as it was at one moment: the file with all of it, and the blobs that it names."""

    path: Path
    blobs: tuple[BlobName, ...]


def kind(database: db.Database) -> Kind:
    """Tell which of the two databases this is."""
    return "sqlite" if database.is_sqlite else "postgresql"


def take(database: db.Database, path: Path) -> Snapshot:
    """Copy a database that is in use into a new file; nobody waits for it. Raises BackupError."""
    return _take_sqlite(database, path) if database.is_sqlite else _take_postgres(database, path)


def rows(database: db.Database) -> list[str]:
    """Name the tables that have rows."""
    with database.reading() as session:
        there = set(inspect(session.connection()).get_table_names())
        tables = [table for table in Base.metadata.sorted_tables if table.name in there]
        return [
            table.name for table in tables if session.execute(select(table.c[0]).select_from(table).limit(1)).first()
        ]


def load(database: db.Database, path: Path) -> None:
    """Put the copy in the place of a database without rows; raises BackupError."""
    if database.is_sqlite:
        _load_sqlite(database, path)
    else:
        _load_postgres(database, path)


def _take_sqlite(database: db.Database, path: Path) -> Snapshot:
    with closing(sqlite3.connect(str(database.url.database))) as source, closing(sqlite3.connect(path)) as copy:
        # All pages in one step: a step reads what one moment had, and writers go on beside it.
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode = DELETE")
        if copy.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            raise BackupError(f"The database {database.url.database} is damaged; PRAGMA integrity_check tells where.")
        blobs = tuple(BlobName(*row) for row in copy.execute("SELECT tenant_id, sha256, size FROM blob ORDER BY 1, 2"))
    path.chmod(0o600)
    return Snapshot(path, blobs)


def _load_sqlite(database: db.Database, path: Path) -> None:
    target = Path(str(database.url.database))
    # What a connection to the empty database left would be taken for the new one's.
    database.dispose()
    for suffix in ("-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    temporary = target.with_name(f".{target.name}.restored")
    shutil.copyfile(path, temporary)
    temporary.chmod(0o600)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


def _take_postgres(database: db.Database, path: Path) -> Snapshot:
    with database.connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            moment = str(connection.scalar(text("SELECT pg_export_snapshot()")))
            listed = connection.execute(
                select(Blob.tenant_id, Blob.sha256, Blob.size).order_by(Blob.tenant_id, Blob.sha256)
            )
            blobs = tuple(BlobName(*row) for row in listed)
            # Of that same moment: the dump has exactly the rows that were listed.
            options = ["--format=custom", f"--snapshot={moment}", f"--file={path}"]
            _run("pg_dump", connection, database, options)
    path.chmod(0o600)
    return Snapshot(path, blobs)


def _load_postgres(database: db.Database, path: Path) -> None:
    with database.connect() as connection:
        # Tables without rows, perhaps of another revision than the copy's: it brings its own.
        Base.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE IF EXISTS {_VERSION_TABLE}"))
        connection.commit()
        _run("pg_restore", connection, database, ["--single-transaction", "--exit-on-error", str(path)])


def _run(name: str, connection: Connection, database: db.Database, options: Sequence[str]) -> None:
    server = int(connection.connection.driver_connection.info.server_version) // 10000  # type: ignore[union-attr]
    connected = _connection_arguments(database)
    password = connected.pop("password", None)
    command = [str(find(name, server)), "--no-password", "--no-owner", "--no-privileges", *options]
    # The password stays out of the list of processes.
    env = os.environ | ({} if password is None else {"PGPASSWORD": str(password)})
    command.append(f"--dbname={psycopg.conninfo.make_conninfo(**connected)}")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackupError(f"{name} failed with exit code {done.returncode}: {done.stderr.strip()}")


def _connection_arguments(database: db.Database) -> dict[str, Any]:
    _, arguments = database.dialect.create_connect_args(database.url)
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    return {name: value for name, value in arguments.items() if name in known}


def find(name: str, server: int) -> Path:
    """Give the program of Postgres that fits the server: of its version, or of the next one that there is.

    Raises BackupError where there is none, or only older ones: they refuse newer servers.
    """
    found = sorted({(version, path) for path in _programs(name) if (version := _version_of(path)) is not None})
    for version, path in found:
        if version >= server:
            return path
    there = f"only of version {found[-1][0]} ({found[-1][1]})" if found else "not on PATH"
    raise BackupError(
        f"{name} is {there}, and the server is Postgres {server}: install the client programs of version {server} or later"
        f" (on Debian: postgresql-client-{server}) and have {name} on PATH."
    )


def _programs(name: str) -> Iterator[Path]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = Path(folder) / name
        if folder and path.is_file() and os.access(path, os.X_OK):
            yield path
    yield from _DEBIAN.glob(f"*/bin/{name}")


def _version_of(path: Path) -> int | None:
    done = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+)\.\d+", done.stdout)
    return int(found.group(1)) if done.returncode == 0 and found else None
