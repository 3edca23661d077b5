"""`simplify`: it folds and fuses, keeps the outputs, drops a stage that breaks them, and does nothing twice."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import zoo as topologies
from onnx import TensorProto, helper, numpy_helper

from engine.data.dataset import Samples
from engine.graph import io, simplify, verify
from engine.passes.simplify import Simplify
from engine.report.detail_parts import CountChange
from engine.runtime import sessions
from engine.target import Target


@pytest.fixture
def simplified(context, images, feeds_of, capfd):
    def make(serialized, arrays=None):
        model = ir.from_proto(onnx.load_model_from_string(serialized))
        samples = feeds_of(arrays or {"image": images(8)})
        change = Simplify().apply(model, {}, context(model, samples))
        after = io.to_bytes(model)
        onnx.checker.check_model(after, full_check=True)
        opened = [sessions.session(each, Target()) for each in (serialized, after)]
        found = verify.agreement(*opened, list(samples.batches(1)))
        assert found.relative <= verify.FLOAT_TOLERANCE
        out, err = capfd.readouterr()
        assert not out
        assert not err
        return after, change

    return make


def _ops(serialized):
    return sorted(node.op_type for node in onnx.load_model_from_string(serialized).graph.node)


def test_folds_batch_normalisation_into_convolutions(simplified, network):
    net = network()
    x = net.relu(net.norm(net.conv("image", 3, 8, name="a"), 8, name="bn1"))
    plain = net.op("Conv", x, net.normal("w", 5, 8, 3, 3), name="no_bias")
    x = net.norm(plain, 5, name="bn2")
    after, change = simplified(net.build(net.op("Flatten", net.op("GlobalAveragePool", x))))
    assert "BatchNormalization" not in _ops(after)
    assert change.details.ops["BatchNormalization"] == CountChange(before=2, after=0)


def test_the_own_folding_alone_is_exact(network, images):
    net = network()
    x = net.norm(net.op("Conv", "image", net.normal("w", 5, 3, 3, 3), name="c"), 5, name="bn")
    before = net.build(net.op("Flatten", net.op("GlobalAveragePool", x)))
    model = simplify._fold_batch_norms(ir.from_proto(onnx.load_model_from_string(before)))
    after = io.to_bytes(simplify._remove_unused(model))
    assert "BatchNormalization" not in _ops(after)
    feeds = [{"image": images(4).astype(np.float32)}]
    assert verify.same_outputs(before, after, feeds, Target()).relative <= 1e-5


def test_means_over_space_become_pools(simplified, network):
    net = network()
    axes = net.weight("axes", np.array([-2, -1], np.int64))
    x = net.op("ReduceMean", net.conv("image", 3, 5, name="a"), axes, keepdims=0)
    after, _ = simplified(net.build(x))
    assert "ReduceMean" not in _ops(after)
    assert "GlobalAveragePool" in _ops(after)


def test_means_over_other_axes_stay(simplified, network):
    net = network()
    x = net.op("ReduceMean", net.conv("image", 3, 5, name="a"), net.weight("axes", np.array([1, 2, 3], np.int64)))
    after, _ = simplified(net.build(x, out_shape=("n", 1, 1, 1)))
    assert "ReduceMean" in _ops(after)


def test_folds_shape_arithmetic_on_constants(simplified, network):
    net = network()
    two = net.op("Add", net.weight("one", np.float32(1)), net.weight("also", np.float32(1)))
    x = net.op("Mul", net.conv("image", 3, 5, name="a"), two)
    after, _ = simplified(net.build(net.op("Flatten", net.op("GlobalAveragePool", x))))
    assert "Add" not in _ops(after)


def test_constant_conditions_are_resolved(simplified, network):
    net = network()
    x = net.conv("image", 3, 5, name="a")
    branches = {}
    for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
        node = helper.make_node(kind, [x], [f"{name}.y"])
        branches[name] = helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}.y", 1, None)])
    x = net.op("If", net.weight("flag", np.array(True)), **branches)
    after, change = simplified(net.build(x, out_shape=("n", 5, 12, 12)))
    assert "If" not in _ops(after)
    assert "Relu" in _ops(after)
    assert "control flow" in change.details.stages


def test_twice_is_harmless(simplified, residual_cnn):
    once, _ = simplified(residual_cnn())
    twice, change = simplified(once)
    assert _ops(once) == _ops(twice)
    assert (change.code, change.reason) == ("no_gain", "The network is as simple as it gets.")


def test_a_stage_that_breaks_the_outputs_is_dropped_and_named(simplified, residual_cnn, monkeypatch):
    whole = simplify._onnxslim

    def negate(model):
        model = whole(model)
        node = next(node for node in model.graph if node.op_type == "Gemm")
        weight = node.inputs[1]
        weight.const_value = ir.tensor(-weight.const_value.numpy(), name=weight.name)
        return model

    monkeypatch.setattr(simplify, "_onnxslim", negate)
    _, change = simplified(residual_cnn())
    (dropped,) = change.details.dropped_stages
    assert dropped.stage == "constant folding and fusion"
    assert dropped.reason.startswith("it moved the outputs by")


def test_a_stage_that_fails_at_another_size_is_dropped_alone(simplified, network, monkeypatch):
    """What the samples do not show, the verification of the whole would, and all other stages went with it."""
    whole = simplify._onnxslim

    def fix_the_size(model):
        model = whole(model)
        mean = next(node for node in model.graph if node.op_type == "GlobalAveragePool")
        mean.op_type = "AveragePool"
        mean.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [12, 12])
        mean.outputs[0].shape = None
        return model

    monkeypatch.setattr(simplify, "_onnxslim", fix_the_size)
    net = network()
    x = net.norm(net.conv("image", 3, 5, name="a"), 5, name="bn")
    pooled = net.op("GlobalAveragePool", x)
    after, change = simplified(net.build(pooled, shape=("n", 3, "h", "w"), out_shape=("n", 5, 1, 1)))
    assert [dropped.stage for dropped in change.details.dropped_stages] == ["constant folding and fusion"]
    assert "BatchNormalization" not in _ops(after)


def test_a_library_that_stumbles_over_a_network_costs_its_stage_alone(simplified, network, monkeypatch):
    def stumble(_model, **_options):
        raise IndexError("a library's own bug")

    monkeypatch.setattr(simplify, "slim", stumble)
    net = network()
    x = net.norm(net.conv("image", 3, 5, name="a"), 5, name="bn")
    _, change = simplified(net.build(net.op("Flatten", net.op("GlobalAveragePool", x))))
    dropped = {each.stage: each.reason for each in change.details.dropped_stages}
    assert dropped == dict.fromkeys(
        ("constant folding and fusion", "constant folding"), "the library that does it failed (IndexError)"
    )
    assert "batch normalisation" in change.details.stages


@pytest.mark.parametrize("fault", [KeyError("ours"), AssertionError(), AttributeError("ours"), IndexError("ours")])
def test_a_fault_of_an_own_stage_comes_through(simplified, residual_cnn, monkeypatch, fault):
    def stumble(_model):
        raise fault

    monkeypatch.setattr(simplify, "_fold_batch_norms", stumble)
    with pytest.raises(type(fault)):
        simplified(residual_cnn())


@pytest.mark.parametrize("name", sorted(topologies.ZOO))
def test_no_stage_is_dropped_over_the_zoo(name, context):
    proto = topologies.ZOO[name]()
    arrays = topologies.feed(proto)
    samples = Samples(arrays, {key: array.dtype for key, array in arrays.items()}, np.arange(2))
    change = Simplify().apply(topologies.load(proto), {}, context(topologies.load(proto), samples))
    assert change.details.dropped_stages == ()


def test_strips_what_exporters_leave_behind(simplified, residual_cnn):
    model = onnx.load_model_from_string(residual_cnn())
    model.doc_string = "made on /home/someone"
    model.metadata_props.add(key="path", value="/home/someone")
    model.graph.node[0].doc_string = "File /home/someone/train.py"
    model.graph.value_info.append(helper.make_tensor_value_info("stem_out", TensorProto.FLOAT, None))
    after, _ = simplified(model.SerializeToString())
    assert b"/home/someone" not in after


def test_what_no_run_reads_is_a_gain_where_it_is_much_of_the_file(simplified, residual_cnn):
    once, _ = simplified(residual_cnn())
    model = onnx.load_model_from_string(once)
    model.metadata_props.add(key="training", value="x" * (len(once) // 10))
    after, change = simplified(model.SerializeToString())
    assert change.summary.startswith("What no run reads, or was stored more than once, is gone:")
    assert len(after) < 1.01 * len(once)


def _unary(build_nodes, weights=()):
    graph = helper.make_graph(
        build_nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "H", "W"])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_as_many_operators_are_not_the_same_operators(simplified):
    mean = _unary([helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=1)])
    _, change = simplified(mean, {"x": np.ones((4, 4, 6, 6), np.float32)})
    assert change.summary == "1 ReduceMean became 1 GlobalAveragePool, 1 operator as before."


def test_constants_that_are_stored_now_are_told(simplified):
    nodes = [
        helper.make_node("Expand", ["one", "shape"], ["wide"]),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    weights = [("one", np.full((1, 1, 1, 1), 0.5, np.float32)), ("shape", np.array([1, 4, 6, 6]))]
    after, change = simplified(_unary(nodes, weights), {"x": np.ones((4, 4, 6, 6), np.float32)})
    assert _ops(after) == ["Add"]
    assert change.summary == (
        "2 operators became 1; constants that were computed in every run are stored and take 540 bytes more."
    )


def test_weights_that_were_stored_as_constants_are_not_called_new(simplified):
    """Paddle writes every weight as a Constant, which nothing computes in a run."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Conv", ["same", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    after, change = simplified(_unary(nodes), {"x": np.ones((4, 4, 6, 6), np.float32)})
    assert _ops(after) == ["Conv"]
    assert change.summary == "3 operators became 1."


def test_nothing_simplified_because_stages_failed_is_said(simplified, residual_cnn, monkeypatch):
    once, _ = simplified(residual_cnn())

    def broken(_model):
        raise simplify._LibraryFailedError from RuntimeError("no")

    monkeypatch.setattr(simplify, "_onnxslim", broken)
    _, change = simplified(once)
    assert change.reason.startswith(
        "Nothing was simplified: constant folding and fusion was dropped, because the library"
    )


def test_inputs_that_nothing_reads_stay_and_cost_no_stage(simplified):
    nodes = [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("MatMul", ["same", "w"], ["y"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("before", "x", "after")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph(nodes, "g", inputs, [output], [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    arrays = {name: np.ones((4, 8), np.float32) for name in ("before", "x", "after")}
    after, change = simplified(model.SerializeToString(), arrays)
    assert change.details.dropped_stages == ()
    assert change.summary == "2 operators became 1."
    assert [each.name for each in onnx.load_model_from_string(after).graph.input] == ["before", "x", "after"]


def test_weights_that_nothing_reads_go(simplified):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    weights = [numpy_helper.from_array(np.eye(8, dtype=np.float32) + at, name) for at, name in enumerate(("w", "left"))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    after, change = simplified(model.SerializeToString(), {"x": np.ones((4, 8), np.float32)})
    assert [each.name for each in onnx.load_model_from_string(after).graph.initializer] == ["w"]
    assert change.summary == "256 bytes of weights that nothing reads are gone."
