"""Refitting: a layer whose inputs lost channels gives again what it gave, and where it cannot it stays as it was."""

import numpy as np
import onnx_ir as ir
import pytest

from engine.graph.coupling import analyse
from engine.graph.slicing import remove
from engine.prune.channels import follow
from engine.prune.reconstruct import aligned, repair
from engine.prune.refittable import refittable
from engine.runtime import sessions
from engine.target import Target


def run(model, x):
    session = sessions.session(ir.to_proto(model).SerializeToString(), Target())
    return next(iter(session.run({"image": x}).values()))


def error(model, original, x):
    expected = run(original, x)
    return float(np.square(run(model, x) - expected).sum() / np.square(expected - expected.mean(0)).sum())


def halved(model):
    """Cut half of every group, the first channels; give the result and what is left of each layer."""
    coupling = analyse(model)
    atoms = {
        atom
        for group in coupling.groups
        for unit in coupling.choose(group, len(group.atoms) // 2)
        for atom in unit.atoms
    }
    kept = {}
    follow(kept, model, coupling, atoms)
    return remove(model, coupling, atoms), kept


@pytest.fixture
def network(residual_cnn):
    return ir.from_proto(__import__("onnx").load_from_string(residual_cnn()))


@pytest.mark.parametrize("samples", [64, 256])
def test_repair_brings_outputs_back(network, images, feeds_of, samples):
    cut, kept = halved(network)
    unseen = images(64, seed=9).astype(np.float32)
    before = error(cut, network, unseen)
    refits = repair(cut, network, kept, feeds_of({"image": images(samples)}), Target())
    assert error(cut, network, unseen) < 0.5 * before
    assert sum(refit.taken for refit in refits) >= 4
    assert all(refit.error_after <= refit.error_before for refit in refits if refit.error_before is not None)


def test_nothing_changes_where_nothing_was_lost(network, images, feeds_of):
    same = network.clone()
    unseen = images(16, seed=9).astype(np.float32)
    repair(same, network, {}, feeds_of({"image": images(64)}), Target())
    assert error(same, network, unseen) < 1e-6


def test_layers_that_are_excluded_keep_their_weights(network, images, feeds_of):
    cut, kept = halved(network)
    weights = {layer.name: layer.matrix() for layer in refittable(cut)[0]}
    refits = repair(cut, network, kept, feeds_of({"image": images(64)}), Target(), exclude=frozenset({"b2", "head"}))
    after = {layer.name: layer.matrix() for layer in refittable(cut)[0]}
    assert {refit.node for refit in refits if refit.reason} == {"b2", "head"}
    assert (weights["b2"] == after["b2"]).all()
    assert not (weights["b1"] == after["b1"]).all()


def test_one_sample_is_too_few(network, images, feeds_of):
    cut, kept = halved(network)
    refits = repair(cut, network, kept, feeds_of({"image": images(1)}), Target())
    assert not any(refit.taken for refit in refits)
    assert "too few samples" in refits[0].reason


def test_memory_of_the_walk_goes_to_disk(network, images, feeds_of, monkeypatch):
    from engine.graph import walk

    monkeypatch.setattr(walk, "_MEMORY_BYTES", 1 << 16)
    feeds = feeds_of({"image": images(64)})
    first, kept = halved(network)
    second = first.clone()
    repair(first, network, kept, feeds, Target())
    monkeypatch.undo()
    repair(second, network, kept, feeds, Target())
    x = images(4, seed=3).astype(np.float32)
    assert (run(first, x) == run(second, x)).all()


def test_fewer_samples_are_used_where_tensors_are_large(network, images, feeds_of, monkeypatch):
    from engine.prune import reconstruct

    monkeypatch.setattr(reconstruct, "DISK_BYTES", 1 << 20)
    cut, kept = halved(network)
    unseen = images(64, seed=9).astype(np.float32)
    before = error(cut, network, unseen)
    repair(cut, network, kept, feeds_of({"image": images(256)}), Target())
    assert error(cut, network, unseen) < before


def test_places_of_channels_are_found_from_what_they_hold():
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((400, 12)).astype(np.float32)
    chosen = np.array([0, 3, 4, 7, 11])
    own = theirs[:, chosen] + 0.3 * rng.standard_normal((400, 5)).astype(np.float32)
    assert aligned(own, theirs).tolist() == chosen.tolist()
    assert aligned(rng.standard_normal((400, 5)).astype(np.float32), theirs) is None


def test_inputs_that_hardly_vary_around_a_large_mean_do_not_break_the_solver():
    """Sums in float32 leave a system that is not positive definite; weak ridges are then left out."""
    from engine.solve.gram import Gram
    from engine.solve.ridge import reconstruct

    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal((600, 24))).astype(np.float32)
    weights = rng.standard_normal((3, 24))
    fitted, judged = Gram(24, 3), Gram(24, 3)
    fitted.update(x[:500], (x[:500] @ weights.T).astype(np.float32))
    judged.update(x[500:], (x[500:] @ weights.T).astype(np.float32))
    fit = reconstruct(fitted.moments(), 0.9 * weights, np.zeros(3), held_out=judged.moments())
    assert fit.after <= fit.before
    assert np.isfinite(fit.weights).all()
