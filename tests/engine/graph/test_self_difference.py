"""Tolerances come from the original: how far it differs from itself, and a floor below which nothing means anything."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.errors import VerificationFailedError
from engine.graph import verify
from engine.graph.agreement import Agreement, OutputAgreement
from engine.graph.self_difference import SelfDifferences
from engine.runtime import sessions
from engine.target import Target


def _network(nodes, weights, shape, opset=18, wide=1):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", wide])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()


def _front_end(gain=1.0):
    """The logarithm of a power that nearly cancels out, as of a frame that is almost silent; `gain` changes its last bits."""
    random = np.random.default_rng(0)
    wave = random.normal(size=(64, 16))
    weights = {"w": np.concatenate([wave, -wave * (1 + 2e-6)], axis=0) * gain, "tiny": [1e-13]}
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["twice"], axis=1),
        helper.make_node("MatMul", ["twice", "w"], ["spectrum"]),
        helper.make_node("Mul", ["spectrum", "spectrum"], ["power"]),
        helper.make_node("Add", ["power", "tiny"], ["floored"]),
        helper.make_node("Log", ["floored"], ["y"]),
    ]
    return _network(nodes, weights, ["n", 64], wide=16)


def _rare(bias):
    """A share that is one in a hundred million."""
    weights = {"w": np.full((64, 1), 1e-3), "b": [bias]}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g"]), helper.make_node("Sigmoid", ["g"], ["y"])]
    return _network(nodes, weights, ["n", 64])


@pytest.fixture
def climb(tmp_path, feeds_of):
    def make(original, candidate):
        for name, serialized in (("original", original), ("candidate", candidate)):
            (tmp_path / f"{name}.onnx").write_bytes(serialized)
        samples = feeds_of({"x": np.random.default_rng(1).normal(size=(12, 64))})
        files = tmp_path / "candidate.onnx", tmp_path / "original.onnx"
        return verify.verify(*files, samples, Target(), lossless=True)

    return make


def test_what_the_network_magnifies_is_its_own_precision(climb):
    """A change in the last bit of the weights moves the output far, and so does one in the last bit of the inputs."""
    assert climb(_front_end(), _front_end(1 + 2**-22)).relative > 10 * verify.FLOAT_TOLERANCE
    with pytest.raises(VerificationFailedError, match="a lossless step may move it by"):
        climb(_front_end(), _front_end(1e5))


def test_a_share_has_an_absolute_floor(climb):
    assert climb(_rare(-18.0), _rare(-17.5)).relative > 0.3
    with pytest.raises(VerificationFailedError, match="Output `y` moved"):
        climb(_rare(-8.0), _rare(-7.99))


def test_a_tiny_output_that_is_no_share_has_a_floor_beside_its_size(climb):
    """A hundredth of it is the most that may go for nothing."""

    def network(scale):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        return _network(nodes, {"w": np.full((64, 4), scale)}, ["n", 64], wide=4)

    assert climb(network(1e-9), network(1.005e-9)).relative > verify.FLOAT_TOLERANCE
    with pytest.raises(VerificationFailedError, match="Output `y` moved"):
        climb(network(1e-9), network(1.05e-9))
    with pytest.raises(VerificationFailedError, match="Output `y` moved"):
        climb(network(1.0), network(1.0005))


def test_of_several_differences_the_largest_counts():
    found = Agreement({"y": OutputAgreement(3e-3, 50.0)})
    small, large = (Agreement({"y": OutputAgreement(each, 50.0)}) for each in (1e-6, 1e-3))
    assert found.relative == found.beside(small).relative == 3e-3
    assert found.beside(large).relative == found.beside(large).beside(small).relative == 0.0
    assert found.beside(large).allowed(1e-4) == pytest.approx(4e-3)


def test_whole_numbers_are_not_moved(feeds_of):
    """One less than 3 in its last bit is 2 as an index, and another network's answer."""
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    network = _network(nodes, {"table": np.arange(8) ** 3}, ["n", 4], wide=4)
    feeds = list(feeds_of({"x": np.arange(8).reshape(2, 4).astype(np.float32)}).batches(1))
    found = SelfDifferences(network, Target()).excuse(Agreement({"y": OutputAgreement(1e-2, 40.0)}), 1e-4, feeds)
    assert found.relative == 1e-2


def test_it_is_told_in_words(feeds_of):
    feeds = list(feeds_of({"x": np.random.default_rng(1).normal(size=(2, 64))}).batches(1))
    told = SelfDifferences(_front_end(), Target()).told(feeds, 1e-4)
    assert "without optimisation" in told.words
    assert list(told.outputs) == ["y"]
    own = SelfDifferences(_front_end(), Target(threads=2))
    own.excuse(Agreement({"y": OutputAgreement(1.0, 0.0)}), 1e-4, feeds)
    words = own.told(feeds, 1e-4).words
    assert "up to" in words
    assert all(each in words for each in ("last bit", "basic optimisation", "extended optimisation", "on 1 thread"))


def test_a_target_that_rounds_products_is_looked_at_and_told(monkeypatch, feeds_of):
    """Two threads stand in for a target without TF32: what matters is that both are run, and the exact one by default.

    The network itself is loaded once, whatever it is compared with.
    """
    exact = Target(threads=2)
    monkeypatch.setattr(sessions, "exact_target", lambda _target: exact)
    opened = []
    made = sessions.session
    monkeypatch.setattr(
        sessions, "session", lambda network, target, **more: opened.append(target) or made(network, target, **more)
    )
    feeds = list(feeds_of({"x": np.ones((2, 64))}).batches(1))
    told = SelfDifferences(_rare(-1.0), Target()).told(feeds, 1e-4)
    assert opened == [exact, exact, Target()]
    assert "as the target rounds products" in told.words
    assert told.words.endswith(
        "Steps were verified with products of 32-bit floats as such, not as the target rounds them."
    )


def test_networks_in_memory_are_read_when_they_are_asked_about():
    assert (
        onnx.load_model_from_string(_rare(-1.0)).graph.output[0].name
        in SelfDifferences(_rare(-1.0), Target()).rows_may_swap()
    )
