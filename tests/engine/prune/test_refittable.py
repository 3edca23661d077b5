"""A layer seen as rows times a matrix gives what the node gives."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.prune.reconstruct import repair
from engine.prune.refittable import refittable
from engine.runtime import sessions
from engine.target import Target


def transposed(attributes, kernel=(3, 2), groups=1, bias=True):
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(4, 3, *kernel)).astype(np.float32)
    initializers = [numpy_helper.from_array(weights, "w")]
    if bias:
        initializers.append(numpy_helper.from_array(rng.normal(size=3 * groups).astype(np.float32), "b"))
    node = helper.make_node("ConvTranspose", ["x", "w", *["b"] * bias], ["y"], "up", group=groups, **attributes)
    graph = helper.make_graph(
        [node],
        "up",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 5, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3 * groups, None, None])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return ir.from_proto(model)


def run(model, x):
    return sessions.session(ir.to_proto(model).SerializeToString(), Target()).run({"x": x})["y"]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2]},
        {"strides": [3, 2]},
        {"strides": [2, 3], "pads": [1, 0, 2, 1]},
        {"strides": [2, 2], "output_padding": [1, 0], "pads": [1, 1, 1, 0]},
        {"strides": [2, 1], "dilations": [2, 3]},
    ],
)
def test_a_transposed_convolution_is_rows_times_a_matrix(attributes):
    model = transposed(attributes)
    x = np.random.default_rng(5).normal(size=(2, 4, 5, 6)).astype(np.float32)
    expected = run(model, x)
    (layer,), refused = refittable(model)
    assert not refused
    rows, wanted = layer.rows(x, 0, None)[0], layer.targets(expected, x, 0, None)[0]
    np.testing.assert_allclose(rows @ layer.matrix().T + layer.offset(), wanted, rtol=1e-4, atol=1e-4)
    assert layer.row_count(x) == len(rows)
    layer.store(model, layer.matrix(), layer.offset())
    np.testing.assert_array_equal(run(model, x), expected)


@pytest.mark.parametrize(
    ("attributes", "groups", "reason"),
    [
        ({"strides": [2, 2], "auto_pad": "SAME_UPPER"}, 1, "padding follows from the size"),
        ({"strides": [2, 2], "output_shape": [10, 12]}, 1, "padding follows from the size"),
        ({}, 2, "several groups"),
        ({"pads": [3, 0, 0, 0]}, 1, "more than its kernel reaches"),
    ],
)
def test_a_transposed_convolution_that_is_not_refitted_says_why(attributes, groups, reason):
    found, refused = refittable(transposed(attributes, groups=groups))
    assert not found
    assert reason in refused["up"]


def test_a_transposed_convolution_is_refitted(feeds_of):
    original = transposed({"strides": [2, 2]}, kernel=(2, 2), bias=False)
    damaged = original.clone()
    (layer,), _ = refittable(damaged)
    layer.store(damaged, 0.5 * layer.matrix(), None)
    x = np.random.default_rng(6).normal(size=(64, 4, 5, 6)).astype(np.float32)
    (refit,) = repair(damaged, original, {}, feeds_of({"x": x}), Target())
    assert refit.taken
    assert refit.error_after < 1e-4 < refit.error_before
    np.testing.assert_allclose(run(damaged, x[:4]), run(original, x[:4]), atol=0.02)
