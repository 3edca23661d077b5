"""Distillation as a step of whole jobs: what the report and the events say, and one more try after a crash."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine import Compress, run
from engine.graph import io
from engine.report.run_facts import Memory
from engine.runtime import sessions
from engine.target import Target

pytestmark = pytest.mark.usefixtures("short_measurements")

GATES = [
    {"metric": "size_bytes", "rule": "max_ratio", "value": 0.9},
    {"metric": "top1", "rule": "max_drop", "value": 1.0},
]
PASSES = [
    {"type": "prune_channels", "sparsity": 0.5, "reconstruct": False, "importance": "magnitude", "round_to": 1},
    {"type": "distill", "steps": 60, "seconds": 500, "learning_rate": 0.02, "batch": 16, "patience": 1.0},
]


@pytest.fixture
def job(workspace, residual_cnn, images):
    """A network whose classes are about equally frequent, labels that are its own decisions, and some samples without."""
    model = ir.from_proto(onnx.load_from_string(residual_cnn()))
    image = images(216)

    def scores():
        return sessions.session(io.to_bytes(model), Target()).run({"image": image.astype(np.float32)})["scores"]

    said = scores()
    for name, shift in (("head.w", 0.0), ("head.b", said.mean(0))):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(((value.const_value.numpy() - shift) / said.std()).astype(np.float32))
    label = scores().argmax(1).astype(np.int64)
    label[:96] = -1
    return workspace(io.to_bytes(model), image=image, label=label)


def _compress(folder, crashed=frozenset()):
    events = []
    spec = Compress.model_validate({"recipe": {"passes": PASSES}, "gates": GATES})
    probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
    report = run(spec, folder, events.append, crashed_steps=crashed, probe=lambda *_: probe)
    return SimpleNamespace(report=report, events=events, text=(folder / "out" / "report.md").read_text())


def test_a_pruned_network_is_trained_and_the_report_tells_how(job):
    done = _compress(job)
    pruned, trained = done.report.steps
    assert (pruned.status, trained.status) == ("applied", "applied")
    assert trained.change.details.of == "distill"
    top1 = [next(each for each in step.quality if each.metric == "top1").compressed for step in (pruned, trained)]
    assert top1[1] > top1[0]
    assert trained.change.details.training.metric == "top1"
    assert trained.change.details.training.stopped == "steps"
    assert "### Training of step 2" in done.text
    assert "top1 on select" in done.text
    told = [event["message"] for event in done.events if event["type"] == "progress" and event["step"] == 1]
    assert any(message.startswith("step 60 of 60, ") and "on select" in message for message in told)
    assert all(0 <= event["fraction"] <= 1 for event in done.events if event["type"] == "progress")
    stored = json.loads((job / "out" / "report.json").read_bytes())
    assert len(stored["steps"][1]["change"]["details"]["training"]["points"]) >= 15
    assert not (job / "steps" / "01.checkpoint").exists()


def test_a_training_that_died_with_its_process_is_tried_once_more(job):
    done = _compress(job, crashed=frozenset({0, 1}))
    pruned, trained = done.report.steps
    assert pruned.refusal.code == "crashed"
    # Of the original itself nothing can be learnt.
    assert trained.refusal.code == "no_gain"
    assert trained.refusal.details.of == "distill"
