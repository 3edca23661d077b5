"""The fuse pass: same outputs as before, in fewer operators, and nothing touched that somebody else reads."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper

from engine.passes.fuse import Fuse
from engine.report.values import Change, Refusal
from engine.target import Target

RANDOM = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def _own_generator(monkeypatch):
    """Each test draws from a generator of its own, whatever ran before it."""
    monkeypatch.setattr(sys.modules[__name__], "RANDOM", np.random.default_rng(3))


def draw(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def number(value):
    return np.float32(value)


def fused(tools, model, feed, **parameters):
    """Fuse, and prove with and without the runtime's own optimisation that nothing changed."""
    before = [tools.run(model, feed, optimise=optimise) for optimise in (True, False)]
    change = Fuse(**parameters).apply(model, {}, tools.context(model))
    for optimise, expected in zip((True, False), before, strict=True):
        found = tools.run(model, feed, optimise=optimise)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    return change, [each.op_type for each in model.graph]


def hard_swish(x, stem, *, divide_first=False):
    shifted = [node("Add", [x, "three"], f"{stem}_a"), node("Clip", [f"{stem}_a", "zero", "six"], f"{stem}_c")]
    if divide_first:
        return [*shifted, node("Div", [f"{stem}_c", "six"], f"{stem}_d"), node("Mul", [f"{stem}_d", x], stem)]
    return [*shifted, node("Mul", [x, f"{stem}_c"], f"{stem}_m"), node("Div", [f"{stem}_m", "six"], stem)]


NUMBERS = {"three": number(3), "zero": number(0), "six": number(6)}


@pytest.mark.parametrize("divide_first", [False, True])
@pytest.mark.parametrize("opset", [13, 17])
def test_learnable_affine_blocks_vanish_into_weights_and_one_activation(tools, divide_first, opset):
    nodes = [
        node("Conv", ["x", "w1", "b1"], "c1", pads=[1, 1, 1, 1]),
        node("Mul", ["s1", "c1"], "m1"),
        node("Add", ["m1", "o1"], "a1"),
        *hard_swish("a1", "h1", divide_first=divide_first),
        node("Mul", ["s2", "h1"], "m2"),
        node("Add", ["m2", "o2"], "a2"),
        node("Conv", ["a2", "w2"], "y"),
    ]
    weights = {
        "w1": draw(4, 3, 3, 3), "b1": draw(4), "s1": np.array([0.7], np.float32), "o1": np.array([0.3], np.float32),
        "s2": np.array([-1.3], np.float32), "o2": np.array([0.4], np.float32), "w2": draw(5, 4, 1, 1), **NUMBERS,
    }  # fmt: skip
    model = tools.build(nodes, {"x": ["n", 3, 6, 6]}, {"y": ["n", 5, 6, 6]}, weights, opset=opset)
    change, kinds = fused(tools, model, {"x": 4 * draw(2, 3, 6, 6)})
    assert isinstance(change, Change)
    assert change.lossless
    assert kinds == ["Conv", "HardSwish", "Conv"]


def test_an_offset_before_a_padded_convolution_stays(tools):
    nodes = [
        node("Mul", ["x", "s"], "m"),
        node("Add", ["m", "o"], "a"),
        node("Conv", ["a", "w"], "y", pads=[1, 1, 1, 1]),
    ]
    weights = {"s": number(2.5), "o": number(-0.5), "w": draw(2, 2, 3, 3)}
    model = tools.build(nodes, {"x": [1, 2, 5, 5]}, {"y": [1, 2, 5, 5]}, weights)
    _, kinds = fused(tools, model, {"x": draw(1, 2, 5, 5)})
    assert kinds == ["Add", "Conv"]


