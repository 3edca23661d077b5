"""Each finding names what is wrong where it is wrong, and nothing where it is not."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text, update

from models import Chore
from services import db, health, keys, retention, workers
from settings import Settings


def states(findings):
    return {one.check: one.state for one in findings}


def said(findings, check):
    return next(f"{one.message} {one.advice}" for one in findings if one.check == check)


def live_worker(service, *queues):
    told = {"host": "h", "pid": 1, "queues": queues, "concurrency": 2, "targets": [], "isolation": "none"}
    service.write(lambda session: workers.heartbeat(session, "wrk_1", **told))


def test_a_database_as_it_should_be(service):
    found = states(health.database(service.settings))
    assert found.pop("pg_dump", "ok") in {"ok", "warning"}
    # This Postgres is one for tests, and the doctor sees that.
    expected = "ok" if service.database.is_sqlite else "problem"
    assert found == {"database": "ok", "revision": "ok", "durability": expected, "clock": "ok"}
    if not service.database.is_sqlite:
        assert "fsync" in said(health.database(service.settings), "durability")


def test_a_database_that_is_away_is_told(tmp_path):
    found = list(health.database(Settings(data_dir=tmp_path, database_url="postgresql://nobody@127.0.0.1:1/x")))
    assert states(found) == {"database": "problem"}
    assert "ONNXPRESS_DATABASE_URL" in said(found, "database")
    assert list(health.work(Settings(data_dir=tmp_path, database_url="postgresql://nobody@127.0.0.1:1/x"))) == []


def test_a_database_of_another_revision_is_told(service):
    head = db.revision(service.database).head
    for other, advice in (("0001", "onnxpress-server migrate"), ("later", "Install the version")):
        service.write(
            lambda session, one=other: session.execute(text(f"UPDATE alembic_version SET version_num = '{one}'"))
        )
        found = list(health.database(service.settings))
        assert states(found)["revision"] == "problem"
        assert advice in said(found, "revision")
        assert list(health.work(service.settings)) == []
    service.write(lambda session: session.execute(text(f"UPDATE alembic_version SET version_num = '{head}'")))


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (-3, "warning"), (3, "warning"), (60, "problem")])
def test_a_clock_that_is_wrong_is_told(service, monkeypatch, seconds, state):
    if service.database.is_sqlite:
        pytest.skip("one machine, one clock")
    now = db.now
    monkeypatch.setattr(health.db, "now", lambda session: now(session) + timedelta(seconds=seconds))
    found = list(health.database(service.settings))
    assert states(found)["clock"] == state
    assert ("behind" if seconds < 0 else "ahead") in said(found, "clock") or seconds == 0


def test_a_broker_that_is_away_is_told(service):
    found = list(health.broker(service.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})))
    assert states(found) == {"broker": "problem"}
    assert "ONNXPRESS_BROKER_URL" in said(found, "broker")


def test_a_store_as_it_should_be(service):
    before = service.stored()
    assert states(health.store(service.settings))["store"] == "ok"
    assert service.stored() == before


def test_a_store_that_is_not_there_is_told(tmp_path):
    (tmp_path / "store").write_text("not a folder")
    found = list(health.store(Settings(data_dir=tmp_path)))
    assert states(found) == {"store": "problem"}
    assert "ours to write" in said(found, "store")


@pytest.mark.parametrize(("free", "state"), [(1 << 20, "problem"), (5 << 30, "warning"), (1 << 40, "ok")])
def test_a_disk_that_is_full_is_told(service, monkeypatch, free, state):
    usage = SimpleNamespace(total=2 << 40, free=free)
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _: usage)
    assert states(health.store(service.settings))["disk"] == state


def test_who_works_and_what_waits_for_nobody(service):
    assert states(health.work(service.settings))["workers"] == "problem"
    live_worker(service, "inspect")
    assert "queues" not in states(health.work(service.settings))
    service.submit()
    found = list(health.work(service.settings))
    assert states(found)["queues"] == "problem"
    assert "1 units wait in run.cpu" in said(found, "queues")
    live_worker(service, "inspect", "run.cpu")
    assert "queues" not in states(health.work(service.settings))
    live_worker(service, "run.cpu")
    assert "inspect" in said(health.work(service.settings), "queues")


def test_nobody_who_may_administer_is_told(service):
    assert states(health.work(service.settings))["keys"] == "problem"
    made = service.write(lambda session: keys.create(session, "default", "a", ("admin",)))
    assert states(health.work(service.settings))["keys"] == "ok"
    service.write(lambda session: keys.revoke(session, "default", made.row.id))
    assert states(health.work(service.settings))["keys"] == "problem"


def test_retention_that_stands_still_is_told(service):
    assert "retention" not in states(health.work(service.settings))
    place = retention.Place(service.database, service.store, Path(service.settings.data_dir))
    retention.apply_due(place, service.settings)
    assert states(health.work(service.settings))["retention"] == "ok"
    service.write(lambda session: session.execute(update(Chore).values(done_at=db.now(session) - timedelta(hours=5))))
    assert states(health.work(service.settings))["retention"] == "warning"
