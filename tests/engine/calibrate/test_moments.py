import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from engine.calibrate.moments import SecondMoment
from engine.calibrate.paired import Tap, cut, paired_moments
from engine.solve.gram import Window
from engine.target import Target


class Feeds:
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def batches(self, size):
        for start in range(0, len(self.x), size):
            yield {"x": self.x[start : start + size]}


def network(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    weights = {
        "k": (rng.standard_normal((6, 2, 3, 3)) * scale).astype(np.float32),
        "w": rng.standard_normal((6, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], group=2),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", ["n", 4, 5, 5]), ("y", ["n", 5]))]
    graph = helper.make_graph(
        nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)), weights


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_second_moment_is_the_same_for_every_batch_size(batch):
    x = np.random.default_rng(0).standard_normal((130, 3, 8)).astype(np.float32)
    statistic = SecondMoment()
    for start in range(0, 130, batch):
        statistic.update(x[start : start + batch])
    whole = SecondMoment()
    whole.update(x)
    np.testing.assert_array_equal(statistic.result().xtx, whole.result().xtx)
    np.testing.assert_allclose(
        whole.result().xtx, np.einsum("nti,ntj->ij", x, x, dtype=np.float64), rtol=1e-4, atol=1e-3
    )


def test_second_moment_of_nothing_is_none():
    assert SecondMoment().result() is None


def test_cut_keeps_what_makes_the_tensors():
    model, _ = network()
    part = cut(model, ["c"])
    assert [node.op_type for node in part.graph] == ["Conv"]
    assert list(part.graph.initializers) == ["k"]
    assert len(model.graph) == 4


def test_paired_sums_are_those_of_the_layers_rows():
    teacher, weights = network()
    student, _ = network(scale=0.9)
    x = np.random.default_rng(1).standard_normal((20, 4, 5, 5)).astype(np.float32)
    taps = {
        "matmul": Tap("f", weights["w"].T.astype(np.float64)),
        "conv": Tap("x", weights["k"].reshape(6, -1).astype(np.float64), Window((3, 3), pads=(1, 1, 1, 1), groups=2)),
    }
    sums = paired_moments(teacher, student, taps, Feeds(x), Target())
    assert [part.rows for part in sums["matmul"].fit] == [16]
    assert [part.rows for part in sums["conv"].held_out] == [4 * 25, 4 * 25]
    # The student's inputs are 0.9 of the teacher's, so 1 / 0.9 of the weights repairs it wholly.
    fit = sums["matmul"].held_out[0]
    assert fit.error(weights["w"].T / 0.9) == pytest.approx(0, abs=1e-6)
    assert fit.error(weights["w"].T) > 1e-5
    for group, part in enumerate(sums["conv"].fit):
        assert part.error(weights["k"].reshape(2, 3, -1)[group]) == pytest.approx(0, abs=1e-5)


def test_few_samples_are_judged_on_themselves():
    model, weights = network()
    sums = paired_moments(
        model, model, {"matmul": Tap("f", weights["w"].T)}, Feeds(np.ones((2, 4, 5, 5), np.float32)), Target()
    )
    assert sums["matmul"].fit is sums["matmul"].held_out


def test_layers_of_one_row_per_sample_see_more_samples_than_layers_of_many():
    model, weights = network()
    x = np.random.default_rng(4).standard_normal((300, 4, 5, 5)).astype(np.float32)
    conv = Tap("x", weights["k"].reshape(6, -1).astype(np.float64), Window((3, 3), pads=(1, 1, 1, 1), groups=2))
    head = Tap("f", weights["w"].T.astype(np.float64))
    few = paired_moments(model, model, {"conv": conv}, Feeds(x), Target(), rows=200, runs=20)["conv"]
    assert few.fit[0].rows == 16 * 10
    many = paired_moments(model, model, {"head": head}, Feeds(x), Target(), rows=200, runs=20)["head"]
    assert many.fit[0].rows + many.held_out[0].rows == 200
