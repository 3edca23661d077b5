"""The summary that a network's owner sees before pruning it."""

import onnx
import pytest

import engine
from engine.errors import ModelInvalidError


def test_it_says_what_could_go_and_what_stays(residual_cnn, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(residual_cnn())
    found = engine.prunability(path)
    assert engine.Prunability.model_validate_json(found.model_dump_json()) == found
    assert found.prunable_macs > 0.9
    assert found.prunable_parameters > 0.9
    assert found.kinds == {"channels": 4}
    assert found.groups_total == len(found.groups) == 4
    assert sorted(group.channels for group in found.groups) == [16, 16, 32, 32]
    assert any("network's output" in item.reason for item in found.frozen)


def test_a_group_names_its_members_with_their_widths(residual_cnn, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(residual_cnn())
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    for group in engine.prunability(path).groups:
        assert group.members_total == len(group.members) >= 2
        for member in group.members:
            assert shapes[member.initializer][member.axis] == member.width == group.channels


def test_names_of_any_length_are_cut(residual_cnn, tmp_path):
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(residual_cnn())
    for number, node in enumerate(model.graph.node):
        node.name = f"{number}" + "x" * 10_000
    path.write_bytes(model.SerializeToString())
    found = engine.prunability(path)
    assert found.groups_total == 4
    assert len(found.model_dump_json()) < 40_000


def test_bytes_that_are_no_network_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelInvalidError):
        engine.prunability(path)
