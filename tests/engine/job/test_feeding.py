"""Whole jobs on networks that take one sample at a time, keep a cache, or get samples of their own lengths."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engine import Compress, Profile, run
from engine.report.run_facts import Memory

DRAW = np.random.default_rng(3)
GATES = [{"metric": "size_bytes", "rule": "max_ratio", "value": 1.0}]


pytestmark = pytest.mark.usefixtures("short_measurements")


def build(nodes, inputs, outputs, weights):
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, name=outs[0], **attributes) for op, ins, outs, attributes in nodes],
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return model.SerializeToString()


def normal(*shape):
    return DRAW.normal(size=shape).astype(np.float32)


def fixed_inside(count=1):
    """So many samples at a time: the number stands in the constant of a Reshape."""
    nodes = [
        ("Reshape", ["x", "one"], ["apart"], {}),
        ("Conv", ["apart", "kernel"], ["seen"], {"pads": [1, 1]}),
        ("Flatten", ["seen"], ["flat"], {}),
        ("Gemm", ["flat", "w"], ["y"], {}),
    ]
    weights = {"one": np.array([count, 4, 16], np.int64), "kernel": normal(8, 4, 3), "w": normal(128, 40)}
    return build(nodes, [("x", 1, ["n", 64])], [("y", 1, ["n", 40])], weights)


def mixing():
    """Runs on any number of samples, but adds up over them."""
    nodes = [
        ("Softmax", ["x"], ["share"], {"axis": 0}),
        ("Mul", ["x", "share"], ["seen"], {}),
        ("MatMul", ["seen", "w"], ["y"], {}),
    ]
    return build(nodes, [("x", 1, ["n", 64])], [("y", 1, ["n", 40])], {"w": normal(64, 40)})


def apart():
    nodes = [("MatMul", ["x", "w"], ["h"], {}), ("Relu", ["h"], ["r"], {}), ("MatMul", ["r", "v"], ["y"], {})]
    return build(nodes, [("x", 1, ["n", 64])], [("y", 1, ["n", 40])], {"w": normal(64, 64), "v": normal(64, 40)})


def with_cache():
    """Reads chunks of sound behind what it kept of earlier ones."""
    nodes = [
        ("MatMul", ["frames", "wk"], ["keys"], {}),
        ("Concat", ["past_frames", "keys"], ["present_frames"], {"axis": 1}),
        ("ReduceMean", ["present_frames"], ["pooled"], {"axes": [1], "keepdims": 0}),
        ("Relu", ["pooled"], ["bent"], {}),
        ("MatMul", ["bent", "wo"], ["y"], {}),
    ]
    return build(
        nodes,
        [("frames", 1, ["batch", "time", 64]), ("past_frames", 1, ["batch", "past", 96])],
        [("y", 1, ["batch", 80]), ("present_frames", 1, ["batch", "total", 96])],
        {"wk": normal(64, 96), "wo": normal(96, 80)},
    )


@pytest.fixture
def compress(workspace):
    def make(network, *passes, **arrays):
        folder, events = workspace(network, **arrays), []
        spec = Compress.model_validate({"recipe": {"passes": [{"type": name} for name in passes]}, "gates": GATES})
        report = run(spec, folder, events.append, probe=_probe)
        told = [event["message"] for event in events if event["type"] == "warning"]
        # The terminal, the job's events and the report say the same.
        assert set(told) <= set(report.warnings)
        return report, told

    return make


def _probe(_model, _target, _feed):
    return Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (fixed_inside, "with two it does not run"),
        (mixing, "with two, output `y` is another than for each of them alone"),
    ],
)
def test_samples_come_one_at_a_time_where_they_have_to(compress, capfd, network, words):
    report, told = compress(network(), "simplify", "quantize_static", x=normal(40, 64))
    assert [step.status for step in report.steps][1:] == ["applied"], [step.refusal for step in report.steps]
    assert any("fed one at a time" in text and words in text for text in told)
    # What was tried leaves nothing on the terminal.
    assert "onnxruntime" not in capfd.readouterr().err
    assert report.quality[0].samples == 20


def test_a_number_of_samples_that_is_fixed_inside(compress):
    report, told = compress(fixed_inside(8), "simplify", "quantize_dynamic", x=normal(40, 64))
    assert any("Samples are fed 8 at a time" in text for text in told)
    # Whether they gain is another matter.
    assert {step.refusal.code for step in report.steps if step.refusal is not None} <= {"no_gain"}
    assert report.quality[0].samples == 20


def test_samples_that_may_come_together_do(compress):
    _, told = compress(apart(), "simplify", x=normal(40, 64))
    assert not any("one at a time" in text for text in told)


def test_a_cache_that_the_data_do_not_have_is_fed_empty(compress):
    report, told = compress(with_cache(), "quantize_dynamic", frames=normal(40, 6, 64))
    assert any("no array for past_frames: as before the first step, empty is fed" in text for text in told)
    assert report.steps[0].status == "applied", report.steps[0].refusal
    assert {each.name: each.kind for each in report.outputs}["present_frames"] == "state"


def test_filled_up_samples_are_cut(compress):
    frames, lengths = normal(40, 6, 64), DRAW.integers(1, 7, 40)
    # What is filled up would drown everything.
    frames[np.arange(6) >= lengths[:, None]] = 1e8
    report, _ = compress(with_cache(), "quantize_dynamic", frames=frames, frames_length=lengths)
    assert report.steps[0].status == "applied", report.steps[0].refusal


def test_a_profile_feeds_them_alone_too(workspace):
    folder = workspace(fixed_inside(), x=normal(40, 64))
    spec = Profile.model_validate({"kind": "profile", "targets": [{"batch": 4}], "measure_seconds": 1.0})
    report = run(spec, folder, lambda _event: None, probe=_probe)
    assert report.targets[0].measured is not None
    assert any("one at a time" in text for text in report.warnings)
