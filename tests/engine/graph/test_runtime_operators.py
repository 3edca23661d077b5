"""ONNX Runtime's own operators in the standard domain are valid, have shapes, and survive a conversion of the operator set."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.errors import ModelInvalidError
from engine.graph import checker, io, opset, runtime_operators, sizes
from engine.graph.coupling import analyse
from engine.graph.validate import inspect_model
from engine.runtime.sessions import session
from engine.target import Target

_KINDS = [("SimplifiedLayerNormalization", 17), ("LayerNormalization", 11), ("LayerNormalization", 16)]


def _normalised(kind, version):
    """Two layers with a norm between them."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(16, 32)), "v": random.normal(size=(32, 8)), "scale": np.ones(32), "bias": np.zeros(32),
    }  # fmt: skip
    reads = ["a", "scale"] + (["bias"] if kind == "LayerNormalization" else [])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node(kind, reads, ["b"], "norm", axis=-1, epsilon=1e-5),
        helper.make_node("MatMul", ["b", "v"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in weights.items()
            if name in {*reads, "w", "v"}
        ],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", version)])


@pytest.mark.parametrize(("kind", "version"), _KINDS)
def test_they_are_taken_and_followed(tmp_path, kind, version):
    path = tmp_path / "net.onnx"
    onnx.save(_normalised(kind, version), path)
    assert inspect_model(path).ops[kind] == 1
    assert checker.check(path, infer=True) is None
    assert sizes.infer(io.load(path)).shapes["b"] == (1, 32)
    assert len(analyse(io.load(path)).groups) == 1


@pytest.mark.parametrize(("kind", "version"), _KINDS)
def test_a_conversion_leaves_them_as_they_are(kind, version):
    before = _normalised(kind, version)
    model = ir.from_proto(before)
    assert opset.upgrade(model, 21)
    assert io.opset(model) == 21
    assert [node.op_type for node in model.graph] == ["MatMul", kind, "MatMul"]
    assert set(model.opset_imports) == {""}
    x = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
    one, other = (
        session(each, Target()).run({"x": x})["y"] for each in (before.SerializeToString(), io.to_bytes(model))
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_what_nobody_has_is_still_refused(tmp_path):
    path = tmp_path / "net.onnx"
    model = _normalised("LayerNormalization", 11)
    model.graph.node[1].op_type = "RMSNormalization"
    del model.graph.node[1].input[2:]
    onnx.save(model, path)
    with pytest.raises(ModelInvalidError, match="`RMSNormalization` does not exist in operator set 11"):
        inspect_model(path)


def test_the_table_is_what_this_runtime_has():
    """Every operator of the table is one of the runtime's, with these inputs and attributes."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    runtime_operators.register()
    theirs = {
        each.name: each for each in native.get_all_operator_schema() if each.domain == "" and each.since_version == 1
    }
    for name in runtime_operators.NAMES:
        ours = onnx.defs.get_schema(name, 1, "")
        assert len(ours.inputs) == len(theirs[name].inputs), name
        assert set(ours.attributes) == set(theirs[name].attributes), name
        assert (ours.min_input, ours.min_output) == (theirs[name].min_input, theirs[name].min_output), name
