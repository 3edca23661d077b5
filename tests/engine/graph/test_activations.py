"""What a sample costs, and how many may run at once."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.contract import RUN_BYTES
from engine.data.dataset import Samples
from engine.graph.activations import affordable_batch, live_bytes
from engine.target import Target

MEBIBYTE = 1 << 20


def _network(nodes, inputs, outputs, weights=(), domains=()):
    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes, "g", [info(*each) for each in inputs], [info(*each) for each in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in domains)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def _samples(**arrays):
    return Samples(
        arrays, {name: array.dtype for name, array in arrays.items()}, np.arange(len(next(iter(arrays.values()))))
    )


def _waveform():
    """A few kilobytes of weights, and a map of 32 channels over the whole input."""
    weights = [("a", np.ones((32, 1, 3, 3), np.float32)), ("b", np.ones((1, 32, 3, 3), np.float32))]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["d"], ["y"]),
    ]
    return _network(nodes, [("x", ["N", 1, "T", "F"])], [("y", ["N", 1, 1, 1])], weights)


def test_a_tensor_lives_until_it_is_read_for_the_last_time():
    x = np.zeros((1, 1, 100, 80), np.float32)
    one, wide = 4 * 8000, 4 * 8000 * 32
    # While Relu runs, what it reads and what it makes; the input is the caller's and stays.
    assert live_bytes(_waveform(), {"x": x}) == one + 2 * wide
    assert live_bytes(_waveform(), {"x": np.repeat(x, 5, 0)}) == 5 * (one + 2 * wide)


def test_a_skip_connection_is_held_and_a_reshape_is_free():
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Flatten", ["a"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    model = _network(nodes, [("x", ["N", 10, 10])], [("y", ["N", 100])])
    # x, a, b while b is reshaped; a is held for the sum.
    assert live_bytes(model, {"x": np.zeros((1, 10, 10), np.float32)}) == 4 * 400


@pytest.mark.parametrize(("size", "batch"), [((160, 80), 20), ((900, 160), 1), ((8, 8), 32)])
def test_the_batch_follows_what_a_sample_costs(size, batch):
    samples = _samples(x=np.zeros((3, 1, *size), np.float32))
    assert affordable_batch(_waveform(), samples, 32) == batch


def test_the_budget_and_the_inputs_count():
    samples = _samples(x=np.zeros((3, 1, 100, 80), np.float32))
    assert affordable_batch(_waveform(), samples, 32, budget=8 * MEBIBYTE) == 4
    reduced = _network([helper.make_node("ReduceMean", ["x"], ["y"], axes=[1])], [("x", ["N", "T"])], [("y", ["N", 1])])
    large = _samples(x=np.zeros((2, RUN_BYTES // 16), np.float32))
    assert affordable_batch(reduced, large, 32) == 3


def test_what_shapes_do_not_tell_is_measured():
    # An attention in integers is the runtime's own, and nothing infers its shape.
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("QAttention", ["q", "w", "b", "scale", "scale"], ["y"], domain="com.microsoft", num_heads=4),
    ]
    weights = [
        ("scale", np.float32(0.1)), ("zero", np.uint8(128)), ("w", np.ones((64, 192), np.int8)),
        ("b", np.zeros(192, np.float32)),
    ]  # fmt: skip
    model = _network(nodes, [("x", ["N", 16, 64])], [("y", None)], weights, domains=["com.microsoft"])
    samples = _samples(x=np.ones((3, 16, 64), np.float32))
    assert live_bytes(model, next(iter(samples.batches(1)))) is None
    # It reads a byte for each of 1,024 numbers and writes four.
    expected = MEBIBYTE // (2 * 5 * 1024)
    assert 0.9 * expected <= affordable_batch(model, samples, 1000, budget=MEBIBYTE, target=Target()) <= expected
    assert affordable_batch(model, samples, 1000, budget=MEBIBYTE) == MEBIBYTE // 4096


def test_words_inside_have_a_size_too():
    names = {"keys_int64s": [0, 1], "values_strings": ["a", "b"], "default_string": "c"}
    numbers = {"keys_strings": ["a", "b"], "values_floats": [1.0, 2.0], "default_float": 0.0}
    nodes = [
        helper.make_node("Cast", ["x"], ["k"], to=TensorProto.INT64),
        helper.make_node("LabelEncoder", ["k"], ["s"], domain="ai.onnx.ml", **names),
        helper.make_node("LabelEncoder", ["s"], ["f"], domain="ai.onnx.ml", **numbers),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    weights = [("w", np.ones((8, 8), np.float32))]
    model = _network(nodes, [("x", ["n", 8])], [("y", ["n", 8])], weights)
    model.opset_imports["ai.onnx.ml"] = 3
    assert live_bytes(model, {"x": np.zeros((1, 8), np.float32)}) >= 8 * 32
