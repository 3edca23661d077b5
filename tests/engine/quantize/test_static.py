"""`quantize_static`: it matches, it refuses with a reason, it is faithful within a stated tolerance, twice is harmless."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.errors import SpecInvalidError
from engine.graph import io, verify
from engine.passes.quantize_static import QuantizeStatic
from engine.quantize.static_plan import make_plan
from engine.report.detail_parts import LeftAlone
from engine.report.values import Change
from engine.runtime import sessions, tracing
from engine.target import Target

# Of random weights and smooth images; trained networks reach 35 to 40 dB.
FAITHFUL_DB = 20.0


@pytest.fixture
def quantized(context, images, feeds_of):
    """Quantize a serialized network and give the new one with the change."""

    def make(serialized, step=None, *, ratios=(), arrays=None, improve=False):
        # The candidates have tests of their own.
        step = (step or QuantizeStatic()).model_copy(update={"improve": improve})
        model = ir.from_proto(onnx.load_model_from_string(serialized))
        samples = feeds_of(arrays or {"image": images(48)})
        given = context(model, samples, ratios=ratios)
        step.prepare(model)
        refusal = step.check(model)
        if refusal is not None:
            return model, refusal
        change = step.apply(model, given.observe(model, step.observes(model)), given)
        step.ensures(model)
        io.strip(model)
        onnx.checker.check_model(io.to_bytes(model), full_check=True)
        return model, change

    return make


def _kinds(model):
    serialized = io.to_bytes(model)
    return [
        node.op_type for node in onnx.load_model_from_string(tracing.optimised_graph(serialized, Target())).graph.node
    ]


def _sqnr(before, model, samples):
    opened = [sessions.session(each, Target()) for each in (before, io.to_bytes(model))]
    return verify.agreement(*opened, list(samples.batches(1))).sqnr_db


@pytest.mark.usefixtures("avx2")
def test_onnxruntime_runs_all_of_it_in_integers(quantized, residual_cnn):
    model, change = quantized(residual_cnn())
    assert isinstance(change, Change)
    kinds = _kinds(model)
    assert kinds.count("QLinearConv") == 6
    assert kinds.count("QLinearAdd") == 2
    assert "QLinearGlobalAveragePool" in kinds
    assert "QGemm" in kinds
    assert not {"Conv", "Gemm", "Add", "Relu", "DequantizeLinear"} & set(kinds)
    assert kinds.count("QuantizeLinear") == 1  # of the float input
    assert change.details.conversions_left.count == 1
    assert change.details.conversions_left.integer_kernels == 10
    assert change.details.clamps_absorbed == 5
    assert all(layer.accumulator_load <= 1 for layer in change.details.layers)


def _mixing_tokens(network, size=36):
    net = network()
    x = net.op("Reshape", "image", net.weight("shape", np.array([0, size, -1], np.int64)))
    x = net.relu(net.op("MatMul", net.normal("left.w", 48, size, scale=size**-0.5), x, name="left"))
    x = net.op("ReduceMean", x, name="pool", axes=[2], keepdims=0)
    return net.build(net.op("Gemm", x, net.normal("head.w", 48, 5), name="head"), opset=17)


def test_weights_on_the_left_run_in_integers(quantized, network, images, feeds_of):
    before = _mixing_tokens(network)
    model, change = quantized(before)
    assert "QLinearMatMul" in _kinds(model)
    assert "MatMul" not in _kinds(model)
    left = next(layer for layer in change.details.layers if layer.node == "left")
    assert left.weight == "uint8"
    assert left.weight_sqnr_db > 35
    assert not change.details.in_float
    assert _sqnr(before, model, feeds_of({"image": images(16, seed=9)})) > FAITHFUL_DB
    _, change = quantized(before, ratios=(1.0, 0.9, 1.0), step=QuantizeStatic())
    assert [each.node for each in change.details.in_float] == ["left"]
    assert "measured" in change.details.in_float[0].reason


@pytest.mark.parametrize("after", ["ReduceMean", "Sigmoid"])
@pytest.mark.parametrize("relu", [True, False])
def test_products_before_float_operators_leave_no_lonely_pairs(quantized, network, after, relu):
    net = network()
    x = net.op("MatMul", net.op("Flatten", "image"), net.normal("w", 432, 64, scale=0.05), name="product")
    x = net.op(after, net.relu(x) if relu else x, **({"keepdims": 0} if after == "ReduceMean" else {}))
    before = net.build(x, out_shape=() if after == "ReduceMean" else ("n", 64), opset=17)
    model, change = quantized(before)
    kinds = _kinds(model)
    assert {"QLinearMatMul", "MatMulIntegerToFloat"} & set(kinds)
    assert "MatMul" not in kinds
    assert change.details.conversions_left.lonely_pairs == ()


def test_few_weights_on_the_left_stay_with_the_reason(quantized, network):
    _, change = quantized(_mixing_tokens(network, size=18))
    assert change.details.in_float == (
        LeftAlone(node="left", reason="its weights are on the left, and fewer than 1024"),
    )


def test_faithful_with_and_without_optimisation(quantized, residual_cnn, images, feeds_of):
    before = residual_cnn()
    samples = feeds_of({"image": images(16, seed=9)})
    for step in (
        QuantizeStatic(),
        QuantizeStatic(per_channel=False),
        QuantizeStatic(weights="int7"),
        QuantizeStatic(weights="uint8"),
        QuantizeStatic(activations="int8"),
    ):
        model, _ = quantized(before, step, improve=step == QuantizeStatic())
        assert _sqnr(before, model, samples) >= FAITHFUL_DB, step
        serialized = io.to_bytes(model)
        opened = [sessions.session(serialized, Target(), optimise=flag) for flag in (True, False)]
        assert verify.agreement(*opened, list(samples.batches(1))).sqnr_db >= verify.INTEGER_SQNR_DB


def test_weights_take_a_byte(quantized, residual_cnn):
    before = residual_cnn()
    model, _ = quantized(before)
    assert len(io.to_bytes(model)) < 0.36 * len(before)
    names = [value.name for _, value in io.initializers(model)]
    arrays = [
        value.const_value.tobytes() + str(value.const_value.dtype).encode() for _, value in io.initializers(model)
    ]
    assert len(set(arrays)) == len(names), "a tensor is stored twice"


def test_twice_is_refused_as_done(quantized, residual_cnn):
    model, _ = quantized(residual_cnn())
    _, refusal = quantized(io.to_bytes(model))
    assert refusal.code == "already_done"
    assert "QuantizeLinear" in refusal.reason or "DequantizeLinear" in refusal.reason


def test_refuses_networks_without_layers(quantized, network):
    net = network()
    _, refusal = quantized(net.build(net.op("Flatten", net.relu("image")), out_shape=("n", 432)))
    assert refusal.code == "not_applicable"
    assert "no Conv, Gemm or MatMul" in refusal.reason


def test_names_the_layer_that_cannot_be_quantized_and_why(quantized, network):
    net = network()
    flat = net.op("Flatten", "image")
    left = net.op("MatMul", net.normal("w", 1, 1), flat, name="left")
    _, refusal = quantized(net.build(left, ("1", 1), ("1", 1)))
    assert (refusal.code, refusal.node) == ("not_applicable", "left")
    assert "weights are on the left" in refusal.reason


def test_excluded_layers_stay_in_float(quantized, residual_cnn):
    model, change = quantized(residual_cnn(), QuantizeStatic(exclude=("stem", "head")))
    assert {entry.node: entry.reason for entry in change.details.in_float} == {
        "stem": "excluded by the recipe",
        "head": "excluded by the recipe",
    }
    kinds = _kinds(model)
    assert kinds.count("QLinearConv") == 5
    assert "QGemm" not in kinds


def test_unknown_names_to_exclude_are_an_error(quantized, residual_cnn):
    with pytest.raises(SpecInvalidError, match="nowhere"):
        quantized(residual_cnn(), QuantizeStatic(exclude=("nowhere",)))


def test_layers_that_measure_faster_in_float_stay_there(quantized, residual_cnn):
    _, change = quantized(residual_cnn(), ratios=(1.0, 0.9))
    measured = "measured: the network takes 10.0% less time with it in float"
    assert change.details.in_float == (LeftAlone(node="stem", reason=measured),)
    _, change = quantized(residual_cnn(), ratios=(1.0, 1.1))
    assert change.details.in_float == ()
    _, change = quantized(residual_cnn(), QuantizeStatic(measure_layers=False), ratios=(1.0, 0.5))
    assert change.details.in_float == ()


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_old_operator_sets_are_converted(quantized, residual_cnn, opset, images, feeds_of):
    before = residual_cnn(opset=opset, ir_version=8)
    model, change = quantized(before)
    assert isinstance(change, Change)
    assert io.opset(model) == 13
    assert _sqnr(before, model, feeds_of({"image": images(8)})) >= FAITHFUL_DB


def test_shared_weights_are_unshared_first(quantized, network, images, feeds_of):
    net = network()
    x = net.relu(net.conv("image", 3, 8, name="first"))
    w = net.normal("shared", 8, 8, 3, 3, scale=0.2)
    x = net.relu(net.op("Conv", x, w, pads=[1] * 4, name="a"))
    x = net.op("Conv", x, net.op("Identity", w), pads=[1] * 4, name="b")
    before = net.build(net.op("Flatten", net.op("GlobalAveragePool", x)), out_shape=("n", 8))
    model, _ = quantized(before)
    assert _sqnr(before, model, feeds_of({"image": images(8)})) >= FAITHFUL_DB


def test_concat_pools_and_movement_stay_in_integers(quantized, network, images, feeds_of):
    net = network()
    x = net.relu(net.conv("image", 3, 16, name="stem"))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    left, right = net.relu(net.conv(x, 16, 16, 1, name="left")), net.conv(x, 16, 16, name="right")
    x = net.op("AveragePool", net.op("Concat", left, right, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Reshape", x, net.weight("shape", np.array([0, -1], np.int64)))
    before = net.build(net.op("MatMul", x, net.normal("w", 288, 5, scale=0.1)))
    model, _ = quantized(before)
    kinds = _kinds(model)
    assert kinds.count("QuantizeLinear") == 1
    assert "DequantizeLinear" not in kinds
    assert {"QLinearConcat", "QLinearAveragePool"} <= set(kinds)
    assert _sqnr(before, model, feeds_of({"image": images(8)})) >= FAITHFUL_DB


def test_depthwise_and_clip(quantized, network, images, feeds_of):
    net = network()
    x = net.conv("image", 3, 16, name="stem")
    bounds = net.weight("lo", np.float32(0)), net.weight("hi", np.float32(6))
    x = net.op("Clip", x, *bounds)
    x = net.op("Clip", net.conv(x, 16, 16, name="dw", group=16), *bounds)
    before = net.build(net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 16, 5, 1, name="pw"))))
    model, change = quantized(before)
    assert change.details.clamps_absorbed == 2
    assert "Clip" not in _kinds(model)
    assert _sqnr(before, model, feeds_of({"image": images(8)})) >= FAITHFUL_DB


def test_the_output_may_be_a_convolution(quantized, network, images, feeds_of):
    net = network()
    last = net.relu(net.conv(net.relu(net.conv("image", 3, 8, name="a")), 8, 5, name="b"))
    before = net.build(last, out_shape=("n", 5, 12, 12))
    model, _ = quantized(before)
    assert [value.name for value in model.graph.outputs] == ["scores"]
    assert _sqnr(before, model, feeds_of({"image": images(8)})) >= FAITHFUL_DB


def test_constant_activations_and_dead_channels_do_no_harm(quantized, network, images, feeds_of):
    net = network()
    x = net.relu(net.conv("image", 3, 8, name="stem"))
    net.weights["stem.w"][2:4] = 0
    net.weights["stem.b"][2] = -1.0
    net.weights["stem.b"][3] = 0.5
    dead = net.relu(net.op("Conv", x, net.weight("zero", np.zeros((8, 8, 1, 1), np.float32)), name="dead"))
    x = net.op("Add", x, dead)
    before = net.build(net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 8, 5, name="final"))))
    model, _ = quantized(before)
    assert _sqnr(before, model, feeds_of({"image": images(8)})) >= FAITHFUL_DB


def test_layers_inside_subgraphs_stay_in_float(quantized, network):
    from onnx import TensorProto, helper

    net = network()
    x = net.conv("image", 3, 5, name="outer")
    mean = net.op("ReduceMax", x, keepdims=0)
    flag = net.op("Greater", mean, net.weight("limit", np.float32(0.5)))
    inner = net.normal("inner.w", 5, 5, 1, 1)
    branches = {}
    for name, source in (("then_branch", inner), ("else_branch", inner)):
        node = helper.make_node("Conv", [x, source], [f"{name}.y"], f"{name}.conv")
        out = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [out])
    chosen = net.op("If", flag, **branches)
    model, change = quantized(net.build(chosen, out_shape=("n", 5, 12, 12)))
    assert {entry.node for entry in change.details.in_float} == {"then_branch.conv", "else_branch.conv"}
    assert len(change.details.layers) == 1
    sessions.session(io.to_bytes(model), Target())


def test_the_plan_changes_nothing(residual_cnn):
    model = ir.from_proto(onnx.load_model_from_string(residual_cnn()))
    before = io.to_bytes(model)
    plan = make_plan(model)
    assert len(plan.layers) == 7
    assert io.to_bytes(model) == before


@pytest.mark.parametrize("calibrate", [4, 7, 15])
def test_a_last_batch_that_is_not_full_is_filled_up_to_a_fixed_batch_size(
    residual_cnn, images, feeds_of, context, calibrate
):
    model = ir.from_proto(onnx.load_model_from_string(residual_cnn(shape=(4, 3, 12, 12), out_shape=(4, 5))))
    samples, select = (feeds_of({"image": images(count, seed=count)}) for count in (calibrate, 13))
    given, step = context(model, samples, select=select), QuantizeStatic()
    step.prepare(model)
    change = step.apply(model, given.observe(model, step.observes(model)), given)
    assert all(layer.time_share_after is not None for layer in change.details.layers if layer.node == "stem")
    assert all(layer.output_sqnr_db is not None for layer in change.details.layers)
