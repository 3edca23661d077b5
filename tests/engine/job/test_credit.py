"""A step may lose more than is allowed where a later one teaches; what that does not win back is taken back."""

import numpy as np
import pytest

from engine import Compress, run
from engine.report.markdown import markdown
from engine.report.run_facts import Memory

pytestmark = pytest.mark.usefixtures("short_measurements")
PRUNE = {"type": "prune_channels", "sparsity": 0.75, "reconstruct": False, "importance": "magnitude"}
DISTILL = {"type": "distill", "steps": 120, "learning_rate": 0.003, "batch": 32}
IDLE = {"type": "distill", "steps": 1, "learning_rate": 1e-9}


@pytest.fixture
def job(workspace, residual_cnn, images):
    def make(*passes, drop, crashed=frozenset(), folder=None):
        folder = folder or workspace(residual_cnn(), name="job", image=images(300))
        gates = [{"metric": "top1_agreement", "rule": "min", "value": 1 - drop}]
        spec = Compress.model_validate({"recipe": {"passes": list(passes)}, "gates": gates})
        events = []
        probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
        report = run(spec, folder, events.append, probe=lambda *_: probe, crashed_steps=crashed)
        return report, events

    return make


def agreement(step):
    return next(each.compressed for each in step.quality if each.metric == "top1_agreement")


def test_without_a_step_that_teaches_what_loses_too_much_is_refused(job):
    report, _ = job(PRUNE, drop=0.3)
    [step] = report.steps
    assert (step.status, step.refusal.code, step.credit) == ("refused", "too_lossy", None)
    assert report.unchanged


def test_what_training_wins_back_is_kept_and_told(job):
    report, _ = job(PRUNE, DISTILL, drop=0.3)
    pruned, taught = report.steps
    assert [pruned.status, taught.status] == ["applied", "applied"], report.steps
    assert agreement(pruned) < 0.7 <= agreement(taught)
    assert pruned.credit.won_back
    assert "A gate forbids it" in pruned.credit.reason
    assert "which training won back" in markdown(report)
    assert not report.unchanged


def test_what_training_does_not_win_back_is_taken_back(job):
    """What comes after works on the network as it was before."""
    report, events = job({"type": "simplify"}, PRUNE, IDLE, {"type": "fuse"}, drop=0.3)
    kinds = {step.type: step for step in report.steps}
    assert kinds["distill"].status == "refused"
    pruned = kinds["prune_channels"]
    assert (pruned.status, pruned.refusal.code, pruned.credit.won_back) == ("refused", "too_lossy", False)
    assert "training has not won back what they lost" in pruned.refusal.reason
    assert report.compressed.parameters == report.original.parameters
    # Whoever watches the job is told that the step's end was not the last word.
    told = [(event["step"], event["status"]) for event in events if event["type"] == "step_finished"]
    assert told[:4] == [(0, "applied"), (1, "applied"), (2, "refused"), (1, "refused")]


def test_who_dies_before_it_is_taken_back_finds_the_credit_open(job, workspace, residual_cnn, images, monkeypatch):
    from engine.job import compress

    folder = workspace(residual_cnn(), name="job", image=images(300))
    with monkeypatch.context() as patched:
        patched.setattr(compress.credit, "settle", lambda reports, *_: list(reports))
        patched.setattr(compress._Compression, "_measure", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job(PRUNE, IDLE, drop=0.3, folder=folder)
    report, _ = job(PRUNE, IDLE, drop=0.3, folder=folder)
    assert [step.status for step in report.steps] == ["refused", "refused"]
    assert report.unchanged


def test_gains_are_asked_for_at_once(job):
    """Nobody makes up later for what a step does not gain."""
    report, _ = job({**PRUNE, "sparsity": 0.01, "min_width": 4096}, DISTILL, drop=0.0)
    assert report.steps[0].status == "refused"
    assert report.steps[0].credit is None
    assert np.isclose(report.size.compressed, report.size.original, rtol=0.05)
