"""A quantized graph in training gives what onnxruntime makes of its integers, before and after."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import torch

from engine.graph import io
from engine.runtime import sessions
from engine.solve.pairs import PAIR_LIMIT, worst_integer_pairs
from engine.target import Target
from engine.train import quantized_graph
from engine.train.quantized_twin import QuantizedTwin
from engine.train.stored_weights import is_zero
from tests.engine.train.quantized_networks import few_bits, parsed, perceptron, rows, static

# A number that lies in the middle of two steps is rounded either way by one bit of a float.
FLIPS_DB = 32.0


def outputs(model, feed):
    # As it is written: fused kernels round at the same places.
    return sessions.session(io.to_bytes(model), Target()).run(feed)["scores"]


def sqnr(reference, found):
    return 10 * np.log10(np.square(reference).sum() / max(np.square(reference - found).sum(), 1e-30))


def said(twin, feed):
    with torch.no_grad():
        return twin.run(twin.feed(feed), ["scores"])["scores"].numpy()


def disturb(twin, amount=0.05):
    """Change all that is trained, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in twin.masters.values():
            value.add_(torch.randn(value.shape, generator=generator), alpha=amount * float(value.std(unbiased=False)))
        for value in twin.growths.values():
            value.add_(torch.randn(value.shape, generator=generator), alpha=amount)


def described(model):
    """Everything but numbers: nodes, attributes, types and shapes."""
    nodes = [(node.op_type, tuple(sorted((key, str(value.value)) for key, value in node.attributes.items())))
             for node in model.graph]  # fmt: skip
    stored = Counter(
        (value.const_value.dtype, tuple(value.const_value.shape.numpy())) for _, value in io.initializers(model)
    )
    return nodes, stored


@pytest.fixture
def convolutional(context, images, feeds_of, residual_cnn):
    def make(**parameters):
        return static(residual_cnn(), context, feeds_of({"image": images(32)}), **parameters)

    return make


@pytest.fixture
def image_feed(images):
    return {"image": images(8, seed=9).astype(np.float32)}


