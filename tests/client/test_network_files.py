"""What goes to the service with a network: its external data, and never a file that is no network."""

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine.graph.foreign_formats
import engine.graph.genai_folder
import onnxpress.foreign_formats
import onnxpress.genai_folder
from engine.graph.archive import inspect_archive
from onnxpress.errors import UsageError
from onnxpress.exit_codes import ExitCode
from onnxpress.network_files import Bundle, digest_network

KEY = "opk_test_secret"
MODEL = {"id": "mdl_1", "state": "ready", "name": "net"}


def _body(name, weight):
    """A branch of an If with a weight of its own."""
    node = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"])
    weights = [numpy_helper.from_array(weight, f"{name}_w")]
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)], weights)


def _save(path, **keys):
    graph = helper.make_graph(
        [
            helper.make_node(
                "If",
                ["c"],
                ["z"],
                then_branch=_body("a", np.eye(8, dtype="f4")),
                else_branch=_body("b", np.ones((8, 8), "f4")),
            ),
            helper.make_node("MatMul", ["z", "w"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", 1, [1, 8]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [1, 8])],
        [numpy_helper.from_array(np.eye(8, dtype="f4"), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, **({"save_as_external_data": True, "size_threshold": 0} | keys))
    return path


def _unpacked(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    "rooms",
    [
        (onnxpress.foreign_formats, engine.graph.foreign_formats),
        (onnxpress.genai_folder, engine.graph.genai_folder),
    ],
)
def test_client_and_engine_have_the_same_file(rooms):
    here, there = (Path(module.__file__).read_bytes() for module in rooms)
    assert here == there


def test_data_beside_a_network_go_with_it(tmp_path):
    path = _save(tmp_path / "net.onnx", location="net.onnx.data")
    hashed = digest_network(path)
    content = b"".join(hashed.stream())
    assert (len(content), digest_network(path).sha256) == (hashed.size, hashed.sha256)
    assert _unpacked(content) == {
        "model.onnx": path.read_bytes(),
        "net.onnx.data": (tmp_path / "net.onnx.data").read_bytes(),
    }
    (tmp_path / "sent.zip").write_bytes(content)
    (tmp_path / "out").mkdir()
    # The service's own check of archives takes it.
    assert inspect_archive(tmp_path / "sent.zip", tmp_path / "out", limit=1 << 20).external_data


def test_weights_in_bodies_have_files_too(tmp_path):
    hashed = digest_network(_save(tmp_path / "net.onnx", all_tensors_to_one_file=False))
    assert isinstance(hashed, Bundle)
    assert [name for name, _, _ in hashed.files] == ["model.onnx", "a_w", "b_w", "w"]


def test_a_network_of_one_file_is_sent_as_it_is(tmp_path):
    path = _save(tmp_path / "net.onnx", save_as_external_data=False)
    assert b"".join(digest_network(path).stream()) == path.read_bytes()


def test_the_links_of_a_hubs_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    _save(blobs / "net.onnx", location="model.onnx_data")
    (snapshot / "model.onnx").symlink_to("../../blobs/net.onnx")
    (blobs / "model.onnx_data").rename(blobs / "1f")
    (snapshot / "model.onnx_data").symlink_to("../../blobs/1f")
    sent = _unpacked(b"".join(digest_network(snapshot / "model.onnx").stream()))
    assert sent["model.onnx_data"] == (blobs / "1f").read_bytes()


def _away(tmp_path):
    _save(tmp_path / "net.onnx", location="data")
    (tmp_path / "data").rename(tmp_path.parent / f"{tmp_path.name}-data")
    (tmp_path / "data").symlink_to(f"../{tmp_path.name}-data")


def _missing(tmp_path):
    _save(tmp_path / "net.onnx", location="data")
    (tmp_path / "data").unlink()


def _below(tmp_path):
    _save(tmp_path / "net.onnx", location="data")
    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "weights/data"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "data").write_bytes((tmp_path / "data").read_bytes())
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())


def _checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.onnx", "w") as archive:
        archive.writestr("net/data.pkl", b"")


def _folder(tmp_path):
    (tmp_path / "net.onnx").mkdir()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_away, "cp -L"),
        (_missing, "not beside it"),
        (_below, "plain names"),
        (_checkpoint, "PyTorch checkpoint"),
        (_folder, "is a folder"),
    ],
)
def test_what_cannot_be_sent_costs_no_request(scripted, cli, client, tmp_path, make, told):
    make(tmp_path)
    done = cli(scripted.url, KEY, "push", tmp_path / "net.onnx")
    assert done.code == ExitCode.USAGE
    assert told in done.stderr
    with pytest.raises(UsageError, match=told):
        client.models.upload(tmp_path / "net.onnx")
    assert scripted.requests == []


def test_the_command_sends_both(scripted, cli, tmp_path):
    path = _save(tmp_path / "net.onnx", location="net.onnx.data")
    scripted.on("POST", "/models", {"status": 201, "json": MODEL})
    done = cli(scripted.url, KEY, "push", path)
    assert (done.code, done.stdout) == (0, "mdl_1\n"), done.stderr
    (asked,) = scripted.asked("POST", "/models")
    assert sorted(_unpacked(asked.body)) == ["model.onnx", "net.onnx.data"]
    assert "name=net" in asked.path


def test_what_is_no_protobuf_is_left_to_the_service(tmp_path):
    for content in (
        b"\x08",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x08\x0a\x3a\xff\x01",
        b"neither",
    ):
        (tmp_path / "net.onnx").write_bytes(content)
        assert digest_network(tmp_path / "net.onnx").size == len(content)
