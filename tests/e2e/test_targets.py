"""Two workers with two runtimes: a job runs where its target is, and its report says so."""

import io
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

RAW = {"Content-Type": "application/octet-stream"}
PATIENCE_S = 120.0


def network():
    """Two layers with a head: enough for a provider to take nodes."""
    random = np.random.default_rng(0)
    tensors = {"w1": random.normal(size=(8, 1, 3, 3)), "w2": random.normal(size=(8, 4))}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def images():
    stream = io.BytesIO()
    np.savez(stream, image=np.random.default_rng(1).normal(size=(32, 1, 12, 12)).astype(np.float32))
    return stream.getvalue()


@pytest.fixture(scope="module", autouse=True)
def second_worker(embedded, client, openvino_python):
    """A worker beside the service, in an environment of its own, as the documentation says to start it."""
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(embedded.data_dir)}
    with (embedded.data_dir / "log" / "openvino.log").open("wb") as log:
        worker = subprocess.Popen(
            [openvino_python, "-m", "worker", "--queues", "work"],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: live(client) == {"cpu", "openvino"})
        yield worker
    finally:
        worker.terminate()
        worker.wait(60)


@pytest.fixture(scope="module")
def inputs(client):
    model = client.post("/v1/models", params={"name": "net", "wait": 60}, content=network(), headers=RAW).json()
    data = client.post("/v1/datasets", params={"name": "data", "wait": 60}, content=images(), headers=RAW).json()
    assert (model["state"], data["state"]) == ("ready", "ready"), (model, data)
    return {"model": model["id"], "dataset": data["id"]}


def until(ask):
    end = time.monotonic() + PATIENCE_S
    while not ask():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def live(client):
    return {item["provider"] for item in client.get("/v1/targets").json()["items"] if item["live"]}


def body(inputs, provider):
    return {
        "kind": "compress",
        **inputs,
        "recipe": {"passes": [{"type": "simplify"}]},
        "target": {"provider": provider},
    }


def finished(client, job):
    until(lambda: client.get(f"/v1/jobs/{job['id']}?wait=30").json()["finished_at"])
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert done["status"] == "succeeded", done["problem"]
    return done, client.get(f"/v1/jobs/{job['id']}/report.json").json()


def test_both_runtimes_are_listed_with_what_each_worker_takes(client):
    told = client.get("/v1/targets").json()
    by_provider = {item["provider"]: item for item in told["items"]}
    assert by_provider["cpu"]["distribution"] == "onnxruntime"
    assert by_provider["openvino"]["distribution"] == "onnxruntime-openvino"
    # The second one has the CPU's provider too, of another version, and leaves those jobs to the first.
    assert by_provider["cpu"]["workers"] == 1
    workers = {tuple(worker["queues"]): worker["state"] for worker in told["workers"]}
    assert workers == {("inspect",): "live", ("run.cpu",): "live", ("run.openvino",): "live"}
    missing = {one["provider"]: one for one in told["unavailable"]}
    assert "built without" in missing["cuda"]["reason"]


@pytest.mark.parametrize(
    ("provider", "runs", "distribution"),
    [
        ("openvino", "OpenVINOExecutionProvider", "onnxruntime-openvino"),
        ("cpu", "CPUExecutionProvider", "onnxruntime"),
    ],
)
def test_a_job_runs_on_the_worker_that_has_its_target(client, inputs, provider, runs, distribution):
    accepted = client.post("/v1/jobs", json=body(inputs, provider))
    assert accepted.status_code == 202, accepted.text
    done, report = finished(client, accepted.json())
    assert done["cache"] == "miss"
    # OpenVINO runs behind the same walls as the plain runtime, as Linux has them since 5.13.
    assert done["isolation"] == "strict"
    assert {worker["isolation"] for worker in client.get("/v1/targets").json()["workers"]} == {"strict"}
    assert report["environment"]["provider"] == provider
    assert report["environment"]["distribution"] == distribution
    assert report["latency"]["nodes_by_provider"].keys() == {runs}
    # The same work for the same kind of machine is not done again; each provider's result is its own.
    again = client.post("/v1/jobs", json=body(inputs, provider)).json()
    assert again["cached_from"] == done["id"]


