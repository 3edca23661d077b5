"""Inputs that are not prepared as the network expects: told before any pass runs, with the preparation that reads better."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import Compress, Profile, run
from engine.errors import BaselineFailedError
from engine.report.run_facts import Memory

DRAW = np.random.default_rng(9)
# Pixels: four classes, each a colour and brightness of its own.
CLASSES = DRAW.integers(0, 4, 120)
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [170, 170, 40]])
PIXELS = np.clip(COLOURS[CLASSES][:, :, None, None] + DRAW.normal(size=(120, 3, 6, 6)) * 25, 0, 255).astype(np.uint8)


pytestmark = pytest.mark.usefixtures("short_measurements")


def network(*, normalised=False, scale=False, shape=("n", 3, 6, 6)):
    """Tells the colours of pixels between 0 and 1 apart, by saturating features; with `scale` it divides by 255 itself."""
    kernel = (np.eye(3)[:, :, None, None] * 1.0).astype(np.float32)
    centre = COLOURS / 255
    nodes, at = [], "x"
    weights = {"kernel": kernel, "bias": np.full(3, -0.5, np.float32)}
    if scale:
        nodes.append(("Div", ["x", "full"], "scaled", {}))
        weights["full"] = np.float32(255)
        at = "scaled"
    nodes.append(("Conv", [at, "kernel", "bias"], "conv", {}))
    at = "conv"
    if normalised:
        weights |= {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
        weights |= {"mean": np.zeros(3, np.float32), "variance": np.full(3, 0.06, np.float32)}
        weights |= {"back": np.full((3, 1, 1), 0.06**0.5, np.float32)}
        nodes += [
            ("BatchNormalization", ["conv", "one", "zero", "mean", "variance"], "norm", {}),
            ("Mul", ["norm", "back"], "restored", {}),
        ]
        at = "restored"
    weights["w"] = (8 * (centre - 0.5).T / np.linalg.norm(centre - 0.5, axis=1)).astype(np.float32)
    nodes += [("Tanh", [at], "soft", {}), ("ReduceMean", ["soft"], "pooled", {"axes": [2, 3], "keepdims": 0})]
    nodes += [("MatMul", ["pooled", "w"], "y", {})]
    graph = helper.make_graph(
        [helper.make_node(op, ins, [out], name=out, **attributes) for op, ins, out, attributes in nodes],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def told(workspace):
    def make(serialized, **arrays):
        folder, events = workspace(serialized, **arrays), []
        gates = [{"metric": "size_bytes", "rule": "max_ratio", "value": 2.0}]
        spec = Compress.model_validate({"recipe": {"passes": [{"type": "simplify"}]}, "gates": gates})
        report = run(spec, folder, events.append, probe=lambda *_: Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1))
        kinds = [event["type"] for event in events]
        assert "warning" not in kinds[kinds.index("step_started") :]
        said = [event["message"] for event in events if event["type"] == "warning"]
        assert set(said) <= set(report.warnings)
        markdown = (folder / "out" / "report.md").read_text()
        assert all(text in markdown for text in said)
        return " ".join(text for text in said if "The inputs" in text or "The original" in text or "With input" in text)

    return make


@pytest.mark.parametrize("normalised", [False, True])
def test_inputs_as_in_training_are_left_in_peace(told, normalised):
    assert told(network(normalised=normalised), x=PIXELS / np.float32(255), label=CLASSES) == ""


def test_raw_pixels_before_a_normalisation(told):
    said = told(network(normalised=True), x=PIXELS)
    assert "go from" in said
    assert "times as wide as what it learned" in said
    assert "pixels of 0 to 255 that were not divided" in said


def test_raw_pixels_before_a_first_layer_without_one(told):
    said = told(network(), x=PIXELS)
    assert "The inputs look unprepared" in said
    assert "in whole steps" in said


def test_what_would_read_far_better_is_named_with_both_figures(told):
    dark = (PIXELS // 2 + 128).astype(np.uint8)
    said = told(network(), x=dark, label=CLASSES)
    assert "With input `x` divided by 255" in said or "With input `x` brought from 0..255" in said, said


def test_pixels_that_are_divided_twice(told):
    assert "prepared twice" in told(network(scale=True), x=PIXELS / np.float32(255))


def test_pixels_that_the_network_divides_itself(told):
    assert told(network(scale=True), x=PIXELS) == ""


def test_channels_at_the_other_end_are_the_likely_reason(workspace):
    folder = workspace(network(shape=("n", "c", "h", "w")), x=PIXELS.transpose(0, 2, 3, 1))
    spec = Compress.model_validate({"recipe": {"passes": [{"type": "simplify"}]}})
    with pytest.raises(BaselineFailedError) as failed:
        run(spec, folder, lambda _event: None, probe=None)
    assert "3 channels last" in failed.value.hint
    assert "transpose(0, 3, 1, 2)" in failed.value.hint


def test_a_profile_says_it_too(workspace):
    folder = workspace(network(), x=PIXELS, label=CLASSES)
    spec = Profile.model_validate({"kind": "profile", "targets": [{}], "measure_seconds": 1.0})
    probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
    report = run(spec, folder, lambda _event: None, probe=lambda *_: probe)
    assert any("With input `x` divided by 255" in text for text in report.warnings), report.warnings


def columns():
    """Tells by two columns, each of mean 0 and deviation 1, which of both is larger."""
    nodes = [helper.make_node("Tanh", ["x"], ["t"]), helper.make_node("MatMul", ["t", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array([[1, 0, -1], [-1, 0.1, 1]], np.float32), "w")],
    )
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def test_columns_that_were_not_standardised(told):
    x = DRAW.normal(size=(120, 2))
    label = np.where(np.abs(x[:, 0] - x[:, 1]) < 0.05, 1, np.where(x[:, 0] > x[:, 1], 0, 2))
    said = told(columns(), x=(x * [20, 900] + [300, 4000]).astype(np.float32), label=label)
    assert "standardised, each column to mean 0 and deviation 1" in said


@pytest.mark.parametrize(
    ("draws", "random"),
    [
        ([helper.make_node("RandomNormalLike", ["x"], ["noise"], "noise")], True),
        ([helper.make_node("Dropout", ["x", "half", "yes"], ["noise"], "noise")], True),
        ([helper.make_node("Dropout", ["x", "half", "no"], ["noise"], "noise")], False),
    ],
    ids=["drawn", "dropped", "kept"],
)
def test_a_network_that_draws_random_numbers_is_told_of(draws, random, told):
    nodes = [
        *draws,
        helper.make_node("Add", ["x", "noise"], ["h"], "sum"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "last"),
    ]
    weights = {"w": np.eye(8, dtype=np.float32), "half": np.float32(0.5), "yes": True, "no": False}
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    said = told(model.SerializeToString(), x=np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    assert (f"its {draws[0].op_type} `noise` draws random numbers" in said) == random
