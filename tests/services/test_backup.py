"""A backup holds everything that its database lists, and a restore gives all of it back or says what is missing."""

import hashlib
import json
import os
import stat
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from models import Artifact, Blob
from services import artifacts, backup, catalog, db, jobs
from services.backup import snapshot
from services.errors import BackupError
from services.storage import Folder, Stored

TENANT = "default"


@pytest.fixture(autouse=True)
def _programs_of_postgres(postgres_programs, monkeypatch):
    monkeypatch.setenv("PATH", f"{postgres_programs}:{os.environ['PATH']}")


@pytest.fixture
def empty(service, request, tmp_path):
    """An empty database of the service's kind, and an empty store."""
    if service.database.is_sqlite:
        url = f"sqlite:///{tmp_path / 'restored.db'}"
    else:
        url = request.getfixturevalue("empty_postgres_url")
    database = db.Database(url)
    yield database, Folder(tmp_path / "restored")
    database.dispose()


@pytest.fixture(params=["folder", "tar"])
def place(request, tmp_path):
    return tmp_path / ("backup" if request.param == "folder" else "backup.tar")


def _full(service):
    """Two networks, data, a job with its result, and a job that waits."""
    model, data = service.ready_model(), service.ready_dataset()
    service.submit(service.request(model, data))
    assert service.finish(service.claim())
    service.submit(service.request(model, data))
    service.upload(content=b"")


def damage(store, blob):
    """Have other bytes of the same size under the blob's digest."""
    if isinstance(store, Folder):
        store.path(TENANT, blob.sha256).write_bytes(b"x" * blob.size)
    else:
        store.send(TENANT, Stored(blob.sha256, blob.size), b"x" * blob.size)


def _listed(database):
    with database.reading() as session:
        return {
            (found.tenant_id, found.digest): {file.path: file.sha256 for file in found.files}
            for found in session.scalars(select(Artifact))
        }


def _assert_all_served(database, store):
    for (tenant_id, _), files in _listed(database).items():
        for sha256 in files.values():
            assert hashlib.sha256(b"".join(store.read(tenant_id, sha256))).hexdigest() == sha256


def test_what_was_there_is_there_again(service, place, empty):
    _full(service)
    made = backup.take(service.database, service.store, place)
    assert made.damaged == ()
    assert len(made.blobs) == 6
    database, store = empty
    backup.restore(database, store, place)
    assert _listed(database) == _listed(service.database)
    _assert_all_served(database, store)
    assert db.revision(database).state == "current"
    with database.reading() as session:
        statuses = {job.id: job.status for job in jobs.list_jobs(session, TENANT)}
    assert statuses == {job.id: job.status for job in service.read(lambda session: jobs.list_jobs(session, TENANT))}
    # It goes on from there: the job that waited is taken.
    with database.transaction() as session:
        artifacts.known_blob(session, store, TENANT, hashlib.sha256(b"").hexdigest())


def test_nobody_else_can_read_it(service, place):
    _full(service)
    backup.take(service.database, service.store, place)
    for path in [place, *place.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.is_dir(), path
    assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0


def test_a_second_backup_takes_only_what_is_new_and_drops_what_is_gone(service, tmp_path):
    gone = service.ready_model()
    _full(service)
    first = backup.take(service.database, service.store, tmp_path / "b")
    kept = {path: path.stat().st_ino for path in (tmp_path / "b" / "blobs").rglob("*") if path.is_file()}
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, gone.id))
    service.upload(content=b"new")
    second = backup.take(service.database, service.store, tmp_path / "b")
    there = {path: path.stat().st_ino for path in (tmp_path / "b" / "blobs").rglob("*") if path.is_file()}
    assert {path.name for path in there} == {blob.sha256 for blob in second.blobs}
    assert len(kept.keys() - there.keys()) == 1
    assert len(there.keys() - kept.keys()) == 1
    assert all(there[path] == kept[path] for path in there.keys() & kept.keys())
    assert len(list((tmp_path / "b").glob("database-*"))) == 1
    assert first.database != second.database


