import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import httpx
import pytest

import engine
import models
from api.__main__ import Server
from api.app import create_app
from services import attempts, db, keys, queue
from services.artifacts import NewFile
from services.claims import Answer, Result
from services.storage import open_store
from settings import Settings

RAW = {"Content-Type": "application/octet-stream"}
# The longest that a request may wait for a change; whoever is answered in half of it was woken.
LONGEST_WAIT_S = 60
PATIENCE_S = LONGEST_WAIT_S / 2
INSPECTION = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["n", 2]}],
    "opset": {"": 17},
    "ir_version": 9,
    "producer": "test",
    "parameters": 10,
    "size_bytes": 100,
    "nodes": 2,
    "ops": {"Gemm": 1, "Relu": 1},
    "quantized": "none",
    "float_type": "float32",
    "external_data": False,
    "cost": {"macs": 8, "live_bytes": 32, "input_elements": 4},
}
DATASET_INSPECTION = {
    "arrays": [{"name": "x", "dtype": "float32", "shape": [32, 4]}],
    "label": {"name": "label", "dtype": "int64", "shape": [32]},
    "samples": 32,
    "labelled": 32,
    "unlabelled": 0,
    "metric": "top1",
}


@cache
def described():
    """Every address of the API's description as a pattern, with the methods that it takes."""
    paths = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())["paths"]
    return [(re.compile(re.sub(r"\\{\w+\\}", "[^/:]+", re.escape(path))), methods) for path, methods in paths.items()]


def is_described(answer):
    """Fail where an answer has a status that the description does not know of."""
    path, method = answer.url.path, answer.request.method.lower()
    known = [methods for pattern, methods in described() if pattern.fullmatch(path)]
    if not known:
        return
    taken = [methods[method] for methods in known if method in methods]
    statuses = {status for each in taken for status in each["responses"]} if taken else {"405"}
    assert str(answer.status_code) in statuses, f"{method} {path}: {answer.status_code} is not in {sorted(statuses)}"


@dataclass
class Service:
    """The real app under the real server, on a database and a store of its own, without workers."""

    app: object
    url: str
    settings: Settings
    database: db.Database
    keys: dict[str, str]
    inspection = INSPECTION
    dataset_inspection = DATASET_INSPECTION

    def client(self, tenant="alpha", **more):
        key = self.keys[tenant]
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=30, event_hooks={"response": [is_described]}, **more
        )

    def until(self, condition):
        """Give what a condition gives as soon as that is true."""
        end = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < end
            time.sleep(0.01)
        return found

    def until_waiting(self, row, count):
        """Return when so many requests wait for a change of a row."""
        waiting = self.app.state.watcher._waiting
        self.until(lambda: len(waiting.get(row, ())) == count)

    def until_woken(self, threads):
        """Return when all of these have ended, by far sooner than they would have waited."""
        end = time.monotonic() + PATIENCE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads)

    def new_key(self, tenant="alpha", scopes=("read", "write"), **more):
        with self.database.transaction() as session:
            return keys.create(session, tenant, "test", scopes, **more)

    def stored_files(self):
        return sorted(path for path in (self.settings.data_dir / "store").rglob("*") if path.is_file())

    def inspect(self, subject_id, inspection=None, problem=None, unpacked=()):
        """Do what a worker does with an upload's inspection unit."""
        column = models.Unit.model_id if subject_id.startswith("mdl") else models.Unit.dataset_id
        with self.database.transaction() as session:
            unit_id = session.query(models.Unit.id).filter(column == subject_id, models.Unit.kind != "run").scalar()
            claim = queue.claim(session, unit_id, worker_id="wrk_test", lease_s=30)
        store = open_store(self.settings)
        with self.database.transaction() as session:
            if problem is not None:
                assert attempts.fail(session, store, unit_id, claim.token, problem)
            else:
                files = [NewFile(path, _finished(store, claim.tenant_id, unpacked[path])) for path in unpacked]
                kind = engine.Inspection if claim.kind == "inspect_model" else engine.DatasetInspection
                result = Result(Answer(kind.model_validate(inspection)), tuple(files))
                assert attempts.finish(session, store, unit_id, claim.token, result)

    def claim_job(self, job_id):
        with self.database.transaction() as session:
            unit_id = session.query(models.Unit.id).filter(models.Unit.job_id == job_id).scalar()
            return queue.claim(session, unit_id, worker_id="wrk_test", lease_s=30)

    def ready_model(self, client, content=b"model bytes"):
        model_id = client.post("/v1/models", params={"name": "net"}, content=content, headers=RAW).json()["id"]
        self.inspect(model_id, INSPECTION)
        return model_id

    def ready_dataset(self, client, content=b"dataset bytes"):
        dataset_id = client.post("/v1/datasets", content=content, headers=RAW).json()["id"]
        self.inspect(dataset_id, DATASET_INSPECTION)
        return dataset_id


def _finished(store, tenant_id, content):
    writer = store.writer(tenant_id, limit=1 << 20)
    writer.write(content)
    writer.finish()
    return writer


@contextmanager
def serving(settings):
    """Serve until the end of the block."""
    app = create_app(settings)
    server = Server(app, settings, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE_S
    while not server.started:
        assert thread.is_alive(), "the server died at its start"
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield app, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def _new_service(settings, migrate):
    migrate(settings)
    database = db.Database.from_settings(settings)
    with database.transaction() as session:
        texts = {}
        for tenant in ("alpha", "beta"):
            keys.ensure_tenant(session, tenant)
            texts[tenant] = keys.create(session, tenant, "test", ("read", "write")).text
    try:
        with serving(settings) as (app, url):
            yield Service(app, url, settings, database, texts)
    finally:
        database.dispose()


@pytest.fixture(scope="session")
def new_service(migrate):
    """Give the function that serves with given settings, two tenants and a key for each."""
    return partial(_new_service, migrate=migrate)


@pytest.fixture(scope="module")
def service(new_service, tmp_path_factory):
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), max_model_bytes=8 << 20, max_dataset_bytes=8 << 20)
    with new_service(settings) as made:
        yield made


@pytest.fixture
def client(service):
    with service.client() as made:
        yield made


@pytest.fixture
def stranger(service):
    """A client with another tenant's key."""
    with service.client("beta") as made:
        yield made
