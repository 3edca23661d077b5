import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.errors import SpecInvalidError, VerificationFailedError
from engine.graph import io
from engine.inspection import CONVOLUTIONS_HINT
from engine.passes.quantize_dynamic import QuantizeDynamic
from engine.report.values import Change
from engine.runtime import tracing
from engine.target import Target


def noise(shape, seed, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def encoder(tools, *, opset=17):
    """Embedding, three products of one tensor, Gemm with every attribute, and what must stay in float."""
    weights = {
        "table": noise((200, 64), 0),
        "wq": noise((64, 64), 1, 0.1),
        "wk": noise((64, 64), 2, 0.1),
        "wv": noise((64, 64), 3, 0.1),
        "wg": noise((96, 64), 4, 0.1),
        "bg": noise(96, 5),
        "wh": noise((96, 64), 6, 0.1),
        "tiny": noise((64, 4), 7),
        "flat": np.array([-1, 64]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("MatMul", ["e", "wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["e", "wk"], ["k"], name="key"),
        helper.make_node("MatMul", ["e", "wv"], ["v"], name="value"),
        helper.make_node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["a"], name="mix"),
        helper.make_node("Reshape", ["a", "flat"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wg", "bg"], ["g"], name="wide", transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Relu", ["g"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "wh"], ["h"], name="narrow"),
        helper.make_node("MatMul", ["h", "tiny"], ["y"], name="last"),
    ]
    return tools.build(nodes, {"ids": (TensorProto.INT64, ["n", "t"])}, {"y": ["m", 4]}, weights, opset=opset)


def ids(rows=3, seed=9):
    return np.random.default_rng(seed).integers(0, 200, (rows, 12))


def apply(tools, model, target=None, **parameters):
    step = QuantizeDynamic(**parameters)
    step.prepare(model)
    refusal = step.check(model)
    if refusal is not None:
        return refusal
    outcome = step.apply(model, {}, tools.context(io.copy(model)))
    if isinstance(outcome, Change):
        step.ensures(model)
    return outcome


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("weights", ["auto", "int8", "int7", "uint8"])
def test_encoder_agrees_with_and_without_optimisation(tools, per_channel, weights):
    model = encoder(tools)
    reference = tools.run(model, {"ids": ids()})["y"]
    change = apply(tools, model, per_channel=per_channel, weights=weights)
    assert [layer.node for layer in change.details.layers] == ["embed", "query", "key", "value", "wide", "narrow"]
    left = {entry.node: entry.reason for entry in change.details.in_float}
    assert left.keys() == {"scores", "mix", "last"}
    assert "activations" in left["scores"]
    assert "fewer than 4096" in left["last"]
    plain, optimised = (tools.run(model, {"ids": ids()}, optimise=optimise)["y"] for optimise in (False, True))
    assert tools.sqnr(reference, plain) > 25
    assert tools.sqnr(plain, optimised) > 35
    assert tools.run(model, {"ids": ids(1)})["y"].shape == (12, 4)


def test_layers_of_one_tensor_share_its_rounding(tools):
    model = encoder(tools)
    apply(tools, model)
    # The embedding's output, and the input of each Gemm.
    assert sum(node.op_type == "DynamicQuantizeLinear" for node in model.graph) == 3


def test_the_runtime_fuses_what_is_written(tools):
    model = encoder(tools)
    apply(tools, model)
    fused = onnx.load_model_from_string(tracing.optimised_graph(io.to_bytes(model), Target()))
    kinds = {node.op_type for node in fused.graph.node}
    assert kinds & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    assert "MatMulInteger" not in kinds


@pytest.mark.usefixtures("avx2")
def test_no_pair_of_weights_can_overflow_where_the_processor_saturates(tools):
    model = encoder(tools)
    change = apply(tools, model)
    assert all(layer.accumulator_load <= 1 for layer in change.details.layers if layer.op != "Gather")
    for node in model.graph:
        if node.op_type == "MatMulInteger":
            pairs = node.inputs[1].const_value.numpy().astype(int).reshape(-1, 2, node.inputs[1].shape[1])
            positive, negative = np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1)
            assert max(positive.max(), negative.max()) <= 128


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("weights", ["auto", "uint8"])
def test_lstm_agrees(tools, direction, per_channel, weights):
    directions = 2 if direction == "bidirectional" else 1
    arrays = {
        "w": noise((directions, 4 * 48, 32), 1, 0.2),
        "r": noise((directions, 4 * 48, 48), 2, 0.2),
        "b": noise((directions, 8 * 48), 3, 0.2),
    }
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b", "", "h0", "c0"], ["y", "h", "c"], name="lstm", hidden_size=48, direction=direction
    )
    state = [directions, "n", 48]
    inputs = {"x": ["t", "n", 32], "h0": state, "c0": state}
    model = tools.build([node], inputs, {"y": ["t", directions, "n", 48], "h": state, "c": state}, arrays)
    feed = {
        "x": noise((7, 3, 32), 4),
        "h0": noise((directions, 3, 48), 5, 0.3),
        "c0": noise((directions, 3, 48), 6, 0.3),
    }
    reference = tools.run(model, feed)
    change = apply(tools, model, per_channel=per_channel, weights=weights)
    assert change.details.layers[0].op == "LSTM"
    assert model.graph[-1].op_type == "DynamicQuantizeLSTM"
    for optimise in (True, False):
        found = tools.run(model, feed, optimise=optimise)
        for name in ("y", "h", "c"):
            assert tools.sqnr(reference[name], found[name]) > 22
    assert not model.graph.initializers.keys() & {"w", "r"}


def test_gru_and_conv_stay_with_their_reasons(tools):
    arrays = {
        "k": noise((8, 4, 3), 0),
        "w": noise((1, 3 * 32, 8), 1),
        "r": noise((1, 3 * 32, 32), 2),
        "m": noise((32, 256), 3),
        "axes": np.array([1]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
        helper.make_node("Transpose", ["c"], ["t"], name="turn", perm=[2, 0, 1]),
        helper.make_node("GRU", ["t", "w", "r"], ["g"], name="gru", hidden_size=32),
        helper.make_node("Squeeze", ["g", "axes"], ["s"], name="squeeze"),
        helper.make_node("MatMul", ["s", "m"], ["y"], name="head"),
    ]
    model = tools.build(nodes, {"x": ["n", 4, 10]}, {"y": ["t", "n", 256]}, arrays)
    change = apply(tools, model)
    left = {entry.node: entry.reason for entry in change.details.in_float}
    assert "slower" in left["conv"]
    assert "no integer kernel" in left["gru"]
    assert [layer.node for layer in change.details.layers] == ["head"]
    without = tools.build(
        nodes[:3], {"x": ["n", 4, 10]}, {"g": ["t", 1, "n", 32]}, {name: arrays[name] for name in "kwr"}
    )
    refusal = apply(tools, without)
    assert (refusal.code, refusal.node, refusal.hint) == ("not_applicable", "conv", CONVOLUTIONS_HINT)


def test_embeddings_keep_a_scale_per_row(tools):
    table = noise((300, 40), 0) * np.geomspace(1e-3, 10, 300, dtype=np.float32)[:, None]
    node = helper.make_node("Gather", ["table", "ids"], ["e"], name="embed")
    model = tools.build([node], {"ids": (TensorProto.INT64, ["n"])}, {"e": ["n", 40]}, {"table": table})
    apply(tools, model)
    found = tools.run(model, {"ids": np.arange(300)})["e"]
    assert (np.abs(found - table).max(1) <= np.abs(table).max(1) / 250).all()
    assert tools.run(model, {"ids": np.array([-1])})["e"].shape == (1, 40)


def test_tied_table_and_head_both_become_integers(tools):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("Relu", ["e"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "table"], ["y"], name="head", transB=1),
    ]
    model = tools.build(nodes, {"ids": (TensorProto.INT64, ["n"])}, {"y": ["n", 150]}, {"table": noise((150, 40), 0)})
    feed = {"ids": np.arange(20)}
    reference = tools.run(model, feed)["y"]
    apply(tools, model)
    assert "table" not in model.graph.initializers
    assert tools.sqnr(reference, tools.run(model, feed)["y"]) > 30


def test_weights_that_others_need_in_float_stay(tools):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Add", ["h", "w"], ["y"], name="add"),
    ]
    model = tools.build(nodes, {"x": [64, 64]}, {"y": [64, 64]}, {"w": noise((64, 64), 0)})
    refusal = apply(tools, model)
    # Of convolutions nothing is said where there are none.
    assert (refusal.code, refusal.hint) == ("not_applicable", None)
    assert "shared" in refusal.reason


def test_a_second_time_changes_nothing(tools):
    model = encoder(tools)
    apply(tools, model)
    written = io.to_bytes(model)
    refusal = apply(tools, model)
    assert refusal.code == "already_done"
    assert io.to_bytes(model) == written


def test_bodies_of_if_are_quantized(tools):
    branches = [
        helper.make_graph(
            [
                helper.make_node("Relu", ["x"], [f"{name}_r"], name=f"relu_{name}"),
                helper.make_node("MatMul", [f"{name}_r", name], [f"{name}_out"], name=f"in_{name}"),
            ],
            f"{name}_branch",
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", 80])],
        )
        for name in ("w1", "w2")
    ]
    nodes = [helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1])]
    arrays = {"w1": noise((64, 80), 0), "w2": noise((64, 80), 1)}
    model = tools.build(nodes, {"x": ["n", 64], "flag": (TensorProto.BOOL, [])}, {"y": ["n", 80]}, arrays)
    feeds = [{"x": noise((3, 64), 2), "flag": np.array(flag)} for flag in (True, False)]
    references = [tools.run(model, feed)["y"] for feed in feeds]
    apply(tools, model)
    for feed, reference in zip(feeds, references, strict=True):
        assert tools.sqnr(reference, tools.run(model, feed)["y"]) > 30


