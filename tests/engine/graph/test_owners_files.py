"""Networks with external data as their owner has them: links are followed where they stay with the network."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import inspect_model
from engine.errors import ModelInvalidError
from engine.graph.owners_files import copy_with_data, external_locations


@pytest.fixture
def network(tmp_path):
    """Two weights in files of their own, one of them in the body of an If."""
    inner = numpy_helper.from_array(np.ones((8, 8), np.float32), "inner")
    taken = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)], [inner]
    )  # fmt: skip
    left = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=taken, else_branch=left)],
        "net",
        [helper.make_tensor_value_info("x", 1, [1, 8]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [1, 8])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path / "export"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    assert {str(one) for one in external_locations(folder / "model.onnx")} == {"w", "inner"}
    return folder


def _cached(network, tmp_path):
    """Lay a network out as a hub's cache does: names that link into a folder of blobs."""
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(network.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_the_links_of_a_hubs_cache_are_followed(network, tmp_path):
    snapshot = _cached(network, tmp_path)
    (tmp_path / "copy").mkdir()
    copy = copy_with_data(snapshot / "model.onnx", tmp_path / "copy", "net.onnx")
    assert inspect_model(copy).external_data
    assert not any(file.is_symlink() for file in copy.parent.iterdir())
    assert sorted(file.name for file in copy.parent.iterdir()) == ["inner", "net.onnx", "w"]


def test_inspecting_a_link_says_how_to_copy_it(network, tmp_path):
    with pytest.raises(ModelInvalidError, match="symbolic link") as told:
        inspect_model(_cached(network, tmp_path) / "model.onnx")
    assert "cp -L" in told.value.hint


def test_a_link_that_leads_away_is_not_followed(network, tmp_path):
    (tmp_path / "secret").write_bytes((network / "w").read_bytes())
    (network / "w").unlink()
    (network / "w").symlink_to("../secret")
    with pytest.raises(ModelInvalidError, match="leads away") as told:
        copy_with_data(network / "model.onnx", tmp_path)
    assert "cp -L" in told.value.hint


@pytest.mark.parametrize("left", ["missing", "dangling"])
def test_data_that_are_not_there(network, tmp_path, left):
    (network / "w").unlink()
    if left == "dangling":
        (network / "w").symlink_to("nowhere")
    with pytest.raises(ModelInvalidError, match="`w`, which is not there") as told:
        copy_with_data(network / "model.onnx", tmp_path)
    assert "beside `model.onnx`" in told.value.hint


def test_a_name_that_leaves_the_folder(network, tmp_path):
    model = onnx.load(network / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../secret"
    (network / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelInvalidError, match="outside its folder"):
        copy_with_data(network / "model.onnx", tmp_path)


def test_folders_and_checkpoints(network, tmp_path):
    with pytest.raises(ModelInvalidError, match="is a folder") as told:
        copy_with_data(network, tmp_path)
    assert "model.onnx" in told.value.hint
    (tmp_path / "m.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelInvalidError, match="pickle"):
        copy_with_data(tmp_path / "m.pt", network)
    with pytest.raises(ModelInvalidError, match="not there"):
        copy_with_data(tmp_path / "none.onnx", network)
