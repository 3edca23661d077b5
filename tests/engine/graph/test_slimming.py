"""onnxslim makes the same of a network whether onnx or SymPy knows its shapes, and SymPy is loaded for the networks that need it."""

import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from engine.graph import slimming

_PROGRAM = """
import sys, onnx, engine
from engine.graph.slimming import slim
made = slim(onnx.load(sys.argv[1]))
print("sympy.core" in sys.modules, *(node.op_type for node in made.graph.node))
"""


def network(nodes, shape, weights=()):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "made", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


FIXED = (
    helper.make_node("Identity", ["x"], ["a"]),
    helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
    helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
    helper.make_node("Relu", ["c"], ["y"]),
)
# How many numbers the last axis has is a product of open ones.
OPEN = (
    helper.make_node("Flatten", ["x"], ["a"], axis=1),
    helper.make_node("Identity", ["a"], ["b"]),
    helper.make_node("Relu", ["b"], ["y"]),
)


@pytest.mark.parametrize(
    ("nodes", "shape", "loads", "left"),
    [(FIXED, ["n", 3, 4], "False", ["Relu"]), (OPEN, ["n", "h", "w"], "True", ["Flatten", "Relu"])],
)
def test_sympy_is_loaded_where_sizes_are_computed_from_open_ones(tmp_path, nodes, shape, loads, left):
    path = tmp_path / "model.onnx"
    onnx.save(network(nodes, shape), path)
    done = subprocess.run([sys.executable, "-I", "-c", _PROGRAM, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [loads, *left]


def test_shapes_are_the_same_whoever_infers_them(monkeypatch):
    model = network(FIXED, ["n", 3, 4])
    by_onnx = slimming.slim(model)
    monkeypatch.setattr(slimming, "_knows_all", lambda _graph: False)
    by_sympy = slimming.slim(model)
    for made in (by_onnx, by_sympy):
        # What is gone may still be described.
        made.graph.ClearField("value_info")
    assert by_onnx == by_sympy
