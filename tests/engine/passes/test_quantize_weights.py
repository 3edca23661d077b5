from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.errors import SpecInvalidError, VerificationFailedError
from engine.graph import io
from engine.passes.quantize_weights import QuantizeWeights
from engine.report.detail_parts import LeftAlone
from engine.report.values import Change, Refusal
from engine.runtime import tracing
from engine.solve import blas_threads
from engine.target import Target


def noise(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(rows, inputs, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((inputs, inputs)))[0]
    return ((rng.standard_normal((rows, inputs)) * np.arange(1, inputs + 1) ** -0.75) @ basis.T).astype(np.float32)


def perceptron(tools, *, opset=17, seed=0):
    """MatMul, Gemm with every attribute, Gemm without: all ways that matrices are stored."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": (rng.standard_normal((64, 96)) / 8).astype(np.float32),
        "w2": (rng.standard_normal((80, 96)) / 10).astype(np.float32),
        "b2": rng.standard_normal(80).astype(np.float32),
        "w3": (rng.standard_normal((80, 40)) / 9).astype(np.float32),
        "small": rng.standard_normal((40, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu"),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"], name="second", transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Tanh", ["h2"], ["r2"], name="tanh"),
        helper.make_node("Gemm", ["r2", "w3"], ["h3"], name="third"),
        helper.make_node("MatMul", ["h3", "small"], ["y"], name="last"),
    ]
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 5]}, weights, opset=opset, ir_version=10)


def convolutions(tools, *, opset=17):
    rng = np.random.default_rng(1)
    weights = {
        "w1": (rng.standard_normal((32, 4, 3, 3)) / 6).astype(np.float32),
        "b1": rng.standard_normal(32).astype(np.float32),
        "w2": (rng.standard_normal((32, 8, 3, 3)) / 8).astype(np.float32),
        "w3": (rng.standard_normal((64, 32, 1, 1)) / 6).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h1"], name="first", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu"),
        helper.make_node(
            "Conv", ["r1", "w2"], ["h2"], name="grouped", group=4, auto_pad="SAME_UPPER", dilations=[1, 1]
        ),
        helper.make_node("Relu", ["h2"], ["r2"], name="relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["y"], name="pointwise"),
    ]
    return tools.build(nodes, {"x": ["n", 4, 12, 12]}, {"y": ["n", 64, 6, 6]}, weights, opset=opset, ir_version=10)


def apply(tools, model, samples=None, *, select=None, **parameters):
    step = QuantizeWeights(**parameters)
    step.prepare(model)
    refusal = step.check(model)
    if refusal is not None:
        return refusal
    outcome = step.apply(model, {}, tools.context(io.copy(model), samples, select))
    if isinstance(outcome, Change):
        step.ensures(model)
    return outcome


# Four bits keep about 20 dB per layer of plain noise weights; eight about 45.
@pytest.mark.parametrize(("bits", "least"), [(4, 14), (8, 34)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", ["matmul_nbits", "qdq"])
@pytest.mark.parametrize("group", [16, 32, 64])
def test_every_form_runs_and_agrees_with_and_without_optimisation(tools, bits, least, symmetric, form, group):
    model = perceptron(tools, opset=21)
    x = np.random.default_rng(2).standard_normal((9, 64)).astype(np.float32)
    reference = tools.run(model, {"x": x})["y"]
    change = apply(tools, model, bits=bits, symmetric=symmetric, format=form, group=group, accuracy="float32")
    assert [layer.node for layer in change.details.layers] == ["first", "second", "third"]
    assert change.details.in_float == (LeftAlone(node="last", reason="it has fewer than 1024 weights"),)
    plain, optimised = (tools.run(model, {"x": x}, optimise=optimise)["y"] for optimise in (False, True))
    assert tools.sqnr(reference, plain) > least
    # The runtime turns qdq into its own operator, which rounds activations to 8 bits.
    assert tools.sqnr(plain, optimised) > (35 if form == "qdq" else 90)
    assert tools.run(model, {"x": x[:1]})["y"].shape == (1, 5)


@pytest.mark.parametrize("accuracy", ["int8", "float32"])
def test_accuracy_is_stated_in_the_operator(tools, accuracy):
    model = perceptron(tools)
    apply(tools, model, accuracy=accuracy)
    levels = {node.attributes["accuracy_level"].as_int() for node in model.graph if node.op_type == "MatMulNBits"}
    assert levels == {{"int8": 4, "float32": 1}[accuracy]}


@pytest.mark.parametrize(("bits", "opset", "kinds"), [(8, 13, {"INT8"}), (4, 21, {"UINT4"}), (4, 17, {"UINT4"})])
@pytest.mark.parametrize(("form", "operator"), [("qdq", "DequantizeLinear"), ("matmul_nbits", "Cast")])
@pytest.mark.parametrize("symmetric", [False, True])
def test_convolutions_restore_their_weights(tools, bits, opset, kinds, form, operator, symmetric):
    model = convolutions(tools, opset=opset)
    x = np.random.default_rng(3).standard_normal((2, 4, 12, 12)).astype(np.float32)
    reference = tools.run(model, {"x": x})["y"]
    change = apply(tools, model, bits=bits, format=form, symmetric=symmetric)
    assert len(change.details.layers) == 3
    eight = sum(layer.bits == 8 for layer in change.details.layers)
    assert (f"; {eight} of them in 8 bits" in change.summary) == (bits == 4 and eight > 0)
    found = {node.inputs[0].dtype.name for node in model.graph if node.op_type == operator}
    # What cannot be cut into even blocks is stored in 8 bits.
    assert found <= kinds | ({"INT8"} if form == "matmul_nbits" else set())
    assert found & kinds
    for optimise in (False, True):
        assert tools.sqnr(reference, tools.run(model, {"x": x}, optimise=optimise)["y"]) > (
            14 if kinds == {"UINT4"} else 34
        )


@pytest.mark.parametrize(("bits", "opset"), [(8, 11), (4, 21)])
def test_the_runtime_restores_convolutions_once(tools, bits, opset):
    model = convolutions(tools, opset=opset)
    apply(tools, model, bits=bits)
    fused = onnx.load_model_from_string(tracing.optimised_graph(io.to_bytes(model), Target()))
    assert {node.op_type for node in fused.graph.node} <= {"Conv", "FusedConv", "Relu", "ReorderInput", "ReorderOutput"}
    refusal = apply(tools, model, bits=bits)
    assert refusal.code == "already_done"


def test_gptq_follows_the_quantized_prefix_and_beats_rounding(tools):
    x = correlated(320, 64)
    samples, held_out = tools.Feeds(x=x[:256]), x[256:]
    original = perceptron(tools)
    reference = tools.run(original, {"x": held_out})["y"]
    rounded, solved = perceptron(tools), perceptron(tools)
    apply(tools, rounded, accuracy="float32", method="rtn")
    change = apply(tools, solved, samples, accuracy="float32")
    gain = tools.sqnr(reference, tools.run(solved, {"x": held_out})["y"]) - tools.sqnr(
        reference, tools.run(rounded, {"x": held_out})["y"]
    )
    assert gain > 3
    assert change.details.method == "gptq"
    assert "in 4 bits per weight by GPTQ;" in change.summary
    for layer in change.details.layers:
        errors = layer.held_out_error
        assert errors[layer.method] == min(errors.values())


@pytest.mark.parametrize(("bits", "opset"), [(4, 21), (8, 17)])
def test_gptq_of_convolutions_beats_rounding(tools, bits, opset):
    rng = np.random.default_rng(4)
    smooth = rng.standard_normal((80, 4, 14, 14))
    smooth = (smooth[:, :, 1:-1, 1:-1] + smooth[:, :, :-2, 1:-1] + smooth[:, :, 2:, 1:-1] + smooth[:, :, 1:-1, :-2]) / 2
    x = smooth.astype(np.float32)
    original = convolutions(tools, opset=opset)
    reference = tools.run(original, {"x": x[64:]})["y"]
    rounded, solved = convolutions(tools, opset=opset), convolutions(tools, opset=opset)
    apply(tools, rounded, bits=bits, method="rtn")
    apply(tools, solved, tools.Feeds(x=x[:64]), bits=bits)
    noise = [tools.sqnr(reference, tools.run(model, {"x": x[64:]})["y"]) for model in (solved, rounded)]
    assert noise[0] > noise[1] + 1


def test_gptq_without_data_is_refused_and_auto_rounds(tools):
    refusal = apply(tools, perceptron(tools), method="gptq")
    assert isinstance(refusal, Refusal)
    assert refusal.code == "needs_data"
    assert apply(tools, perceptron(tools), tools.Feeds(x=np.zeros((0, 64), np.float32))).details.method == "rtn"


def test_constant_inputs_do_no_harm(tools):
    model = perceptron(tools)
    x = np.random.default_rng(5).standard_normal((4, 64)).astype(np.float32)
    reference = tools.run(model, {"x": x})["y"]
    apply(tools, model, tools.Feeds(x=np.zeros((16, 64), np.float32)), bits=8, accuracy="float32")
    assert tools.sqnr(reference, tools.run(model, {"x": x})["y"]) > 30


def test_a_second_time_changes_nothing(tools):
    for parameters in ({}, {"format": "qdq"}):
        model = perceptron(tools, opset=21)
        apply(tools, model, **parameters)
        written = io.to_bytes(model)
        refusal = apply(tools, model, **parameters)
        assert isinstance(refusal, Refusal)
        assert refusal.code == "already_done"
        assert io.to_bytes(model) == written


def test_results_do_not_depend_on_chance(tools):
    x = correlated(64, 64)
    first, second = perceptron(tools), perceptron(tools)
    for model in (first, second):
        apply(tools, model, tools.Feeds(x=x))
    assert io.to_bytes(first) == io.to_bytes(second)


def test_tied_weights_are_quantized_once(tools):
    rng = np.random.default_rng(6)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="two"),
    ]
    model = tools.build(
        nodes, {"x": ["n", 48]}, {"y": ["n", 48]}, {"w": rng.standard_normal((48, 48)).astype(np.float32)}
    )
    apply(tools, model, tools.Feeds(x=correlated(32, 48)))
    packed = {node.inputs[1] for node in model.graph if node.op_type == "MatMulNBits"}
    assert len(packed) == 1
    assert "w" not in model.graph.initializers
    tools.run(model, {"x": correlated(3, 48)})


def test_weights_that_others_need_stay(tools):
    rng = np.random.default_rng(7)
    nodes = [
        helper.make_node("Gemm", ["x", "table"], ["y"], name="head", transB=1),
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
    ]
    model = tools.build(
        nodes,
        {"x": ["n", 32], "ids": (TensorProto.INT64, ["m"])},
        {"y": ["n", 50], "e": ["m", 32]},
        {"table": rng.standard_normal((50, 32)).astype(np.float32)},
    )
    refusal = apply(tools, model)
    assert refusal.code == "not_applicable"
    assert refusal.node == "head"
    assert "shared" in refusal.reason


def embedding(tools, columns=48, *, opset=21):
    """Two lookups of one table, one of a smaller one, and a product."""
    weights = {"table": noise((50, columns), 0), "positions": noise((32, columns), 1), "w": noise((columns, 64), 2)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["a"], name="words"),
        helper.make_node("Gather", ["table", "more"], ["b"], name="again", axis=0),
        helper.make_node("Gather", ["positions", "more"], ["c"], name="places"),
        helper.make_node("Add", ["a", "b"], ["d"], name="add"),
        helper.make_node("Add", ["d", "c"], ["e"], name="add2"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="product"),
    ]
    kind = (TensorProto.INT64, ["n", "t"])
    return tools.build(
        nodes, {"ids": kind, "more": (TensorProto.INT32, ["n", "t"])}, {"y": ["n", "t", 64]}, weights,
        opset=opset, ir_version=10,
    )  # fmt: skip


IDS = {"ids": np.array([[0, 49, -1], [3, 3, 7]]), "more": np.array([[1, 2, 3], [31, 0, 5]], np.int32)}


@pytest.mark.parametrize(("bits", "form"), [(4, "matmul_nbits"), (8, "matmul_nbits"), (4, "qdq")])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("columns", "group"), [(48, 16), (48, 32), (50, 16)])
def test_tables_are_stored_in_few_bits(tools, bits, form, symmetric, columns, group):
    model = embedding(tools, columns)
    reference = tools.run(model, IDS)["y"]
    step = {"bits": bits, "format": form, "symmetric": symmetric, "group": group, "operators": ("Gather",)}
    change = apply(tools, model, **step)
    assert [layer.node for layer in change.details.layers] == ["words", "again", "places"]
    kind, position = ("DequantizeLinear", 0) if form == "qdq" else ("GatherBlockQuantized", 0)
    assert len({node.inputs[position] for node in model.graph if node.op_type == kind}) == 2
    assert "table" not in model.graph.initializers
    plain, optimised = (tools.run(model, IDS, optimise=optimise)["y"] for optimise in (False, True))
    assert tools.sqnr(reference, plain) > (14 if bits == 4 else 34)
    assert tools.sqnr(plain, optimised) > 90
    assert io.weight_bytes(model) - 64 * columns * 4 < (0.25 if bits == 4 else 0.32) * 82 * columns * 4


def test_tables_that_standard_operators_cannot_hold_say_so(tools, monkeypatch):
    def fails(_model, _version):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fails)
    reasons = {
        apply(tools, embedding(tools), bits=8, format="qdq", operators=("Gather",)).reason,
        apply(tools, embedding(tools, opset=17), format="qdq", operators=("Gather",)).reason,
        apply(tools, embedding(tools, 49), operators=("Gather",)).reason,
    }
    for words in ("quantize_dynamic stores it in 8 bits", "needs operator set 21", "odd number of columns"):
        assert sum(words in reason for reason in reasons) == 1


def test_tables_on_disk_are_rounded_as_those_in_memory(tools, tmp_path):
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"], name="embed")]
    table = noise((5000, 64), 3)
    model = tools.build(nodes, {"ids": (TensorProto.INT64, ["n"])}, {"y": ["n", 64]}, {"table": table})
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    stored = ir.load(tmp_path / "model.onnx")
    apply(tools, stored)
    assert {type(value.const_value) for value in stored.graph.initializers.values()} == {ir.LazyTensor}
    apply(tools, model)
    assert io.to_bytes(stored) == io.to_bytes(model)


def test_bodies_of_if_are_quantized(tools):
    rng = np.random.default_rng(8)
    w = rng.standard_normal((32, 40)).astype(np.float32)
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"{name}_out"], name=f"in_{name}")],
            f"{name}_branch",
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", 40])],
        )
        for name in ("w1", "w2")
    ]
    nodes = [helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1])]
    model = tools.build(
        nodes, {"x": ["n", 32], "flag": (TensorProto.BOOL, [])}, {"y": ["n", 40]}, {"w1": w, "w2": w[::-1].copy()}
    )
    x = rng.standard_normal((3, 32)).astype(np.float32)
    feeds = [{"x": x, "flag": np.array(flag)} for flag in (True, False)]
    references = [tools.run(model, feed)["y"] for feed in feeds]
    apply(tools, model, bits=8, accuracy="float32")
    for feed, reference in zip(feeds, references, strict=True):
        assert tools.sqnr(reference, tools.run(model, feed)["y"]) > 35


def test_nan_is_named(tools):
    model = perceptron(tools)
    broken = model.graph.initializers["w2"].const_value.numpy().copy()
    broken[3, 3] = np.nan
    model.graph.initializers["w2"].const_value = ir.Tensor(broken, name="w2")
    with pytest.raises(VerificationFailedError) as caught:
        apply(tools, model)
    assert caught.value.node == "second"


def test_excluded_nodes_stay_and_unknown_ones_are_told(tools):
    model = perceptron(tools)
    change = apply(tools, model, exclude=("second",))
    assert LeftAlone(node="second", reason="the recipe excludes it") in change.details.in_float
    with pytest.raises(SpecInvalidError, match="does not have: nowhere"):
        apply(tools, perceptron(tools), exclude=("nowhere",))


def test_old_operator_sets_are_converted_for_standard_operators_only(tools):
    model = perceptron(tools, opset=11)
    assert isinstance(apply(tools, model, format="qdq"), Change)
    assert io.opset(model) == 21
    x = np.random.default_rng(9).standard_normal((2, 64)).astype(np.float32)
    model = perceptron(tools, opset=11)
    reference = tools.run(model, {"x": x})["y"]
    apply(tools, model, bits=8, accuracy="float32")
    assert tools.sqnr(reference, tools.run(model, {"x": x})["y"]) > 34


def test_stored_weights_are_rounded_as_those_in_memory_but_only_when_written(tools, tmp_path):
    rng = np.random.default_rng(10)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="one"),
        helper.make_node("Gemm", ["h", "w2"], ["y"], name="two", transB=1, alpha=0.5),
    ]
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("w1", (520, 700)), ("w2", (510, 700)))
    }
    model = tools.build(nodes, {"x": ["n", 520]}, {"y": ["n", 510]}, weights)
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    stored = ir.load(tmp_path / "model.onnx")
    apply(tools, stored, bits=4)
    kinds = {type(value.const_value) for value in stored.graph.initializers.values()}
    assert kinds == {ir.LazyTensor}
    loaded = ir.from_proto(ir.to_proto(model))
    apply(tools, loaded, bits=4)
    assert io.to_bytes(stored) == io.to_bytes(loaded)
    ir.save(stored, tmp_path / "small.onnx", external_data="small.data")
    assert (tmp_path / "small.data").stat().st_size < 0.17 * (tmp_path / "model.data").stat().st_size
    x = rng.standard_normal((2, 520)).astype(np.float32)
    np.testing.assert_array_equal(
        tools.run(ir.load(tmp_path / "small.onnx"), {"x": x})["y"], tools.run(loaded, {"x": x})["y"]
    )


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


def test_more_damping_wins_where_there_are_few_rows(tools):
    """As many rows as inputs say little about the directions between them."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    model = tools.build(nodes, {"x": ["n", 96]}, {"y": ["n", 64]}, {"w": noise((96, 64), 4)})
    rows = correlated(124, 96)
    samples, select = tools.Feeds(x=rows[:100]), tools.Feeds(x=rows[100:])
    layer = apply(tools, model, samples, select=select, accuracy="float32").details.layers[0]
    assert layer.held_out_error["gptq, damped"] < layer.held_out_error["gptq"]
    assert layer.held_out_error[layer.method] == min(layer.held_out_error.values())


def _bits(model):
    return {node.name: node.attributes["bits"].as_int() for node in model.graph if node.op_type == "MatMulNBits"}


def test_the_layer_that_makes_the_outputs_may_have_more_bits(tools):
    rng = np.random.default_rng(3)
    weights = {name: (rng.standard_normal((64, 64)) / 8).astype(np.float32) for name in ("w1", "w2", "w3")}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="inner"),
        helper.make_node("Tanh", ["h"], ["t"], name="tanh"),
        helper.make_node("MatMul", ["t", "w2"], ["scores"], name="head"),
        helper.make_node("Softmax", ["scores"], ["y"], name="softmax"),
        helper.make_node("MatMul", ["t", "w3"], ["z"], name="second_head"),
    ]
    build = lambda: tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 64], "z": ["n", 64]}, weights, ir_version=10)  # noqa: E731
    mixed = build()
    change = apply(tools, mixed, head_bits=8)
    assert _bits(mixed) == {"inner": 4, "head": 8, "second_head": 8}
    assert "2 of them, which make the outputs, in 8 bits" in change.summary
    narrow, wide = build(), build()
    apply(tools, narrow)
    apply(tools, wide, bits=8, head_bits=4)
    assert set(_bits(narrow).values()) == {4}
    assert _bits(wide) == {"inner": 8, "head": 4, "second_head": 4}
    x = {"x": noise((32, 64), 5)}
    exact = tools.run(build(), x)["z"]
    noise_of = [float(np.square(tools.run(model, x)["z"] - exact).sum()) for model in (wide, narrow, mixed)]
    # Eight bits for the head leave only what the inner layer loses.
    assert noise_of[2] < 0.75 * noise_of[1]


