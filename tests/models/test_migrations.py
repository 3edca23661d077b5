"""One history for both databases: it makes what the tables say, from nothing and back."""

import subprocess
import sys

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from models import Base, Dataset, Job, Model, Unit, Worker
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


def test_each_revision_is_in_a_file_that_begins_with_its_number():
    found = list(ScriptDirectory.from_config(db.alembic_config()).walk_revisions())
    assert db.revisions() == [script.revision for script in found][::-1]
    # What a process loads to tell at which revision its database is: Alembic is not among it.
    code = "import sys; from services import db; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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


def test_live_rows_of_the_second_revision_go_on(empty):
    """A profile over two targets with a part done, one that waits for its network, a running job, data with a metric."""
    db.upgrade_database(empty, "0002")
    with empty.connect() as connection:
        _insert(connection, "tenant", id="a", name="a")
        for name in ("in", "out"):
            _insert(connection, "model", id=name, tenant_id="a", name=name, tags="[]", state="ready", updated_at=_DAY)
        for name, metric in (("labelled", "top5"), ("plain", None)):
            _insert(connection, "dataset", id=name, tenant_id="a", name=name, tags="[]", state="ready", updated_at=_DAY,
                    metric=metric)  # fmt: skip
        for name, kind, output in (("j1", "compress", "out"), ("j2", "profile", None), ("j3", "profile", None)):
            _insert(connection, "job", id=name, tenant_id="a", kind=kind, status="running", spec="{}", model_id="in",
                    output_model_id=output, version=3, priority=0, cache="miss", verdict="none", labels="{}",
                    warnings="[]", steps="[]", updated_at=_DAY)  # fmt: skip
        _unit(connection, "u1", job_id="j1", kind="run", status="running")
        for job, done in (("j2", "succeeded"), ("j3", "waiting")):
            _unit(connection, f"{job}m", job_id=job, kind="merge", status="waiting")
            report = ', "report": {"summary": "fast"}' if done == "succeeded" else ""
            _unit(connection, f"{job}a", job_id=job, kind="run", status=done, parent_id=f"{job}m",
                  payload=f'{{"targets": [0]{report}}}')  # fmt: skip
            _unit(connection, f"{job}b", job_id=job, kind="run", parent_id=f"{job}m", payload='{"targets": [1]}',
                  status="running" if done == "succeeded" else "waiting")  # fmt: skip
        connection.commit()
    db.upgrade_database(empty)
    with empty.reading() as session:
        units = {unit.id: unit for unit in session.query(Unit)}
        assert {name: unit.waits_for for name, unit in units.items()} == {
            "u1": None, "j2m": "children", "j2a": None, "j2b": None, "j3m": "children", "j3a": "job", "j3b": "job",
        }  # fmt: skip
        assert {name: (unit.kind, unit.position) for name, unit in units.items() if unit.parent_id} == {
            "j2a": ("part", 0), "j2b": ("part", 1), "j3a": ("part", 0), "j3b": ("part", 1),
        }  # fmt: skip
        assert (units["j2a"].payload, units["j2a"].result) == ({"targets": [0]}, {"report": {"summary": "fast"}})
        assert (units["j2b"].payload, units["j2b"].result) == ({"targets": [1]}, None)
        outputs = {
            job.id: [(one.position, one.name, one.model_id) for one in job.outputs] for job in session.query(Job)
        }
        assert outputs == {"j1": [(0, "model", "out")], "j2": [], "j3": []}
        assert {job.judge_id for job in session.query(Job)} == {None}
        declared = {one.id: (one.declaration, one.declared) for one in session.query(Dataset)}
        assert declared == {"labelled": ({"metric": "top5"},) * 2, "plain": ({}, {})}
    with empty.migrating() as connection:
        config = db.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
        payload = connection.execute(text("SELECT payload FROM unit WHERE id = 'j2a'")).scalar_one()
        assert "fast" in str(payload)


def test_networks_that_are_there_get_the_numbers_of_their_names(empty):
    db.upgrade_database(empty, "0010")
    rows = [("m1", "net", "a"), ("m2", "net", "b"), ("m3", "net", "a"), ("m4", "other", "b"), ("m5", "net", None)]
    with empty.connect() as connection:
        _insert(connection, "tenant", id="a", name="a")
        for digest in "ab":
            _insert(connection, "artifact", tenant_id="a", digest=digest, kind="model", size=1)
        for name, called, digest in rows:
            _insert(connection, "model", id=name, tenant_id="a", name=called, tags="[]", updated_at=_DAY,
                    state="ready" if digest else "pending", artifact_digest=digest)  # fmt: skip
        connection.commit()
    db.upgrade_database(empty)
    with empty.reading() as session:
        found = {model.id: model.version for model in session.query(Model)}
    assert found == {"m1": 1, "m2": 2, "m3": 1, "m4": 1, "m5": None}


def test_what_processes_of_the_version_before_insert_is_taken(empty):
    """During an upgrade they run on beside the new ones, and know nothing of the new columns."""
    db.upgrade_database(empty)
    with empty.connect() as connection:
        _insert(connection, "tenant", id="a", name="a")
        _insert(connection, "model", id="in", tenant_id="a", name="in", tags="[]", state="ready", updated_at=_DAY)
        _insert(connection, "dataset", id="d", tenant_id="a", name="d", tags="[]", state="checking", updated_at=_DAY,
                metric="mse")  # fmt: skip
        _insert(connection, "worker", id="w", host="h", pid=1, queues="[]", concurrency=1, targets="[]",
                isolation="none", started_at=_DAY, seen_at=_DAY)  # fmt: skip
        _unit(connection, "u", kind="inspect_dataset", status="queued", dataset_id="d")
        connection.commit()
    with empty.reading() as session:
        assert session.get_one(Dataset, "d").declared == {"metric": "mse"}
        assert session.get_one(Worker, "w").target_classes == []
        assert session.get_one(Unit, "u").waits_for is None


_DAY = "2026-01-01 00:00:00"


def _unit(connection, unit_id, **values):
    numbers = dict.fromkeys(("priority", "attempt", "crashes", "losses", "spent_s", "sends"), 0)
    limits = dict.fromkeys(("max_pending_s", "max_runtime_s", "max_memory_mb"), 1)
    common = {"tenant_id": "a", "queue": "run.cpu", "payload": "{}", "crashed_steps": "[]", **numbers, **limits}
    _insert(connection, "unit", **{**common, "id": unit_id, **values})


def _insert(connection, table, **values):
    has_created = table != "worker"
    values = {**values, **({"created_at": _DAY} if has_created else {})}
    names = ", ".join(values)
    connection.execute(
        text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in values)})"), values
    )
