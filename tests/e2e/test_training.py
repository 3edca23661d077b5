"""Jobs that train, on workers with PyTorch and without: each is what it is started as, and the API is the whole service's."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, load_model_from_string, numpy_helper

import sandbox

from .test_targets import images, network

RAW = {"Content-Type": "application/octet-stream"}
PATIENCE_S = 120.0
DISTILL = {"type": "distill", "steps": 40, "learning_rate": 0.02, "batch": 16}


def student():
    """A network of another architecture for the same images: means of quarters, and a product."""
    weights = {"w": np.random.default_rng(3).normal(size=(9, 4))}
    nodes = [
        helper.make_node("AveragePool", ["image"], ["a"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def inputs(client):
    """A network, data and a student; the service's own worker does not train, for the tests say so to all of them."""
    found = {}
    for name, kind, content in (
        ("model", "models", network()),
        ("dataset", "datasets", images()),
        ("student", "models", student()),
    ):
        row = client.post(f"/v1/{kind}", params={"name": name, "wait": 60}, content=content, headers=RAW).json()
        assert row["state"] == "ready", row
        found[name] = row["id"]
    return found


@contextlib.contextmanager
def worker(embedded, python, log):
    """One more worker beside the service, as somebody starts it in an environment of his own."""
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(embedded.data_dir), "ONNXPRESS_WORKER_TRAINING": "auto"}
    with (embedded.data_dir / "log" / log).open("wb") as told:
        argv = [python, "-m", "worker", "--queues", "work", "--targets", "all"]
        process = subprocess.Popen(argv, env=env, stdout=told, stderr=told, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def until(ask):
    end = time.monotonic() + PATIENCE_S
    while not (found := ask()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)
    return found


def training(client):
    return [item["training"] for item in client.get("/v1/targets").json()["items"] if item["live"]]


def body(inputs, *passes, recipe=None):
    return {**inputs, "recipe": recipe or {"passes": list(passes)}, "cache": "refuse"}


def done(client, asked):
    accepted = client.post("/v1/jobs", json=asked)
    assert accepted.status_code == 202, accepted.text
    job_id = accepted.json()["id"]
    until(lambda: client.get(f"/v1/jobs/{job_id}?wait=30").json()["finished_at"])
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["status"] == "succeeded", job["problem"]
    return job, client.get(f"/v1/jobs/{job_id}/report.json").json()


def taken_by(embedded, job_id):
    with contextlib.closing(sqlite3.connect(embedded.data_dir / "onnxpress.db")) as rows:
        [(worker_id,)] = rows.execute("SELECT worker_id FROM unit WHERE job_id = ?", (job_id,))
    return worker_id


def test_workers_without_pytorch_say_so_and_jobs_that_train_are_refused(embedded, client, inputs, python_without_torch):
    with worker(embedded, python_without_torch, "without-torch.log"):
        until(lambda: any("PyTorch is not installed" in told["reason"] for told in training(client)))
        assert not any(told["available"] for told in training(client))
        asked = body(inputs, DISTILL)
        refused = client.post("/v1/jobs", json=asked)
        problem = refused.json()
        assert (refused.status_code, problem["code"], problem["step"]) == (422, "training_unavailable", 0)
        assert "pip install 'onnxpress-server[train]'" in problem["hint"]
        planned = client.post("/v1/jobs:validate", json=asked).json()
        assert (planned["valid"], planned["problem"]["code"]) == (False, "training_unavailable")


def test_a_recipe_by_name_does_without_what_trains_and_says_so(client, inputs):
    plain = {name: inputs[name] for name in ("model", "dataset")}
    planned = client.post("/v1/jobs:validate", json=body(plain, recipe="fast")).json()
    assert planned["valid"], planned
    recipe = planned["spec"]["recipe"]
    assert recipe["name"] == "fast"
    assert "distill" in {each["type"] for each in recipe["left_out"]}
    assert not {each["type"] for each in recipe["left_out"]} & {each["type"] for each in recipe["passes"]}
    assert any("Without distill" in warning and "pip install" in warning for warning in planned["warnings"])
    job, report = done(client, body(plain, recipe="fast"))
    assert job["spec"]["recipe"] == recipe
    assert [step["type"] for step in report["steps"]] == [step["type"] for step in recipe["passes"]]
    assert any("Without distill" in warning for warning in report["warnings"])
    offered = {each["name"]: each for each in client.get("/v1/recipes", params=plain).json()["items"]}
    assert offered["fast"]["estimate"]["seconds"] > 0
    assert offered["fast"]["left_out"] == recipe["left_out"]


def test_a_job_that_trains_goes_to_the_worker_with_pytorch(embedded, client, inputs):
    with worker(embedded, sys.executable, "trainer.log") as trainer:
        [told] = until(lambda: [told for told in training(client) if told["available"]])
        assert told["torch"]
        assert told["device"] in {"cpu", "cuda"}
        job, report = done(client, body(inputs, DISTILL))
        assert f"_{trainer.pid}_" in taken_by(embedded, job["id"])
        # PyTorch trains behind the same walls as the rest; an accelerator's device files alone make them lower.
        assert job["isolation"] == ("partial" if sandbox.devices() else "strict")
        assert (job["student"], report["student"]["name"]) == (inputs["student"], "student")
        # It is the student that was trained, and it is measured beside the model.
        assert [step["status"] for step in report["steps"]] == ["applied"], report["steps"]
        assert report["original"]["ops"]["Conv"] == 1
        made = load_model_from_string(client.get(f"/v1/models/{job['output_model']}/content").content)
        assert [node.op_type for node in made.graph.node] == ["AveragePool", "Flatten", "MatMul"]
        before, after = report["student"]["quality"][0], report["steps"][0]["quality"][0]
        assert after["metric"] == before["metric"]
        assert after["compressed"] > before["compressed"]
        assert report["steps"][0]["change"]["details"]["training"]["steps"] == 40
        # Whoever trains takes ordinary jobs too.
        offered = client.get("/v1/targets").json()["workers"]
        queues = [each["queues"] for each in offered if f"_{trainer.pid}_" in each["id"]]
        assert queues == [["run.cpu", "run.cpu.train"]]
