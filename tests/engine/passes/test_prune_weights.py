"""Zeros where they were asked for, repaired where there are data, judged by the download, removed where whole."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from pydantic import ValidationError

from engine.graph import io
from engine.passes.prune_weights import PruneWeights
from engine.report.detail_parts import LeftAlone
from engine.report.values import Change, Refusal


def correlated(rows, inputs, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((inputs, inputs)))[0]
    return ((rng.standard_normal((rows, inputs)) * np.arange(1, inputs + 1) ** -0.75) @ basis.T).astype(np.float32)


def perceptron(tools, seed=0):
    rng = np.random.default_rng(seed)
    weights = {
        "w1": (rng.standard_normal((64, 96)) / 8).astype(np.float32),
        "w2": (rng.standard_normal((80, 96)) / 10).astype(np.float32),
        "b2": rng.standard_normal(80).astype(np.float32),
        "small": rng.standard_normal((80, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu"),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"], name="second", transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Tanh", ["h2"], ["r2"], name="tanh"),
        helper.make_node("MatMul", ["r2", "small"], ["y"], name="last"),
    ]
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 5]}, weights)


def convolutions(tools, groups=4):
    rng = np.random.default_rng(1)
    weights = {
        "w1": (rng.standard_normal((32, 4, 3, 3)) / 6).astype(np.float32),
        "b1": rng.standard_normal(32).astype(np.float32),
        "w2": (rng.standard_normal((32, 32 // groups, 3, 3)) / 8).astype(np.float32),
        "w3": (rng.standard_normal((64, 32, 1, 1)) / 6).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h1"], name="first", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2"], ["h2"], name="grouped", group=groups, auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["h2"], ["r2"], name="relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["y"], name="pointwise"),
    ]
    return tools.build(nodes, {"x": ["n", 4, 12, 12]}, {"y": ["n", 64, 6, 6]}, weights)


def apply(tools, model, samples=None, **parameters):
    step = PruneWeights(**parameters)
    refusal = step.check(model)
    if refusal is not None:
        return refusal
    return step.apply(model, {}, tools.context(io.copy(model), samples))


def weights(model, name):
    return model.graph.initializers[name].const_value.numpy()


def test_magnitude_sets_the_smallest_to_zero_and_leaves_the_rest(tools):
    original, model = perceptron(tools), perceptron(tools)
    change = apply(tools, model, tools.Feeds(x=correlated(8, 64)), method="magnitude", share=0.3)
    assert change.download
    assert Change.model_validate_json(change.model_dump_json()) == change
    for name in ("w1", "w2"):
        before, after = weights(original, name), weights(model, name)
        gone = after == 0
        assert gone.mean() == pytest.approx(0.3, abs=1e-3)
        assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
        np.testing.assert_array_equal(after[~gone], before[~gone])
    assert [layer.zeros for layer in change.details.layers] == [0.3, 0.3]
    assert change.details.left_alone == (LeftAlone(node="last", reason="it has fewer than 1024 weights"),)
    assert "no latency gain is expected on this target" in change.summary


def test_a_threshold_is_meant_literally(tools):
    original, model = perceptron(tools), perceptron(tools)
    apply(tools, model, tools.Feeds(x=correlated(8, 64)), threshold=0.05)
    for name in ("w1", "w2"):
        before = weights(original, name)
        np.testing.assert_array_equal(weights(model, name), np.where(np.abs(before) < 0.05, 0, before))


def test_global_magnitude_takes_more_from_layers_of_small_weights(tools):
    model = perceptron(tools)
    value = model.graph.initializers["w1"]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.3), name="w1")
    change = apply(tools, model, tools.Feeds(x=correlated(8, 64)), scope="global", share=0.5)
    first, second = (layer.zeros for layer in change.details.layers)
    assert first > 0.7
    assert second < 0.4
    assert change.details.zeros == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "auto"])
def test_a_pattern_holds_in_every_run_of_channels(tools, method):
    model = convolutions(tools)
    x = np.random.default_rng(2).standard_normal((40, 4, 12, 12)).astype(np.float32)
    change = apply(tools, model, tools.Feeds(x=x), method=method, pattern="2:4", remove_channels=False)
    assert isinstance(change, Change)
    for name in ("w1", "w2", "w3"):
        array = weights(model, name)
        # TensorRT counts along the channels, at each place of the kernel.
        runs = np.moveaxis(array, 1, -1).reshape(-1, 4)
        assert ((runs != 0).sum(-1) <= 2).all()
        assert (array == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert "sparse tensor cores" in change.summary


def test_one_of_four_stays(tools):
    model = perceptron(tools)
    apply(tools, model, tools.Feeds(x=correlated(8, 64)), method="magnitude", pattern="1:4")
    assert ((weights(model, "w1").T.reshape(-1, 4) != 0).sum(-1) == 1).all()
    assert ((weights(model, "w2").reshape(-1, 4) != 0).sum(-1) == 1).all()


def test_what_stays_makes_up_for_what_goes(tools):
    x = correlated(420, 64)
    samples, held_out = tools.Feeds(x=x[:300]), x[300:]
    reference = tools.run(perceptron(tools), {"x": held_out})["y"]
    noise = {}
    for method in ("magnitude", "wanda", "sparsegpt", "auto"):
        model = perceptron(tools)
        change = apply(tools, model, samples, method=method, share=0.6)
        noise[method] = tools.sqnr(reference, tools.run(model, {"x": held_out})["y"])
        for layer in change.details.layers:
            assert layer.zeros == pytest.approx(0.6, abs=0.01)
            if method != "magnitude":
                assert layer.held_out_error[layer.method] == min(layer.held_out_error.values())
    assert noise["sparsegpt"] > noise["magnitude"] + 3
    assert noise["auto"] > noise["magnitude"] + 3


def test_convolutions_are_repaired_too(tools):
    rng = np.random.default_rng(4)
    coarse = rng.standard_normal((90, 4, 6, 6))
    x = np.kron(coarse, np.ones((1, 1, 2, 2))).astype(np.float32)
    reference = tools.run(convolutions(tools), {"x": x[64:]})["y"]
    noise = []
    for method in ("magnitude", "sparsegpt"):
        model = convolutions(tools)
        apply(tools, model, tools.Feeds(x=x[:64]), method=method)
        noise.append(tools.sqnr(reference, tools.run(model, {"x": x[64:]})["y"]))
    assert noise[1] > noise[0] + 3


@pytest.mark.parametrize(
    "parameters",
    [
        {"method": "magnitude"},
        {"method": "wanda"},
        {"method": "sparsegpt"},
        {},
        {"pattern": "2:4"},
        {"threshold": 0.05},
        {"scope": "global"},
    ],
)
def test_a_second_time_there_is_nothing_to_do(tools, parameters):
    model = perceptron(tools)
    samples = tools.Feeds(x=correlated(64, 64))
    apply(tools, model, samples, **parameters)
    before = io.to_bytes(model)
    refusal = apply(tools, model, samples, **parameters)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "already_done"
    assert io.to_bytes(model) == before


def test_whole_rows_of_zeros_make_the_network_smaller(tools):
    original = perceptron(tools)
    value = original.graph.initializers["w1"]
    array = np.array(value.const_value.numpy())
    array[:, [3, 50]] *= 0.01  # both outputs fall under the threshold as a whole
    value.const_value = ir.tensor(array, name="w1")
    model = io.copy(original)
    x = correlated(16, 64)
    change = apply(tools, model, tools.Feeds(x=x), threshold=0.005)
    assert change.details.removed_channels.channels == 2
    assert "2 channels that were zero as a whole are gone" in change.summary
    assert weights(model, "w1").shape == (64, 94)
    assert weights(model, "w2").shape == (80, 94)
    kept = io.copy(original)
    apply(tools, kept, tools.Feeds(x=x), threshold=0.005, remove_channels=False)
    assert weights(kept, "w1").shape == (64, 96)
    np.testing.assert_allclose(tools.run(model, {"x": x})["y"], tools.run(kept, {"x": x})["y"], rtol=0, atol=1e-5)


def test_refusals_name_the_reason(tools):
    refusal = apply(tools, perceptron(tools), method="sparsegpt")
    assert refusal.code == "needs_data"
    refusal = apply(tools, perceptron(tools), exclude=("first", "second"))
    assert (refusal.code, refusal.node) == ("not_applicable", "first")
    assert "the recipe excludes it" in refusal.reason
    model = convolutions(tools, groups=16)
    change = apply(tools, model, tools.Feeds(x=np.zeros((4, 4, 12, 12), np.float32)), pattern="2:4", method="magnitude")
    assert {left.node: left.reason for left in change.details.left_alone} == {
        "grouped": "it has fewer than 1024 weights"
    }


@pytest.mark.parametrize(
    "parameters",
    [
        {"share": 0.5, "pattern": "2:4"},
        {"threshold": 0.1, "method": "wanda"},
        {"scope": "global", "method": "sparsegpt"},
        {"scope": "global", "pattern": "2:4"},
    ],
)
def test_contradictions_are_refused_at_submit(parameters):
    with pytest.raises(ValidationError):
        PruneWeights(**parameters)


def test_it_runs_as_a_job_and_is_judged_by_the_download(workspace, residual_cnn, images):
    from engine import run
    from engine.spec import Compress

    folder = workspace(residual_cnn(), image=images(60))
    recipe = {"passes": [{"type": "prune_weights", "share": 0.3}]}
    spec = Compress.model_validate(
        {"recipe": recipe, "gates": [{"metric": "top1_agreement", "rule": "min", "value": 0.3}]}
    )
    report = run(spec, folder, lambda _event: None)
    step = report.steps[0]
    assert step.status == "applied", step.refusal
    assert step.size.compressed_download < 0.9 * step.size.original_download
    assert abs(report.size.compressed - report.size.original) < 2000
    assert report.size.compressed_download < 0.9 * report.size.original_download
    assert "smaller to download (deflated)" in report.summary
    assert "| download (deflate) |" in (folder / "out" / "report.md").read_text()
