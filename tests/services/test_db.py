"""Transactions commit once, messages follow the commit, writers do not fail each other."""

import os
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from models import Tenant
from services import db, keys
from tests import descriptors


# Of SQLite alone connections are told by the file that they open.
@pytest.mark.parametrize("service", ["embedded"], indirect=True)
def test_threads_that_read_at_the_same_moment_have_a_connection_each_and_there_are_no_more(service):
    together, file = threading.Barrier(2), str(service.database.url.database)

    def read(_):
        with service.database.reading() as session:
            session.scalars(select(Tenant)).all()
            together.wait()

    def opened():
        links = descriptors.links(os.getpid())
        return links.count(file), links.count(f"{file}-wal")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, range(2)))
        before = opened()
        for _ in range(10):
            list(pool.map(read, range(2)))
        assert opened() == before >= (2, 2)


def test_messages_are_sent_after_the_commit_and_dropped_on_rollback(service):
    with service.database.transaction() as session:
        db.enqueue(session, "work", "unt_1")
        assert service.messages.sent == []
    assert service.messages.sent == [("work", "unt_1")]

    def fail(session):
        keys.ensure_tenant(session, "gone")
        db.enqueue(session, "work", "unt_2")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        service.write(fail)
    assert service.messages.sent == [("work", "unt_1")]
    assert service.read(lambda session: session.get(Tenant, "gone")) is None


def test_a_broker_that_is_away_fails_no_transaction(service, caplog):
    service.messages.on = False
    with service.database.transaction() as session:
        db.enqueue(session, "work", "unt_1")
    assert "the reconciler will" in caplog.text


def test_parallel_writers_wait_for_each_other(service):
    def count(_):
        with service.database.transaction() as session:
            tenant = session.scalars(select(Tenant).where(Tenant.id == "other").with_for_update()).one()
            tenant.name = str(int(tenant.name) + 1)

    service.write(lambda session: setattr(session.get_one(Tenant, "other"), "name", "0"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    assert service.read(lambda session: session.get_one(Tenant, "other").name) == "40"


def test_named_locks_exclude_each_other(service):
    inside = threading.Lock()

    def enter(_):
        with service.database.transaction() as session:
            db.lock(session, "x")
            assert inside.acquire(blocking=False)
            inside.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(12)))


def test_readers_do_not_wait_for_a_writer(service):
    with service.database.transaction() as session:
        session.get_one(Tenant, "other").name = "changed"
        session.flush()
        assert service.read(lambda reader: reader.get_one(Tenant, "other").name) == "other"


def test_a_forked_child_gets_connections_of_its_own(service):
    service.read(db.ping)
    pid = os.fork()
    if pid == 0:
        try:
            service.write(lambda session: keys.ensure_tenant(session, "child"))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert service.read(lambda session: session.get(Tenant, "child")) is not None


@pytest.fixture
def sqlite(tmp_path):
    database = db.Database(f"sqlite:///{tmp_path / 'x.db'}")
    yield database
    database.dispose()


def test_sqlite_is_durable_and_its_reader_cannot_write(sqlite):
    with sqlite.transaction() as session:
        found = [session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")]
    # 2 is FULL.
    assert found == ["wal", 2, 1]
    with pytest.raises(OperationalError, match="readonly"), sqlite.reading() as session:
        session.execute(text("CREATE TABLE x (y INT)"))


def test_a_second_process_waits_for_the_write_lock(sqlite, tmp_path):
    other = db.Database(f"sqlite:///{tmp_path / 'x.db'}")
    started = threading.Event()

    def write():
        with sqlite.transaction() as session:
            started.set()
            session.execute(text("CREATE TABLE x (y INT)"))
            # Long enough for the other one to come to the lock.
            threading.Event().wait(0.3)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(write)
        started.wait()
        with other.transaction() as session:
            session.execute(text("INSERT INTO x VALUES (1)"))
        done.result()
    other.dispose()


def test_a_held_lock_is_shared_with_nobody_and_keeps_no_writer_waiting(service):
    with service.database.sharing("x") as free, service.database.sharing("x") as too:
        assert free
        assert too
    with service.database.holding("x"):
        with service.database.sharing("x") as free:
            assert not free
        with service.database.sharing("y") as free:
            assert free
        service.write(lambda session: keys.ensure_tenant(session, "meanwhile"))
    with service.database.sharing("x") as free:
        assert free


def test_holders_come_one_after_the_other(service):
    inside, most = [], []

    def hold(_):
        with service.database.holding("x"):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.02)
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(8)))
    assert most == [1] * 8


def test_a_database_of_another_version_is_told(service):
    settings = service.settings
    db.check_revision(settings)
    assert db.revision(service.database).state == "current"
    service.write(lambda session: session.execute(text("UPDATE alembic_version SET version_num = '0001'")))
    assert db.revision(service.database).state == "older"
    with pytest.raises(db.RevisionError, match="onnxpress-server migrate"):
        db.check_revision(settings)
    service.write(lambda session: session.execute(text("UPDATE alembic_version SET version_num = 'later'")))
    try:
        with pytest.raises(db.RevisionError, match="a newer version"):
            db.check_revision(settings)
        with pytest.raises(db.RevisionError, match="a newer version"):
            db.upgrade(settings)
    finally:
        head = db.revision(service.database).head
        service.write(lambda session: session.execute(text(f"UPDATE alembic_version SET version_num = '{head}'")))


def test_what_is_stored_stands_in_no_error(service):
    """Neither as a parameter, nor in what the database says of it, nor in the error behind the error."""
    secret = "value-of-a-user"

    def twice(session):
        for _ in range(2):
            session.execute(insert(Tenant).values(id=secret, name=secret, created_at=db.now(session)))

    def beside(session):
        session.execute(insert(Tenant).values(id="t", name=None, created_at=db.now(session)).values(id=secret))

    def invalid(session):
        # SQLite takes it: only then is there nothing to tell.
        session.execute(text("SELECT CAST(:given AS INTEGER) / 1"), {"given": secret})
        session.execute(insert(Tenant).values(id=secret, name=2**70, created_at=db.now(session)))

    for fail in (twice, beside, invalid):
        with pytest.raises((DBAPIError, OverflowError)) as caught:
            service.write(fail)
        told = "".join(traceback.format_exception(caught.value))
        assert secret not in told
        assert "execute" in told


def test_what_somebody_has_locked_who_stands_still_is_free_again(postgres_url, monkeypatch):
    monkeypatch.setattr(db, "_IDLE_S", 1)
    still, other = db.Database(postgres_url), db.Database(postgres_url)

    def stand_still():
        with still.transaction() as session:
            db.lock(session, "mine")
            with other.transaction() as waiting:
                db.lock(waiting, "mine")
            keys.ensure_tenant(session, "late")

    try:
        with pytest.raises(OperationalError):
            stand_still()
        # On purpose, for longer.
        with still.sharing("mine"), other.transaction() as session:
            session.execute(text("SELECT pg_sleep(1.5)"))
            assert not db.try_lock(session, "mine")
    finally:
        still.dispose()
        other.dispose()
