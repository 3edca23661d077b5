"""What onnxruntime-genai needs beside a network goes along with a compressed one, and nothing else does."""

import json
import zipfile

import pytest

from onnxpress.genai_folder import complete


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    config = {"model": {"type": "llama", "decoder": {"filename": "model.onnx", "head_size": 16}}, "search": {}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "merges.txt", "model.safetensors.index.json", "model.onnx", "model.onnx.data"):
        (folder / name).write_text(name)
    return folder


def _decoder(folder):
    return json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]


def test_configuration_and_tokenizer_go_along(source, tmp_path):
    out = tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    out.write_bytes(b"network")
    assert complete(source / "model.onnx", out) == ["genai_config.json", "merges.txt", "tokenizer.json"]
    assert _decoder(out.parent) == {"filename": "small.onnx", "head_size": 16}
    assert (out.parent / "tokenizer.json").read_text() == "tokenizer.json"
    assert _decoder(source)["filename"] == "model.onnx"
    # What is there is not written over.
    (out.parent / "tokenizer.json").write_text("mine")
    assert complete(source / "model.onnx", out) == []
    assert (out.parent / "tokenizer.json").read_text() == "mine"


def test_an_archive_is_unpacked_because_genai_reads_none(source, tmp_path):
    out = tmp_path / "out" / "small.zip"
    out.parent.mkdir()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model.onnx", b"network")
        archive.writestr("model.onnx.data", b"weights")
    complete(source / "model.onnx", out)
    assert _decoder(out.parent)["filename"] == "model.onnx"
    assert (out.parent / "model.onnx.data").read_bytes() == b"weights"


def test_a_configuration_that_is_no_json_is_left_alone(source, tmp_path):
    (source / "genai_config.json").write_text("{")
    out = tmp_path / "small.onnx"
    out.write_bytes(b"network")
    assert complete(source / "model.onnx", out) == []


@pytest.mark.parametrize("name", ["vision.onnx", "model.onnx"])
def test_a_network_that_is_not_in_the_configuration_or_stays_in_its_folder_gets_nothing(source, tmp_path, name):
    out = (source if name == "model.onnx" else tmp_path) / "small.onnx"
    out.write_bytes(b"network")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    assert complete(source / name, out) == []
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
