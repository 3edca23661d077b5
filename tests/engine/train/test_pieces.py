"""Networks that unsupported operators cut: what can be trained by itself, and that it can."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine.errors import SpecInvalidError
from engine.target import Target
from engine.train.twin.boundary import InnerValues
from engine.train.twin.module import Twin
from engine.train.twin.pieces import pieces
from engine.train.twin.table import OPERATORS


@pytest.fixture
def cut():
    """Two layers with a sequence between them, which the twin cannot run, and a shortcut around it."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["first"], "first"),
        helper.make_node("Relu", ["first"], ["active"], "active"),
        helper.make_node("SplitToSequence", ["active"], ["parts"], "split", axis=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["joined"], "join", axis=1),
        helper.make_node("MatMul", ["joined", "w2"], ["second"], "second"),
        helper.make_node("Add", ["second", "active"], ["y"], "sum"),
        helper.make_node("Shape", ["y"], ["sizes"], "sizes"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8]),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, [2]),
        ],
        [numpy_helper.from_array(random.standard_normal((8, 8)).astype(np.float32), name) for name in ("w1", "w2")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))


def test_a_whole_network_is_one_piece(residual_cnn):
    import onnx

    model = ir.from_proto(onnx.load_from_string(residual_cnn()))
    twin = Twin.of(model)
    (whole,) = pieces(model, twin)
    assert whole.inputs == twin.inputs
    assert whole.outputs == twin.outputs
    assert whole.nodes == tuple(node.name for node in twin.graph.nodes)
    assert set(whole.parameters) == set(twin.parameters)


def test_unsupported_operators_are_named_and_cut_the_graph(cut):
    twin = Twin.of(cut)
    assert [each.node for each in twin.unsupported()] == ["split", "join"]
    before, behind = pieces(cut, twin)
    assert (before.inputs, before.outputs, before.parameters) == (("x",), ("active",), ("w1",))
    assert before.nodes == ("first", "active")
    assert (behind.inputs, behind.outputs, behind.parameters) == (("joined", "active"), ("y",), ("w2",))
    assert behind.nodes == ("second", "sum", "sizes")


def test_a_piece_is_trained_between_tensors_of_onnxruntime(cut):
    twin = Twin.of(cut)
    *_, behind = pieces(cut, twin)
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    values = InnerValues(cut, [*behind.inputs, *behind.outputs], Target()).run({"x": x})
    feeds = twin.feed({name: values[name] for name in behind.inputs})
    wanted = torch.from_numpy(values["y"])
    with torch.no_grad():
        found = twin.run(feeds, behind.outputs)["y"]
        torch.testing.assert_close(found, wanted)
        twin.parameters["w2"].zero_()
    optimizer = torch.optim.Adam([twin.parameters[name] for name in behind.parameters], lr=0.1)
    for _ in range(600):
        loss = torch.mean((twin.run(feeds, behind.outputs)["y"] - wanted) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = cut.graph.initializers["w1"].const_value.numpy().copy()
    twin.write_back(cut)
    np.testing.assert_array_equal(cut.graph.initializers["w1"].const_value.numpy(), before)
    trained = InnerValues(cut, ["y"], Target()).run({"x": x})["y"]
    np.testing.assert_allclose(trained, values["y"], atol=0.1)


def test_onnxruntime_runs_what_the_twin_cannot_and_gradients_end_there(cut):
    twin = Twin.of(cut, beside=Target())
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    expected = InnerValues(cut, ["y", "sizes"], Target()).run({"x": x})
    found = twin.run(twin.feed({"x": x}))
    np.testing.assert_allclose(found["y"].detach(), expected["y"], rtol=1e-5)
    assert found["sizes"].tolist() == [3, 8]
    found["y"].sum().backward()
    active = x @ cut.graph.initializers["w1"].const_value.numpy() > 0
    np.testing.assert_allclose(twin.parameters["w1"].grad, x.T @ active, rtol=1e-4, atol=1e-5)
    assert twin.parameters["w2"].grad.abs().max() > 0


def test_a_node_of_16_bits_that_onnxruntime_runs_gets_16_bits(monkeypatch):
    monkeypatch.delitem(OPERATORS, ("", "Sqrt"))
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], "narrow", to=TensorProto.FLOAT16),
        helper.make_node("Sqrt", ["half"], ["root"], "root"),
        helper.make_node("Cast", ["root"], ["wide"], "wide", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "w"], ["y"], "scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "w")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    twin = Twin.of(model, beside=Target())
    assert twin.cuts() == {"root"}
    y = twin.run(twin.feed({"x": np.array([[2, 4]], np.float32)}))["y"].detach().numpy()
    np.testing.assert_array_equal(y, np.float32(np.sqrt(np.float16([2, 4]))) * [[2, 3]])


def test_inner_values_that_are_not_there_are_named(cut):
    with pytest.raises(SpecInvalidError, match="computes no value nothing"):
        InnerValues(cut, ["nothing"], Target())


def test_weights_of_branches_belong_to_the_piece_of_their_node():
    branches = {
        name: helper.make_graph(
            [helper.make_node(kind, ["x", f"{name}_w"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.arange(8, dtype=np.float32), f"{name}_w")],
        )
        for name, kind in (("then_branch", "Mul"), ("else_branch", "Add"))
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], "choice", **branches)],
        "network",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    (whole,) = pieces(model, Twin.of(model))
    assert set(whole.inputs) == {"x", "c"}
    assert set(whole.parameters) == {"then_branch_w", "else_branch_w"}
