"""What operators do, each as a verb of `onnxpress-server`: it says what it did, and gives an exit code."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from services import backup as backups
from services import db
from services.errors import NotFoundError
from services.storage import open_store
from settings import Settings
from standalone.serve import lock


def api(_asked: argparse.Namespace) -> int:
    """Run the HTTP edge."""
    from api.__main__ import main as run  # noqa: PLC0415 - a verb that needs no web framework loads none

    run()
    return 0


def worker(words: Sequence[str]) -> int:
    """Run a worker."""
    from worker.__main__ import main as run  # noqa: PLC0415 - a verb that needs no queue loads none

    return run(list(words))


def migrate(asked: argparse.Namespace) -> int:
    """Bring the database to this version's revision."""
    settings = _settings(asked)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(settings, is_new=True) as database:
        before = db.revision(database)
        db.upgrade_database(database)
        after = db.revision(database)
    was = "from nothing" if before.found is None else f"from {before.found}"
    print(f"revision {after.found}" + (", as before" if before.found == after.found else f" ({was})"))
    return 0


def backup(asked: argparse.Namespace) -> int:
    """Make a backup; 1 where stored bytes were damaged or missing: everything else is in it."""
    settings = _settings(asked)
    with _opened(settings) as database:
        made = backups.take(database, open_store(settings), asked.path)
    for damage in made.damaged:
        print(f"damaged: blob {damage.sha256} of tenant {damage.tenant_id}: {damage.reason}", file=sys.stderr)
    print(f"{asked.path}: {made.kind} at revision {made.revision}, {len(made.blobs)} blobs, {made.size} bytes")
    if made.damaged:
        print("Upload the damaged files again, or delete what names them, then back up again.", file=sys.stderr)
    return 1 if made.damaged else 0


def restore(asked: argparse.Namespace) -> int:
    """Put a backup into an empty database and store."""
    settings = _settings(asked)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock(settings.data_dir), _opened(settings, is_new=True) as database:
        found = backups.restore(database, open_store(settings), asked.path, incomplete=asked.incomplete)
    print(f"restored {len(found.blobs) - len(found.damaged)} blobs, {found.size} bytes, each with its digest checked")
    print(f"the database is as it was at {found.created_at}; jobs that ran then will run again")
    return 0


def _settings(asked: argparse.Namespace) -> Settings:
    return Settings(data_dir=asked.data)


@contextmanager
def _opened(settings: Settings, *, is_new: bool = False) -> Iterator[db.Database]:
    database = db.Database.from_settings(settings)
    file = Path(database.url.database or "")
    if database.is_sqlite and not is_new and not file.is_file():
        # To open it would make it.
        raise NotFoundError(f"There is no database {file}; name its folder with --data, or set ONNXPRESS_DATABASE_URL.")
    try:
        yield database
    finally:
        database.dispose()
