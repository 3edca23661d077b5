"""No weight stays in float unsaid: products in other words, behind a Cast or tied to a table are quantized, the rest is named."""

from contextlib import nullcontext

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import io, verify
from engine.graph.linear import node_name
from engine.graph.weights import counts_as_weights
from engine.passes.quantize_dynamic import QuantizeDynamic
from engine.passes.quantize_static import QuantizeStatic
from engine.passes.quantize_weights import QuantizeWeights
from engine.quantize.rest_in_float import rest_in_float
from engine.report.values import Refusal
from engine.runtime import sessions
from engine.runtime.processor import CpuProfile
from engine.target import Target

from ..small_decoders import small_decoder

H, ROWS = 64, 160
CONTRIB = "com.microsoft"
PASSES = {
    "dynamic": QuantizeDynamic(),
    "weights, 4 bits": QuantizeWeights(method="rtn", accuracy="float32"),
    "weights, 8 bits": QuantizeWeights(method="rtn", bits=8, accuracy="float32"),
    "weights, 8 bits, standard": QuantizeWeights(method="rtn", bits=8, format="qdq"),
    "static": QuantizeStatic(improve=False, measure_layers=False),
}
STEPS = pytest.mark.parametrize("step", PASSES.values(), ids=PASSES)


def _build(nodes, weights, inputs, output=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def _normal(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


FLOATS = {"x": (TensorProto.FLOAT, ["n", 6, H])}
IDS = {"x": (TensorProto.INT64, ["n", 6])}


def fused():
    """Packed attention, Einsum, and a fused product and Gemm, as onnxruntime.transformers and optimum leave them."""
    nodes = [
        helper.make_node("Attention", ["x", "wq", "bq"], ["a"], "attention", domain=CONTRIB, num_heads=4),
        helper.make_node("Einsum", ["a", "we"], ["e"], "einsum", equation="bsi,ihd->bshd"),
        helper.make_node("Reshape", ["e", "shape"], ["r"], "reshape"),
        helper.make_node("FusedMatMul", ["r", "wf"], ["f"], "fused", domain=CONTRIB, transB=1, alpha=0.5),
        helper.make_node("Reshape", ["f", "flat"], ["m"], "rows"),
        helper.make_node("FusedGemm", ["m", "wg", "bg"], ["y"], "gemm", domain=CONTRIB, activation="Relu"),
    ]
    weights = {
        "wq": _normal(H, 3 * H), "bq": _normal(3 * H), "we": _normal(H, 4, 16), "shape": [0, 0, H], "wf": _normal(H, H),
        "flat": [-1, H], "wg": _normal(H, H), "bg": _normal(H),
    }  # fmt: skip
    return _build(nodes, weights, FLOATS), {"attention", "einsum", "fused", "gemm"}


def narrow():
    """Weights in 16 bits behind Cast, and turned ones, as `float16` and exporters of shared weights write them."""
    nodes = [
        helper.make_node("Cast", ["w1"], ["c"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "c"], ["a"], "behind_cast"),
        helper.make_node("Transpose", ["w2"], ["t"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["y"], "behind_transpose"),
    ]
    return _build(nodes, {"w1": _normal(H, H).astype(np.float16), "w2": _normal(H, H)}, FLOATS), {
        "behind_cast",
        "behind_transpose",
    }


def tied():
    """An encoder whose head reads its table of embeddings."""
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], "embed"),
        helper.make_node("MatMul", ["rows", "w"], ["h"], "inner"),
        helper.make_node("Transpose", ["table"], ["t"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"], "head"),
    ]
    return _build(nodes, {"table": _normal(ROWS, H), "w": _normal(H, H)}, IDS), {"embed", "inner", "head"}


def branches():
    """Products in the bodies of an If, one of them in other words."""
    info = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("FusedMatMul", ["h", "wa"], ["t"], "then", domain=CONTRIB, transB=1)],
        "a",
        [],
        [info("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["h", "wb"], ["e"], "else")], "b", [], [info("e", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=then, else_branch=other),
    ]
    weights = {"w": _normal(H, H), "wa": _normal(H, H, seed=1), "wb": _normal(H, H, seed=2), "yes": True}
    return _build(nodes, weights, FLOATS), {"first", "then", "else"}


def odd():
    """What no method takes: experts, a stack of matrices, a table that is added, attention with a past."""
    nodes = [
        helper.make_node("Add", ["x", "places"], ["p"], "place"),
        helper.make_node("MatMul", ["p", "w"], ["q"], "product"),
        helper.make_node("MatMul", ["q", "router"], ["k"], "router"),
        helper.make_node("Reshape", ["q", "rows"], ["m"], "flatten"),
        helper.make_node("Reshape", ["k", "probabilities"], ["o"], "flatten2"),
        helper.make_node(
            "MoE", ["m", "o", "fc1", "", "fc2"], ["y"], "experts", domain=CONTRIB, k=1, activation_type="relu"
        ),
    ]
    weights = {
        "places": _normal(20, H),
        "w": _normal(H, H), "router": _normal(H, 4), "rows": [-1, H], "probabilities": [-1, 4],
        "fc1": _normal(4, H, H), "fc2": _normal(4, H, H, seed=1),
    }  # fmt: skip
    return _build(nodes, weights, {"x": (TensorProto.FLOAT, ["n", 20, H])}), {"product"}


def _samples(serialized, feeds_of):
    random = np.random.default_rng(7)
    model = onnx.load_model_from_string(serialized)
    if model.graph.input[0].type.tensor_type.elem_type == TensorProto.INT64:
        return feeds_of({"x": random.integers(0, ROWS, (16, 6))}, np.int64)
    length = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return feeds_of({"x": random.standard_normal((16, length, H)).astype(np.float32)})


def _applied(serialized, step, context, samples):
    model = ir.from_proto(onnx.load_model_from_string(serialized))
    given = context(model, samples)
    step.prepare(model)
    refusal = step.check(model)
    if refusal is not None:
        return model, refusal
    change = step.apply(model, given.observe(model, step.observes(model)), given)
    step.ensures(model)
    io.strip(model)
    return model, change


def _float_weights(model):
    """Weights in float by the names of the nodes that read them."""
    floats = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    return {
        node_name(use.node)
        for _, value in io.initializers(model)
        if value.const_value.dtype in floats and counts_as_weights(tuple(value.const_value.shape.numpy()))
        for use in value.uses()
    }


def _sqnr(before, after, samples):
    return verify.agreement(
        *(sessions.session(each, Target()) for each in (before, after)), list(samples.batches(4))
    ).sqnr_db


@STEPS
@pytest.mark.parametrize("make", [fused, narrow, tied, branches])
def test_it_is_quantized_and_stays_faithful(make, step, context, feeds_of):
    serialized, products = make()
    samples = _samples(serialized, feeds_of)
    model, change = _applied(serialized, step, context, samples)
    assert not isinstance(change, Refusal)
    details = change.details
    quantized = {layer.node for layer in (*details.layers, *getattr(details, "tables", ()))}
    left = {each.node: each.reason for each in details.in_float}
    assert products <= quantized | set(left), "each product is quantized or named"
    if make is branches and isinstance(step, QuantizeStatic):
        assert "inside the body" in left["then"]
        return
    if make is tied and isinstance(step, QuantizeWeights) and step.format == "qdq":
        assert "quantize_dynamic stores it" in left["embed"]
    else:
        assert products <= quantized
        scales = {each for each in _float_weights(model) if "Mul" in each or "MatMulNBits" in each}
        assert not (_float_weights(model) - scales) & products
    least = 12 if getattr(step, "bits", 8) == 4 else 24
    assert _sqnr(serialized, io.to_bytes(model), samples) > least


@STEPS
def test_what_is_not_quantized_is_named_with_the_reason(step, context, feeds_of):
    serialized, products = odd()
    model, change = _applied(serialized, step, context, _samples(serialized, feeds_of))
    left = {each.node: each.reason for each in change.details.in_float}
    assert "three axes" in left["experts"]
    assert products <= {layer.node for layer in change.details.layers}
    named = {each.node for each in change.details.in_float} | {layer.node for layer in change.details.layers}
    unsaid = {node for node in _float_weights(model) if not any(node.startswith(each) for each in named)}
    assert not unsaid


def test_tables_of_positions_are_called_so():
    model = ir.from_proto(small_decoder())
    quantized = {node_name(node) for node in model.graph if node.op_type in {"MatMul", "Gather"}}
    left = rest_in_float(model, quantized)
    assert {model.graph.node(name).op_type for name in left} == {"GroupQueryAttention"}
    assert all("tables of positions" in reason for reason in left.values())


def picking():
    """Gathers that pick sizes and results of other operators, as exporters of dynamic shapes leave them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Gather", ["h", "first"], ["y"], "last_step", axis=1),
        helper.make_node("Shape", ["x"], ["sizes"], "sizes"),
        helper.make_node("Gather", ["sizes", "first"], ["batch"], "batch"),
        helper.make_node("Gather", ["lengths", "batch"], ["length"], "length"),
    ]
    weights = {"w": _normal(H, 2 * H), "first": np.array(0), "lengths": np.arange(64).reshape(32, 2)}
    return _build(nodes, weights, FLOATS)


@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeWeights(method="rtn", operators=("MatMul", "Gather"))])
def test_what_reads_no_weights_is_not_said_to_stay_in_float(step, context, feeds_of):
    serialized = picking()
    _, change = _applied(serialized, step, context, _samples(serialized, feeds_of))
    assert [layer.node for layer in change.details.layers] == ["product"]
    assert change.details.in_float == ()


@pytest.mark.parametrize(
    "step", [QuantizeDynamic(smallest=1), QuantizeWeights(method="rtn", operators=("MatMul", "Conv"))]
)
def test_what_is_quantized_already_is_not_said_to_stay_in_float(step, context, feeds_of):
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["image"], "image"),
        helper.make_node("Conv", ["image", "w"], ["c"], "conv"),
        helper.make_node("MatMul", ["c", "m"], ["y"], "product"),
    ]
    serialized = _build(nodes, {"axis": [1], "w": _normal(4, 1, 3, 3), "m": _normal(H - 2, H)}, FLOATS)
    samples = _samples(serialized, feeds_of)
    before = QuantizeStatic(improve=False, measure_layers=False, exclude=("product",))
    model, _ = _applied(serialized, before, context, samples)
    _, change = _applied(io.to_bytes(model), step, context, samples)
    assert [layer.node for layer in change.details.layers] == ["product"]
    assert change.details.in_float == ()


def test_fixed_ranges_refuse_layers_in_bodies_and_say_what_treats_them(context, feeds_of):
    info = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("MatMul", ["h", "w"], ["t"], "product")], "body", [], [info])
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], "relu"),
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=body, else_branch=body),
    ]
    serialized = _build(nodes, {"w": _normal(H, 2 * H), "yes": True}, FLOATS)
    samples = _samples(serialized, feeds_of)
    _, refusal = _applied(serialized, QuantizeStatic(), context, samples)
    assert "outside the bodies" in refusal.reason
    assert "quantize_dynamic and quantize_weights" in refusal.hint
    for step in (QuantizeDynamic(), QuantizeWeights(method="rtn")):
        _, change = _applied(serialized, step, context, samples)
        assert {layer.node for layer in change.details.layers} == {"product"}


@STEPS
def test_excluded_products_keep_their_form(step, context, feeds_of):
    serialized, _ = fused()
    chosen = step.model_copy(update={"exclude": ("attention", "fused")})
    model, change = _applied(serialized, chosen, context, _samples(serialized, feeds_of))
    kinds = [node.op_type for node in model.graph]
    assert "Attention" in kinds
    assert "FusedMatMul" in kinds
    left = {each.node: each.reason for each in change.details.in_float}
    assert "recipe excludes it" in left["attention"].replace("excluded by the recipe", "the recipe excludes it")
    assert "fused" in left


@pytest.mark.parametrize(("bits", "head_bits"), [(4, None), (8, None), (4, 8)])
def test_a_tied_table_is_stored_once_in_blocks(bits, head_bits, context, feeds_of):
    serialized, _ = tied()
    samples = _samples(serialized, feeds_of)
    step = QuantizeWeights(method="rtn", bits=bits, head_bits=head_bits, accuracy="float32")
    model, change = _applied(serialized, step, context, samples)
    packed = [value.const_value for _, value in io.initializers(model) if value.const_value.dtype == ir.DataType.UINT8]
    codes = [tensor for tensor in packed if tensor.nbytes == ROWS * H * (head_bits or bits) // 8]
    assert len(codes) == 1
    assert {"MatMulNBits", "GatherBlockQuantized"} <= {node.op_type for node in model.graph}
    assert {layer.node: layer.bits for layer in change.details.layers}["embed"] == (head_bits or bits)
    assert _sqnr(serialized, io.to_bytes(model), samples) > 12


def test_what_gptq_only_rounds_is_said(context, feeds_of):
    serialized, _ = tied()
    _, change = _applied(serialized, QuantizeWeights(accuracy="float32"), context, _samples(serialized, feeds_of))
    rounded = sum(layer.method == "rtn" for layer in change.details.layers)
    assert 0 < rounded < len(change.details.layers)
    assert f"by GPTQ, {rounded} of them by rounding to nearest" in change.summary


def test_a_tied_table_is_stored_once_in_rows(context, feeds_of, monkeypatch):
    from engine.runtime import processor

    monkeypatch.setattr(processor, "cpu_profile", lambda: CpuProfile("a processor", ("avx512_vnni",), 1, "avx512_vnni"))
    serialized, _ = tied()
    samples = _samples(serialized, feeds_of)
    model, _ = _applied(serialized, QuantizeDynamic(), context, samples)
    rows = [
        value
        for _, value in io.initializers(model)
        if value.const_value.dtype == ir.DataType.INT8 and value.const_value.size == ROWS * H
    ]
    assert len(rows) == 1
    assert {use.node.op_type for use in rows[0].uses()} == {"Gather", "Transpose"}
    assert _sqnr(serialized, io.to_bytes(model), samples) > 24


def test_weights_in_16_bits_that_stay_go_back_behind_their_cast(context, feeds_of):
    """What is too small to be worth it is not widened in the file."""
    serialized, _ = narrow()
    model, change = _applied(
        serialized,
        QuantizeDynamic(exclude=("behind_transpose",), smallest=H * H + 1),
        context,
        _samples(serialized, feeds_of),
    )
    assert isinstance(change, Refusal)
    step = QuantizeDynamic(exclude=("behind_cast",))
    model, change = _applied(serialized, step, context, _samples(serialized, feeds_of))
    assert model.graph.initializers["w1"].const_value.dtype == ir.DataType.FLOAT16
    assert {each.node for each in change.details.in_float} >= {"behind_cast"}


class TestAccuracyLevels:
    def _context(self, tools_context, model, samples, noise, times):
        from dataclasses import replace

        from engine.report.values import Interval, Quality

        def evaluate(network):
            level = next(
                node.attributes["accuracy_level"].as_int() for node in network.graph if node.op_type == "MatMulNBits"
            )
            value = -10 * np.log10(noise[level])
            return (Quality(metric="sqnr_db", original=None, compressed=value, difference=None, interval=Interval(low=value, high=value),
                            standard_error=0, samples=4, output="y", kind="values"),)  # fmt: skip

        return replace(
            tools_context(model, samples), evaluate=evaluate, race=lambda _models: times, working=nullcontext
        )

    @pytest.mark.parametrize(
        ("noise", "times", "level"),
        [
            ({4: 2e-3, 1: 1e-3}, [1.0, 1.0], 1),  # 3 dB for nothing
            ({4: 2e-3, 1: 1e-3}, [1.0, 2.0], 4),  # 3 dB for half of the time
            ({4: 1.01e-3, 1: 1e-3}, [1.0, 1.05], 4),
            ({4: 1e-3, 1: 1e-3}, [1.0, 0.9], 1),  # as near, and faster
            ({4: 9e-1, 1: 1e-3}, [1.0, 9.0], 1),  # the fast one breaks its floor
        ],
    )
    def test_the_better_level_is_taken_and_told(self, noise, times, level, context, feeds_of):
        serialized, _ = narrow()
        model = ir.from_proto(onnx.load_model_from_string(serialized))
        samples = _samples(serialized, feeds_of)
        given = self._context(context, model, samples, noise, times)
        step = QuantizeWeights(method="rtn")
        step.prepare(model)
        change = step.apply(model, {}, given)
        assert {
            node.attributes["accuracy_level"].as_int() for node in model.graph if node.op_type == "MatMulNBits"
        } == {level}
        told = change.details.accuracy
        assert [each.accuracy_level for each in told.levels if each.chosen] == [level]
        assert told.loss_share == pytest.approx(1 - noise[1] / noise[4], abs=1e-3)
        assert f"accuracy_level {level}" in change.summary

    def test_without_data_the_fast_one_is_taken(self, context, feeds_of):
        from dataclasses import replace

        serialized, _ = narrow()
        model = ir.from_proto(onnx.load_model_from_string(serialized))
        given = replace(context(model, _samples(serialized, feeds_of)), select=None, has_data=False)
        step = QuantizeWeights()
        step.prepare(model)
        change = step.apply(model, {}, given)
        assert {
            node.attributes["accuracy_level"].as_int() for node in model.graph if node.op_type == "MatMulNBits"
        } == {4}
        assert change.details.accuracy is None
