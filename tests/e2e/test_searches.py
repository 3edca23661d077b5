"""A search over the whole service with the real engine, typed as a user types it: it ends with a front, and a point of it is made real."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .test_targets import images

PATIENCE_S = 240.0
# Of a small space: what is tried here is the way, not what is found.
SPACE = {"precisions": ["float32", "static"], "widths": [1, 0.5], "ranks": [], "train": False}
LIMITS = ["--max-size", "90%", "--gate", "top1_agreement min 30%"]


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


@pytest.fixture
def typed(embedded, tmp_path):
    """Give the command line, in a folder with a network, data and a goal: `typed(*words)` gives what it says to programs."""
    (tmp_path / "model.onnx").write_bytes(network())
    (tmp_path / "data.npz").write_bytes(images())
    (tmp_path / "goal.json").write_text(json.dumps({"goal": {"minimise": "size"}, "space": SPACE}))
    env = {**os.environ, "ONNXPRESS_URL": embedded.url, "ONNXPRESS_API_KEY": embedded.key_file.read_text().strip()}

    def run(*words):
        argv = [sys.executable, "-m", "onnxpress", *map(str, words)]
        done = subprocess.run(
            argv, cwd=tmp_path, env=env, check=False, capture_output=True, text=True, timeout=PATIENCE_S
        )
        run.told = done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def until(client, address, word):
    """Give a text as soon as it has a word in it."""
    end = time.monotonic() + PATIENCE_S
    while word not in (text := client.get(address).text):
        assert time.monotonic() < end, text
        time.sleep(0.2)
    return text


# tests/engine/job/test_search.py searches for real in one process, tests/faults/test_units.py over a whole service.
@pytest.mark.soak
def test_a_goal_becomes_a_network_with_a_front_whose_points_can_be_made_real(client, typed, tmp_path):
    words = [
        "compress",
        "model.onnx",
        "--data",
        "data.npz",
        "--goal",
        "goal.json",
        *LIMITS,
        "--trials",
        3,
        "--budget",
        "2m",
    ]
    name = typed(*words, "--out", "small.onnx", "--report", "small.md").strip()
    assert any(line.startswith("trial 1: ") for line in typed.told.splitlines()), "candidates are shown as they end"
    assert "what was tried" in typed.told
    assert "### What there is to choose from" in (tmp_path / "small.md").read_text()
    job = client.get(f"/v1/jobs/{name}").json()
    assert job["verdict"] == "pass", job["summary"]
    found = client.get(f"/v1/jobs/{name}/report.json").json()
    assert (found["kind"], found["search"]["met"]) == ("search", True)
    assert found["compressed"]["size_bytes"] == (tmp_path / "small.onnx").stat().st_size
    listed = json.loads(typed("trials", name, "--json"))["items"]
    assert 1 <= len(listed) <= 3
    assert {line["trial"] for line in found["search"]["story"]} == {trial["number"] for trial in listed}
    front = json.loads(typed("front", name, "--json"))
    assert (front["final"], front["chosen"]) == (True, found["search"]["chosen"])
    point = front["points"][0]
    assert (point["stored"], bool(point["recipe"])) == (True, True)
    assert point["measured"]["size_bytes"] <= found["compressed"]["size_bytes"]
    # Made real, it is that network, measured on the samples that judge.
    report = json.loads(typed("pick", name, point["number"], "--out", "picked.onnx", "--json"))["report"]
    assert report["kind"] == "compress"
    picked = onnx.load(tmp_path / "picked.onnx")
    words = len(picked.SerializeToString())
    del picked.metadata_props[:]
    words -= len(picked.SerializeToString())
    assert report["compressed"]["size_bytes"] - words == pytest.approx(point["measured"]["size_bytes"], rel=0.02)
    assert report["compressed"]["size_bytes"] == (tmp_path / "picked.onnx").stat().st_size
    assert not [text for text in report["warnings"] if "not trained" in text]
    # A later search over the same network measures no part of it again: candidates are the first that it asks for.
    later = {"model": job["model"], "dataset": job["dataset"], "goal": job["spec"]["goal"], "space": SPACE, "seed": 1}
    later = client.post("/v1/jobs", json=later).raise_for_status().json()
    logs = until(client, f"/v1/jobs/{later['id']}/logs", "waits_for_children")
    assert "trial_queued" in logs[: logs.index("waits_for_children")]
    client.post(f"/v1/jobs/{later['id']}:cancel").raise_for_status()
