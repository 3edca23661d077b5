"""A goal over HTTP, typed as a user types it: a network is found, others are there to choose from, and one of them is made real."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper


def network():
    """Two residual blocks between a stem and a head: widths, depth and precision can all change."""
    random = np.random.default_rng(0)
    shapes = {"stem": (24, 3, 3, 3), "head": (24, 5)}
    shapes |= {f"{name}{block}": (24, 24, 3, 3) for block in (1, 2) for name in ("a", "b")}
    weights = {name: random.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1) for name, shape in shapes.items()}
    nodes = [helper.make_node("Conv", ["image", "stem"], ["x0"], pads=[1] * 4)]
    for block in (1, 2):
        at, out = f"x{block - 1}", f"x{block}"
        nodes += [
            helper.make_node("Conv", [at, f"a{block}"], [f"{out}_a"], pads=[1] * 4),
            helper.make_node("Relu", [f"{out}_a"], [f"{out}_r"]),
            helper.make_node("Conv", [f"{out}_r", f"b{block}"], [f"{out}_b"], pads=[1] * 4),
            helper.make_node("Add", [at, f"{out}_b"], [out], name=f"add{block}"),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", ["x2"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 10, 10])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def images():
    """Samples without labels: quality is agreement with the original."""
    stream = io.BytesIO()
    np.savez(stream, image=np.random.default_rng(1).normal(size=(256, 3, 10, 10)).astype(np.float32))
    return stream.getvalue()


@pytest.fixture(scope="module")
def typed(embedded, tmp_path_factory):
    """Give the command line, in a folder with a network and data: `typed(*words)` gives what ended."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "model.onnx").write_bytes(network())
    (folder / "data.npz").write_bytes(images())
    env = {
        **os.environ,
        "ONNXPRESS_URL": embedded.url,
        "ONNXPRESS_API_KEY": embedded.key_file.read_text().strip(),
    }

    def run(*words):
        argv = [sys.executable, "-m", "onnxpress", *map(str, words)]
        return subprocess.run(argv, cwd=folder, env=env, check=False, capture_output=True, text=True, timeout=150)

    run.folder = folder
    return run


def test_a_goal_finds_a_network_and_a_point_of_its_front_is_made_real(typed):
    # Of a small space: what is tried here is the way, not what is found.
    space = {"widths": [1.0, 0.5], "ranks": [], "drop_blocks": False, "precisions": ["float32", "weights8"]}
    (typed.folder / "goal.json").write_text(json.dumps({"goal": {"minimise": "size"}, "space": space, "seed": 1}))
    goal = ["--goal", "goal.json", "--max-drop", "20%", "--max-size", "60%", "--budget", "40s", "--trials", "2"]
    done = typed("compress", "model.onnx", "--data", "data.npz", *goal, "--out", "small.onnx", "--report", "small.md")
    assert done.returncode == 0, done.stderr
    (job,) = done.stdout.split()
    assert "limit: top1_agreement with the original of at least 80 %" in done.stderr
    assert "what was tried" in done.stderr
    assert any(line.startswith("trial 1: ") for line in done.stderr.splitlines())
    before, after = ((typed.folder / name).stat().st_size for name in ("model.onnx", "small.onnx"))
    assert after <= 0.6 * before
    report = (typed.folder / "small.md").read_text()
    assert "### What was tried" in report
    assert "### What there is to choose from" in report

    front = json.loads(typed("front", job, "--json").stdout)
    assert front["final"]
    assert front["chosen"] in {point["number"] for point in front["points"]}
    trials = json.loads(typed("trials", job, "--json").stdout)["items"]
    assert {point["number"] for point in front["points"]} <= {trial["number"] for trial in trials}

    number = front["points"][0]["number"]
    picked = typed("pick", job, number, "--out", "picked.onnx", "--json")
    assert picked.returncode == 0, picked.stderr
    told = json.loads(picked.stdout)
    assert told["report"]["kind"] == "compress"
    assert told["report"]["compressed"]["size_bytes"] == front["points"][0]["measured"]["size_bytes"]
    with np.load(typed.folder / "data.npz") as arrays:
        (name,) = (each.name for each in onnx.load(typed.folder / "picked.onnx").graph.input)
        session = onnxruntime.InferenceSession(typed.folder / "picked.onnx", providers=["CPUExecutionProvider"])
        assert np.isfinite(session.run(None, {name: arrays[name][:4].astype(np.float32)})[0]).all()


def test_a_front_of_a_job_that_is_no_search_is_refused(typed):
    done = typed("compress", "model.onnx", "--data", "data.npz", "--recipe", "simplify", "--no-wait")
    refused = typed("front", done.stdout.strip())
    assert refused.returncode == 2
    assert "Only a search" in refused.stderr
