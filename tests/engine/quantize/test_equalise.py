"""Equalisation and SmoothQuant: the network stays the same, its channels become alike."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.calibrate import observe
from engine.graph import io
from engine.quantize import equalise
from engine.quantize.static_plan import make_plan
from engine.runtime import sessions
from engine.target import Target


@pytest.fixture
def equalised(feeds_of, tmp_path):
    def make(serialized, arrays, alpha=0.5):
        model = ir.from_proto(onnx.load_model_from_string(serialized))
        found = equalise.sites(make_plan(model))
        samples = feeds_of(arrays)
        seen = observe(model, [site.request for site in found], samples, Target(), scratch=tmp_path)
        changed = equalise.apply(model, found, seen, alpha)
        after = observe(model, [site.request for site in found], samples, Target(), scratch=tmp_path)
        feed = next(iter(samples.batches(8)))
        outputs = [
            next(iter(sessions.session(each, Target()).run(feed).values())) for each in (serialized, io.to_bytes(model))
        ]
        return found, changed, (seen, after), outputs

    return make


def _spread(found):
    largest = np.maximum(np.abs(found.low), np.abs(found.high))
    return float(np.log(largest[largest > 0]).std())


def test_convolutions_with_relu_between(equalised, residual_cnn, images):
    found, changed, (before, after), outputs = equalised(residual_cnn(), {"image": images(16)})
    # Inside both blocks; other tensors are also read by an Add.
    assert [site.producer.name for site in found] == ["a1", "b1"]
    assert changed
    np.testing.assert_allclose(*outputs, rtol=2e-3, atol=2e-4)
    for site in found:
        assert _spread(after[site.request]) <= _spread(before[site.request]) + 1e-6


def test_depthwise_consumers_and_clips(equalised, network, images):
    net = network()
    x = net.relu(net.conv("image", 3, 8, name="stem"))
    x = net.conv(x, 8, 8, name="dw", group=8)
    x = net.op("Clip", x, net.weight("lo", np.float32(0)), net.weight("hi", np.float32(6)))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 8, 5, 1, name="pw")))
    found, _, _, outputs = equalised(net.build(x), {"image": images(8)})
    # A Clip at 6 does not scale along.
    assert [site.producer.name for site in found] == ["stem"]
    np.testing.assert_allclose(*outputs, rtol=2e-3, atol=2e-4)


def test_layer_normalisation_before_products(equalised, network, images):
    net = network()
    x = net.op("Reshape", "image", net.weight("shape", np.array([0, 12, 36], np.int64)))
    scale = net.weight("g", (1 + 30 * (np.arange(36) == 4)).astype(np.float32))
    x = net.op("LayerNormalization", x, scale, net.normal("b", 36), axis=-1, name="norm")
    y = net.op("Add", *(net.op("MatMul", x, net.normal(f"w{i}", 36, 8, scale=0.2), name=f"m{i}") for i in (0, 1)))
    net = net.build(
        net.op("ReduceMean", y, net.weight("axes", np.array([1], np.int64)), keepdims=0), out_shape=("n", 8)
    )
    found, changed, (before, after), outputs = equalised(net, {"image": images(8)})
    assert [(site.kind, len(site.consumers)) for site in found] == [("SmoothQuant", 2)]
    assert changed
    np.testing.assert_allclose(*outputs, rtol=2e-3, atol=2e-4)
    assert _spread(after[found[0].request]) < 0.8 * _spread(before[found[0].request])


def test_a_tensor_that_others_read_too_is_left_alone(equalised, network, images):
    net = network()
    x = net.conv("image", 3, 8, name="stem")
    y = net.op("Add", net.conv(x, 8, 8, name="a"), net.op("Sigmoid", x))
    built = net.build(net.op("Flatten", net.op("GlobalAveragePool", y)), out_shape=("n", 8))
    found, changed, _, _ = equalised(built, {"image": images(4)})
    assert not found
    assert not changed