def test_per_channel_constants_go_into_transposed_and_grouped_convolutions(tools):
    nodes = [
        node("Conv", ["x", "w1"], "c1", group=2),
        node("Sub", ["c1", "o"], "a"),
        node("Div", ["a", "s"], "d"),
        node("ConvTranspose", ["d", "w2", "b2"], "c2", strides=[2, 2]),
        node("Mul", ["c2", "s2"], "y"),
    ]
    weights = {
        "w1": draw(6, 2, 1, 1), "o": draw(6, 1, 1), "s": np.abs(draw(1, 6, 1, 1)) + 0.5, "w2": draw(6, 3, 2, 2),
        "b2": draw(3), "s2": draw(3, 1, 1),
    }  # fmt: skip
    model = tools.build(nodes, {"x": [1, 4, 4, 4]}, {"y": [1, 3, 8, 8]}, weights)
    change, kinds = fused(tools, model, {"x": draw(1, 4, 4, 4)})
    assert isinstance(change, Change)
    assert kinds == ["Conv", "ConvTranspose"]


@pytest.mark.parametrize("order", ["outside", "gate", "input"])
@pytest.mark.parametrize("opset", [17, 20])
def test_gelu_in_every_order(tools, order, opset):
    inner = [node("Div", ["x", "root"], "d"), node("Erf", ["d"], "e"), node("Add", ["e", "one"], "p")]
    ends = {
        "outside": [node("Mul", ["x", "p"], "t"), node("Mul", ["t", "half"], "y")],
        "gate": [node("Mul", ["half", "p"], "t"), node("Mul", ["x", "t"], "y")],
        "input": [node("Mul", ["x", "half"], "t"), node("Mul", ["t", "p"], "y")],
    }
    weights = {"root": number(math.sqrt(2)), "one": number(1), "half": number(0.5)}
    model = tools.build([*inner, *ends[order]], {"x": [2, 8]}, {"y": [2, 8]}, weights, opset=opset)
    _, kinds = fused(tools, model, {"x": 3 * draw(2, 8)})
    assert kinds == ["Gelu"]


def test_what_others_read_stays(tools):
    """The convolution's own output is an output of the network, so the factor must not go into its weights."""
    nodes = [node("Conv", ["x", "w"], "c"), node("Mul", ["c", "s"], "y")]
    model = tools.build(
        nodes, {"x": [1, 2, 3, 3]}, {"c": [1, 2, 3, 3], "y": [1, 2, 3, 3]}, {"w": draw(2, 2, 1, 1), "s": number(3)}
    )
    change, kinds = fused(tools, model, {"x": draw(1, 2, 3, 3)})
    assert isinstance(change, Refusal)
    assert change.code == "not_applicable"
    assert kinds == ["Conv", "Mul"]


def test_shared_weights_change_for_one_reader_only(tools):
    nodes = [node("Conv", ["x", "w"], "c1"), node("Mul", ["c1", "s"], "y1"), node("Conv", ["x", "w"], "y2")]
    model = tools.build(
        nodes, {"x": [1, 2, 3, 3]}, {"y1": [1, 2, 3, 3], "y2": [1, 2, 3, 3]}, {"w": draw(2, 2, 1, 1), "s": number(3)}
    )
    _, kinds = fused(tools, model, {"x": draw(1, 2, 3, 3)})
    assert kinds == ["Conv", "Conv"]