@pytest.mark.parametrize("rule", ["int8", "int7", "auto", "uint8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_integers_written_back_give_what_was_trained(convolutional, image_feed, avx2, rule, per_channel):
    original, model = convolutional(weights=rule, per_channel=per_channel)
    graph = quantized_graph.prepare(model)
    twin = QuantizedTwin(model, graph, original, "cpu")
    assert not twin.unsupported()
    assert sqnr(outputs(model, image_feed), said(twin, image_feed)) > FLIPS_DB
    before, unchanged = described(model), io.to_bytes(model)
    twin.write_back(model)
    assert io.to_bytes(model) == unchanged
    disturb(twin)
    twin.write_back(model)
    assert described(model) == before
    trained = said(twin, image_feed)
    assert sqnr(outputs(model, image_feed), trained) > FLIPS_DB
    # What was trained is something else than what came in.
    assert (
        sqnr(trained, said(QuantizedTwin(*_again(convolutional, rule, per_channel), "cpu"), image_feed)) < FLIPS_DB - 8
    )


def _again(make, rule, per_channel):
    original, model = make(weights=rule, per_channel=per_channel)
    return model, quantized_graph.prepare(model), original


def test_no_pair_of_trained_weights_overflows(convolutional, avx2):
    original, model = convolutional()
    graph = quantized_graph.prepare(model)
    twin = QuantizedTwin(model, graph, original, "cpu")
    disturb(twin, 0.5)
    twin.write_back(model)
    restrained = [weight for weight in graph.weights if weight.pairs]
    assert len(restrained) >= 6
    for weight in restrained:
        assert int(worst_integer_pairs(weight.rows(weight.read_codes(model)).astype(np.int8)).max()) <= PAIR_LIMIT


def test_biases_stay_on_the_grid_of_their_products(convolutional):
    original, model = convolutional()
    graph = quantized_graph.prepare(model)
    twin = QuantizedTwin(model, graph, original, "cpu")
    disturb(twin)
    twin.write_back(model)

    def stored(name):
        return model.graph.initializers[name].const_value.numpy()

    for bias in graph.biases:
        product = stored(bias.weight).astype(np.float64) * stored(bias.activation)
        assert stored(bias.scale) == pytest.approx(product.reshape(stored(bias.scale).shape), rel=1e-6)
        master = twin.masters[bias.codes].detach().numpy()
        assert np.abs(stored(bias.codes) * stored(bias.scale) - master).max() <= 0.51 * stored(bias.scale).max()


@pytest.mark.parametrize("form", ["matmul_nbits", "qdq"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_in_few_bits_give_what_was_trained(network, context, feeds_of, form, symmetric, bits):
    samples = feeds_of({"image": rows()})
    original, model = few_bits(perceptron(network), context, samples, format=form, symmetric=symmetric, bits=bits)
    _agrees(original, model, {"image": rows(5)})


@pytest.mark.parametrize("form", ["matmul_nbits", "qdq"])
def test_convolutions_in_four_bits_give_what_was_trained(context, images, feeds_of, residual_cnn, image_feed, form):
    original, model = few_bits(residual_cnn(opset=21), context, feeds_of({"image": images(8)}), format=form)
    _agrees(original, model, image_feed)


def _agrees(original, model, feed):
    graph = quantized_graph.prepare(model)
    twin = QuantizedTwin(model, graph, original, "cpu")
    assert sqnr(_plainly(model, feed), said(twin, feed)) > 80
    unchanged, before = io.to_bytes(model), described(model)
    twin.write_back(model)
    assert io.to_bytes(model) == unchanged
    disturb(twin)
    twin.write_back(model)
    assert described(model) == before
    assert sqnr(_plainly(model, feed), said(twin, feed)) > 80


def _plainly(model, feed):
    # The runtime's own form of blocks rounds activations to 8 bits too.
    return sessions.session(io.to_bytes(model), Target(), optimise=False).run(feed)["scores"]


def test_a_weight_starts_where_the_original_has_it_inside_of_its_step(network, context, feeds_of):
    samples = feeds_of({"image": rows()})
    original, model = few_bits(perceptron(network), context, samples, format="qdq")
    graph = quantized_graph.prepare(model)
    twin = QuantizedTwin(model, graph, original, "cpu")
    first = twin.weights[0]
    exact = next(node for node in original.graph if node.name == "first").inputs[1].const_value.numpy()
    apart = np.abs(first.master.detach().numpy() - exact)
    # Rounded to nearest, so that only what lies at the very edge of a step is moved.
    assert np.median(apart) < 1e-6
    assert np.array_equal(first.codes(first.scale).detach().numpy(), first.stored.read_codes(model))


def test_everything_that_is_trained_has_a_gradient(convolutional, image_feed):
    original, model = convolutional()
    twin = QuantizedTwin(model, quantized_graph.prepare(model), original, "cpu")
    twin.run(twin.feed(image_feed), ["scores"])["scores"].square().sum().backward()
    without = [
        name for name, value in twin.parameters.items() if value.grad is None or not bool(value.grad.abs().sum())
    ]
    assert without == []


def test_what_was_pruned_stays_zero(network, context, feeds_of):
    samples = feeds_of({"image": rows()})
    serialized = perceptron(network)
    sparse = parsed(serialized)
    for name in ("first.w", "second.w"):
        value = sparse.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[np.abs(array) < np.median(np.abs(array))] = 0
        value.const_value = ir.tensor(array, name=name)
    _, model = few_bits(io.to_bytes(sparse), context, samples, format="qdq")
    graph = quantized_graph.prepare(model)
    before = {weight.node: is_zero(weight, model) for weight in graph.weights}
    assert {weight.node: weight.sparse for weight in graph.weights} == {"first": True, "second": True, "head": False}
    twin = QuantizedTwin(model, graph, parsed(serialized), "cpu")
    disturb(twin, 0.3)
    twin.write_back(model)
    for weight in graph.weights[:2]:
        assert is_zero(weight, model)[before[weight.node]].all()
