"""What an earlier version left behind goes through every revision, and who migrates does so alone."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, DateTime, Float, Integer, MetaData, select

from models import Base
from services import db

_REVISIONS = [script.revision for script in ScriptDirectory.from_config(db.alembic_config()).walk_revisions()][::-1]
PAIRS = list(itertools.pairwise(_REVISIONS))
# What a revision reads, and what it makes of it on purpose.
_TELLING = {("unit", "queue"): "work", ("job", "spec"): {"target": {"provider": "openvino"}}}
_CHANGED = {"0002": {("unit", "queue"): "run.openvino"}}
# Tables that a revision fills from the rows of others.
_FILLED = {"job_output", "alias", "alias_move"}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
def empty(request, tmp_path):
    is_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'x.db'}" if is_sqlite else request.getfixturevalue("empty_postgres_url")
    database = db.Database(url)
    yield database
    database.dispose()


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_row_of_every_table_goes_through_every_revision(empty, before, after):
    """What a service left behind that was stopped at one revision is all there at the next, and readable at the newest."""
    db.upgrade_database(empty, before)
    with empty.connect() as connection:
        kept = _fill(connection)
        connection.commit()
    db.upgrade_database(empty, after)
    assert {name: values for name, values in _rows(empty).items() if name in kept} == _expected(kept, after)
    db.upgrade_database(empty)
    with empty.reading() as session:
        for mapper in Base.registry.mappers:
            found = session.scalars(select(mapper.class_)).unique().all()
            assert len(found) == (mapper.local_table.name in {*kept, *_FILLED}), mapper
            for row in found:
                stored = [(getattr(row, one.key), one.columns[0].nullable) for one in mapper.column_attrs]
                assert all(value is not None or nullable for value, nullable in stored)


def test_two_processes_that_migrate_do_not_collide(empty):
    url = empty.url.render_as_string(hide_password=False)
    code = "import sys; from services import db; from settings import Settings; db.upgrade(Settings(database_url=sys.argv[1]))"
    argv = [sys.executable, "-c", code, url]
    both = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert db.revision(empty).state == "current"


def test_a_migration_waits_for_the_one_that_is_on(empty):
    with ThreadPoolExecutor(1) as pool:
        with empty.holding("migrate"):
            waiting = pool.submit(db.upgrade_database, empty)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            assert db.revision(empty).state == "empty"
        waiting.result(timeout=240)
    assert db.revision(empty).state == "current"


def _fill(connection):
    """Insert a row into every table that there is, each naming the others' where it can; gives them as they were stored."""
    tables = MetaData()
    tables.reflect(connection)
    tables.remove(tables.tables["alembic_version"])
    rows = {}
    for table in tables.sorted_tables:
        rows[table.name] = {}
        for column in table.c:
            rows[table.name][column.name] = _value(table, column, rows)
        connection.execute(table.insert().values(rows[table.name]))
    return _read(connection, tables)


def _value(table, column, rows):
    for key in column.foreign_keys:
        target = key.column
        return None if target.table is table else rows[target.table.name][target.name]
    if (table.name, column.name) in _TELLING:
        return _TELLING[table.name, column.name]
    kinds = (
        (DateTime, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (JSON, ["some"]),
        (Float, 1.5),
        (Integer, 7),
        (Boolean, True),
    )
    return next((value for kind, value in kinds if isinstance(column.type, kind)), f"{table.name}.{column.name}")


def _rows(database):
    tables = MetaData()
    with database.connect() as connection:
        tables.reflect(connection)
        tables.remove(tables.tables["alembic_version"])
        return _read(connection, tables)


def _read(connection, tables):
    return {
        table.name: dict(row._mapping) for table in tables.sorted_tables for row in connection.execute(select(table))
    }


def _expected(kept, after):
    """Give what is expected: every column that was there has its value, new ones have any."""
    changed = _CHANGED.get(after, {})

    class Row(dict):
        def __eq__(self, found):
            return all(found[name] == value for name, value in self.items())

        __hash__ = None

    return {
        table: Row({name: changed.get((table, name), value) for name, value in values.items()})
        for table, values in kept.items()
    }
