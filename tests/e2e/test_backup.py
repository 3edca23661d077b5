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

from standalone.serve import Embedded

PATIENCE_S = 300
# Of each client.
JOBS = 1
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
    """Two clients that upload and submit, and once they are told to, upload and delete until they are told to stop."""

    def __init__(self, service):
        self.service = service
        self.goes_on, self.stopped = threading.Event(), threading.Event()
        self.pool = ThreadPoolExecutor(2)
        self.clients = [self.pool.submit(self._run, number) for number in range(2)]

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        # Whatever has failed: nobody waits for what no longer comes.
        self.stopped.set()
        self.goes_on.set()
        self.pool.shutdown()

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
                if turns >= JOBS:
                    self.goes_on.wait()
        return turns

    @staticmethod
    def _post(client, path, content):
        answer = client.post(path, content=content, headers=RAW)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def stop(self):
        self.stopped.set()
        self.goes_on.set()
        return sum(one.result() for one in self.clients)


def listed(client, what):
    found, after = [], {}
    while True:
        answer = client.get(f"/v1/{what}", params={"limit": 100, **after}).json()
        found += answer["items"]
        if answer["next_cursor"] is None:
            return found
        after = {"cursor": answer["next_cursor"]}


def until_jobs(client, condition):
    """Wait until the statuses of all jobs are as they should be."""
    end = time.monotonic() + PATIENCE_S
    while not condition(statuses := [job["status"] for job in listed(client, "jobs")]):
        assert "failed" not in statuses, [job["problem"] for job in listed(client, "jobs")]
        assert time.monotonic() < end, statuses
        time.sleep(0.1)


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


# tests/services/test_backup.py has uploads and deletions beside backups at every run.
@pytest.mark.soak
def test_a_backup_under_load_restores_to_a_service_that_serves_all(urls, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXPRESS_DATABASE_URL", urls[0])
    # What ran or waited at the moment of the backup is taken when its lease is over, or its message counts as lost.
    for name, seconds in {"LEASE": 5, "RENEW": 1, "RESEND": 2, "RECONCILE": 0.5}.items():
        monkeypatch.setenv(f"ONNXPRESS_{name}_S", str(seconds))
    with (
        Embedded(tmp_path / "one", host="127.0.0.1", port=0, workers=1, say=print) as service,
        Load(service) as load,
    ):
        with closing(client_of(service)) as client:
            until_jobs(client, lambda statuses: "succeeded" in statuses)
        load.goes_on.set()
        # Both kinds of place, each with one of the databases.
        place = tmp_path / ("backup" if urls[0] else "backup.tar")
        assert "blobs" in operate("backup", "--data", tmp_path / "one", place, env=os.environ)
        assert load.stop() >= 2
    monkeypatch.setenv("ONNXPRESS_DATABASE_URL", urls[1])
    told = operate("restore", "--data", tmp_path / "two", place, env=os.environ)
    assert "digest checked" in told
    with (
        Embedded(tmp_path / "two", host="127.0.0.1", port=0, workers=1, say=print) as service,
        client_of(service) as client,
    ):
        served = assert_all_served(client)
        assert served >= 4
        # What was queued or ran at that moment ends here.
        until_jobs(client, lambda statuses: set(statuses) == {"succeeded"})
        assert assert_all_served(client) >= served