def test_progress_rises_and_says_how_long_it_will_take(tools):
    told = []
    model = perceptron(tools)
    context = replace(
        tools.context(model, tools.Feeds(x=correlated(64, 64))),
        progress=lambda fraction, message: told.append((fraction, message)),
    )
    step = QuantizeWeights()
    step.prepare(model)
    assert isinstance(step.apply(model, {}, context), Change)
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    layers = [message for _, message in told if message.startswith("solved")]
    assert [" left" in message for message in layers] == [True] * (len(layers) - 1) + [False]


@pytest.mark.parametrize("inputs", [128, 400])
def test_the_same_bytes_for_any_number_of_threads(tools, monkeypatch, inputs):
    """Outputs are rounded, and inputs summed up, in parts whose sizes do not depend on the machine."""
    weights = {"w": noise((inputs, 1100), 1) / 8}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="wide")]
    made, seen = [], set()
    for cores in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", cores)
        model = tools.build(nodes, {"x": ["n", inputs]}, {"y": ["n", 1100]}, weights, ir_version=10)
        context = replace(
            tools.context(io.copy(model), tools.Feeds(x=correlated(600, inputs))),
            progress=lambda *_: seen.update(library.get() for library in blas_threads._libraries()),
        )
        step = QuantizeWeights(accuracy="float32")
        step.prepare(model)
        assert "GPTQ" in step.apply(model, {}, context).summary
        made.append(io.to_bytes(model))
    assert made[0] == made[1]
    # BLAS has no threads of its own meanwhile: those of NumPy's and of SciPy's would spin against each other.
    assert seen <= {1}
