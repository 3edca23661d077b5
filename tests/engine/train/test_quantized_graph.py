"""A quantized graph is read for training: scales of their own, integers as they are stored, and the way back."""

from collections import Counter

import numpy as np
import pytest

from engine.graph import io
from engine.runtime import sessions
from engine.solve.pairs import PAIR_LIMIT
from engine.target import Target
from engine.train import quantized_graph
from engine.train.scales import pairs
from tests.engine.train.quantized_networks import few_bits, parsed, perceptron, rows, static


def outputs(model, feed):
    return sessions.session(io.to_bytes(model), Target()).run(feed)["scores"]


def kinds(model):
    return Counter(node.op_type for node in model.graph)


@pytest.fixture
def quantized(context, images, feeds_of, residual_cnn):
    def make(**parameters):
        return static(residual_cnn(), context, feeds_of({"image": images(32)}), **parameters)[1]

    return make


@pytest.fixture
def feed(images):
    return {"image": images(4, seed=9).astype(np.float32)}


def test_scales_of_their_own_leave_every_output_as_it_was(quantized, feed):
    model = quantized()
    before = outputs(model, feed)
    graph = quantized_graph.prepare(model)
    assert np.array_equal(outputs(model, feed), before)
    names = [group.name for group in graph.activations] + [weight.scale for weight in graph.weights]
    assert len(set(names)) == len(names)
    readers = {name: [use.node for use in model.graph.initializers[name].uses()] for name in names}
    for group in graph.activations:
        assert set(readers[group.name]) == {node for pair in group.pairs for node in (pair.quantize, *pair.dequantize)}
    for weight in graph.weights:
        assert len(readers[weight.scale]) == 1


def test_every_layer_and_activation_is_found(quantized):
    graph = quantized_graph.prepare(quantized())
    assert [weight.node for weight in graph.weights] == ["stem", "a1", "a2", "b1", "b2", "short", "head"]
    assert [bias.node for bias in graph.biases] == ["stem", "a1", "a2", "b1", "b2", "short", "head"]
    assert not graph.left
    assert {weight.grid.axis for weight in graph.weights} == {0}


def test_only_what_kernels_need_equal_shares_a_scale(network, context, images, feeds_of):
    net = network()
    x = net.relu(net.conv("image", 3, 16, name="stem"))
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.relu(net.conv(pooled, 16, 16, name="inner"))
    flat = net.op("Flatten", net.op("GlobalAveragePool", y))
    built = net.build(net.op("Gemm", flat, net.normal("head.w", 16, 5), name="head"))
    _, model = static(built, context, feeds_of({"image": images(32)}))
    found = quantized_graph.prepare(model).activations
    sharing = [[pair.quantize.inputs[0].producer() for pair in group.pairs] for group in found]
    shared = [[node and node.op_type for node in group] for group in sharing if len(group) > 1]
    assert shared == [["Conv", "MaxPool"], ["GlobalAveragePool", "Flatten"]]


def test_what_the_quantizer_kept_to_is_kept_to(quantized, avx2):
    graph_of = {rule: quantized_graph.prepare(quantized(weights=rule)) for rule in ("int7", "auto", "int8", "uint8")}
    assert {weight.grid.high for weight in graph_of["int7"].weights} == {64}
    assert {weight.pairs for weight in graph_of["auto"].weights if weight.op == "Conv"} == {"windows"}
    wide = [weight for weight in graph_of["int8"].weights if weight.node != "stem"]
    assert {(weight.grid.low, weight.grid.high, weight.pairs) for weight in wide} == {(-127, 127, None)}
    assert {(weight.grid.low, weight.grid.high, weight.pairs) for weight in graph_of["uint8"].weights} == {
        (0, 255, None)
    }


def test_pairs_are_those_of_the_kernels(quantized, avx2):
    model = quantized()
    for weight in quantized_graph.prepare(model).weights:
        codes = weight.rows(weight.read_codes(model))
        codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).reshape(len(codes), -1, 2)
        alike = codes[..., 0] * codes[..., 1] > 0
        assert np.abs(codes.sum(-1))[alike].max() <= PAIR_LIMIT


@pytest.mark.parametrize("form", ["matmul_nbits", "qdq"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_in_few_bits_come_back_as_they_were(network, context, feeds_of, form, symmetric):
    samples = feeds_of({"image": rows()})
    _, model = few_bits(perceptron(network), context, samples, format=form, symmetric=symmetric)
    before = outputs(model, {"image": rows(5)})
    graph = quantized_graph.prepare(model)
    assert [weight.node for weight in graph.weights] == ["first", "second", "head"]
    for weight in graph.weights:
        codes, scale = weight.read_codes(model), weight.read_scale(model)
        weight.write(model, codes, scale)
    assert np.array_equal(outputs(model, {"image": rows(5)}), before)
    first = graph.weights[0]
    codes = first.read_codes(model)
    first.write(model, np.where(codes > 7, codes - 1, codes), first.read_scale(model))
    assert not np.array_equal(outputs(model, {"image": rows(5)}), before)


@pytest.mark.parametrize("form", ["matmul_nbits", "qdq"])
def test_convolutions_in_four_bits_are_found(context, images, feeds_of, residual_cnn, form):
    _, model = few_bits(residual_cnn(opset=21), context, feeds_of({"image": images(8)}), format=form)
    graph = quantized_graph.prepare(model)
    assert {weight.node: weight.bits for weight in graph.weights} == {
        "a1": 4, "a2": 4, "b1": 4, "b2": 4
    }  # fmt: skip


def test_nothing_of_a_float_network_can_be_trained_so(residual_cnn, context, images, feeds_of):
    refusal = quantized_graph.refusal(parsed(residual_cnn()))
    assert refusal.code == "not_applicable"
    assert "quantize first" in refusal.reason
    assert not pairs(parsed(residual_cnn()))
