"""One history for both databases: it makes what the tables say, from nothing and back."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from models import Base, Unit
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
