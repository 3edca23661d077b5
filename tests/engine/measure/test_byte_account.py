"""Every byte of a stored network is in one row: what it is for, and for weights in float why they are."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import io
from engine.measure.byte_account import byte_account, data_bytes
from engine.passes.float16 import Float16
from engine.passes.quantize_dynamic import QuantizeDynamic
from engine.passes.quantize_static import QuantizeStatic
from engine.passes.quantize_weights import QuantizeWeights


def _info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def language_model():
    """A table, a product, an LSTM, a normalisation, and a product in the bodies of an If."""
    random = np.random.default_rng(0)
    held = {
        "table": (200, 64), "w": (64, 96), "lstm_w": (1, 256, 96), "lstm_r": (1, 256, 64), "lstm_b": (1, 512),
        "inner": (64, 64), "scale": (64,), "shift": (64,), "positions": (32, 64),
    }  # fmt: skip
    weights = [numpy_helper.from_array((random.standard_normal(s) / 8).astype(np.float32), n) for n, s in held.items()]
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["normal", "inner"], ["t"], "then")], "a", [], [_info("t", None)]
    )
    other = helper.make_graph([helper.make_node("Identity", ["normal"], ["e"], "same")], "b", [], [_info("e", None)])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "embed"),
        helper.make_node("Add", ["rows", "positions"], ["placed"], "place"),
        helper.make_node("MatMul", ["placed", "w"], ["wide"], "product"),
        helper.make_node("Transpose", ["wide"], ["steps"], "turn", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "lstm_w", "lstm_r", "lstm_b"], ["", "last", ""], "lstm", hidden_size=64),
        helper.make_node("Squeeze", ["last", "first"], ["state"], "squeeze"),
        helper.make_node("LayerNormalization", ["state", "scale", "shift"], ["normal"], "norm"),
        helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch, else_branch=other),
    ]
    weights += [numpy_helper.from_array(np.array([0]), "first"), numpy_helper.from_array(np.array(True), "flag")]
    graph = helper.make_graph(
        nodes, "g", [_info("ids", ["n", 32], TensorProto.INT64)], [_info("y", ["n", 64])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _stored(serialized, folder, step=None, context=None, samples=None):
    model = ir.from_proto(onnx.load_model_from_string(serialized))
    reasons = {}
    if step is not None:
        given = context(model, samples)
        step.prepare(model)
        assert step.check(model) is None
        details = step.apply(model, given.observe(model, step.observes(model)), given).details
        left = details.in_float32 if isinstance(step, Float16) else details.in_float
        reasons = {each.node: each.reason for each in left}
    io.strip(model)
    io.save(model, folder / "n.onnx")
    return byte_account(folder / "n.onnx", reasons), folder / "n.onnx"


def _by_kind(account):
    found = {}
    for row in account.rows:
        found[row.kind] = found.get(row.kind, 0) + row.bytes
    return found


def _all_tensors(path):
    return [value.const_value for _, value in io.initializers(io.load(path))]


STEPS = {
    "as it is": None,
    "dynamic": QuantizeDynamic(),
    "weights in 4 bits": QuantizeWeights(method="rtn"),
    "weights in 8 bits, standard": QuantizeWeights(method="rtn", bits=8, format="qdq"),
    "float16": Float16(),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_language_model_adds_up(tmp_path, context, feeds_of, step):
    ids = np.random.default_rng(1).integers(0, 200, (8, 32))
    account, path = _stored(language_model(), tmp_path, step, context, feeds_of({"ids": ids}, np.int64))
    assert account.total == path.stat().st_size == sum(row.bytes for row in account.rows)
    tensors = _all_tensors(path)
    # Bodies' tensors and all: the file has nothing else than these and the graph.
    assert account.total - _by_kind(account)["graph"] == sum(tensor.nbytes for tensor in tensors)
    assert sum(row.tensors for row in account.rows) == len(tensors)
    floats = {row.reason: row.bytes for row in account.rows if row.kind == "float_weights"}
    small = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.INT4}
    if step is None:
        assert "quantized" not in _by_kind(account)
        assert sum(floats.values()) == 4 * (200 * 64 + 64 * 96 + 256 * 160 + 64 * 64 + 32 * 64)
    elif not isinstance(step, Float16):
        held = _by_kind(account)
        assert held["quantized"] + held.get("zero_points", 0) == sum(t.nbytes for t in tensors if t.dtype in small)
        assert held["scales"] > 0
        # Nothing stays in float without a reason that the step itself gave.
        assert not any("no step of this job" in reason for reason in floats)


@pytest.mark.parametrize(
    "step", [None, QuantizeStatic(improve=False, measure_layers=False), QuantizeWeights(method="rtn")]
)
def test_a_network_of_images_adds_up(tmp_path, residual_cnn, images, context, feeds_of, step):
    account, path = _stored(residual_cnn(), tmp_path, step, context, feeds_of({"image": images(16)}))
    tensors = _all_tensors(path)
    assert account.total == path.stat().st_size
    assert account.total - _by_kind(account)["graph"] == sum(tensor.nbytes for tensor in tensors)
    if step is not None:
        assert not any("no step of this job" in (row.reason or "") for row in account.rows)


def test_external_data_count_once_and_to_the_byte(tmp_path):
    """Two tensors may name the same place; alignment is part of the framing."""
    model = onnx.load_model_from_string(language_model())
    held = sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)
    onnx.save(model, tmp_path / "n.onnx", save_as_external_data=True, location="n.data", size_threshold=256)
    stored = onnx.load(tmp_path / "n.onnx", load_external_data=False)
    twin = stored.graph.initializer.add()
    twin.CopyFrom(next(tensor for tensor in stored.graph.initializer if tensor.name == "w"))
    twin.name = "again"
    (tmp_path / "n.onnx").write_bytes(stored.SerializeToString())
    account = byte_account(tmp_path / "n.onnx", {})
    assert account.total == sum((tmp_path / name).stat().st_size for name in ("n.onnx", "n.data"))
    assert all(row.bytes >= 0 for row in account.rows)
    assert sum(row.bytes for row in account.rows if row.kind != "graph") == held


def test_lists_of_trees_have_a_row_of_their_own(tmp_path):
    lists = {
        "nodes_treeids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0] * 3, "target_weights": [1.0, 2.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "nodes_values_as_tensor": numpy_helper.from_array(np.zeros(3, np.float32), "v"),
        "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0],
    }  # fmt: skip
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, **lists)
    graph = helper.make_graph([node], "g", [_info("x", ["n", 1])], [_info("y", ["n", 1])])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=imports), tmp_path / "n.onnx")
    account = byte_account(tmp_path / "n.onnx", {})
    assert account.total == (tmp_path / "n.onnx").stat().st_size
    held = _by_kind(account)
    assert set(held) == {"tree_ensembles", "graph"}
    assert held["tree_ensembles"] == sum(attribute.ByteSize() for attribute in node.attribute)


def test_numbers_in_the_typed_fields_count_as_they_are_stored():
    numbers = [1, 300, -1]
    tensor = helper.make_tensor("t", TensorProto.INT64, [3], numbers)
    without = helper.make_tensor("t", TensorProto.INT64, [3], numbers)
    without.ClearField("int64_data")
    assert data_bytes(tensor) == len(tensor.SerializeToString()) - len(without.SerializeToString())
    assert data_bytes(numpy_helper.from_array(np.array(numbers))) == 24


def test_the_rows_of_a_report_must_add_up():
    from pydantic import ValidationError

    from engine.report.byte_account import ByteAccount, ByteRow

    with pytest.raises(ValidationError, match="add up"):
        ByteAccount(rows=(ByteRow(kind="graph", tensors=0, bytes=3),), total=4)
