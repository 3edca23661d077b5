"""Networks of strangers, several at a time: real jobs in lanes of their own, and what is left out where time is short."""

import hashlib
import os
import zipfile

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.field import judging, lanes
from benchmarks.field.lanes import Bench, Plan
from benchmarks.field.networks import Network
from benchmarks.networks.packages import Package


def drawn(_downloads, count):
    return {"x": np.random.default_rng(1).standard_normal((count, 512)).astype(np.float32)}


def missing(_downloads, _count):
    raise FileNotFoundError("no recordings")


def wheel_of_two_layers(folder):
    draw = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draw.standard_normal((512, 512)).astype(np.float32), name)
        for name in ("first", "second")
    ]
    nodes = [helper.make_node("MatMul", ["x", "first"], ["h"]), helper.make_node("MatMul", ["h", "second"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "two layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 512])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "two-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("two/model.onnx", model.SerializeToString())
    return Package("two", "1", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def network(tmp_path):
    package = wheel_of_two_layers(tmp_path)

    def make(name, feed=drawn):
        return Network(name, package, "two/model.onnx", feed, judging.SQNR, ("values", "classes"), counts=(8, 8, 8))

    return make


def test_each_network_is_made_and_judged_by_itself(network, tmp_path, capsys):
    plan = Plan(recipes=["dynamic"], peers=False, lanes=2, race_s=0.2)
    bench = Bench([network("one"), network("deaf", missing)], plan, tmp_path, tmp_path / "work")
    found = {each.name: results for each, results in bench.results()}
    original, ours = found["one"]
    assert original.score == 120
    assert ours.problem is None
    assert ours.bytes < original.bytes
    assert 15 < ours.score < 120
    assert "no recordings" in found["deaf"][-1].problem
    assert found["deaf"][-1].faults
    assert "one: onnxpress dynamic" in capsys.readouterr().err


def test_what_cannot_be_begun_in_time_is_left_out(network, tmp_path, capsys):
    plan = Plan(recipes=["dynamic"], peers=False, lanes=1, seconds=1)
    assert list(Bench([network("one")], plan, tmp_path, tmp_path / "work").results()) == []
    assert "one: left out, time was over" in capsys.readouterr().err


def test_lanes_share_the_cores_and_none_has_two():
    usable = sorted(os.sched_getaffinity(0))
    assert lanes._split(1) == [usable]
    shared = lanes._split(len(usable) + 1)
    assert shared == [[core] for core in usable]
