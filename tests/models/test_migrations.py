"""One history for both databases: it makes what the tables say, from nothing and back."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from models import Base, Job, Unit, Worker
from services import db


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request, tmp_path):
    url = (
        f"sqlite:///{tmp_path / 'x.db'}" if request.param == "sqlite" else request.getfixturevalue("empty_postgres_url")
    )
    database = db.Database(url)
    yield database
    database.dispose()


def test_upgrade_from_empty_gives_what_the_tables_say(empty):
    db.upgrade_database(empty)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert set(Base.metadata.tables) <= set(inspect(connection).get_table_names())


def test_upgrade_twice_is_harmless(empty):
    db.upgrade_database(empty)
    db.upgrade_database(empty)


def test_alembic_check_is_clean(empty):
    db.upgrade_database(empty)
    with empty.connect() as connection:
        config = db.alembic_config()
        config.attributes["connection"] = connection
        command.check(config)


def test_downgrade_leaves_nothing(empty):
    db.upgrade_database(empty)
    with empty.connect() as connection:
        config = db.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.commit()
    with empty.connect() as connection:
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}


def test_rows_of_the_first_release_stay(empty):
    with empty.connect() as connection:
        config = db.alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO tenant (id, name, created_at) VALUES ('a', 'a', '2026-01-01 00:00:00')"))
        connection.execute(
            text(
                "INSERT INTO unit (id, tenant_id, kind, queue, status, priority, payload, max_pending_s, max_runtime_s,"
                " max_memory_mb, attempt, crashes, losses, crashed_steps, spent_s, sends, created_at) VALUES"
                " ('unt_1', 'a', 'run', 'work', 'running', 0, '{}', 1, 1, 1, 1, 0, 0, '[]', 0.5, 0, '2026-01-01 00:00:00')"
            )
        )
        connection.commit()
    db.upgrade_database(empty)
    with empty.reading() as session:
        unit = session.get_one(Unit, "unt_1")
        assert (unit.status, unit.spent_s, unit.cpu_s) == ("running", 0.5, 0.0)


def test_waiting_jobs_of_the_first_release_move_to_the_queue_of_their_target(empty):
    spec = '{"kind": "compress", "target": {"provider": "openvino"}}'
    with empty.connect() as connection:
        config = db.alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        _insert(connection, "tenant", id="a", name="a")
        for name in ("in", "out"):
            _insert(connection, "model", id=name, tenant_id="a", name=name, tags="[]", state="ready", updated_at=_DAY)
        job = {
            "model_id": "in",
            "output_model_id": "out",
            "version": 1,
            "priority": 0,
            "cache": "miss",
            "verdict": "none",
        }
        words = {"labels": "{}", "warnings": "[]", "steps": "[]", "updated_at": _DAY}
        _insert(connection, "job", id="j", tenant_id="a", kind="compress", status="queued", spec=spec, **job, **words)
        numbers = dict.fromkeys(("priority", "attempt", "crashes", "losses", "spent_s", "sends"), 0)
        limits = dict.fromkeys(("max_pending_s", "max_runtime_s", "max_memory_mb"), 1)
        common = {"tenant_id": "a", "status": "queued", "payload": "{}", "crashed_steps": "[]", **numbers, **limits}
        _insert(connection, "unit", id="u1", kind="run", queue="work", job_id="j", **common)
        _insert(connection, "unit", id="u2", kind="inspect_model", queue="inspect", model_id="in", **common)
        _insert(connection, "worker", id="w", host="h", pid=1, queues='["work"]', concurrency=1, targets="[]",
                isolation="none", started_at=_DAY, seen_at=_DAY)  # fmt: skip
        connection.commit()
    db.upgrade_database(empty)
    with empty.reading() as session:
        assert {unit.id: unit.queue for unit in session.query(Unit)} == {"u1": "run.openvino", "u2": "inspect"}
        worker = session.get_one(Worker, "w")
        assert (worker.state, worker.cores, worker.unavailable) == ("live", 0, [])
        job = session.get_one(Job, "j")
        assert (job.output_model_id, job.baseline_id) == ("out", None)
    with empty.transaction() as session, pytest.raises(IntegrityError):
        session.execute(text("UPDATE unit SET job_id = 'nobody'"))
    with empty.migrating() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        assert connection.execute(text("SELECT queue FROM unit ORDER BY id")).scalars().all() == ["work", "inspect"]
        assert connection.execute(text("SELECT output_model_id FROM job")).scalars().all() == ["out"]


_DAY = "2026-01-01 00:00:00"


def _insert(connection, table, **values):
    has_created = table != "worker"
    values = {**values, **({"created_at": _DAY} if has_created else {})}
    names = ", ".join(values)
    connection.execute(
        text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in values)})"), values
    )
