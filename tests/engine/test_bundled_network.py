"""The network that `make demo` compresses: what the README says of it must hold here."""

from pathlib import Path

import numpy as np
import pytest

from engine import Compress, run
from engine.job import timing
from engine.runtime.processor import cpu_profile

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion-mnist"


@pytest.fixture
def bundled(workspace, monkeypatch):
    monkeypatch.setattr(timing, "RESULT_TIMED_S", 0.1)
    with np.load(EXAMPLE / "data.npz", allow_pickle=False) as arrays:
        return workspace((EXAMPLE / "residual_cnn.onnx").read_bytes(), **{name: arrays[name] for name in arrays.files})


def test_static_int8_is_small_and_keeps_the_accuracy(bundled):
    passes = [{"type": "simplify"}, {"type": "quantize_static"}]
    report = run(Compress.model_validate({"recipe": {"passes": passes}}), bundled, lambda _event: None)
    assert [step.status for step in report.steps] == ["applied", "applied"]
    assert report.size.original / report.size.compressed >= 3.3
    top1 = report.quality[0]
    assert top1.metric == "top1"
    assert (report.parts.calibrate, report.parts.select, report.parts.judge) == (512, 333, 667)
    assert top1.samples == 667
    assert top1.difference >= -0.003
    assert report.selected_quality[0].samples == 333
    details = report.steps[1].change.details
    assert details.conversions_left.lonely_pairs == ()
    # Where a processor runs some layers faster in float, more conversions pay.
    assert details.conversions_left.count == 1 or details.in_float
    if cpu_profile().saturates_u8s8:
        assert all(layer.accumulator_load <= 1 for layer in details.layers)
    fidelity = {each.metric: each.compressed for each in report.quality}
    assert fidelity["sqnr_db"] >= 25
    assert fidelity["top1_agreement"] >= 0.98
