"""The one linear layer: whatever an operator stores, inputs times its matrix plus its bias is what ONNX Runtime computes."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import io
from engine.graph.linear import (
    BOTH_ACTIVATIONS,
    CONSTANT_INPUT,
    NO_MATRIX,
    NO_SPATIAL_AXIS,
    NOT_CONSTANT,
    BiasPlace,
    LinearLayer,
    read,
    window_objection,
)
from engine.runtime import sessions
from engine.solve.gram import patches, pixels
from engine.target import Target


@dataclass
class Case:
    """One node with weights of this shape over an input of that shape."""

    kind: str
    x: tuple
    w: tuple
    bias: int | None = None
    attributes: dict = field(default_factory=dict)
    left: bool = False


IMAGE = (3, 4, 9, 8)
CASES = {
    "conv": Case("Conv", IMAGE, (6, 4, 3, 3), 6, {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
    "dilated conv, no bias": Case("Conv", IMAGE, (6, 4, 2, 3), None, {"dilations": [2, 1]}),
    "conv that pads itself": Case("Conv", IMAGE, (6, 4, 2, 3), 6, {"strides": [2, 1], "auto_pad": "SAME_UPPER"}),
    "grouped conv": Case("Conv", IMAGE, (6, 2, 3, 3), 6, {"group": 2}),
    "depthwise conv": Case("Conv", IMAGE, (8, 1, 3, 3), 8, {"group": 4}),
    "conv of one axis": Case("Conv", (3, 4, 9), (5, 4, 3), 5),
    "transposed conv": Case("ConvTranspose", IMAGE, (4, 5, 3, 2), 5, {"strides": [2, 3], "pads": [1, 0, 0, 1]}),
    "transposed conv in groups": Case(
        "ConvTranspose", IMAGE, (4, 3, 3, 3), 6, {"group": 2, "strides": [2, 2], "output_padding": [1, 1]}
    ),
    "dilated transposed conv": Case("ConvTranspose", IMAGE, (4, 5, 3, 3), None, {"dilations": [2, 1]}),
    "gemm": Case("Gemm", (7, 5), (5, 3), 3),
    "gemm, weights by row": Case("Gemm", (7, 5), (3, 5), 3, {"transB": 1}),
    "matmul": Case("MatMul", (2, 7, 5), (5, 3)),
    "weights on the left": Case("MatMul", (2, 5, 7), (3, 5), left=True),
}


def _network(case):
    random = np.random.default_rng(5)
    arrays = {"w": random.standard_normal(case.w).astype(np.float32)}
    inputs = ["w", "x"] if case.left else ["x", "w"]
    if case.bias is not None:
        arrays["b"] = random.standard_normal(case.bias).astype(np.float32)
        inputs.append("b")
    graph = helper.make_graph(
        [helper.make_node(case.kind, inputs, ["y"], "layer", **case.attributes)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def _run(model, x):
    return sessions.session(io.to_bytes(model), Target()).run({"x": x})["y"]


def _computed(layer, x):
    """Give the output as rows: (groups, rows, outputs of a group)."""
    window, matrix = layer.window(), layer.matrix()
    if window is not None:
        rows = patches(x, window)
    else:
        rows = (np.swapaxes(x, -1, -2) if layer.on_left else x).reshape(1, -1, layer.inputs)
    found = rows @ matrix.reshape(layer.groups, -1, layer.inputs).transpose(0, 2, 1)
    bias = layer.bias_place()
    vector = None if bias is None else bias.vector()
    return found if vector is None else found + vector.reshape(layer.groups, 1, -1)


def _wanted(layer, y):
    if layer.is_convolution:
        return pixels(y, layer.groups)
    return (np.swapaxes(y, -1, -2) if layer.on_left else y).reshape(1, -1, layer.outputs)


@pytest.mark.parametrize("name", CASES)
def test_inputs_times_the_matrix_plus_the_bias_is_what_the_runtime_computes(name):
    case = CASES[name]
    model = _network(case)
    layer = read(model.graph[0])
    assert isinstance(layer, LinearLayer)
    assert layer.input.name == "x"
    assert window_objection(layer) is None
    assert layer.matrix().shape == (layer.outputs, layer.inputs)
    x = np.random.default_rng(6).standard_normal(case.x).astype(np.float32)
    np.testing.assert_allclose(_computed(layer, x), _wanted(layer, _run(model, x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_weights_that_are_written_back_are_what_was_meant(name):
    case = CASES[name]
    model = _network(case)
    layer = read(model.graph[0])
    before = layer.tensor.numpy().copy()
    np.testing.assert_array_equal(layer.stored(layer.matrix()), before)
    other = np.random.default_rng(7).standard_normal((layer.outputs, layer.inputs))
    layer.write(other)
    assert layer.tensor.dtype == ir.DataType.FLOAT
    assert layer.shape == case.w
    np.testing.assert_array_equal(layer.matrix(), other.astype(np.float32))
    x = np.random.default_rng(6).standard_normal(case.x).astype(np.float32)
    np.testing.assert_allclose(_computed(layer, x), _wanted(layer, _run(model, x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "grouped conv", "transposed conv in groups", "gemm", "weights on the left"])
def test_columns_are_those_of_the_input_channels(name):
    layer = read(_network(CASES[name]).graph[0])
    marked = np.zeros_like(layer.matrix())
    per_output = layer.inputs // int(np.prod(CASES[name].w[2:])) if layer.is_convolution else layer.inputs
    chosen = np.array([0, per_output - 1])
    marked[:, layer.columns(chosen)] = 1
    stored = layer.stored(marked)
    if layer.node.op_type == "ConvTranspose":
        # Its first axis counts the input channels of all groups.
        by_channel = stored.reshape(layer.groups, per_output, -1)[0].min(1)
    else:
        axis = 1 - layer.axis
        by_channel = stored.min(axis=tuple(each for each in range(stored.ndim) if each != axis))
    np.testing.assert_array_equal(np.flatnonzero(by_channel), chosen)


def _product(graph_input=False, **changes):
    settings = {"dtype": np.float32, "shape": (5, 3), "kind": "MatMul"} | changes
    w = numpy_helper.from_array(np.ones(settings["shape"], settings["dtype"]), "w")
    listed = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    if graph_input:
        listed.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, settings["shape"]))
    graph = helper.make_graph(
        [helper.make_node(settings["kind"], settings.get("inputs", ["x", "w"]), ["y"], "layer")],
        "network",
        listed,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [w],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).graph[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": ["x", "x"]}, BOTH_ACTIVATIONS),
        ({"inputs": ["x", "x"], "kind": "Gemm"}, NOT_CONSTANT),
        ({"graph_input": True}, NOT_CONSTANT),
        ({"inputs": ["w", "w"]}, CONSTANT_INPUT),
        ({"dtype": np.float16}, "its weights are float16, not float32"),
        ({"shape": (2, 5, 3)}, NO_MATRIX),
        ({"shape": (5, 3), "kind": "Conv"}, NO_SPATIAL_AXIS),
    ],
)
def test_what_is_none_says_why(changes, reason):
    assert read(_product(**changes)) == reason


def test_other_operators_are_none():
    assert read(_product(kind="Add")) is None


def test_a_transposed_convolution_that_cuts_off_too_much_says_so():
    layer = read(_network(Case("ConvTranspose", IMAGE, (4, 5, 2, 2), None, {"pads": [2, 2, 2, 2]})).graph[0])
    assert window_objection(layer) == "it cuts off more than its kernel reaches"
    layer = read(_network(Case("ConvTranspose", IMAGE, (4, 5, 2, 2), None, {"auto_pad": "SAME_UPPER"})).graph[0])
    assert window_objection(layer) == "its padding follows from the size of its output"


def _with_sum(constant):
    text = (
        "<ir_version: 9, opset_import: ['' : 17]> g (float[2,5] x) => (float[2,3] z) { y = MatMul(x, w) z = Add(b, y) }"
    )
    model = onnx.parser.parse_model(text.replace("'", '"'))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 3), np.float32), "w"))
    model.graph.initializer.append(numpy_helper.from_array(constant, "b"))
    return ir.from_proto(model)


def test_the_bias_of_a_product_is_the_sum_after_it():
    model = _with_sum(np.array([1, 2, 3], np.float32))
    place = read(model.graph[0]).bias_place()
    assert isinstance(place, BiasPlace)
    assert (place.index, place.out.name) == (0, "z")
    place.store(model, np.array([4.0, 5.0, 6.0]), ir.DataType.FLOAT)
    result = sessions.session(io.to_bytes(model), Target()).run({"x": np.zeros((2, 5), np.float32)})["z"]
    np.testing.assert_array_equal(result, [[4, 5, 6]] * 2)


def test_a_sum_with_anything_but_a_number_per_output_is_no_bias():
    assert read(_with_sum(np.float32(1)).graph[0]).bias_place() is None
    assert read(_with_sum(np.ones((2, 3), np.float32)).graph[0]).bias_place() is None


@pytest.mark.parametrize("shared", [False, True])
def test_a_missing_or_shared_bias_gets_a_value_of_its_own(shared):
    model = _network(CASES["gemm"])
    layer = read(model.graph[0])
    if shared:
        model.graph.append(ir.node("Identity", [layer.bias], outputs=[ir.Value(name="also")]))
    else:
        layer.node.resize_inputs(2)
    kept = model.graph.initializers["b"].const_value.numpy().copy()
    place = layer.bias_place()
    place.store(model, np.arange(3.0), layer.tensor.dtype)
    np.testing.assert_array_equal(layer.bias.const_value.numpy(), [0, 1, 2])
    np.testing.assert_array_equal(model.graph.initializers["b"].const_value.numpy(), kept)
    result = sessions.session(io.to_bytes(model), Target()).run({"x": np.zeros((7, 5), np.float32)})["y"]
    np.testing.assert_array_equal(result, [[0, 1, 2]] * 7)
