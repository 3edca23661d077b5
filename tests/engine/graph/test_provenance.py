"""What a file says of itself is added behind the network, whose bytes stay as they are; what was said before goes."""

import onnx
from onnx import TensorProto, helper

from engine.graph.provenance import fitting, write_properties


def _network(path, **said):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, said)
    onnx.save(model, path)
    return path.read_bytes()


def _said(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_network_is_not_written_anew(tmp_path):
    path = tmp_path / "model.onnx"
    before = _network(path, owner="me")
    write_properties(path, {"onnxpress.source": "sha256:ab", "onnxpress.recipe": "[]"})
    assert path.read_bytes().startswith(before)
    onnx.checker.check_model(str(path), full_check=True)
    assert _said(path) == {"owner": "me", "onnxpress.source": "sha256:ab", "onnxpress.recipe": "[]"}


def test_an_earlier_jobs_words_go(tmp_path):
    path = tmp_path / "model.onnx"
    _network(path, **{"owner": "me", "onnxpress.source": "sha256:old", "onnxpress.quality": "[]"})
    write_properties(path, {"onnxpress.source": "sha256:new"})
    assert _said(path) == {"owner": "me", "onnxpress.source": "sha256:new"}
    assert len(onnx.load(path).metadata_props) == 2


def test_words_take_no_more_than_there_is_room_for(tmp_path):
    said = {"onnxpress.source": "sha256:ab", "onnxpress.recipe": "[" + " " * 500 + "]", "onnxpress.target": "cpu"}
    path = tmp_path / "model.onnx"
    before = len(_network(path))
    write_properties(path, fitting(said, 100))
    assert _said(path) == {"onnxpress.source": "sha256:ab"}
    assert len(path.read_bytes()) <= before + 100
    assert fitting(said, 10_000) == said
    assert fitting(said, 0) == {}
