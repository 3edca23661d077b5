"""What a job will take: it follows what is asked, what the network costs, and whether that was measured."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import inspect_dataset, inspect_model, read_spec
from engine.contract import Workload
from engine.estimate import beyond_limits, estimate_job, measured_speed
from engine.graph.network_cost import network_cost
from engine.passes.quantize_weights import QuantizeWeights

SIMPLIFY = {"recipe": {"passes": [{"type": "simplify"}]}}
STATIC = {"recipe": {"passes": [{"type": "simplify"}, {"type": "quantize_static"}]}}


@pytest.fixture
def network(tmp_path, residual_cnn):
    path = tmp_path / "net.onnx"
    path.write_bytes(residual_cnn())
    return inspect_model(path)


@pytest.fixture
def data(tmp_path, images):
    def make(count):
        np.savez(tmp_path / "data.npz", image=images(count))
        return inspect_dataset(tmp_path / "data.npz")

    return make


def test_an_inspection_tells_what_a_sample_costs(network):
    assert network.cost.macs > network.parameters
    assert network.cost.live_bytes > 0
    assert network.cost.input_elements > 0


def test_a_network_whose_shapes_nobody_can_follow_has_no_cost_and_is_no_fault(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("QAttention", ["q", "w", "b", "scale", "scale"], ["a"], domain="com.microsoft", num_heads=1),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    weights = {
        "scale": np.float32(0.1), "zero": np.uint8(128), "w": np.ones((8, 24), np.int8), "b": np.zeros(24, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "odd.onnx")
    assert inspect_model(tmp_path / "odd.onnx").cost is None
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    assert network_cost(tmp_path / "broken.onnx") is None


def test_more_work_takes_longer(network, data):
    few, many = data(60), data(600)
    speed = measured_speed(0.01, 1 << 20)
    times = [
        estimate_job(network, each, read_spec(spec), speed=speed).seconds
        for spec, each in ((SIMPLIFY, few), (STATIC, few), (STATIC, many))
    ]
    assert times == sorted(times)
    assert times[0] < times[2]


def test_what_was_measured_is_known_better(network, data):
    guessed = estimate_job(network, data(100), read_spec(STATIC))
    measured = estimate_job(network, data(100), read_spec(STATIC), speed=measured_speed(guessed.seconds / 1e4, 1 << 20))
    assert (guessed.basis, measured.basis) == ("shapes", "measured")
    assert "which is rough" in guessed.summary
    assert "a sample takes" in measured.summary
    for found in (guessed, measured):
        assert found.low <= found.seconds <= found.high
        assert [step.type for step in found.steps] == ["simplify", "quantize_static"]
    slow = estimate_job(network, data(100), read_spec(STATIC), speed=measured_speed(0.1, 1 << 20))
    assert slow.high / slow.low < 6


def test_memory_follows_activations_but_the_batch_follows_memory(network, data):
    def memory(live_bytes, **target):
        spec = read_spec({**SIMPLIFY, "target": target})
        return estimate_job(network, data(60), spec, speed=measured_speed(0.01, live_bytes)).memory_bytes

    assert memory(1 << 10) < memory(8 << 20)
    # Samples of 60 MiB are run one by one: 32 of them at once would take eleven GB.
    assert memory(60 << 20) < 1 << 30
    assert memory(8 << 20, batch=64) > memory(8 << 20)


def test_memory_follows_weights_unless_they_are_streamed(network, data):
    """A transformer of 97 MB took 1.8 GB, 0.4 GB of that for activations."""

    def memory(external_data):
        large = network.model_copy(update={"size_bytes": 97_000_000, "external_data": external_data})
        return estimate_job(large, data(60), read_spec(STATIC), speed=measured_speed(0.1, 1 << 20)).memory_bytes

    assert 1.2e9 < memory(external_data=False) < 2e9
    assert memory(external_data=True) < 1.2e9


@pytest.mark.parametrize(
    ("weights", "sample_s", "method", "measured_s"),
    [
        (85e6, 0.096, "auto", 98.0),
        (14.2e6, 0.016, "auto", 19.1),
        (32.6e6, 0.045, "auto", 50.4),
        (85e6, 0.096, "rtn", 3.2),
    ],
)
def test_gptq_takes_as_long_as_it_was_measured_to(weights, sample_s, method, measured_s):
    """Transformers of docs/benchmarks.md (`gptq`), 256 samples on two cores, without a choice of levels."""
    work = QuantizeWeights(method=method, accuracy="int8").work(
        Workload(calibrate=256, select=32, layers=72, parameters=int(weights))
    )
    assert work.runs * sample_s + work.per_weight_s * weights == pytest.approx(measured_s, rel=0.25)


def test_a_choice_of_levels_takes_time():
    load = Workload(calibrate=64, select=32, layers=10, parameters=1000)
    chosen, fixed = (QuantizeWeights(accuracy=each).work(load) for each in ("auto", "int8"))
    assert chosen.timed_s > fixed.timed_s == 0
    assert chosen.runs > fixed.runs


def test_a_job_that_its_own_limits_will_end_is_warned_of(network, data):
    spec = read_spec({**STATIC, "limits": {"max_runtime_s": 60, "max_memory_mb": 256}})
    slow = estimate_job(network, data(600), spec, speed=measured_speed(1.0, 1 << 20))
    said = list(beyond_limits(slow, spec.limits))
    assert len(said) == 2
    assert "max_runtime_s (60)" in said[0]
    assert "max_memory_mb is 256" in said[1]
    quick = estimate_job(network, data(60), read_spec(STATIC), speed=measured_speed(1e-4, 1 << 20))
    assert not list(beyond_limits(quick, read_spec(STATIC).limits))


def test_a_profile_takes_what_it_measures(network, data):
    spec = {
        "kind": "profile",
        "targets": [{"threads": 1}, {"threads": 2}],
        "measure_seconds": 20,
        "tune": {"max_seconds": 60},
    }
    found = estimate_job(network, data(60), read_spec(spec))
    assert found.seconds > 2 * (20 + 60)


def test_what_nobody_knows_is_not_told(network, data):
    assert estimate_job(network.model_copy(update={"cost": None}), data(60), read_spec(STATIC)) is None
