"""Slopes through rounding: those of LSQ for a pair of QuantizeLinear and DequantizeLinear, straight through elsewhere."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine.train.twin.module import Twin
from engine.train.twin.operators.quantization import RANGES, fake_quantize, round_through


def pair(scale, zero_point, **attributes):
    """x through QuantizeLinear and DequantizeLinear, the scale an initializer."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["whole"], **attributes),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["y"], **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(scale, "scale"), zero_point],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Twin.of(ir.from_proto(model), trainable=["scale"])


def zeros(kind, values):
    return helper.make_tensor("zero", kind, np.shape(values), np.ravel(values))


def test_a_pair_has_the_slopes_of_lsq():
    twin = pair(np.array(0.5, np.float32), zeros(TensorProto.INT8, 0))
    x = torch.tensor([0.3, -1.1, 60.0, 80.0, -90.0], requires_grad=True)
    twin.run({"x": x})["y"].sum().backward()
    inside = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(x.grad, inside)
    steps = torch.tensor([0.6, -2.2, 120.0])
    expected = (steps.round() - steps).sum() + 127 - 128
    torch.testing.assert_close(twin.parameters["scale"].grad, expected)


@pytest.mark.parametrize(
    ("scale", "attributes", "groups"),
    [
        (np.float32([0.1, 0.3]), {"axis": 0}, [[0] * 6, [1] * 6]),
        (np.float32([[0.1, 0.2], [0.3, 0.4]]), {"axis": 1, "block_size": 3}, [[0] * 3 + [1] * 3, [2] * 3 + [3] * 3]),
    ],
)
def test_each_scale_gets_the_slope_of_its_own_elements(scale, attributes, groups):
    twin = pair(scale, zeros(TensorProto.INT4, np.zeros(scale.shape, np.int8)), **attributes)
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 6)).astype(np.float32)
    twin.run(twin.feed({"x": x}))["y"].sum().backward()
    steps = x / scale.ravel()[np.array(groups)]
    slopes = np.where(steps >= 7.5, 7, np.where(steps <= -8.5, -8, np.round(steps) - steps))
    expected = [slopes[np.array(groups) == group].sum() for group in range(scale.size)]
    np.testing.assert_allclose(twin.parameters["scale"].grad.ravel(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16"])
def test_the_type_of_the_zero_point_is_the_range(kind):
    low, high = RANGES[ir.DataType[kind]]
    twin = pair(np.array(1.0, np.float32), zeros(TensorProto.DataType.Value(kind), 1))
    found = twin.run(twin.feed({"x": np.float32([-1e6, 1e6])}))["y"]
    assert found.tolist() == [low - 1, high - 1]


def test_a_scale_that_is_trained_fits_its_data():
    """A range ten times too wide leaves three levels of sixteen; the scale alone gets most of the error away."""
    twin = pair(np.array(2.0, np.float32), zeros(TensorProto.INT4, 0))
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(2000).astype(np.float32))

    def error():
        return (twin.run({"x": x})["y"] - x).square().mean()

    before = error().item()
    optimizer = torch.optim.Adam(twin.parameters.values(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    # The best grid of sixteen levels for a normal distribution leaves 0.0115 of its variance (Max 1960).
    assert before > 0.2
    assert error().item() < 0.014


def test_rounding_alone_takes_the_slope_of_the_identity():
    x = torch.tensor([0.5, 1.5, -2.4], requires_grad=True)
    rounded = round_through(x)
    assert rounded.tolist() == [0.0, 2.0, -2.0]
    (rounded * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]
    grid = fake_quantize(x, torch.tensor(0.4), None, (-8, 7))
    torch.testing.assert_close(grid, torch.tensor([0.4, 1.6, -2.4]))


def test_integer_products_pass_slopes_to_what_was_rounded():
    """The chain that dynamic quantization writes: its slopes are those of the product that it stands for."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["whole", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["whole", "w", "zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["y"]),
    ]
    weight = np.random.default_rng(2).integers(-128, 128, (6, 4)).astype(np.int8)
    graph = helper.make_graph(
        nodes,
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    twin = Twin.of(ir.from_proto(model))
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((3, 6)).astype(np.float32)).requires_grad_()
    y = twin.run({"x": x})["y"]
    y.sum().backward()
    # The extremes themselves may lie beyond the last step by a part of one, where rounding is clamped and has no slope.
    middle = (x.detach() > x.min()) & (x.detach() < x.max())
    expected = torch.from_numpy(weight).float().sum(dim=1).expand(3, 6)
    torch.testing.assert_close(x.grad[middle], expected[middle])