def test_old_operator_sets_are_converted_or_refused(tools, monkeypatch):
    assert apply(tools, encoder(tools, opset=11)).details.layers
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    ports = ({"x": ["n", 64]}, {"y": ["n", 64]}, {"w": noise((64, 64), 0)})
    old = tools.build(nodes, *ports, opset=10)
    assert apply(tools, old).details.layers
    assert io.opset(old) == 11

    def fails(_model, _version):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fails)
    refusal = apply(tools, tools.build(nodes, *ports, opset=10))
    assert refusal.code == "unsupported"
    assert "uses 10, cannot be converted" in refusal.reason


def test_refusals_name_what_is_wrong(tools):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    with pytest.raises(SpecInvalidError, match="does not have: nowhere"):
        apply(tools, encoder(tools), exclude=("nowhere",))
    broken = noise((64, 64), 0)
    broken[0, 0] = np.inf
    model = tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, {"w": broken})
    with pytest.raises(VerificationFailedError) as caught:
        apply(tools, model)
    assert caught.value.node == "product"


def test_stored_weights_are_rounded_as_those_in_memory_but_only_when_written(tools, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    model = tools.build(nodes, {"x": ["n", 600]}, {"y": ["n", 600]}, {"w": noise((600, 600), 0)})
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    stored, loaded = ir.load(tmp_path / "model.onnx"), ir.from_proto(ir.to_proto(model))
    apply(tools, stored)
    apply(tools, loaded)
    assert any(isinstance(value.const_value, ir.LazyTensor) for value in stored.graph.initializers.values())
    assert io.to_bytes(stored) == io.to_bytes(loaded)


def test_weights_in_constant_nodes_are_found(tools):
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(noise((64, 80), 0))),
        helper.make_node("Identity", ["w"], ["alias"]),
        helper.make_node("MatMul", ["x", "alias"], ["y"], name="product"),
    ]
    model = tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 80]})
    feed = {"x": noise((3, 64), 1)}
    reference = tools.run(model, feed)["y"]
    assert isinstance(apply(tools, model), Change)
    assert tools.sqnr(reference, tools.run(model, feed)["y"]) > 15
    assert io.weight_bytes(model) < 0.6 * 64 * 80 * 4