def test_a_damaged_blob_of_an_earlier_backup_is_copied_again(service, empty, tmp_path):
    _full(service)
    made = backup.take(service.database, service.store, tmp_path / "b")
    blob = max(made.blobs, key=lambda blob: blob.size)
    Folder(tmp_path / "b").path(blob.tenant_id, blob.sha256).write_bytes(b"bit rot")
    with pytest.raises(BackupError, match=blob.sha256):
        backup.restore(*empty, tmp_path / "b")
    backup.take(service.database, service.store, tmp_path / "b")
    backup.restore(*empty, tmp_path / "b")
    _assert_all_served(*empty)


def test_damage_in_the_store_is_told_and_costs_only_itself(service, place, empty):
    _full(service)
    bad, missing = service.read(lambda session: session.scalars(select(Blob).where(Blob.size > 0).limit(2)).all())
    damage(service.store, bad)
    service.store.remove(TENANT, missing.sha256)
    made = backup.take(service.database, service.store, place)
    assert {damage.sha256 for damage in made.damaged} == {bad.sha256, missing.sha256}
    database, store = empty
    with pytest.raises(BackupError, match="--incomplete"):
        backup.restore(database, store, place)
    backup.restore(database, store, place, incomplete=True)
    assert {found.sha256 for found in store.blobs()} == {blob.sha256 for blob in made.blobs} - {
        bad.sha256,
        missing.sha256,
    }


def test_a_tampered_backup_is_refused(service, empty, tmp_path):
    _full(service)
    made = backup.take(service.database, service.store, tmp_path / "b")
    file = tmp_path / "b" / made.database
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(BackupError, match="digest"):
        backup.restore(*empty, tmp_path / "b")
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(BackupError, match="no complete backup"):
        backup.restore(*empty, tmp_path / "b")


def test_a_tar_that_was_cut_off_is_refused(service, empty, tmp_path):
    _full(service)
    backup.take(service.database, service.store, tmp_path / "b.tar")
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(BackupError, match=r"no complete backup|has no manifest"):
        backup.restore(*empty, tmp_path / "cut.tar")


