"""The ladder: each kind of broken network is caught on its rung."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engine.errors import VerificationFailedError
from engine.graph import verify
from engine.runtime.processor import cpu_profile
from engine.target import Target


@pytest.fixture
def climb(tmp_path, residual_cnn, images, feeds_of):
    original = residual_cnn()
    (tmp_path / "original.onnx").write_bytes(original)

    def make(change=None, *, lossless=True, before=None, arrays=None):
        model = onnx.load_model_from_string(before or original)
        if before:
            (tmp_path / "original.onnx").write_bytes(before)
        model = (change or (lambda same: None))(model) or model
        (tmp_path / "candidate.onnx").write_bytes(model.SerializeToString())
        samples = feeds_of(arrays or {"image": images(9)})
        return verify.verify(
            tmp_path / "candidate.onnx", tmp_path / "original.onnx", samples, Target(), lossless=lossless
        )

    return make


def _scale_weight(model, by):
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head.w")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(by), "head.w"))


def test_the_same_network_climbs_to_the_top(climb):
    assert climb().relative == 0
    assert climb().sqnr_db == 200


def test_a_small_change_is_no_lossless_step(climb):
    with pytest.raises(VerificationFailedError, match="lossless"):
        climb(lambda model: _scale_weight(model, 1.01))
    assert climb(lambda model: _scale_weight(model, 1.01), lossless=False).relative == pytest.approx(0.01, rel=0.5)


def test_an_invalid_network_is_caught(climb):
    with pytest.raises(VerificationFailedError, match="not valid ONNX"):
        climb(lambda model: model.graph.node[3].input.__setitem__(0, "nowhere"))


def test_other_outputs_are_caught(climb):
    def rename(model):
        model.graph.output[0].name = model.graph.node[-1].output[0] = "other"

    with pytest.raises(VerificationFailedError, match="outputs changed"):
        climb(rename)


def test_a_batch_size_baked_in_is_caught(climb):
    def bake(model):
        node = next(node for node in model.graph.node if node.op_type == "Flatten")
        node.op_type = "Reshape"
        del node.attribute[:]
        node.input.append("fixed")
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 32], np.int64), "fixed"))

    with pytest.raises(VerificationFailedError, match="does not run where the original does"):
        climb(bake)


def test_a_spatial_size_baked_in_is_caught(climb, network):
    net = network()
    x = net.conv("image", 3, 5, name="a")
    before = net.build(x, shape=("n", 3, "h", "w"), out_shape=("n", 5, "h", "w"))

    def bake(model):
        model.graph.node[-1].op_type = "Reshape"
        model.graph.node[-1].input.append("fixed")
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 5, 12, 12], np.int64), "fixed"))
        for axis in (2, 3):
            model.graph.output[0].type.tensor_type.shape.dim[axis].ClearField("dim_param")

    with pytest.raises(VerificationFailedError):
        climb(bake, before=before)
    assert climb(before=before).relative == 0


def test_not_a_number_is_caught(climb):
    with pytest.raises(VerificationFailedError, match="NaN"):
        climb(lambda model: _scale_weight(model, np.nan), lossless=False)


@pytest.mark.skipif(not cpu_profile().saturates_u8s8, reason="this processor's kernels do not saturate")
def test_integer_kernels_that_saturate_are_caught(climb, network, tmp_path, images, feeds_of):
    """What onnxruntime's own u8s8 setting does to a layer of large weights."""
    net = network()
    unit, zero = net.weight("s", np.float32(1)), net.weight("z", np.uint8(0))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", "image", unit, zero), unit, zero)
    w = net.op(
        "DequantizeLinear", net.weight("w8", np.full((8, 3, 3, 3), 127, np.int8)), net.weight("ws", np.float32(0.01))
    )
    x = net.op("Conv", x, w, name="conv")
    step, middle = net.weight("os", np.float32(50)), net.weight("oz", np.uint8(0))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, step, middle), step, middle)
    before = net.build(x, out_shape=("n", 8, 10, 10))
    bright = {"image": np.full((4, 3, 12, 12), 255, np.uint8)}
    with pytest.raises(VerificationFailedError, match="integer kernels"):
        climb(before=before, arrays=bright, lossless=False)