def test_a_profile_measures_on_both_and_gives_one_report(client, inputs):
    targets = [{"provider": "cpu"}, {"provider": "openvino"}]
    gates = [{"metric": "latency_p50", "rule": "max", "value": 1000.0}]
    ask = {"kind": "profile", **inputs, "targets": targets, "gates": gates, "measure_seconds": 0.5}
    accepted = client.post("/v1/jobs", json=ask)
    assert accepted.status_code == 202, accepted.text
    assert accepted.json()["output_model"] is None
    done, report = finished(client, accepted.json())
    assert [step["status"] for step in done["steps"]] == ["measured", "measured"]
    assert [target["target"]["provider"] for target in report["targets"]] == ["cpu", "openvino"]
    runs = {"cpu": "CPUExecutionProvider", "openvino": "OpenVINOExecutionProvider"}
    for target in report["targets"]:
        provider, measured = target["target"]["provider"], target["measured"]
        assert measured["environment"]["provider"] == provider
        assert {node["provider"] for node in measured["placement"]["nodes"]} == {runs[provider]}
        assert measured["placement"]["fallbacks"] == []
        assert 0 < measured["latency"]["p50_ms"] <= measured["latency"]["p99_ms"]
    versions = {target["measured"]["environment"]["distribution"] for target in report["targets"]}
    assert versions == {"onnxruntime", "onnxruntime-openvino"}
    assert [(gate["target"], gate["gate"]["metric"]) for gate in report["verdict"]["gates"]] == [
        (0, "latency_p50"),
        (1, "latency_p50"),
    ]
    text = client.get(f"/v1/jobs/{done['id']}/report.md").text
    assert "openvino, 1 thread, batch 1" in text
    refused = client.post("/v1/jobs", json={**ask, "targets": [{"provider": "cpu"}, {"provider": "cuda"}], "gates": []})
    assert (refused.status_code, refused.json()["code"]) == (422, "target_unavailable")


def test_a_target_that_nobody_has_is_refused_with_what_there_is(client, inputs):
    refused = client.post("/v1/jobs", json=body(inputs, "cuda"))
    assert refused.headers["Content-Type"] == "application/problem+json"
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (422, "target_unavailable")
    assert problem["targets"] == ["cpu", "openvino"]
    planned = client.post("/v1/jobs:validate", json=body(inputs, "cuda")).json()
    assert planned["valid"] is False
    assert planned["problem"]["code"] == "target_unavailable"
    assert planned["problem"]["targets"] == ["cpu", "openvino"]


def test_the_command_line_shows_it(embedded, client):
    env = {**os.environ, "ONNXPRESS_URL": embedded.url, "ONNXPRESS_API_KEY": embedded.key_file.read_text().strip()}
    argv = [sys.executable, "-m", "onnxpress", "targets"]
    shown = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["cpu", "openvino"]


def test_a_worker_whose_runtime_promises_a_gpu_that_is_not_there_advertises_none(client, inputs, embedded, gpu_python):
    """Opt-in (ONNXPRESS_TEST_GPU_WORKER=1); tests/engine/measure/test_trap.py shows the same of the engine each time."""
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(embedded.data_dir)}
    argv = [gpu_python, "-m", "worker", "--queues", "work", "--targets", "cuda,tensorrt"]
    worker = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
    try:
        until(lambda: [one for one in client.get("/v1/targets").json()["unavailable"] if one["listed"]])
        told = client.get("/v1/targets").json()
        reasons = {one["provider"]: one["reason"] for one in told["unavailable"] if one["listed"]}
        assert set(reasons) == {"cuda", "tensorrt"}
        assert {item["provider"] for item in told["items"]} == {"cpu", "openvino"}
        refused = client.post("/v1/jobs", json=body(inputs, "cuda")).json()
        assert refused["code"] == "target_unavailable"
        assert reasons["cuda"] in refused["hint"]
    finally:
        worker.terminate()
        worker.wait(60)


def test_a_job_waits_for_a_target_that_was_there(client, inputs, second_worker, embedded, openvino_python):
    """Last: the second worker goes, its target is still accepted, and runs when the worker is back."""
    second_worker.terminate()
    second_worker.wait(60)
    until(lambda: live(client) == {"cpu"})
    gone = {tuple(worker["queues"]): worker["state"] for worker in client.get("/v1/targets").json()["workers"]}
    assert gone["run.openvino",] == "gone"
    ask = {**body(inputs, "openvino"), "cache": "refuse"}
    waits = client.post("/v1/jobs", json=ask).json()
    # Of a profile the other target counts all the same.
    both = {"kind": "profile", **inputs, "targets": [{"provider": "cpu"}, {"provider": "openvino"}]}
    partly = client.post("/v1/jobs", json={**both, "measure_seconds": 0.2, "limits": {"max_pending_s": 10}}).json()
    too_long = client.post("/v1/jobs", json={**ask, "limits": {"max_pending_s": 10}}).json()
    until(lambda: client.get(f"/v1/jobs/{too_long['id']}?wait=30").json()["finished_at"])
    problem = client.get(f"/v1/jobs/{too_long['id']}").json()["problem"]
    assert problem["code"] == "pending_limit"
    assert "`openvino`" in problem["message"]
    _, report = finished(client, partly)
    first, second = report["targets"]
    assert first["measured"]["latency"]["p50_ms"] > 0
    assert (second["measured"], second["refusal"]["code"]) == (None, "not_measured")
    assert "`openvino`" in second["refusal"]["reason"]
    assert client.get(f"/v1/jobs/{waits['id']}").json()["status"] == "queued"
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(embedded.data_dir)}
    worker = subprocess.Popen([openvino_python, "-m", "worker", "--queues", "work"], env=env, stderr=subprocess.DEVNULL)
    try:
        finished(client, waits)
    finally:
        worker.terminate()
        worker.wait(60)
