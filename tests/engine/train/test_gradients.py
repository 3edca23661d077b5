"""Channels ranked by gradients: held against what the loss does when a channel is really silenced."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import log_softmax

from engine.errors import ModelUnsupportedError
from engine.graph import io
from engine.graph.coupling import analyse
from engine.graph.masking import mask
from engine.report.values import OutputReport
from engine.runtime import sessions
from engine.target import Target
from engine.train.gradients import GradientSettings, channel_effects
from tests.engine.train.quantized_networks import parsed


def report(kind):
    return (OutputReport(name="scores", kind=kind, reason="", weight=1.0, ignored=False, main=True),)


@pytest.fixture
def residual(residual_cnn, images, feeds_of, context):
    """A residual network with logits of some units, and the context of a job on it."""
    model = parsed(residual_cnn())
    head = model.graph.initializers["head.w"]
    head.const_value = _tensor(head.const_value.numpy() * 0.05)
    samples = feeds_of({"image": images(48) / np.float32(64)})

    def given(kind="classes"):
        return replace(context(io.copy(model), samples), recognised=report(kind))

    return model, samples, given


def _tensor(array):
    return ir.tensor(array.astype(np.float32))


def scores(model, samples):
    session = sessions.session(io.to_bytes(model), Target())
    return np.concatenate([session.run(feed)["scores"] for feed in samples.batches(16)])


def divergence(reference, found):
    own, other = log_softmax(found, -1), log_softmax(reference, -1)
    return float((np.exp(other) * (other - own)).sum(-1).mean())


def _correlation(found, known):
    ranks = [np.argsort(np.argsort(each)) for each in (found, known)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_fisher_is_the_divergence_that_silencing_a_channel_causes(residual):
    model, samples, given = residual
    coupling = analyse(model)
    group = max(coupling.groups, key=lambda each: len(each.slices))
    (found,) = channel_effects(model, model, [group], GradientSettings("fisher", draws=24), given())
    reference = scores(model, samples)
    known = {atom: divergence(reference, scores(mask(model, coupling, {atom}), samples)) for atom in group.atoms}
    predicted, actual = np.array([found[atom] / 2 for atom in group.atoms]), np.array([known[a] for a in group.atoms])
    assert _correlation(predicted, actual) > 0.8
    # Of second order, and so near where little is lost.
    small = actual < np.quantile(actual, 0.4)
    assert np.median(predicted[small] / actual[small]) == pytest.approx(1.0, abs=0.6)


def _gated(model, slices, group, atom, gate):
    """Multiply what reads a channel with a gate."""
    changed = io.copy(model)
    for part in slices:
        value = changed.graph.initializers[part.initializer]
        array = value.const_value.numpy().copy()
        lines = np.moveaxis(array, part.axis, -1)
        lines[..., part.atoms == atom] *= gate
        value.const_value = _tensor(array)
    return changed


def test_fisher_is_the_curvature_of_the_divergence_for_a_gate(residual):
    model, samples, given = residual
    group = analyse(model).groups[0]
    readers = [part for part in group.slices if part.role == "in"]
    (found,) = channel_effects(model, model, [group], GradientSettings("fisher", draws=48), given())
    reference, step = scores(model, samples), 0.05
    for atom in sorted(group.atoms, key=found.get)[-4:]:
        both = [
            divergence(reference, scores(_gated(model, readers, group, atom, 1 + s), samples)) for s in (step, -step)
        ]
        assert found[atom] == pytest.approx(sum(both) / step**2, rel=0.35)


def test_taylor_is_the_mean_square_slope_for_a_gate(residual):
    model, samples, given = residual
    group = analyse(model).groups[0]
    readers = [part for part in group.slices if part.role == "in"]
    (found,) = channel_effects(model, model, [group], GradientSettings("taylor"), given())
    decided = scores(model, samples).argmax(-1)

    def losses(changed):
        rows = -log_softmax(scores(changed, samples), -1)[np.arange(len(decided)), decided]
        return rows.reshape(-1, 8).mean(1)  # by the batches that gradients are taken of

    for atom in group.atoms[:3]:
        slopes = (
            losses(_gated(model, readers, group, atom, 1.01)) - losses(_gated(model, readers, group, atom, 0.99))
        ) / 0.02
        assert found[atom] == pytest.approx(float(np.square(slopes).mean()), rel=0.05)


@pytest.mark.parametrize("kind", ["values", "embedding"])
def test_fisher_of_numbers_is_the_curvature_of_their_squared_error(residual, kind):
    model, samples, given = residual
    group = analyse(model).groups[0]
    readers = [part for part in group.slices if part.role == "in"]
    (found,) = channel_effects(model, model, [group], GradientSettings("fisher", draws=48), given(kind))
    reference, step = scores(model, samples), 0.02
    looked = np.concatenate([reference[at : at + 8] for at in range(0, 48, 8)])
    atom = max(group.atoms, key=found.get)
    moved = scores(_gated(model, readers, group, atom, 1 + step), samples)
    error = np.square((moved - reference) / looked.std(axis=0)).mean()
    assert found[atom] == pytest.approx(2 * error / step**2, rel=0.35)


def test_numbers_give_taylor_no_slope_at_the_original(residual):
    model, _, given = residual
    groups = analyse(model).groups
    with pytest.raises(ModelUnsupportedError, match="fisher"):
        channel_effects(model, io.copy(model), groups, GradientSettings("taylor"), given("values"))


def test_the_same_seed_gives_the_same(residual):
    model, _, given = residual
    groups = analyse(model).groups
    first, again, other = (
        channel_effects(model, model, groups, GradientSettings("fisher", samples=16, seed=seed), given())
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
