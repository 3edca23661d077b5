"""Bad input, judged by the real workers: each a clear problem, and nothing left on disk."""

import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from settings import Settings
from standalone import broker

ROOT = Path(__file__).resolve().parents[2]
RAW = {"Content-Type": "application/octet-stream"}
RECIPE = {"passes": [{"type": "quantize_static"}]}
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def service(new_service, tmp_path_factory):
    """The API with a real broker and a real worker."""
    data_dir = tmp_path_factory.mktemp("data")
    sock = broker.socket_path(data_dir)
    sock.parent.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        data_dir=data_dir, broker_url=broker.url(sock), max_model_bytes=LIMIT, max_dataset_bytes=LIMIT, resend_s=1
    )
    env = {
        **os.environ,
        "ONNXPRESS_DATA_DIR": str(data_dir),
        "ONNXPRESS_BROKER_URL": settings.broker_url,
        "ORT_DISABLE_TELEMETRY": "1",
    }
    log = (data_dir / "parts.log").open("wb")
    parts = [subprocess.Popen(broker.command(broker.find_binary(), sock), stdout=log, stderr=log)]
    try:
        broker.wait_until_ready(sock)
        with new_service(settings) as made:
            command = [sys.executable, "-m", "worker", "--queues", "inspect,work", "--concurrency", "1"]
            parts.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
            yield made
    finally:
        for part in reversed(parts):
            part.terminate()
            part.wait(60)
        log.close()


def network(quantized=False):
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    start = [helper.make_node("Identity", ["x"], ["x1"])]
    initializers = [numpy_helper.from_array(weight, "w")]
    if quantized:
        start = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x1"]),
            helper.make_node("DequantizeLinear", ["wq", "s", "wz"], ["w"]),
        ]
        initializers = [
            numpy_helper.from_array(np.float32(0.1), "s"),
            numpy_helper.from_array(np.uint8(128), "z"),
            numpy_helper.from_array(np.int8(0), "wz"),
            numpy_helper.from_array((weight * 10).round().astype(np.int8), "wq"),
        ]
    graph = helper.make_graph(
        [*start, helper.make_node("MatMul", ["x1", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def samples(columns=8):
    return np.random.default_rng(1).standard_normal((64, columns)).astype(np.float32)


@pytest.fixture(scope="module")
def model(service):
    with service.client() as client:
        answer = client.post("/v1/models", params={"wait": 60}, content=network(), headers=RAW)
    assert (answer.status_code, answer.json()["state"]) == (201, "ready"), answer.text
    return answer.json()["id"]


@pytest.fixture(scope="module")
def dataset(service):
    with service.client() as client:
        answer = client.post("/v1/datasets", params={"wait": 60}, content=npz(x=samples()), headers=RAW)
    assert (answer.status_code, answer.json()["state"]) == (201, "ready"), answer.text
    return answer.json()["id"]


def refused(answer, *codes, status=422):
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert told["code"] in codes
    assert len(told["detail"]) > 15
    assert not any(word in answer.text for word in (str(ROOT), "/tmp", "incoming", "unt_")), "the inside shows"
    assert "Traceback" not in answer.text
    return told


def settled_files(service, before):
    """Give what is new in the store, once the removal after the commit is done."""
    service.until(lambda: set(service.stored_files()) <= set(before))
    return set(service.stored_files()) - set(before)


def a_pickle():
    file = io.BytesIO()
    np.savez(file, x=np.array([{"a": 1}] * 4, dtype=object))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(network()[:-60], id="truncated"),
        pytest.param(b"name,value\nthis is,a text file\n" * 50, id="text"),
    ],
)
def test_what_is_no_network(service, client, model, content):
    before = service.stored_files()
    answer = client.post("/v1/models", params={"wait": 60}, content=content, headers=RAW)
    refused(answer, "model_invalid")
    assert settled_files(service, before) == set()
    row = client.get(answer.headers["Location"]).json()
    assert (row["state"], row["sha256"]) == ("rejected", None)
    job = client.post("/v1/jobs", json={"model": row["id"], "recipe": {"passes": [{"type": "simplify"}]}})
    refused(job, "model_rejected")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(npz(y=samples()), "missing", id="wrong name"),
        pytest.param(npz(x=samples(9)), "size 9", id="wrong shape"),
        pytest.param(npz(x=np.where(np.eye(64, 8) > 0, np.nan, samples())), "NaN", id="NaN"),
        pytest.param(a_pickle(), "x", id="pickle"),
    ],
)
def test_what_is_no_dataset_for_the_network(service, client, model, content, word):
    before = service.stored_files()
    answer = client.post("/v1/datasets", params={"model": model, "wait": 60}, content=content, headers=RAW)
    told = refused(answer, "dataset_invalid")
    assert word.lower() in told["detail"].lower()
    assert settled_files(service, before) == set()


