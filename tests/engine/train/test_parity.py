"""The gate before training: the twin computes what onnxruntime computes, or the node that does not is named."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine.errors import VerificationFailedError
from engine.graph import io
from engine.target import Target
from engine.train.twin.module import Twin
from engine.train.twin.parity import parity, require_parity
from engine.train.twin.table import OPERATORS, Operator

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "fashion-mnist"


@pytest.fixture
def cnn(residual_cnn):
    return ir.from_proto(onnx.load_from_string(residual_cnn()))


@pytest.fixture
def samples(images, feeds_of):
    return feeds_of({"image": images(10)})


def test_holds_where_both_compute_the_same(cnn, samples):
    found = require_parity(Twin.of(cnn), cnn, samples, Target())
    assert found.holds
    assert found.node is None
    assert set(found.outputs) == {str(value.name) for value in cnn.graph.outputs}
    assert 0 <= found.largest <= found.limit


def test_the_bundled_network_holds(feeds_of):
    model = io.load(EXAMPLE / "residual_cnn.onnx")
    with np.load(EXAMPLE / "data.npz", allow_pickle=False) as arrays:
        samples = feeds_of({"image": arrays["image"][:8]})
    found = require_parity(Twin.of(model), model, samples, Target())
    assert found.largest < 1e-5


def test_channels_first_computes_the_same(cnn, samples):
    assert parity(Twin.of(cnn, channels_last=False), cnn, samples, Target()).holds


def test_names_the_node_of_an_operator_that_computes_something_else(cnn, samples, monkeypatch):
    monkeypatch.setitem(OPERATORS, ("", "Relu"), Operator(lambda _, x: torch.relu(x) * 1.01))
    first = next(node for node in cnn.graph if node.op_type == "Relu")
    found = parity(Twin.of(cnn), cnn, samples, Target())
    assert not found.holds
    assert (found.operator, found.node) == ("Relu", first.name)
    assert found.largest > found.limit
    with pytest.raises(VerificationFailedError, match="Relu is the first to differ") as refused:
        require_parity(Twin.of(cnn), cnn, samples, Target())
    assert refused.value.node == first.name


def test_other_values_than_the_network_has_are_found(cnn, samples):
    twin = Twin.of(cnn)
    name = next(node.inputs[1].name for node in cnn.graph if node.op_type == "Conv")
    with torch.no_grad():
        twin.parameters[name] *= 1.5
    found = parity(twin, cnn, samples, Target())
    assert not found.holds
    assert found.operator == "Conv"


def _model(nodes, weights, kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", kind, ["n", 16])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10))


def test_a_network_in_half_precision_is_held_to_what_16_bits_can_tell(feeds_of):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], "narrow", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["product"], "product"),
        helper.make_node("Cast", ["product"], ["y"], "wide", to=TensorProto.FLOAT),
    ]
    model = _model(nodes, {"w": random.standard_normal((32, 16)).astype(np.float16)})
    found = parity(Twin.of(model), model, feeds_of({"x": random.standard_normal((8, 32))}), Target())
    assert found.holds
    assert found.limit == 2e-2


def test_a_quantized_network_may_round_to_the_other_side(feeds_of):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("MatMul", ["d", "w"], ["product"], "product"),
        helper.make_node("QuantizeLinear", ["product", "t", "z"], ["qy"], "qy"),
        helper.make_node("DequantizeLinear", ["qy", "t", "z"], ["y"], "dy"),
    ]
    weights = {
        "w": random.standard_normal((32, 16)).astype(np.float32),
        "s": np.array(0.03, np.float32),
        "t": np.array(0.2, np.float32),
        "z": np.array(0, np.int8),
    }
    model = _model(nodes, weights)
    assert parity(Twin.of(model), model, feeds_of({"x": random.standard_normal((8, 32))}), Target()).holds
