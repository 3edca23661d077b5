"""reconstruct: repairs what earlier steps changed, never makes it worse, says why it did nothing."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.gate import Gate
from engine.graph import io
from engine.measure.acceptance import decide
from engine.passes.prune_channels import PruneChannels
from engine.passes.reconstruct import Reconstruct
from engine.report.values import Change, Quality, Refusal, Size
from engine.runtime import sessions
from engine.target import Target


@pytest.fixture
def model(residual_cnn):
    return ir.from_proto(onnx.load_from_string(residual_cnn()))


def outputs(model, x):
    return next(iter(sessions.session(io.to_bytes(model), Target()).run({"image": x}).values()))


@pytest.fixture
def asked(model, images, feeds_of, context):
    """A context that judges by the distance of the outputs on unseen samples."""
    x = images(64, seed=7).astype(np.float32)
    expected = outputs(model, x)

    def evaluate(candidate):
        noise = float(np.square(outputs(candidate, x) - expected).sum())
        sqnr = 10 * np.log10(float(np.square(expected).sum()) / max(noise, 1e-9))
        interval = {"low": sqnr, "high": sqnr}
        return (
            Quality(
                metric="sqnr_db", original=None, compressed=sqnr, difference=None, interval=interval,
                standard_error=0.0, samples=64,
            ),
        )  # fmt: skip

    return replace(context(model, feeds_of({"image": images(64)})), evaluate=evaluate)


def test_it_repairs_a_network_whose_channels_went(model, asked):
    cut = model.clone()
    PruneChannels(sparsity=0.3, round_to=1, reconstruct=False).apply(cut, {}, asked)
    before = asked.evaluate(cut)[0].compressed
    change = Reconstruct().apply(cut, {}, asked)
    assert isinstance(change, Change)
    assert change.repair
    assert asked.evaluate(cut)[0].compressed > before + 3
    assert change.details.drop_after < change.details.drop_before


def test_it_repairs_changed_weights(model, asked):
    broken = model.clone()
    value = broken.graph.initializers["b1.w"]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.8), name=value.name)
    before = asked.evaluate(broken)[0].compressed
    Reconstruct().apply(broken, {}, asked)
    assert asked.evaluate(broken)[0].compressed > before + 10


def test_it_refuses_what_would_be_worse(model, asked):
    cut = model.clone()
    PruneChannels(sparsity=0.5, reconstruct=False).apply(cut, {}, asked)
    told = iter([40.0, 10.0])
    worse = replace(
        asked, evaluate=lambda _model: (asked.evaluate(model)[0].model_copy(update={"compressed": next(told)}),)
    )
    assert Reconstruct().apply(cut, {}, worse).code == "no_gain"


def test_it_says_that_nothing_matches(model, asked):
    renamed = model.clone()
    for node in renamed.graph:
        if node.outputs[0] not in renamed.graph.outputs:
            node.outputs[0].name = f"other_{node.outputs[0].name}"
    renamed.graph.outputs[0].name = "other"
    outcome = Reconstruct().apply(renamed, {}, asked)
    assert isinstance(outcome, Refusal)
    assert "no tensor of the name" in outcome.reason


def test_a_repair_need_not_save_anything():
    size = Size(original=100, compressed=100)
    gate = Gate(metric="size_bytes", rule="max_ratio", value=0.5)
    assert decide(Change(summary="repaired", repair=True), size, None, (), [gate]) is None
    assert decide(Change(summary="pruned"), size, None, (), [gate]).code == "no_gain"
