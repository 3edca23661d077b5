"""The twin as a whole: parameters by name, values by name, what it writes back and what it refuses."""

import weakref

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine.errors import ModelUnsupportedError, SpecInvalidError
from engine.graph import io
from engine.train.twin.module import Twin


def model_of(nodes, weights, *, inputs=("x",), outputs=("y",), opset=17):
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(model)


@pytest.fixture
def scaled():
    """relu(x * w + b), reshaped."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["product"], "product"),
        helper.make_node("Add", ["product", "b"], ["sum"], "sum"),
        helper.make_node("Relu", ["sum"], ["active"], "active"),
        helper.make_node("Reshape", ["active", "shape"], ["y"], "flat"),
    ]
    weights = {
        "w": np.array([1.0, -2.0, 3.0], np.float32),
        "b": np.array([0.5, 0.5, -20.0], np.float16).astype(np.float32),
        "shape": np.array([-1], np.int64),
    }
    return model_of(nodes, weights)


X = np.array([[1.0, 2.0, 3.0], [-1.0, -2.0, 9.0]], np.float32)


def test_gives_outputs_and_any_value_inside(scaled):
    twin = Twin.of(scaled)
    found = twin.run(twin.feed({"x": X}), ["y", "sum"])
    np.testing.assert_allclose(found["y"].detach(), [1.5, 0, 0, 0, 4.5, 7])
    np.testing.assert_allclose(found["sum"].detach(), X * [1, -2, 3] + [0.5, 0.5, -20])
    assert list(twin.run(twin.feed({"x": X}))) == ["y"]


def test_parameters_are_the_initializers_by_name(scaled):
    twin = Twin.of(scaled)
    assert list(twin.parameters) == ["w", "b"]
    twin.run(twin.feed({"x": X}))["y"].sum().backward()
    np.testing.assert_allclose(twin.parameters["w"].grad, [1, -2, 9])
    np.testing.assert_allclose(twin.parameters["b"].grad, [1, 1, 1])


def test_only_the_chosen_are_trained(scaled):
    twin = Twin.of(scaled, trainable=["b"])
    assert list(twin.parameters) == ["b"]
    with pytest.raises(SpecInvalidError, match="no float initializer shape"):
        Twin.of(scaled, trainable=["shape"])


def test_single_numbers_masks_and_bounds_are_no_weights_unless_chosen():
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "epsilon"], ["shifted"]),
        helper.make_node("Add", ["shifted", "mask"], ["masked"]),
        helper.make_node("Sub", ["masked", "far"], ["y"]),
    ]
    weights = {
        "w": np.ones(3, np.float32),
        "epsilon": np.array(1e-5, np.float32),
        "mask": np.array([0, 0, -np.inf], np.float32),
        "far": np.array([0, 0, np.finfo(np.float32).max], np.float32),
    }
    assert list(Twin.of(model_of(nodes, weights)).parameters) == ["w"]
    assert list(Twin.of(model_of(nodes, weights), trainable=["epsilon"]).parameters) == ["epsilon"]


def test_a_feed_may_stand_for_any_value_and_cuts_what_leads_to_it(scaled):
    twin = Twin.of(scaled)
    found = twin.run(twin.feed({"product": X}), ["active"])
    np.testing.assert_allclose(found["active"].detach(), np.maximum(X + np.float32([0.5, 0.5, -20]), 0))
    override = twin.run(twin.feed({"x": X, "w": np.zeros(3, np.float32)}), ["sum"])
    np.testing.assert_allclose(override["sum"].detach(), np.tile(np.float32([0.5, 0.5, -20]), (2, 1)))
    with pytest.raises(ModelUnsupportedError, match="The value x is neither given"):
        twin.run({}, ["y"])


def test_values_are_freed_after_their_last_use(scaled):
    twin = Twin.of(scaled)
    seen = []
    original = Twin._apply

    class Watched(Twin):
        def _apply(self, node, values):
            results = original(self, node, values)
            alive = [name for name, reference in seen if reference() is not None]
            seen.extend((name, weakref.ref(value)) for name, value in zip(node.outputs, results, strict=True))
            self.alive.append((node.name, alive))
            return results

    watched = Watched(twin.graph, twin.parameters, twin.constants, twin.device, twin.floating)
    watched.alive = []
    with torch.no_grad():
        watched.run(watched.feed({"x": X}))
    assert dict(watched.alive)["flat"] == ["active"]


def test_trained_values_go_back_under_the_same_names_in_their_own_types():
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    weights = {"w": np.array([1.0, 2.0], np.float16)}
    model = model_of(nodes, {"w": weights["w"].astype(np.float32)})
    model.graph.initializers["w"].const_value = ir.tensor(weights["w"])
    twin = Twin.of(model)
    assert twin.parameters["w"].dtype == torch.float32
    with torch.no_grad():
        twin.parameters["w"] += 1 / 3
    before = io.copy(model)
    twin.write_back(model)
    stored = model.graph.initializers["w"].const_value
    assert stored.dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(stored.numpy(), np.array([4 / 3, 7 / 3], np.float32).astype(np.float16))
    np.testing.assert_array_equal(before.graph.initializers["w"].const_value.numpy(), weights["w"])
    with pytest.raises(SpecInvalidError, match="no initializer w of shape"):
        twin.write_back(model, {"w": torch.zeros(3)})


def test_names_what_it_cannot_run():
    nodes = [
        helper.make_node("Relu", ["x"], ["active"], "active"),
        helper.make_node("RandomNormalLike", ["active"], ["noise"], "noise"),
        helper.make_node("Add", ["active", "noise"], ["y"], "sum"),
    ]
    twin = Twin.of(model_of(nodes, {}))
    (found,) = twin.unsupported()
    assert (found.node, found.operator) == ("noise", "ai.onnx.RandomNormalLike-17")
    assert list(twin.run(twin.feed({"x": X}), ["active"])) == ["active"]
    with pytest.raises(ModelUnsupportedError, match="RandomNormalLike cannot be trained through") as refused:
        twin.run(twin.feed({"x": X}))
    assert refused.value.node == "noise"


def test_a_failing_node_is_named(scaled):
    twin = Twin.of(scaled)
    with pytest.raises(ModelUnsupportedError, match="Mul fails in training") as refused:
        twin.run(twin.feed({"x": np.ones((2, 5), np.float32)}))
    assert refused.value.node == "product"


@pytest.mark.parametrize("taken", [True, False])
def test_runs_the_branch_that_the_condition_takes(taken):
    branches = {
        name: helper.make_graph(
            [helper.make_node(kind, ["x", f"{name}_w"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.array([2.0, 3.0, 4.0], np.float32), f"{name}_w")],
        )
        for name, kind in (("then_branch", "Mul"), ("else_branch", "Add"))
    }
    model = model_of([helper.make_node("If", ["c"], ["y"], **branches)], {"c": np.array(taken)})
    twin = Twin.of(model)
    y = twin.run(twin.feed({"x": X}))["y"]
    np.testing.assert_allclose(y.detach(), X * [2, 3, 4] if taken else X + np.float32([2, 3, 4]))
    y.sum().backward()
    used, unused = ("then", "else") if taken else ("else", "then")
    assert twin.parameters[f"{used}_branch_w"].grad is not None
    assert twin.parameters[f"{unused}_branch_w"].grad is None


def test_channels_last_changes_the_layout_and_no_value():
    w = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], {"w": w})
    twin = Twin.of(model)
    assert twin.parameters["w"].is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(twin.run(twin.feed({"x": w}))["y"].detach(), 2 * w)
    twin.write_back(model)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), w)


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (4, 3, 1, 1), (4, 3, 3, 3)])
def test_convolutions_give_channels_last(shape):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["inner"], pads=[shape[-1] // 2] * 4),
        helper.make_node("Relu", ["inner"], ["y"]),
    ]
    twin = Twin.of(model_of(nodes, {"w": np.ones(shape, np.float32)}))
    x = twin.feed({"x": np.ones((2, shape[1], 5, 5), np.float32)})
    assert twin.run(x)["y"].is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_read_back_from_the_device_nor_what_is_read_as_numbers_put_there(residual_cnn):
    """On PyTorch's device without data, where reading a number is an error."""
    model = ir.from_proto(onnx.load_from_string(residual_cnn()))
    twin = Twin.of(model, device="meta")
    image = torch.empty(2, 3, 12, 12, device="meta")
    (result,) = twin.run({"image": image}).values()
    assert (result.device.type, tuple(result.shape)) == ("meta", (2, 5))
    bounded = model_of(
        [helper.make_node("Clip", ["x", "low", "high"], ["cut"]), helper.make_node("Mul", ["cut", "w"], ["y"])],
        {"low": np.float32(0), "high": np.float32(6), "w": np.float32(3)},
    )
    twin = Twin.of(bounded, device="meta")
    assert {name: value.device.type for name, value in twin.constants.items()} == {
        "low": "cpu",
        "high": "cpu",
        "w": "meta",
    }
    assert twin.run({"x": torch.empty(2, 3, device="meta")})["y"].device.type == "meta"
