"""prune_channels by gradients: what it removes, what `auto` takes, and what is said where PyTorch is missing."""

from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest

from engine.graph import io, macs
from engine.measure.acceptance import quality_drop
from engine.measure.quality import Evaluator
from engine.passes.prune_channels import PruneChannels
from engine.report.pruning_markdown import pruning_lines
from engine.report.values import Change, OutputReport, Refusal
from engine.runtime import sessions
from engine.target import Target
from engine.train import training_support


@pytest.fixture
def model(residual_cnn):
    return ir.from_proto(onnx.load_from_string(residual_cnn()))


@pytest.fixture
def job(model, images, feeds_of, context):
    """Give the context of a job that evaluates for real; the scores count as classes."""
    samples, select = (feeds_of({"image": images(count, seed=seed)}) for count, seed in ((48, 1), (32, 2)))
    evaluator = Evaluator(sessions.session(io.to_bytes(model), Target()), select, graph=model)
    main = OutputReport(name="scores", kind="classes", reason="", weight=1.0, ignored=False, main=True)

    def evaluate(candidate):
        return evaluator.evaluate(sessions.session(io.to_bytes(candidate), Target()))

    return replace(context(io.copy(model), samples, select=select), evaluate=evaluate, recognised=(main,))


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(training_support, "installed", lambda: False)


@pytest.mark.parametrize("importance", ["taylor", "fisher"])
@pytest.mark.parametrize("scope", ["per_group", "global"])
def test_a_third_of_the_channels_goes_by_gradients(model, job, importance, scope):
    before = macs.total(model)
    step = PruneChannels(sparsity=0.3, importance=importance, scope=scope, round_to=1)
    assert step.trains
    change = step.apply(model, {}, job)
    assert isinstance(change, Change)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert macs.total(model) < 0.7 * before
    assert change.details.importance == importance
    assert change.details.oracle.difference <= change.details.oracle.tolerance


def test_auto_takes_what_loses_least_on_the_samples_to_choose_on(model, job):
    step = PruneChannels(sparsity=0.3, importance="auto", round_to=1)
    assert not step.trains
    change = step.apply(model, {}, job)
    tried = {each.importance: each for each in change.details.importances}
    assert set(tried) == {"reconstruction", "taylor", "fisher"}
    assert not any(each.why_not for each in tried.values())
    chosen = [each for each in tried.values() if each.chosen]
    assert [each.importance for each in chosen] == [change.details.importance]
    assert chosen[0].drop == min(each.drop for each in tried.values())
    assert chosen[0].drop == pytest.approx(quality_drop(job.evaluate(model)), abs=1e-4)
    assert chosen[0].macs_after == macs.total(model)
    assert any("What decided which channels of step 1 went" in line for line in pruning_lines(change.details, 1))


@pytest.mark.usefixtures("without_torch")
def test_auto_says_what_it_did_not_try(model, job):
    change = PruneChannels(sparsity=0.3, importance="auto", round_to=1).apply(model, {}, job)
    assert change.details.importance == "reconstruction"
    reasons = {each.importance: each.why_not for each in change.details.importances}
    assert reasons["reconstruction"] is None
    assert reasons["taylor"] == reasons["fisher"] == training_support.MISSING


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("importance", ["taylor", "fisher"])
def test_gradients_that_are_asked_for_are_refused_without_torch(model, job, importance):
    refusal = PruneChannels(sparsity=0.3, importance=importance).apply(model, {}, job)
    assert isinstance(refusal, Refusal)
    assert importance in refusal.reason
    assert training_support.INSTALL_LINE in refusal.hint


def test_a_network_without_decisions_has_no_taylor(model, job):
    numbers = replace(job, recognised=(job.recognised[0].model_copy(update={"kind": "values"}),))
    refusal = PruneChannels(sparsity=0.3, importance="taylor").apply(model, {}, numbers)
    assert isinstance(refusal, Refusal)
    assert "fisher" in refusal.reason
