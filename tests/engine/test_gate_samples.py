"""The number of samples that a gate takes is the one from which the real verdict can pass."""

import numpy as np
import pytest

from engine.gate import Gate
from engine.gate_samples import samples_needed, samples_where_some_change, too_few
from engine.measure import gates
from engine.measure.gates import Costs
from engine.measure.kinds import closeness
from engine.measure.metrics import Output
from engine.measure.scores import F1, Mean


def unchanged(metric, count):
    if metric == "f1":
        label = np.arange(count) % 2
        task = F1()
        task.add(label, label, Output(probabilities=False))
        return task.beside(task)
    if metric in {"iou", "edit_distance", "top1", "top5"}:
        task = Mean(metric)
        task._batches.append(np.full(count, 1.0 if metric.startswith("top") else 0.5))
        return task.beside(task)
    return closeness.share(metric, np.ones(count))


def outcome(gate, count):
    return gates.judge(gate, [unchanged(gate.metric, count)], Costs()).outcome


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(
    ("metric", "rule", "value"),
    [
        ("top1", "max_drop", 0.01),
        ("top5", "max_drop", 0.05),
        ("iou", "max_drop", 0.02),
        ("edit_distance", "max_drop", 0.01),
        ("f1", "max_drop", 0.02),
        ("top1_agreement", "min", 0.99),
        ("token_agreement", "min", 0.9),
    ],
)
def test_it_is_where_the_verdict_begins_to_pass(metric, rule, value, confidence):
    gate = Gate(metric=metric, rule=rule, value=value, confidence=confidence)
    needed = samples_needed(gate)
    # The bound of f1 is Student's, which is a little wider.
    spare = round(needed * 0.06) if metric == "f1" else 0
    assert outcome(gate, needed + spare) == "pass"
    assert outcome(gate, needed - 1) == "inconclusive"


def test_what_it_takes_is_said():
    gate = Gate(metric="top1", rule="max_drop", value=0.01)
    assert samples_needed(gate) == 268
    assert samples_where_some_change(gate) == 542
    assert too_few(gate, 300) is None
    said = too_few(gate, 30)
    assert "cannot pass on the 30 samples that judge" in said
    assert "it takes 268, and about 542 where 2% of the decisions change" in said
    assert "allows no loss" in too_few(Gate(metric="top1", rule="max_drop", value=0.0), 10_000)
    for other in (Gate(metric="sqnr_db", rule="min", value=20), Gate(metric="size_bytes", rule="max_ratio", value=0.5)):
        assert samples_needed(other) is None
        assert too_few(other, 2) is None
