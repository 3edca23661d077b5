"""Products in other words become MatMul, Gemm and Conv that compute the same, or say why they cannot."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import io
from engine.graph.linear import LinearLayer, read
from engine.graph.products import objection, spell_out
from engine.runtime import sessions
from engine.target import Target

CONTRIB = "com.microsoft"
H = 48


def _network(node, inputs, weights, *, opset=17, rank=None, dtypes=None):
    infos = [
        helper.make_tensor_value_info(name, (dtypes or {}).get(name, TensorProto.FLOAT), shape)
        for name, shape in inputs.items()
    ]
    graph = helper.make_graph(
        [node],
        "g",
        infos,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None if rank is None else ["?"] * rank)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))


def _normal(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def _attention(mask=None, bias=True, **attributes):
    inputs = ["x", "w", "b" if bias else "", *([mask] if mask else [])]
    return helper.make_node("Attention", inputs, ["y"], "p", domain=CONTRIB, num_heads=4, **attributes)


X3, X2, X4 = {"x": [2, 7, H]}, {"x": [5, H]}, {"x": [2, 8, 6, 6]}
QKV = {"w": _normal(H, 3 * H), "b": _normal(3 * H, seed=1)}
MATRIX = {"w": _normal(H, 64)}
KERNEL = {"w": _normal(16, 8, 3, 3), "b": _normal(16, seed=1)}
CASES = {
    "fused matmul": (helper.make_node("FusedMatMul", ["x", "w"], ["y"], "p", domain=CONTRIB, alpha=0.5), X3, MATRIX),
    "fused matmul, weights by row": (
        helper.make_node("FusedMatMul", ["x", "w"], ["y"], "p", domain=CONTRIB, transB=1), X3, {"w": _normal(64, H)},
    ),
    "fused matmul, input by column": (
        helper.make_node("FusedMatMul", ["x", "w"], ["y"], "p", domain=CONTRIB, transA=1), {"x": [2, H, 7]}, MATRIX,
    ),
    "fused gemm": (
        helper.make_node("FusedGemm", ["x", "w", "b"], ["y"], "p", domain=CONTRIB, activation="LeakyRelu", activation_alpha=0.2, alpha=2.0),
        X2, {**MATRIX, "b": _normal(64)},
    ),
    "fused conv": (
        helper.make_node("FusedConv", ["x", "w", "b"], ["y"], "p", domain=CONTRIB, activation="Relu", pads=[1] * 4, strides=[2, 2]), X4, KERNEL,
    ),
    "fused conv, hard sigmoid": (
        helper.make_node("FusedConv", ["x", "w", "b"], ["y"], "p", domain=CONTRIB, activation="HardSigmoid", activation_params=[0.3, 0.4]), X4, KERNEL,
    ),
    "einsum": (helper.make_node("Einsum", ["x", "w"], ["y"], "p", equation="bsi,ij->bsj"), X3, MATRIX),
    "einsum of any axes": (helper.make_node("Einsum", ["x", "w"], ["y"], "p", equation="...i,ji->...j"), X3, {"w": _normal(64, H)}),
    "einsum, weights first": (helper.make_node("Einsum", ["w", "x"], ["y"], "p", equation="ji, bsi -> bsj"), X3, {"w": _normal(64, H)}),
    "einsum to heads": (helper.make_node("Einsum", ["x", "w"], ["y"], "p", equation="bsi,ihd->bshd"), X3, {"w": _normal(H, 4, 16)}),
    "einsum from heads": (
        helper.make_node("Einsum", ["x", "w"], ["y"], "p", equation="bshd,hde->bse"), {"x": [2, 7, 4, 12]}, {"w": _normal(4, 12, 32)},
    ),
    "attention": (_attention(), X3, QKV),
    "attention of the past alone": (_attention(unidirectional=1, scale=0.2), X3, QKV),
    "attention, sizes of its own": (
        _attention(qkv_hidden_sizes=[H, H, 2 * H]), X3, {"w": _normal(H, 4 * H), "b": _normal(4 * H)},
    ),
    "attention with a mask": (_attention("m"), {**X3, "m": [2, 7]}, QKV),
}  # fmt: skip


def _feed(inputs, random):
    feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in inputs.items() if name != "m"}
    if "m" in inputs:
        feed["m"] = (np.arange(7) < np.array([[7], [4]])).astype(np.int32)
    return feed


@pytest.mark.parametrize(("node", "inputs", "weights"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("opset", [12, 17])
def test_it_computes_the_same_as_a_linear_layer(node, inputs, weights, opset):
    model = _network(node, inputs, weights, opset=opset, dtypes={"m": TensorProto.INT32})
    before = io.to_bytes(model)
    spell_out(model)
    after = io.to_bytes(model)
    kinds = [each.op_type for each in model.graph]
    assert {"MatMul", "Gemm", "Conv"} & set(kinds)
    assert not {"FusedMatMul", "FusedGemm", "FusedConv", "Einsum", "Attention"} & set(kinds)
    assert next(each for each in model.graph if each.op_type in {"MatMul", "Gemm", "Conv"}).name == "p"
    feed = _feed(inputs, np.random.default_rng(3))
    wanted, found = (sessions.session(each, Target()).run(feed)["y"] for each in (before, after))
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


TABLES = {
    "words": _normal(90, H), "places": _normal(40, H, seed=1), "kinds": _normal(2, H, seed=2), "scale": _normal(H, seed=3),
    "offset": _normal(H, seed=4), **QKV,
}  # fmt: skip


def _encoder(*, segments, mask, places, given):
    """What onnxruntime.transformers makes of a BERT's first layers; `given`: the mask is an input of one number per sample."""
    inputs = ["ids", "segments" if segments else "", "words", "places", "kinds" if segments else "", "scale", "offset"]
    inputs += ["mask" if mask else "", *(["at"] if places else [])]
    embed = helper.make_node(
        "EmbedLayerNormalization", inputs, ["e", "counts", "sum"], "embed", domain=CONTRIB, epsilon=1e-6
    )
    attention = helper.make_node(
        "Attention",
        ["e", "w", "b", "lengths" if given else ("counts" if mask else "")],
        ["a"],
        "attention",
        domain=CONTRIB,
        num_heads=4,
    )
    last = helper.make_node("Add", ["a", "sum"], ["y"], "last")
    used = {
        "ids",
        *(["segments"] if segments else []),
        *(["mask"] if mask else []),
        *(["at"] if places else []),
        *(["lengths"] if given else []),
    }
    infos = [
        helper.make_tensor_value_info(n, TensorProto.INT32, ["n"] if n == "lengths" else ["n", "s"])
        for n in sorted(used)
    ]
    graph = helper.make_graph(
        [embed, attention, last], "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "s", H])],
        [numpy_helper.from_array(array, name) for name, array in TABLES.items() if name != "kinds" or segments],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 14), helper.make_opsetid(CONTRIB, 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8)), used


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize(("mask", "given"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("places", [True, False])
def test_an_encoders_tables_become_plain(segments, mask, places, given):
    model, used = _encoder(segments=segments, mask=mask, places=places, given=given)
    before = io.to_bytes(model)
    spell_out(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Gather") >= 2 + segments
    assert not {"EmbedLayerNormalization", "Attention"} & set(kinds)
    assert next(node for node in model.graph if node.name == "embed").inputs[0].name == "words"
    random = np.random.default_rng(8)
    feed = {
        "ids": random.integers(0, 90, (3, 7)), "segments": random.integers(0, 2, (3, 7)), "lengths": np.array([7, 3, 5]),
        "mask": np.arange(7) < np.array([[7], [3], [5]]), "at": random.integers(0, 40, (3, 7)),
    }  # fmt: skip
    feed = {name: array.astype(np.int32) for name, array in feed.items() if name in used}
    wanted, found = (sessions.session(each, Target()).run(feed)["y"] for each in (before, io.to_bytes(model)))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


REFUSED = {
    "a mask of unknown form": (_attention("m"), {**X3, "m": ["k"]}, QKV, "form of its mask"),
    "two activations": (
        helper.make_node("FusedMatMul", ["x", "z"], ["y"], "p", domain=CONTRIB), {**X3, "z": [2, H, 64]}, {}, "not constant",
    ),
    "stacks of matrices": (
        helper.make_node("Einsum", ["x", "w"], ["y"], "p", equation="bsi,bij->bsj"), X3, {"w": _normal(2, H, 64)}, "no product with one matrix",
    ),
    "an open result": (helper.make_node("Einsum", ["x", "w"], ["y"], "p", equation="bsi,ij"), X3, MATRIX, "leaves its result open"),
    "heads of open rows": (
        helper.make_node("Einsum", ["x", "w"], ["y"], "p", equation="...i,ihd->...hd"), X3, {"w": _normal(H, 4, 16)},
        "leaves open how many axes there are",
    ),
    "a sum inside": (
        helper.make_node("FusedConv", ["x", "w", "b", "z"], ["y"], "p", domain=CONTRIB, activation="Relu"),
        {**X4, "z": [2, 16, 4, 4]}, KERNEL, "adds another input",
    ),
    "no operator for it": (
        helper.make_node("FusedGemm", ["x", "w"], ["y"], "p", domain=CONTRIB, activation="ScaledTanh"), X2, MATRIX, "ScaledTanh",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("node", "inputs", "weights", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_spelled_out_says_why(node, inputs, weights, reason):
    model = _network(node, inputs, weights, dtypes={"m": TensorProto.INT32})
    before = io.to_bytes(model)
    spell_out(model)
    assert io.to_bytes(model) == before
    assert reason in objection(next(iter(model.graph)))


def test_excluded_nodes_and_those_of_others_stay():
    model = _network(*CASES["attention"])
    spell_out(model, exclude=["p"])
    assert [node.op_type for node in model.graph] == ["Attention"]
    # The standard operator of the same name is another one.
    standard = helper.make_node("Attention", ["x", "x", "x"], ["y"], "p", q_num_heads=4, kv_num_heads=4)
    assert objection(next(iter(_network(standard, X3, {}, opset=23).graph))) is None


def test_in_the_body_of_an_if_too():
    node = helper.make_node("FusedMatMul", ["x", "w"], ["t"], "p", domain=CONTRIB, transB=1, alpha=2.0)
    info = helper.make_tensor_value_info
    then = helper.make_graph([node], "a", [], [info("t", TensorProto.FLOAT, None)])
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])], "b", [], [info("e", TensorProto.FLOAT, None)]
    )
    choice = helper.make_node("If", ["c"], ["y"], "if", then_branch=then, else_branch=other)
    model = _network(choice, {"x": [3, H], "c": []}, {"w": _normal(H, H)}, dtypes={"c": TensorProto.BOOL})
    before = io.to_bytes(model)
    spell_out(model)
    inner = next(each for each in model.graph.all_nodes() if each.op_type == "MatMul")
    assert "behind Transpose" in read(inner)
    feed = {"x": _normal(3, H), "c": np.array(True)}
    wanted, found = (sessions.session(each, Target()).run(feed)["y"] for each in (before, io.to_bytes(model)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_plain_product_is_left_alone():
    model = _network(helper.make_node("MatMul", ["x", "w"], ["y"], "p"), X3, MATRIX)
    before = io.to_bytes(model)
    spell_out(model)
    assert io.to_bytes(model) == before
    assert isinstance(read(next(iter(model.graph))), LinearLayer)
