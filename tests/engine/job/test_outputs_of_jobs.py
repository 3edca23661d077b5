"""Whole jobs on networks with several outputs, or whose rows the data count."""

import json
import sys
from itertools import count
from pathlib import Path

import pytest

from engine import Compress, run
from engine.errors import DatasetInvalidError, SpecInvalidError
from engine.report.markdown import markdown
from engine.report.run_facts import Memory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measure"))
import judged_networks as networks

HARSH = {"type": "prune_channels", "sparsity": 0.9, "reconstruct": False, "importance": "magnitude"}


pytestmark = pytest.mark.usefixtures("short_measurements")


def _probe(_model, _target, _feed):
    return Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)


@pytest.fixture
def compress(workspace):
    numbers = count()

    def make(built, *passes, declared=None, **more):
        folder = workspace(built.model.SerializeToString(), name=f"job{next(numbers)}", **built.arrays)
        if declared is not None:
            (folder / "data" / "dataset.json").write_text(json.dumps({"outputs": declared}))
        gates = [{"metric": "size_bytes", "rule": "max_ratio", "value": 1.0}]
        spec = Compress.model_validate({"recipe": {"passes": list(passes)}, "gates": gates, **more})
        return run(spec, folder, lambda _event: None, probe=_probe)

    return make


def test_one_output_that_is_lost_rolls_a_step_back(compress):
    """Pruned to a tenth, scores between 3 and 5 still have a signal far above the noise, and say nothing any more."""
    report = compress(networks.two_headed_regression(), HARSH)
    (step,) = report.steps
    assert step.status == "refused"
    assert step.refusal.code == "too_lossy"
    assert step.refusal.reason.startswith("Output `y")
    assert "(values)" in step.refusal.reason
    assert {each.name: (each.kind, each.main) for each in report.outputs} == {
        "y0": ("values", True),
        "y1": ("values", False),
    }
    assert {each.output for each in report.quality} == {"y0", "y1"}


def test_what_is_declared_in_the_dataset_holds_and_the_job_goes_first(compress):
    declared = {"y0": {"kind": "classes"}, "y1": {"ignore": True}}
    report = compress(networks.two_headed_regression(), {"type": "simplify"}, declared=declared)
    assert [(each.kind, each.ignored) for each in report.outputs] == [("classes", False), (None, True)]
    outputs = {"y1": {"kind": "embedding"}, "y0": {"ignore": True}}
    report = compress(networks.two_headed_regression(), {"type": "simplify"}, declared=declared, outputs=outputs)
    assert [(each.kind, each.ignored) for each in report.outputs] == [(None, True), ("embedding", False)]
    text = markdown(report)
    assert "| `y0` | not judged |  | the job or the dataset declares that nobody reads it |" in text
    assert "| **`y1`** | embedding | 1 | the job or the dataset declares it |" in text


@pytest.mark.parametrize("declared", [{"y0": {"kind": "class"}}, {"y7": {"kind": "classes"}}])
def test_a_wrong_declaration_ends_the_job_with_what_is_wrong(compress, declared):
    with pytest.raises((DatasetInvalidError, SpecInvalidError), match=next(iter(declared))):
        compress(networks.two_headed_regression(), {"type": "simplify"}, declared=declared)


@pytest.mark.parametrize("step", [{"type": "float16"}, {"type": "quantize_static"}, {"type": "mixed_precision"}, HARSH])
@pytest.mark.parametrize("built", [networks.detector_with_nms(), networks.kept_rows()], ids=["nms", "compress"])
def test_networks_whose_rows_the_data_count_get_a_result_or_a_reason(compress, built, step):
    report = compress(built, step)
    (done,) = report.steps
    assert done.status == "applied" or done.refusal.code in {
        "too_lossy",
        "no_gain",
        "verification_failed",
        "not_applicable",
    }
    assert "shape" not in (done.refusal.reason if done.refusal else "")
    assert report.quality[0].metric in {"box_f1", "sqnr_db"}


@pytest.mark.parametrize(
    "step", [{"type": "prune_channels", "sparsity": 0.3}, {"type": "quantize_static"}, {"type": "simplify"}]
)
def test_layers_behind_rows_that_the_data_count_are_fitted_on_rows_that_are_the_same(compress, step):
    """Pruning in front of a threshold changes how many rows a second stage sees: those samples tell nothing of its weights."""
    report = compress(networks.rescored_rows(), step, gates=[{"metric": "sqnr_db", "rule": "min", "value": -20}])
    (done,) = report.steps
    assert done.refusal is None or done.refusal.code == "no_gain", done.refusal


def test_a_gate_on_one_output_is_judged_on_it(compress):
    gates = [{"metric": "r2@y1", "rule": "min", "value": 0.5}, {"metric": "sqnr_db", "rule": "min", "value": 10}]
    report = compress(networks.two_headed_regression(), {"type": "simplify"}, gates=gates)
    first, second = report.verdict.gates
    assert (first.outcome, first.gate.label) == ("pass", "r2@y1")
    assert "output `y1`" in first.reason
    assert "the worst of 2 outputs" in second.reason
    assert "| r2@y1 min 0.5 | pass |" in markdown(report)