@pytest.mark.parametrize("inner", [True, False])
def test_values_that_a_body_captures_stay(tools, inner):
    """A branch reads the value between convolution and factor, or behind both."""
    then = helper.make_graph(
        [node("Identity", ["c" if inner else "m"], "t")], "then", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph(
        [node("Neg", ["c" if inner else "m"], "e")], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Mul", ["c", "s"], "m"),
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        node("If", ["yes"], "y", then_branch=then, else_branch=other),
        node("Relu", ["m"], "z"),
    ]
    model = tools.build(
        nodes, {"x": [1, 2, 3, 3]}, {"y": [1, 2, 3, 3], "z": [1, 2, 3, 3]}, {"w": draw(2, 2, 1, 1), "s": number(3)}
    )
    change, _ = fused(tools, model, {"x": draw(1, 2, 3, 3)})
    assert isinstance(change, Refusal) == inner


def attention(*, heads=2, numbers=4, scale="Mul", masked=False):
    """Self-attention of (samples, 5 positions, 8 numbers) as exporters take it apart."""
    nodes = [
        node("MatMul", ["x", "w"], "qkv"),
        helper.make_node("Split", ["qkv"], ["q", "k", "v"], axis=2, num_outputs=3),
    ]
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("Reshape", [name, "parted"], f"{name}_r"),
            node("Transpose", [f"{name}_r"], f"{name}_t", perm=perm),
        ]
    nodes += [node("MatMul", ["q_t", "k_t"], "products"), node(scale, ["products", "factor"], "scores")]
    nodes += [node("Add", ["scores", "mask"], "masked")] if masked else []
    nodes += [
        node("Softmax", ["masked" if masked else "scores"], "shares", axis=-1),
        node("MatMul", ["shares", "v_t"], "weighted"),
        node("Transpose", ["weighted"], "back", perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "whole"], "y"),
    ]
    factor = numbers**-0.5 if scale == "Mul" else numbers**0.5
    weights = {
        "w": draw(8, 3 * heads * numbers), "parted": np.array([-1, 5, heads, numbers], np.int64), "factor": number(factor),
        "whole": np.array([-1, 5, heads * numbers], np.int64), "mask": draw(5, 5),
    }  # fmt: skip
    if not masked:
        del weights["mask"]
    return nodes, weights


@pytest.mark.parametrize("scale", ["Mul", "Div"])
def test_attention_becomes_one_operator_where_it_is_asked_for(tools, scale):
    nodes, weights = attention(scale=scale)
    model = tools.build(nodes, {"x": ["n", 5, 8]}, {"y": ["n", 5, 8]}, weights, opset=18)
    feed = {"x": draw(3, 5, 8)}
    assert isinstance(fused(tools, model, feed)[0], Refusal)
    change, kinds = fused(tools, model, feed, attention=True)
    assert change.details.fused == {"attentions": 1}
    assert kinds == ["MatMul", "Split", "MultiHeadAttention"]


def test_attention_with_a_mask_and_for_other_runtimes_stays(tools):
    nodes, weights = attention(masked=True)
    model = tools.build(nodes, {"x": ["n", 5, 8]}, {"y": ["n", 5, 8]}, weights, opset=18)
    assert isinstance(fused(tools, model, {"x": draw(3, 5, 8)}, attention=True)[0], Refusal)
    nodes, weights = attention()
    model = tools.build(nodes, {"x": ["n", 5, 8]}, {"y": ["n", 5, 8]}, weights, opset=18)
    elsewhere = replace(tools.context(model), target=Target(provider="openvino"))
    assert isinstance(Fuse(attention=True).apply(model, {}, elsewhere), Refusal)


@pytest.mark.parametrize("biased", [True, False])
def test_projections_of_one_input_become_one_product(tools, biased):
    names = ["q", "k", "v"]
    nodes, weights = [], {}
    for name, size in zip(names, (6, 6, 10), strict=True):
        weights[f"w{name}"] = draw(8, size)
        product = f"p{name}" if biased else name
        nodes.append(node("MatMul", ["x", f"w{name}"], product))
        if biased:
            weights[f"b{name}"] = draw(size)
            nodes.append(node("Add", [f"b{name}", product] if name == "k" else [product, f"b{name}"], name))
    outputs = {"q": ["n", 5, 6], "k": ["n", 5, 6], "v": ["n", 5, 10]}
    model = tools.build(nodes, {"x": ["n", 5, 8]}, outputs, weights)
    change, kinds = fused(tools, model, {"x": draw(3, 5, 8)})
    assert isinstance(change, Change)
    assert kinds == (["MatMul", "Add", "Split"] if biased else ["MatMul", "Split"])
    assert isinstance(Fuse().apply(model, {}, tools.context(model)), Refusal)
