"""Whatever `simplify` and the passes of pruning compute, they hold the host lock's shared side; races and evaluations it leaves to the job."""

from contextlib import contextmanager
from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest

from engine.passes.drop_blocks import DropBlocks
from engine.passes.factorise import Factorise
from engine.passes.prune_channels import PruneChannels
from engine.passes.prune_weights import PruneWeights
from engine.passes.reconstruct import Reconstruct
from engine.passes.simplify import Simplify
from engine.report.values import Refusal
from engine.runtime.loading import Session
from engine.solve.gram import Gram

# Runs of a network while the lock is held once: a few seconds at most for the largest of them.
MOST_RUNS = 16


class Lock:
    """Counts how deep it is held, and the runs of networks in between."""

    def __init__(self):
        self.depth = self.runs = self.longest = self.holds = 0
        self.outside = []

    @contextmanager
    def working(self):
        self.depth += 1
        self.holds += self.depth == 1
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self.longest, self.runs = max(self.longest, self.runs), 0

    def ran(self, what):
        if not self.depth:
            self.outside.append(what)
        self.runs += what == "a run"


@pytest.fixture
def lock(monkeypatch):
    lock = Lock()
    run, update = Session.run, Gram.update

    def run_under_lock(self, feed):
        lock.ran("a run")
        return run(self, feed)

    def update_under_lock(self, *rows):
        lock.ran("a sum")
        return update(self, *rows)

    monkeypatch.setattr(Session, "run", run_under_lock)
    monkeypatch.setattr(Gram, "update", update_under_lock)
    return lock


@pytest.mark.parametrize(
    "step",
    [
        PruneChannels(sparsity=0.4, scope="global"),
        PruneChannels(target_latency_ratio=0.9, max_drop=0.5, importance="activation"),
        PruneWeights(share=0.6),
        Factorise(energy=0.9, break_even=1.0, multiple=1),
        DropBlocks(max_kl=None, min_sqnr_db=None, samples=16),
        Reconstruct(),
        Simplify(),
    ],
    ids=lambda step: step.type,
)
def test_nothing_runs_outside_of_the_lock_and_the_lock_is_never_held_for_long(
    step, lock, residual_cnn, images, feeds_of, context
):
    def race(models):
        assert lock.depth == 0, "to measure inside of the lock would wait for itself"
        return [1.0] + [0.5] * (len(models) - 1)

    def evaluate(_model):
        assert lock.depth == 0, "the job takes the lock for each batch itself"
        return ()

    model = ir.from_proto(onnx.load_from_string(residual_cnn()))
    asked = replace(
        context(model.clone(), feeds_of({"image": images(48)})), race=race, evaluate=evaluate, working=lock.working
    )
    if step.type == "reconstruct":
        value = model.graph.initializers["a1.w"]
        value.const_value = ir.tensor(0.9 * value.const_value.numpy(), name="a1.w")
    outcome = step.apply(model, {}, asked)
    assert not isinstance(outcome, Refusal) or outcome.code == "too_lossy"
    assert lock.outside == []
    assert lock.holds > 3
    assert 0 < lock.longest <= MOST_RUNS
