"""Every layer has its bytes before and after, whatever its nodes are called then, and its share of the time."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import io
from engine.measure.layer_costs import LayerCosts
from engine.passes.quantize_dynamic import QuantizeDynamic
from engine.passes.quantize_static import QuantizeStatic
from engine.passes.quantize_weights import QuantizeWeights
from engine.runtime.host_lock import HostLock
from engine.target import Target

SIZES = {"conv": 4 * (8 * 3 * 9 + 8), "fc": 4 * 8 * 64 * 32, "fc_2": 4 * 32 * 10}


def network():
    """A convolution and two products, the name of one being the beginning of the other's."""
    random = np.random.default_rng(0)
    shapes = {"kernel": (8, 3, 3, 3), "bias": (8,), "w": (8 * 64, 32), "v": (32, 10)}
    tensors = [numpy_helper.from_array(random.normal(size=s).astype(np.float32) / 8, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "w"], ["h"], "fc"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "fc_2"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def pair(context, feeds_of, tmp_path):
    """Give the network's file, and one of what a step makes of it: `pair(step)`."""
    samples = {"x": np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)}

    def made(step):
        model = ir.from_proto(network())
        io.save(model, tmp_path / "before.onnx")
        given = context(model, feeds_of(samples))
        step.prepare(model)
        assert step.check(model) is None
        step.apply(model, given.observe(model, step.observes(model)), given)
        io.save(model, tmp_path / "after.onnx")
        return LayerCosts(tmp_path / "before.onnx", tmp_path / "after.onnx"), [{"x": samples["x"][:1]}]

    return made


@pytest.mark.parametrize("step", [QuantizeStatic(), QuantizeDynamic(), QuantizeWeights(bits=8)])
def test_layers_keep_their_names_however_they_compute(pair, step):
    found, feeds = pair(step)
    costs = {cost.node: cost for cost in found.costs}
    assert {name: cost.bytes_before for name, cost in costs.items()} == SIZES
    quantized = costs["fc"]
    assert quantized.stored in {"int8", "uint8"}
    # A quarter of the bytes, and scales.
    assert SIZES["fc"] / 4 <= quantized.bytes_after < SIZES["fc"] / 3
    found.time(feeds, Target(), HostLock(None))
    costs = {cost.node: cost for cost in found.costs}
    assert costs["fc"].time_share_before > 0
    assert costs["fc"].time_share_after > 0
    assert sum(cost.time_share_after or 0 for cost in found.costs) <= 1.001
    found.compare_outputs(feeds, Target())
    told = {cost.node: cost.output_sqnr_db for cost in found.costs}
    assert 10 < told["fc_2"] < 200


def test_nodes_without_names_are_called_by_their_outputs_and_timed_too(tmp_path):
    model = network()
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "unnamed.onnx")
    found = LayerCosts(tmp_path / "unnamed.onnx", tmp_path / "unnamed.onnx")
    found.time([{"x": np.ones((1, 3, 8, 8), np.float32)}], Target(), HostLock(None))
    assert [cost.node for cost in found.costs] == ["c", "h", "y"]
    assert all(cost.time_share_before and cost.time_share_after for cost in found.costs)


def test_the_same_network_is_the_same_and_what_is_gone_has_no_bytes(tmp_path):
    whole, cut = network(), network()
    del cut.graph.node[4], cut.graph.initializer[3]
    cut.graph.output[0].name = "h"
    for name, model in (("whole", whole), ("cut", cut)):
        onnx.save(model, tmp_path / f"{name}.onnx")
    found = LayerCosts(tmp_path / "whole.onnx", tmp_path / "cut.onnx")
    found.compare_outputs([{"x": np.ones((1, 3, 8, 8), np.float32)}], Target())
    costs = {cost.node: cost for cost in found.costs}
    assert costs["fc_2"].bytes_after is None
    assert costs["fc_2"].output_sqnr_db is None
    assert (costs["fc"].bytes_after, costs["fc"].stored, costs["fc"].output_sqnr_db) == (SIZES["fc"], "float32", 200.0)
