"""Sizes that are read from a shape in every run become constants where they are fixed, and stay where they are not."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import simplify
from engine.graph.fixed_sizes import use_fixed_sizes


def padding(position):
    """A network that pads its last axis by the size of one of its axes, as exporters of TensorFlow's padding do."""
    nodes = [
        helper.make_node("Relu", ["x"], ["same"]),
        helper.make_node("Shape", ["same"], ["shape"]),
        helper.make_node("Gather", ["shape", "position"], ["size"]),
        helper.make_node("Sub", ["size", "one"], ["less"]),
        helper.make_node("Concat", ["zeros", "less"], ["pads"], axis=0),
        helper.make_node("Pad", ["same", "pads"], ["y"]),
    ]
    numbers = {"position": [position], "one": [1], "zeros": [0] * 7}
    weights = [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in numbers.items()]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 5, width])
        for name, width in (("x", 5), ("y", None))
    )
    graph = helper.make_graph(nodes, "padding", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize(("position", "size"), [(2, 5), (-1, 5), (1, 3)])
def test_a_fixed_size_becomes_a_constant(position, size):
    model = padding(position)
    assert use_fixed_sizes(model) == 1
    (less,) = (node for node in model.graph if node.op_type == "Sub")
    assert less.inputs[0].const_value.numpy().tolist() == [size]
    assert use_fixed_sizes(model) == 0


def test_an_open_size_is_read_in_every_run():
    model = padding(0)
    assert use_fixed_sizes(model) == 0
    assert "Gather" in {node.op_type for node in model.graph}


def test_what_is_computed_from_it_is_folded_where_the_other_library_breaks_the_network():
    folded = simplify._fold_by_sizes(padding(2))
    assert {node.op_type for node in folded.graph} == {"Relu", "Pad"}
