"""The ladder: each kind of broken network is caught on its rung."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engine.data.dataset import Samples
from engine.errors import VerificationFailedError
from engine.graph import verify
from engine.runtime import providers
from engine.runtime.processor import cpu_profile
from engine.runtime.sessions import session
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


def _network(nodes, inputs, outputs, weights):
    """Serialize a network whose ports have shapes, as the checker wants them."""
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [value(name, kind, shape) for name, shape in inputs.items()],
        [value(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset]).SerializeToString()


def _two_outputs(scale):
    """A large output and a small one beside it."""
    random = np.random.default_rng(0)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["large"]),
        onnx.helper.make_node("MatMul", ["x", "v"], ["small"]),
    ]
    weights = {"w": random.normal(size=(6, 4)) * 1000, "v": random.normal(size=(6, 4)) * scale}
    return nodes, {name: array.astype(np.float32) for name, array in weights.items()}


@pytest.mark.parametrize("changed", ["large", "small"])
def test_each_output_is_held_against_its_own_size(tmp_path, feeds_of, changed):
    """A small output's error is nothing beside a large one's size, and everything beside its own."""
    nodes, weights = _two_outputs(1e-3)
    outputs = {"large": ["n", 4], "small": ["n", 4]}
    (tmp_path / "original.onnx").write_bytes(_network(nodes, {"x": ["n", 6]}, outputs, weights))
    name = {"large": "w", "small": "v"}[changed]
    moved = {**weights, name: weights[name] * np.float32(1.01)}
    (tmp_path / "candidate.onnx").write_bytes(_network(nodes, {"x": ["n", 6]}, outputs, moved))
    samples = feeds_of({"x": np.random.default_rng(1).normal(size=(9, 6))})
    files = tmp_path / "candidate.onnx", tmp_path / "original.onnx"
    with pytest.raises(VerificationFailedError, match=f"Output `{changed}` moved by 1"):
        verify.verify(*files, samples, Target(), lossless=True)
    found = verify.verify(*files, samples, Target(), lossless=False)
    assert found.worst == found.noisiest == changed
    assert found.sqnr_db == pytest.approx(40, abs=1)


def _nms(threshold):
    """Sixteen boxes whose scores come in; those above a threshold go out."""
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(16, 2) * 10.0
    boxes = np.concatenate([grid, grid + 8], axis=1)[None].astype(np.float32)
    make = onnx.helper.make_node
    nodes = [
        make("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["chosen"]),
        make("Gather", ["chosen", "two"], ["index"], axis=1),
        make("Gather", ["flat", "index"], ["kept"], axis=0),
        make("Mul", ["kept", "stretch"], ["dets"]),
    ]
    weights = {
        "boxes": boxes, "flat": boxes[0], "most": np.array([20]), "iou": np.float32(0.5), "least": np.float32(threshold),
        "two": np.array([2]), "stretch": np.ones(4, np.float32),
    }  # fmt: skip
    return nodes, weights


@pytest.fixture
def detectors(tmp_path):
    """Verifies a detector with other weights; 'scores' are the samples."""
    scores = np.random.default_rng(2).uniform(0, 1, (12, 1, 1, 16)).astype(np.float32)

    def make(*, lossless, **changed):
        nodes, weights = _nms(0.5)
        for name, each in {"original": weights, "candidate": {**weights, **changed}}.items():
            network = _network(nodes, {"scores": [1, 1, 16]}, {"dets": ["d", 1, 4]}, each)
            (tmp_path / f"{name}.onnx").write_bytes(network)
        samples = Samples({"scores": scores}, {"scores": scores.dtype}, np.arange(12), {"scores": None})
        files = tmp_path / "candidate.onnx", tmp_path / "original.onnx"
        return verify.verify(*files, samples, Target(), lossless=lossless)

    return make


def test_rows_that_the_data_count_are_compared_as_sets(detectors):
    """A threshold that moves a little drops or adds a row here and there: no error of shape, and the rest is the same."""
    assert detectors(lossless=True).relative == 0
    assert detectors(lossless=True, least=np.float32(0.505)).relative == 0
    with pytest.raises(VerificationFailedError, match="Output `dets` moved"):
        detectors(lossless=True, stretch=np.full(4, 1.05, np.float32))
    found = detectors(lossless=False, least=np.float32(0.9))
    assert found.relative > 0.1


def test_what_the_original_itself_differs_by_is_no_fault(tmp_path, feeds_of):
    """The probability of a rare event: one part in a hundred of it is rounding, from one optimisation to another."""
    random = np.random.default_rng(0)
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        make("Relu", ["a"], ["b"]),
        make("Conv", ["b", "w1"], ["c"], pads=[1] * 4),
        make("Relu", ["c"], ["d"]),
        make("GlobalAveragePool", ["d"], ["e"]),
        make("Flatten", ["e"], ["f"]),
        make("Gemm", ["f", "v", "rare"], ["g"]),
        make("Sigmoid", ["g"], ["y"]),
    ]
    weights = {
        "w": random.normal(size=(32, 16, 3, 3)) / 6, "w1": random.normal(size=(32, 32, 3, 3)) / 8,
        "v": random.normal(size=(32, 1)) / 2, "rare": np.array([-13.0]),
    }  # fmt: skip
    network = _network(nodes, {"x": ["n", 16, 12, 12]}, {"y": ["n", 1]},
                       {name: array.astype(np.float32) for name, array in weights.items()})  # fmt: skip
    path = tmp_path / "network.onnx"
    path.write_bytes(network)
    samples = feeds_of({"x": random.normal(size=(60, 16, 12, 12))})
    feeds = list(samples.batches(1))[:8]
    plain, optimised = (session(network, Target(), optimise=each) for each in (False, True))
    # What one optimisation differs by from another, which is more than a change of numbers may be.
    assert verify.agreement(plain, optimised, feeds).relative > verify.FLOAT_TOLERANCE
    verify.verify(path, path, samples, Target(), lossless=True)


def test_a_change_is_looked_for_where_float32_is_float32(climb, monkeypatch, tmp_path, images):
    """CUDA rounds products to TF32: transformers then moved by 1e-3 from one form of the same graph to another."""
    line = replace(providers.PROVIDERS["cpu"], exact={"use_tf32": "0"})
    monkeypatch.setitem(providers.PROVIDERS, "cpu", line)
    seen, original = [], verify.sessions.session

    def session(model, target, **more):
        seen.append(target.provider_options)
        return original(model, target, **more)

    monkeypatch.setattr(verify.sessions, "session", session)
    climb()
    verify.same_outputs(
        tmp_path / "original.onnx", tmp_path / "candidate.onnx", [{"image": images(2).astype(np.float32)}], Target()
    )
    assert len(seen) > 4
    assert all(options == {"use_tf32": "0"} for options in seen)