def test_the_manifest_names_what_the_tar_has(service, tmp_path):
    _full(service)
    backup.take(service.database, service.store, tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as tar:
        names = tar.getnames()
        told = json.load(tar.extractfile("manifest.json"))
    assert set(names) == {
        "manifest.json",
        told["database"],
        *(f"blobs/{tenant}/{sha256[:2]}/{sha256}" for tenant, sha256, _ in told["blobs"]),
    }
    assert names[-1] == "manifest.json"


def test_only_an_empty_target_is_restored_into(service, place, empty, tmp_path):
    _full(service)
    backup.take(service.database, service.store, place)
    with pytest.raises(BackupError, match="has rows"):
        backup.restore(service.database, service.store, place)
    database, store = empty
    store.put(TENANT, [b"somebody else's"], limit=100)
    with pytest.raises(BackupError, match="does not name"):
        backup.restore(database, store, place)
    other = db.Database(f"sqlite:///{tmp_path / 'new.db'}") if not service.database.is_sqlite else None
    if other is not None:
        with pytest.raises(BackupError, match="names a sqlite one"):
            backup.restore(other, store, place)
        other.dispose()


def test_tables_without_rows_are_empty(service, place, empty):
    _full(service)
    backup.take(service.database, service.store, place)
    database, store = empty
    db.upgrade_database(database)
    backup.restore(database, store, place)
    assert _listed(database) == _listed(service.database)


def test_a_restore_that_was_broken_off_is_run_again(service, place, empty):
    _full(service)
    backup.take(service.database, service.store, place)
    database, store = empty
    store.put(TENANT, service.store.read(TENANT, hashlib.sha256(b"small").hexdigest()), limit=100)
    backup.restore(database, store, place)
    _assert_all_served(database, store)


def test_folders_and_files_of_others_stay_as_they_are(service, tmp_path):
    with pytest.raises(BackupError, match="something else"):
        backup.take(service.database, service.store, tmp_path / "store")
    (tmp_path / "there.tar").write_text("mine")
    with pytest.raises(BackupError, match="exists"):
        backup.take(service.database, service.store, tmp_path / "there.tar")
    assert (tmp_path / "there.tar").read_text() == "mine"


def test_no_bytes_are_removed_while_a_backup_reads_and_later_they_are(service):
    model = service.ready_model(content=b"to go")
    sha256 = hashlib.sha256(b"to go").hexdigest()
    with service.database.holding(artifacts.REMOVING):
        service.write(lambda session: catalog.delete_model(session, service.store, TENANT, model.id))
        assert service.store.exists(TENANT, sha256)
        assert artifacts.sweep(service.database, service.store, before=time.time() + 1) == 0
    assert service.store.exists(TENANT, sha256)
    assert artifacts.sweep(service.database, service.store, before=time.time() - 3600) == 0
    assert artifacts.sweep(service.database, service.store, before=time.time() + 1) == 1
    assert not service.store.exists(TENANT, sha256)


def test_the_sweep_leaves_what_a_row_names(service):
    _full(service)
    before = service.stored()
    assert artifacts.sweep(service.database, service.store, before=time.time() + 1) == 0
    assert service.stored() == before


def test_uploads_and_deletions_beside_backups_cost_nothing(service, request, tmp_path):
    """Threads that upload and delete all the time; each backup that is taken meanwhile is whole."""
    stopped = threading.Event()

    def churn(number):
        turn = 0
        while not stopped.is_set():
            model = service.upload(content=f"{number} {turn % 5}".encode() * 1000)
            claim_of(model)
            service.write(lambda session, one=model.id: catalog.delete_model(session, service.store, TENANT, one))
            turn += 1

    def claim_of(model):
        def ready(session):
            row = artifacts.get_model(session, TENANT, model.id)
            artifacts.accept(session, row, {})

        service.write(ready)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            made = backup.take(service.database, service.store, tmp_path / f"b{number}")
            assert made.damaged == ()
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def test_the_program_of_postgres_must_be_new_enough(monkeypatch, tmp_path):
    def program(folder, version):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "pg_dump"
        path.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}'\n")
        path.chmod(0o700)
        return path

    old, fits, new = program("a", "14.2"), program("b", "17.1"), program("c", "19.0 (Debian)")
    monkeypatch.setattr(snapshot, "_DEBIAN", Path("/nowhere"))
    monkeypatch.setenv("PATH", os.pathsep.join(str(path.parent) for path in (new, old, fits)))
    assert snapshot.find("pg_dump", 16) == fits
    assert snapshot.find("pg_dump", 17) == fits
    with pytest.raises(BackupError, match=r"only of version 19 .*postgresql-client-20"):
        snapshot.find("pg_dump", 20)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match=r"not on PATH.*postgresql-client-16"):
        snapshot.find("pg_dump", 16)


def test_no_password_in_the_list_of_processes(monkeypatch, empty_postgres_url):
    seen = []
    run = subprocess.run

    def spied(command, **options):
        seen.append((command, options.get("env") or {}))
        return run(command, **options)

    monkeypatch.setattr(snapshot.subprocess, "run", spied)
    url = db.make_url(empty_postgres_url).set(password="hush")
    database = db.Database(url.render_as_string(hide_password=False))
    with database.connect() as connection:
        snapshot._run("pg_dump", connection, database, ["--schema-only"])
    database.dispose()
    command, env = seen[-1]
    assert not any("hush" in word for word in command)
    assert env["PGPASSWORD"] == "hush"
