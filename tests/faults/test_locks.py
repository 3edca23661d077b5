"""A database that somebody else has locked for a while: who writes waits, then is told to come back; who reads need not wait on SQLite."""

import contextlib
import sqlite3
import threading
import time

import psycopg
import pytest
from sqlalchemy import make_url

from .conftest import STACKS, network

RAW = {"Content-Type": "application/octet-stream"}
# Less and more than what a writer waits for.
SHORT_S, LONG_S = 3.0, 12.0

pytestmark = pytest.mark.parametrize("stack", STACKS, indirect=True)


@contextlib.contextmanager
def locked(settings):
    """Hold the rows of units and all that is written with them against every writer."""
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite":
        with contextlib.closing(sqlite3.connect(url.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
        return
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as other:
        other.execute("LOCK TABLE unit, model IN EXCLUSIVE MODE")
        yield


def test_a_locked_database_costs_no_job(system):
    client = system.start_api()
    system.start_worker()
    job_id = system.submit(system.inputs())
    system.wait_event(job_id, "running")
    answers = []

    def upload(seed):
        answers.append(client.post("/v1/models", content=network(seed), headers=RAW))

    for seconds, expected in ((SHORT_S, {201}), (LONG_S, {201, 503})):
        with locked(system.settings):
            sends = threading.Thread(target=upload, args=(len(answers) + 1,))
            sends.start()
            assert client.get(f"/v1/jobs/{job_id}").status_code == 200
            time.sleep(seconds)
        sends.join()
        assert answers[-1].status_code in expected, answers[-1].text
        if answers[-1].status_code == 503:
            assert answers[-1].json()["retryable"]
    job = system.wait_final(job_id)
    assert (job.status, job.problem) == ("succeeded", None), system.log()
    system.assert_committed_once(job_id)
    assert client.post("/v1/models", content=network(9), headers=RAW).status_code == 201
