"""Parameters that grow are explained by what they are."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.measure.parameter_growth import explain_growth

WEIGHT = np.arange(96, dtype=np.float32).reshape(12, 8)


@pytest.fixture
def stored(tmp_path):
    def make(name, nodes, weights):
        graph = helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )  # fmt: skip
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    return make


def test_scales_and_zero_points_are_told(stored):
    before = stored("before", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    small = {"w": WEIGHT.astype(np.int8), "s": np.ones(8, np.float32), "z": np.zeros(8, np.int8)}
    assert explain_growth(before, stored("after", nodes, small)) == "16 more: 16 are scales and zero points"
    assert explain_growth(before, before) is None


def test_copies_and_new_constants_are_told_apart(stored):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["y"]),
    ]
    before = stored("before", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    after = stored("after", nodes, {"w": WEIGHT, "v": WEIGHT, "bias": np.ones(8, np.float32)})
    said = "104 more: 96 are copies of equal constants, 8 are constants that steps made"
    assert explain_growth(before, after) == said
