"""A backup that is taken under load restores to a service that can serve every artifact that it lists."""

import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sqlalchemy import create_engine, text

from models import is_final
from models.states import JobStatus
from standalone.serve import Embedded

PATIENCE_S = 300
# Of each client.
JOBS = 2
RAW = {"Content-Type": "application/octet-stream"}


def network(seed):
    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["y"], ["z"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def samples(seed):
    stream = io.BytesIO()
    np.savez(stream, x=np.random.default_rng(seed).normal(size=(24, 4)).astype(np.float32))
    return stream.getvalue()


def client_of(service):
    key = service.key_file.read_text().strip()
    return httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def operate(*words, env):
    done = subprocess.run(
        [sys.executable, "-m", "standalone", *map(str, words)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Load:
    """Clients that upload, submit and delete until they are told to stop."""

    def __init__(self, service):
        self.service = service
        self.stopped = threading.Event()
        self.pool = ThreadPoolExecutor(3)
        self.clients = [self.pool.submit(self._run, number) for number in range(3)]

    def _run(self, number):
        turns = 0
        with client_of(self.service) as client:
            while not self.stopped.is_set():
                seed = number * 1000 + turns
                model = self._post(client, "/v1/models?wait=30", network(seed))
                data = self._post(client, "/v1/datasets?wait=30", samples(seed))
                if turns >= JOBS:
                    # No more jobs: what was not done in time has to be done by the restored service.
                    for path in (f"/v1/models/{model}", f"/v1/datasets/{data}"):
                        assert client.delete(path).status_code in {200, 204}
                else:
                    body = {"model": model, "dataset": data, "recipe": {"passes": [{"type": "simplify"}]}}
                    assert client.post("/v1/jobs", json=body).status_code == 202
                turns += 1
        return turns

    @staticmethod
    def _post(client, path, content):
        answer = client.post(path, content=content, headers=RAW)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def stop(self):
        self.stopped.set()
        turns = sum(one.result() for one in self.clients)
        self.pool.shutdown()
        return turns


def listed(client, what):
    found, after = [], {}
    while True:
        answer = client.get(f"/v1/{what}", params={"limit": 100, **after}).json()
        found += answer["items"]
        if answer["next_cursor"] is None:
            return found
        after = {"cursor": answer["next_cursor"]}


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


def assert_all_served(client):
    """Download every artifact that the service lists, and compare each with its digest; gives their number."""
    served = 0
    for what in ("models", "datasets"):
        for item in listed(client, what):
            if item["state"] != "ready":
                continue
            answer = client.get(f"/v1/{what}/{item['id']}/content")
            assert answer.status_code == 200, answer.text
            assert hashlib.sha256(answer.content).hexdigest() == item["sha256"], item
            served += 1
    for job in listed(client, "jobs"):
        if job["status"] == "succeeded":
            report = client.get(f"/v1/jobs/{job['id']}/report")
            assert report.status_code == 200, report.text
            served += 1
    return served


@pytest.fixture(params=["sqlite", "postgres"])
def urls(request, monkeypatch):
    """Where the service's database is, and where the restored one is to be; empty: in the data folder."""
    if request.param == "sqlite":
        yield "", ""
        return
    programs = request.getfixturevalue("postgres_programs")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    server = request.getfixturevalue("postgres_server")
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    names = ("backed_up", "restored")
    with engine.connect() as connection:
        for name in names:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield tuple(server.set(database=name).render_as_string(hide_password=False) for name in names)
        for name in names:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def test_a_backup_under_load_restores_to_a_service_that_serves_all(urls, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXPRESS_DATABASE_URL", urls[0])
    with Embedded(tmp_path / "one", host="127.0.0.1", port=0, workers=1, say=print) as service:
        load = Load(service)
        with closing(client_of(service)) as client:
            until(lambda: sum(job["status"] == "succeeded" for job in listed(client, "jobs")) >= 2)
        told = operate("backup", "--data", tmp_path / "one", tmp_path / "backup.tar", env=os.environ)
        again = operate("backup", "--data", tmp_path / "one", tmp_path / "backup", env=os.environ)
        assert "blobs" in told
        assert "blobs" in again
        assert load.stop() > 3
    monkeypatch.setenv("ONNXPRESS_DATABASE_URL", urls[1])
    told = operate("restore", "--data", tmp_path / "two", tmp_path / "backup.tar", env=os.environ)
    assert "digest checked" in told
    with (
        Embedded(tmp_path / "two", host="127.0.0.1", port=0, workers=1, say=print) as service,
        client_of(service) as client,
    ):
        assert assert_all_served(client) >= 6
        # What was queued or ran at that moment ends here.
        until(lambda: all(is_final(JobStatus(job["status"])) for job in listed(client, "jobs")))
        assert {job["status"] for job in listed(client, "jobs")} == {"succeeded"}
        assert assert_all_served(client) > 6
