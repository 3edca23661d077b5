"""Shared weights get a name per use, so that a change for one layer cannot reach another."""

import numpy as np
import onnx
import onnx_ir as ir

from engine.graph import io, verify
from engine.graph.unshare import unshare
from engine.target import Target


def _shared(network):
    net = network()
    w = net.normal("w", 3, 3, 3, 3, scale=0.3)
    x = net.op("Conv", "image", w, pads=[1] * 4)
    x = net.op("Conv", x, net.op("Identity", net.op("Identity", w)), pads=[1] * 4)
    scaled = net.op("Mul", net.op("ReduceSum", w, keepdims=0), x)
    return net.build(scaled, out_shape=("n", 3, 12, 12))


def test_every_layer_gets_its_own_weights(network, images):
    before = _shared(network)
    model = ir.from_proto(onnx.load_model_from_string(before))
    assert unshare(model) == 2
    weights = [node.inputs[1] for node in model.graph if node.op_type == "Conv"]
    assert len({id(value) for value in weights}) == 2
    assert all(len(value.uses()) == 1 for value in weights)
    after = io.to_bytes(model)
    onnx.checker.check_model(after, full_check=True)
    assert verify.same_outputs(before, after, [{"image": images(2).astype(np.float32)}], Target()).relative == 0
    assert unshare(model) == 0


def test_networks_without_sharing_stay_as_they_are(residual_cnn):
    model = ir.from_proto(onnx.load_model_from_string(residual_cnn()))
    before = io.to_bytes(model)
    assert unshare(model) == 0
    assert io.to_bytes(model) == before
