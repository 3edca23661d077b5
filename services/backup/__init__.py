"""A copy of everything, taken while the service runs, and the way back.

The database is copied first, then the blobs that the copy names: a row is a promise that its bytes are there, and meanwhile
nobody removes bytes. A restore puts the bytes back first, each with its digest checked, and the rows last.
"""

import hashlib
import logging
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from services import db
from services.artifacts import REMOVING
from services.backup import snapshot
from services.backup.manifest import BlobName, Damage, Manifest
from services.backup.places import Place, open_place
from services.errors import BackupError, DigestMismatchError
from services.storage import Store

__all__ = ["BlobName", "Damage", "Manifest", "restore", "take"]

_log = logging.getLogger(__name__)


def take(database: db.Database, store: Store, path: Path, *, scratch: Path | None = None) -> Manifest:
    """Make a backup at a path: in a folder, or in a `.tar` file. Look at what the manifest says is damaged.

    `scratch` is a folder with room for the database's copy, by default the system's for temporary files.

    Raises BackupError, and RevisionError for a database of a newer version.
    """
    found = db.revision(database)
    if found.found is None:
        raise BackupError("The database has no tables: there is nothing to keep.")
    db.refuse_newer(found)
    place, moment = open_place(path), datetime.now(UTC)
    with database.holding(REMOVING), tempfile.TemporaryDirectory(prefix=".backup-", dir=scratch) as folder:
        copy = snapshot.take(database, Path(folder) / "database")
        name = f"database-{moment:%Y%m%dT%H%M%S%fZ}"
        place.add_database(name, copy.path)
        damaged = place.add_blobs(store, copy.blobs)
        manifest = Manifest(
            created_at=moment.isoformat(),
            version=metadata.version("onnxpress-server"),
            revision=found.found,
            kind=snapshot.kind(database),
            database=name,
            database_sha256=_digest(copy.path),
            blobs=copy.blobs,
            damaged=tuple(damaged),
        )
        place.complete(manifest)
    return manifest


def restore(
    database: db.Database, store: Store, path: Path, *, incomplete: bool = False, scratch: Path | None = None
) -> Manifest:
    """Put a backup into a database without rows and a store without foreign bytes, and bring it to this version's revision.

    Broken off, it may be run again. Raises BackupError, also for a backup that was made of a damaged store, unless
    `incomplete` says that it will do.
    """
    place = open_place(path)
    manifest = place.manifest()
    if manifest.damaged and not incomplete:
        raise BackupError(
            f"{len(manifest.damaged)} blobs were damaged when the backup was made, the first {manifest.damaged[0].sha256};"
            " restore the rest with --incomplete: what names them will be listed and not served."
        )
    _refuse_unless_empty(database, store, manifest)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=scratch) as folder:
        copy = Path(folder) / "database"
        if place.database(manifest.database, copy) != manifest.database_sha256:
            raise BackupError("The backup's database does not have the digest that its manifest names.")
        _restore_blobs(place, store, manifest)
        snapshot.load(database, copy)
    db.upgrade_database(database)
    return manifest


def _refuse_unless_empty(database: db.Database, store: Store, manifest: Manifest) -> None:
    if manifest.kind != snapshot.kind(database):
        raise BackupError(
            f"The backup is of a {manifest.kind} database, ONNXPRESS_DATABASE_URL names a {snapshot.kind(database)} one."
        )
    full = snapshot.rows(database)
    if full:
        raise BackupError(
            f"The database has rows ({', '.join(full)}): a backup is restored into an empty one. Name another with"
            " --data or ONNXPRESS_DATABASE_URL, or move this one away."
        )
    named = {(blob.tenant_id, blob.sha256) for blob in manifest.blobs}
    for found in store.blobs():
        if (found.tenant_id, found.sha256) not in named:
            raise BackupError(
                "The store has bytes that the backup does not name: a backup is restored into an empty one."
            )


def _restore_blobs(place: Place, store: Store, manifest: Manifest) -> None:
    damaged = {(damage.tenant_id, damage.sha256) for damage in manifest.damaged}
    for blob in manifest.blobs:
        if (blob.tenant_id, blob.sha256) not in damaged:
            _restore_blob(place, store, blob)


def _restore_blob(place: Place, store: Store, blob: BlobName) -> None:
    try:
        with store.writer(blob.tenant_id, limit=blob.size, size=blob.size, sha256=blob.sha256) as writer:
            for chunk in place.read(blob):
                writer.write(chunk)
            writer.finish()
            writer.place()
    except DigestMismatchError as error:
        raise BackupError(f"The backup's blob {blob.sha256} of the tenant {blob.tenant_id}: {error.message}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
