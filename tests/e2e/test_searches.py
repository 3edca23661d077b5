"""A search over the whole service with the real engine: it finishes with a front, and a point of it is made real."""

import time

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from .test_targets import images

RAW = {"Content-Type": "application/octet-stream"}
PATIENCE_S = 240.0
GOAL = {"minimise": "size", "subject_to": [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.9}]}


def network():
    """A convolution and a hidden layer that holds nearly all of the bytes."""
    random = np.random.default_rng(0)
    shapes = {"w1": (4, 1, 3, 3), "w2": (4 * 36, 64), "w3": (64, 4)}
    tensors = {name: random.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["h"]),
        helper.make_node("Relu", ["h"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hidden",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def client(embedded):
    key = embedded.key_file.read_text().strip()
    with httpx.Client(base_url=embedded.url, headers={"Authorization": f"Bearer {key}"}, timeout=90) as made:
        yield made


@pytest.fixture(scope="module")
def inputs(client):
    found = {}
    for name, kind, content in (("model", "models", network()), ("dataset", "datasets", images())):
        row = client.post(f"/v1/{kind}", params={"name": name, "wait": 60}, content=content, headers=RAW).json()
        assert row["state"] == "ready", row
        found[name] = row["id"]
    return found


def ended(client, job):
    end = time.monotonic() + PATIENCE_S
    while job["status"] not in {"succeeded", "failed", "cancelled"}:
        assert time.monotonic() < end, job
        job = client.get(f"/v1/jobs/{job['id']}", params={"wait": 30}).json()
    assert job["status"] == "succeeded", job["problem"]
    return job


def until(client, address, word):
    """Give a text as soon as it has a word in it."""
    end = time.monotonic() + PATIENCE_S
    while word not in (text := client.get(address).text):
        assert time.monotonic() < end, text
        time.sleep(0.2)
    return text


def test_a_goal_becomes_a_network_with_a_front_whose_points_can_be_made_real(client, inputs):
    space = {"precisions": ["float32", "static"], "widths": [1, 0.5], "ranks": [], "train": False}
    body = {**inputs, "goal": GOAL, "space": space, "budget": {"max_trials": 3, "max_seconds": 120}}
    job = ended(client, client.post("/v1/jobs", json=body).raise_for_status().json())
    assert job["verdict"] == "pass", job["summary"]
    found = client.get(f"/v1/jobs/{job['id']}/report.json").json()
    assert (found["kind"], found["search"]["met"]) == ("search", True)
    listed = client.get(f"/v1/jobs/{job['id']}/trials").json()["items"]
    assert 1 <= len(listed) <= 3
    assert {line["trial"] for line in found["search"]["story"]} == {trial["number"] for trial in listed}
    front = client.get(f"/v1/jobs/{job['id']}/front").json()
    assert (front["final"], front["chosen"]) == (True, found["search"]["chosen"])
    point = front["points"][0]
    assert (point["stored"], bool(point["recipe"])) == (True, True)
    assert point["measured"]["size_bytes"] <= found["compressed"]["size_bytes"]
    # Made real, it is that network, measured on the samples that judge.
    picked = client.post(f"/v1/jobs/{job['id']}/front/{point['number']}:pick", json={}).raise_for_status().json()
    report = client.get(f"/v1/jobs/{ended(client, picked)['id']}/report.json").json()
    assert report["compressed"]["size_bytes"] == pytest.approx(point["measured"]["size_bytes"], rel=0.02)
    assert not [text for text in report["warnings"] if "not trained" in text]
    # A later search over the same network measures no part of it again: candidates are the first that it asks for.
    later = client.post("/v1/jobs", json={**body, "seed": 1}).raise_for_status().json()
    logs = until(client, f"/v1/jobs/{later['id']}/logs", "waits_for_children")
    assert "trial_queued" in logs[: logs.index("waits_for_children")]
    client.post(f"/v1/jobs/{later['id']}:cancel").raise_for_status()