def test_data_that_fit_no_longer_when_the_job_names_them(client, model):
    dataset = client.post("/v1/datasets", params={"wait": 60}, content=npz(other=samples()), headers=RAW).json()
    assert dataset["state"] == "ready", dataset
    answer = client.post("/v1/jobs", json={"model": model, "dataset": dataset["id"], "recipe": RECIPE})
    told = refused(answer, "dataset_invalid")
    assert "other" in told["detail"]
    assert "x" in told["hint"]


@pytest.mark.parametrize(
    ("change", "code", "at"),
    [
        ({"recipe": {"passes": [{"type": "shrink"}]}}, "invalid", "/recipe/passes/0/type"),
        ({"limits": {"max_runtime_s": 0}}, "invalid", "/limits/max_runtime_s"),
        (
            {"recipe": {"passes": [{"type": "quantize_static", "per_channel": 7}]}},
            "invalid",
            "/recipe/passes/0/per_channel",
        ),
        ({"target": {"provider": "abacus"}}, "invalid", "/target/provider"),
        ({"target": {"provider": "cuda"}}, "target_unavailable", None),
        ({"dataset": None}, "spec_invalid", None),
        ({"dataset": "dst_" + "0" * 26}, "unknown_reference", "/dataset"),
        ({"gates": [{"metric": "top1", "rule": "max_drop", "value": 0.01}]}, "spec_invalid", None),
    ],
)
def test_what_is_no_job(client, model, dataset, change, code, at):
    body = {"model": model, "dataset": dataset, "recipe": RECIPE, **change}
    told = refused(client.post("/v1/jobs", json=body), code)
    assert at is None or at in [one["pointer"] for one in told["errors"]]


def test_a_network_that_is_quantized_already(client, dataset):
    uploaded = client.post("/v1/models", params={"wait": 60}, content=network(quantized=True), headers=RAW).json()
    assert uploaded["inspection"]["quantized"] != "none"
    told = refused(
        client.post("/v1/jobs", json={"model": uploaded["id"], "dataset": dataset, "recipe": RECIPE}), "spec_invalid"
    )
    assert "quantized" in told["detail"]


def test_over_the_limit_cut_off_or_changed_on_the_way(service, client):
    before = service.stored_files()
    refused(client.post("/v1/models", content=b"x" * (LIMIT + 1), headers=RAW), "too_large", status=413)
    wrong = {**RAW, "Repr-Digest": f"sha-256=:{'A' * 43}=:"}
    refused(client.post("/v1/models", content=network(), headers=wrong), "digest_mismatch", status=400)
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as link:
        head = f"POST /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['alpha']}\r\n"
        link.sendall(f"{head}Content-Type: application/octet-stream\r\nContent-Length: 900000\r\n\r\n".encode())
        link.sendall(b"x" * 300_000)
        incoming = service.settings.data_dir / "store" / "incoming"
        service.until(lambda: list(incoming.iterdir()))
    assert settled_files(service, before) == set()


def test_what_is_right_goes_all_the_way(client, model):
    assert onnx.load_from_string(network()).graph.name == "net"
    # Advertised as soon as the worker has proven it.
    job = client.post("/v1/jobs", json={"model": model, "recipe": {"passes": [{"type": "simplify"}]}}).json()
    etag, end = "", time.monotonic() + 60
    while job["status"] not in {"succeeded", "failed", "cancelled"}:
        assert time.monotonic() < end, job
        answer = client.get(f"/v1/jobs/{job['id']}?wait=10", headers={"If-None-Match": etag})
        if answer.status_code == 200:
            job, etag = answer.json(), answer.headers["ETag"]
    assert job["status"] == "succeeded", job
    output = client.get(f"/v1/models/{job['output_model']}").json()
    content = client.get(job["links"]["output"])
    assert content.headers["ETag"] == f'"{output["sha256"]}"'
    onnx.checker.check_model(onnx.load_from_string(content.content))
    assert "cpu" in {one["provider"] for one in client.get("/v1/targets").json()["items"]}
    assert client.get(job["links"]["report"]).json()["steps"][0]["type"] == "simplify"
