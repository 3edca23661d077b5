"""Weights behind Cast and Transpose are read as weights, and go back where they came from if they stay in float."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import io
from engine.graph.folded_constants import fold_constants, restore_constants, stored_behind
from engine.graph.linear import LinearLayer, read
from engine.runtime import sessions
from engine.target import Target

H = 40


def _cast(source, result):
    return helper.make_node("Cast", [source], [result], f"cast_{result}", to=TensorProto.FLOAT)


def _turn(source, result):
    return helper.make_node("Transpose", [source], [result], f"turn_{result}", perm=[1, 0])


CHAINS = {
    "cast": ([_cast("w", "c")], "c", np.float16, (H, 48)),
    "transpose": ([_turn("w", "c")], "c", np.float32, (48, H)),
    "both": ([_turn("w", "t"), _cast("t", "c")], "c", np.float16, (48, H)),
    "there and back": ([_turn("w", "t"), _turn("t", "c")], "c", np.float32, (H, 48)),
}


def _model(nodes, weights, inputs=None, outputs=("y",), opset=17):
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(n, k, s)
            for n, (k, s) in (inputs or {"x": (TensorProto.FLOAT, ["n", H])}).items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def _run(model, **feed):
    written = io.to_bytes(model)
    return sessions.session(written, Target()).run(feed)


def _weights(shape, dtype=np.float32):
    return (np.random.default_rng(0).standard_normal(shape) / 6).astype(dtype)


@pytest.mark.parametrize(("chain", "end", "dtype", "shape"), CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_a_chain_is_folded_and_put_back(chain, end, dtype, shape, kind):
    model = _model([*chain, helper.make_node(kind, ["x", end], ["y"], "p")], {"w": _weights(shape, dtype)})
    x = _weights((3, H))
    wanted = _run(model, x=x)["y"]
    stored = len(io.to_bytes(model))
    fold_constants(model)
    (node,) = model.graph
    layer = read(node)
    assert isinstance(layer, LinearLayer)
    assert (layer.inputs, layer.outputs) == (H, 48)
    assert stored_behind(layer.weight).name == "w"
    assert list(model.graph.initializers) == [layer.weight.name], "what was read before is gone"
    np.testing.assert_allclose(_run(model, x=x)["y"], wanted, atol=1e-6)
    again = io.copy(model)
    restore_constants(again)
    assert [each.op_type for each in again.graph] == [each.op_type for each in chain] + [kind]
    assert abs(len(io.to_bytes(again)) - stored) < 100
    np.testing.assert_allclose(_run(again, x=x)["y"], wanted, atol=1e-6)


def test_a_tied_table_stays_for_its_rows():
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["rows"], "embed"),
        _turn("w", "t"),
        helper.make_node("MatMul", ["rows", "t"], ["y"], "head"),
    ]
    model = _model(nodes, {"w": _weights((90, H))}, {"ids": (TensorProto.INT64, ["n"])})
    ids = np.arange(4)
    wanted = _run(model, ids=ids)["y"]
    fold_constants(model)
    assert [node.op_type for node in model.graph] == ["Gather", "MatMul"]
    np.testing.assert_allclose(_run(model, ids=ids)["y"], wanted, atol=1e-6)
    restore_constants(model)
    assert list(model.graph.initializers) == ["w"], "one tensor again"
    np.testing.assert_allclose(_run(model, ids=ids)["y"], wanted, atol=1e-6)


def test_weights_in_16_bits_that_others_need_stay_with_the_true_reason():
    nodes = [
        _cast("w", "c"),
        helper.make_node("MatMul", ["x", "c"], ["h"], "p"),
        helper.make_node("ReduceSum", ["c"], ["s"], "sum"),
        helper.make_node("Mul", ["h", "s"], ["y"]),
    ]
    model = _model(nodes, {"w": _weights((H, 48), np.float16)})
    before = io.to_bytes(model)
    fold_constants(model)
    assert io.to_bytes(model) == before
    assert read(model.graph[1]) == "its weights, `w`, are stored as float16 behind Cast"
    # A second reader of the constant itself is named.
    nodes[2] = helper.make_node("CastLike", ["w", "x"], ["d"], "other")
    nodes[3] = helper.make_node("Mul", ["h", "d"], ["y"])
    model = _model(
        [*nodes[:2], nodes[2], nodes[3]], {"w": _weights((48, 48), np.float16)}, {"x": (TensorProto.FLOAT, [48, 48])}
    )
    fold_constants(model)
    assert "`other` needs them as they are" in read(model.graph[1])


def test_recurrent_weights_and_tables_in_16_bits_are_read_too():
    random = {
        "w": _weights((1, 4 * 16, H), np.float16),
        "r": _weights((1, 4 * 16, 16)),
        "table": _weights((60, H), np.float16),
    }
    nodes = [
        _cast("table", "rows"),
        helper.make_node("Gather", ["rows", "ids"], ["x"], "embed"),
        _cast("w", "wide"),
        helper.make_node("LSTM", ["x", "wide", "r"], ["y"], "lstm", hidden_size=16),
    ]
    model = _model(nodes, random, {"ids": (TensorProto.INT64, [5, 2])})
    ids = np.arange(10).reshape(5, 2)
    wanted = _run(model, ids=ids)["y"]
    fold_constants(model)
    assert [node.op_type for node in model.graph] == ["Gather", "LSTM"]
    np.testing.assert_allclose(_run(model, ids=ids)["y"], wanted, atol=1e-6)
    restore_constants(model)
    assert sorted(value.dtype.name for value in model.graph.initializers.values()) == ["FLOAT", "FLOAT16", "FLOAT16"]
    np.testing.assert_allclose(_run(model, ids=ids)["y"], wanted, atol=1e-6)


def test_excluded_nodes_and_other_types_keep_their_chains():
    double = _model(
        [_cast("w", "c"), helper.make_node("MatMul", ["x", "c"], ["y"], "p")], {"w": _weights((H, 48), np.float64)}
    )
    fold_constants(double)
    assert read(double.graph[1]) == "its weights, `w`, are stored as double behind Cast"
    model = _model([_turn("w", "t"), helper.make_node("MatMul", ["x", "t"], ["y"], "p")], {"w": _weights((48, H))})
    fold_constants(model, exclude=["p"])
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul"]


def test_weights_that_other_operators_compute_are_no_activations():
    node = helper.make_node("Mul", ["w", "two"], ["c"])
    model = _model(
        [node, helper.make_node("MatMul", ["x", "c"], ["y"], "p")], {"w": _weights((H, 48)), "two": np.float32([2])}
    )
    assert "computed from constants, by Mul" in read(model.graph[1])


def test_weights_on_disk_are_computed_when_they_are_written(tmp_path):
    wide = 700
    model = _model(
        [_cast("w", "c"), _turn("c", "t"), helper.make_node("MatMul", ["x", "t"], ["y"], "p")],
        {"w": _weights((wide, 1024), np.float16)},
        {"x": (TensorProto.FLOAT, ["n", 1024])},
    )
    x = _weights((2, 1024))
    wanted = _run(model, x=x)["y"]
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    stored = io.load(tmp_path / "m.onnx")
    fold_constants(stored)
    (value,) = stored.graph.initializers.values()
    assert isinstance(value.const_value, ir.LazyTensor)
    np.testing.assert_allclose(_run(stored, x=x)["y"], wanted, atol=1e-5)
