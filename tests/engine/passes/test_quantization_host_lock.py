"""Whatever a pass of quantization computes, it holds the host lock's shared side, and it times nothing without the host alone."""

from contextlib import contextmanager
from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest

from engine.gate import Gate
from engine.measure import latency
from engine.measure.quality import Evaluator
from engine.passes.mixed_precision import MixedPrecision
from engine.passes.quantize_static import QuantizeStatic
from engine.passes.quantize_weights import QuantizeWeights
from engine.report.values import Change
from engine.runtime import sessions
from engine.runtime.loading import Session
from engine.solve.gram import Gram
from engine.target import Target

# Runs of a network while the lock is held once: a few seconds at most for the largest of them.
MOST_RUNS = 8


class Lock:
    """Counts the runs of networks while work is held, and notes what happens without."""

    def __init__(self):
        self.depth = self.runs = self.longest = self.holds = self.profiles = 0
        self.alone = False
        self.outside = []

    @contextmanager
    def working(self):
        self.depth += 1
        self.holds += 1
        try:
            yield
        finally:
            self.depth -= 1
            # On leaving an inner one too, a measurement that waits gets its turn.
            self.longest, self.runs = max(self.longest, self.runs), 0

    @contextmanager
    def measuring(self):
        self.alone = True
        try:
            yield
        finally:
            self.alone = False

    def ran(self, what):
        if self.alone:
            return
        if not self.depth:
            self.outside.append(what)
        self.runs += what == "a run"


@pytest.fixture
def lock(monkeypatch):
    lock = Lock()
    run, update, profile = Session.run, Gram.update, latency.profile

    def run_under_lock(self, feed):
        lock.ran("a run")
        return run(self, feed)

    def update_under_lock(self, *rows):
        lock.ran("a sum")
        return update(self, *rows)

    def profile_alone(*args, **options):
        assert lock.alone, "a profile is a measurement"
        lock.profiles += 1
        return profile(*args, **options)

    monkeypatch.setattr(Session, "run", run_under_lock)
    monkeypatch.setattr(Gram, "update", update_under_lock)
    monkeypatch.setattr(latency, "profile", profile_alone)
    return lock


@pytest.mark.parametrize(
    ("step", "profiles"),
    [(QuantizeStatic(), True), (QuantizeWeights(), False), (MixedPrecision(max_drop=0.2), True)],
    ids=lambda each: getattr(each, "type", ""),
)
def test_nothing_runs_outside_of_the_lock_and_no_profile_beside_work(
    step, profiles, lock, residual_cnn, images, feeds_of, context
):
    def race(models):
        assert lock.depth == 0, "a race is the job's"
        return [1.0] + [0.5] * (len(models) - 1)

    model = ir.from_proto(onnx.load_from_string(residual_cnn()))
    samples, select = feeds_of({"image": images(40)}), feeds_of({"image": images(16, seed=2)})
    given = context(model.clone(), samples, select=select)
    with lock.working():
        evaluator = Evaluator(sessions.session(residual_cnn(), Target()), select)

    def evaluate(candidate):
        assert lock.depth == 0, "the job takes the lock for each batch itself"
        with lock.measuring():
            return evaluator.evaluate(sessions.session(ir.to_proto(candidate).SerializeToString(), Target()))

    def observe(network, requests):
        assert lock.depth == 0, "the job takes the lock for each batch itself"
        with lock.measuring():
            return given.observe(network, requests)

    asked = replace(
        given,
        race=race,
        evaluate=evaluate,
        observe=observe,
        working=lock.working,
        measuring=lock.measuring,
        gates=(Gate(metric="sqnr_db", rule="min", value=5),),
    )
    step.prepare(model)
    assert step.check(model) is None
    observations = given.observe(model, step.observes(model))
    lock.outside.clear()
    lock.longest = lock.runs = lock.holds = 0
    assert isinstance(step.apply(model, observations, asked), Change)
    assert lock.outside == []
    assert lock.holds > 3
    assert 0 < lock.longest <= MOST_RUNS
    assert bool(lock.profiles) == profiles
