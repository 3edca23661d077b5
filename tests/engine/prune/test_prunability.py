"""The summary that a network's owner sees before pruning it."""

import json

import pytest

import engine
from engine.errors import ModelInvalidError


def test_it_says_what_could_go_and_what_stays(residual_cnn, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(residual_cnn())
    found = engine.prunability(path)
    json.dumps(found)
    assert found["prunable_macs"] > 0.9
    assert found["prunable_parameters"] > 0.9
    assert found["kinds"] == {"channels": 4}
    assert found["groups_total"] == len(found["groups"]) == 4
    assert sorted(group["channels"] for group in found["groups"]) == [16, 16, 32, 32]
    assert any("network's output" in item["reason"] for item in found["frozen"])


def test_bytes_that_are_no_network_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelInvalidError):
        engine.prunability(path)
