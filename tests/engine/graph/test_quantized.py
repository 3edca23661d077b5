"""The one recogniser of quantized networks."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from engine.graph import quantized
from engine.graph.validate import inspect_model
from engine.graph.verify import is_quantized


def _schemas():
    return sorted({schema.name for schema in runtime.get_all_operator_schema()})


def test_every_operator_of_the_runtime_whose_name_says_so_is_recognised():
    named = [
        name for name in _schemas() if re.search(r"(?i:quantize)(?!d$)|QLinear|Integer|NBits|Bnb4|FpQ4|^Q[A-Z]", name)
    ]
    assert {"MatMulIntegerToFloat", "QAttention", "QOrderedMatMul", "MatMulNBits", "DequantizeLinear"} <= set(named)
    assert [name for name in named if not quantized.is_quantized(name)] == []


def test_operators_of_float_networks_are_not():
    plain = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    integers = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"}
    assert {name for name in plain if quantized.is_quantized(name)} == integers | quantized.CONVERSIONS
    assert not any(quantized.is_quantized(name) for name in ("QuickGelu", "GroupQueryAttention", "FusedConv"))


@pytest.mark.parametrize(
    ("kind", "integers"),
    [("QLinearAdd", True), ("MatMulIntegerToFloat", True), ("MatMulNBits", False), ("QuantizeLinear", False)],
)
def test_which_of_them_compute_in_integers(kind, integers):
    assert quantized.computes_in_integers(kind) is integers


def test_weights_behind_a_cast_count_and_activations_do_not():
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 17]> g (float[2] x, int8[2] q) => (float[2] y)'
            " <int8[2] w = {1, 2}> { a = Cast<to = 1>(w) b = Cast<to = 1>(q) c = Add(a, b) y = Add(c, x) }"
        )
    )
    stored, moving, *_ = model.graph
    assert quantized.holds_integer_weights(stored)
    assert not quantized.holds_integer_weights(moving)
    assert quantized.first_quantized(model) is None


@pytest.fixture
def fused(tmp_path):
    """What ONNX Runtime's own optimizer leaves: integer products under a name that no standard list has."""
    weights = onnx.numpy_helper.from_array(np.ones((4, 3), np.int8), "w")
    one = onnx.numpy_helper.from_array(np.float32(0.1), "one")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "one"], ["y"], domain="com.microsoft")],
        "network",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, (2, 4))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 3))],
        [weights, one],
    )
    domains = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=domains, ir_version=9), path)
    return path


def test_inspection_and_verification_recognise_the_same(fused):
    assert inspect_model(fused).quantized == "fully"
    assert is_quantized(fused)
