"""Sparse tensors are read as ONNX Runtime reads them, everywhere where a file may have them, and never beyond their bounds."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine
from engine.errors import ModelInvalidError, ModelUnsupportedError
from engine.graph import dense
from engine.graph.validate import inspect_model


def _sparse(name, places, values, dims):
    held = numpy_helper.from_array(np.asarray(values, np.float32), name)
    return helper.make_sparse_tensor(held, numpy_helper.from_array(np.asarray(places, np.int64), f"{name}_at"), dims)


def _weights(rows=64, columns=48):
    draw = np.random.default_rng(0)
    array = draw.standard_normal((rows, columns)).astype(np.float32)
    array[draw.random(array.shape) < 0.9] = 0
    return array


def _network(*, by_axis=False):
    """A product with sparse weights, and a sparse constant in a body of an If."""
    weight = _weights()
    places = np.argwhere(weight) if by_axis else np.flatnonzero(weight)
    stored = _sparse("w", places, weight[weight != 0], weight.shape)
    held = helper.make_node("Constant", [], ["shift"], sparse_value=_sparse("s", [3], [2.5], [48]))
    inner = [held, helper.make_node("Add", ["h", "shift"], ["t"])]
    other = [helper.make_node("Identity", ["h"], ["e"])]
    graphs = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for name, nodes in (("t", inner), ("e", other))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
            helper.make_node("If", ["flag"], ["y"], "if", then_branch=graphs[0], else_branch=graphs[1]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 48])],
        [numpy_helper.from_array(np.array(True), "flag")],
        sparse_initializer=[stored],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("by_axis", [False, True])
def test_the_dense_network_gives_what_onnxruntime_gives_of_the_sparse_one(tmp_path, by_axis):
    path = tmp_path / "net.onnx"
    onnx.save(_network(by_axis=by_axis), path)
    x = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}
    (wanted,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, x)
    found = inspect_model(path, mend=True)
    told = next(warning for warning in found.warnings if "stored sparse" in warning)
    assert told.startswith("2 tensors are stored sparse.")
    assert f"{4 * (64 * 48 + 48)} bytes" in told
    assert found.parameters == 64 * 48 + 48 + 1
    model = onnx.load(path)
    assert not model.graph.sparse_initializer
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[-1]), _weights())
    (given,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, x)
    np.testing.assert_array_equal(given, wanted)


def test_a_file_that_is_only_looked_at_stays_as_it_is(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(_network(), path)
    before = path.read_bytes()
    assert inspect_model(path).parameters == 64 * 48 + 48 + 1
    assert path.read_bytes() == before


def test_a_job_takes_a_sparse_network(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    onnx.save(_network(), tmp_path / "model" / "model.onnx")
    draw = np.random.default_rng(2)
    np.savez(tmp_path / "data" / "data.npz", x=draw.standard_normal((30, 64)).astype(np.float32))
    steps = {
        "recipe": {"passes": [{"type": "quantize_dynamic", "smallest": 1}]},
        "gates": [{"metric": "cosine", "rule": "min", "value": 0.9}],
    }
    report = engine.run(engine.read_spec(steps), tmp_path, lambda _event: None)
    assert report.steps[0].change is not None
    assert any("stored sparse" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("places", "values", "dims", "told"),
    [
        ([4], [1.0], [4], "outside its shape"),
        ([-1], [1.0], [4], "outside its shape"),
        ([[0, 2]], [1.0], [2, 2], "outside its shape"),
        ([0], [1.0], [4, 0], "outside its shape"),
        ([1, 1], [1.0, 2.0], [4], "two values in one place"),
        ([[1, 1, 1]], [1.0], [2, 2], "other places"),
        ([1, 2], [1.0], [4], "other places"),
    ],
)
def test_what_does_not_fit_together_is_refused(places, values, dims, told):
    model = _network()
    del model.graph.sparse_initializer[:]
    made = _sparse("w", [0] * len(values), values, [1 << 20])
    made.indices.CopyFrom(numpy_helper.from_array(np.asarray(places, np.int64), "w_at"))
    del made.dims[:]
    made.dims.extend(dims)
    model.graph.sparse_initializer.append(made)
    with pytest.raises(ModelInvalidError, match=told):
        dense.make_dense(model)


def test_a_few_bytes_do_not_become_gigabytes():
    model = _network()
    model.graph.sparse_initializer.append(_sparse("bomb", [0], [1.0], [1 << 20, 1 << 20]))
    with pytest.raises(ModelUnsupportedError, match="`bomb` alone takes 4398046511104"):
        dense.make_dense(model)
