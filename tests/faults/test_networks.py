"""A network that drops what is sent, and a store that answers with errors: no job fails of it, none is committed twice."""

from dataclasses import dataclass

import pytest
from sqlalchemy import make_url

from services.errors import UnavailableError
from services.storage import open_store

from ..servers import Proxy
from .conftest import TENANT

pytestmark = pytest.mark.parametrize("stack", ["production"], indirect=True)
SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
REPLIES = (SLOW_DOWN, SLOW_DOWN.replace(b"503 Slow Down", b"500 Internal Server Error"), b"This is not HTTP.\r\n\r\n")


@dataclass
class Far:
    """A place that has database, broker and store behind a network of its own."""

    database: Proxy
    broker: Proxy
    store: Proxy
    env: dict[str, str]

    def fall_silent(self):
        for proxy in (self.database, self.broker, self.store):
            proxy.fall_silent()

    def pass_on(self):
        for proxy in (self.database, self.broker, self.store):
            proxy.pass_on()


@pytest.fixture
def far(system, tmp_path):
    """Such a place, with the settings for a worker there."""
    url, endpoint = make_url(system.settings.database_url), make_url(system.settings.store_endpoint)
    sockets = url.query["host"]
    proxies = [Proxy(target).start() for target in (f"{sockets}/.s.PGSQL.5432", system.broker.port, endpoint.port)]
    database, broker, store = proxies
    there = url.difference_update_query(["host"]).set(host="127.0.0.1", port=database.port)
    (tmp_path / "far").mkdir()
    env = {
        "ONNXPRESS_DATA_DIR": str(tmp_path / "far"),
        "ONNXPRESS_DATABASE_URL": there.render_as_string(hide_password=False),
        "ONNXPRESS_BROKER_URL": make_url(system.broker.url).set(port=broker.port).render_as_string(hide_password=False),
        "ONNXPRESS_STORE_ENDPOINT": f"http://127.0.0.1:{store.port}",
    }
    yield Far(database, broker, store, env)
    for worker in system.workers:
        worker.kill()
    for proxy in proxies:
        proxy.close()


def test_a_worker_that_nobody_reaches_commits_nothing_and_works_on_later(system, far):
    system.start_worker(**far.env)
    inputs = system.inputs()
    job_id = system.submit(inputs)
    child = system.job_child()
    system.wait_event(job_id, "running")
    child.suspend()
    # Longer than its lease: what it says meanwhile arrives when the job is somebody else's.
    far.fall_silent()
    near = system.start_worker()
    job = system.wait_final(job_id)
    assert (job.status, job.problem) == ("succeeded", None), system.log()
    before = (job.version, [event.id for event in system.events(job_id)])
    far.pass_on()
    child.wait(240)
    system.kill_tree(near)
    assert system.inspected(system.upload_network(1)).state == "ready"
    assert (system.job(job_id).version, [event.id for event in system.events(job_id)]) == before
    assert [event.data["because"] for event in system.events(job_id) if "because" in event.data] == ["attempt_lost"]
    system.assert_committed_once(job_id)
    system.assert_no_child_left()


def test_a_store_that_answers_with_errors_fails_no_job(system, far):
    settings = system.settings.model_copy(update={"store_endpoint": far.env["ONNXPRESS_STORE_ENDPOINT"]})
    store = open_store(settings, patience_s=0.3)
    system.start_worker(**far.env)
    job_id = system.submit(system.inputs())
    system.wait_event(job_id, "started")
    for reply in REPLIES:
        far.store.answer(reply)
        with pytest.raises(UnavailableError):
            store.put(TENANT, [b"a network"], limit=100)
    # The job ends meanwhile, and its network finds no place.
    answered = far.store.answered
    system.until(lambda _: far.store.answered > answered)
    far.store.pass_on()
    job = system.wait_final(job_id)
    assert (job.status, job.problem) == ("succeeded", None), system.log()
    system.assert_committed_once(job_id)
    stored = store.put(TENANT, [b"a network"], limit=100)
    assert b"".join(store.read(TENANT, stored.sha256)) == b"a network"
