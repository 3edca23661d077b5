"""Files that people take for networks are named as what they are, with the line that makes a network of them."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from engine import inspect_model
from engine.errors import ModelInvalidError
from engine.graph.archive import inspect_archive
from engine.graph.foreign_formats import recognise


def _zip(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"\0" * 8)
    return stream.getvalue()


def _npy():
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def _safetensors():
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


# A SavedModel: schema version 1, then one MetaGraphDef, whose first field is its MetaInfoDef.
SAVED_MODEL = b"\x08\x01\x12\x0a\x0a\x08\x22\x06serve1"
FROZEN = b"\x0a\x1f\x0a\x05input\x12\x0bPlaceholder*\x09\x0a\x05dtype\x12\x00"
FILES = {
    "checkpoint of torch.save": (_zip("model/data.pkl", "model/version", "model/data/0"), "PyTorch checkpoint", "torch.onnx.export"),
    "checkpoint without a folder": (_zip("data.pkl", "data/0"), "PyTorch checkpoint", "torch.onnx.export"),
    "TorchScript": (_zip("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"), "TorchScript", "torch.onnx.export"),
    "torch.export": (_zip("serialized_exported_program.json"), "torch.export", "torch.export.load"),
    "pickle": (pickle.dumps({"w": [1.0]}, protocol=2), "pickle", "load_state_dict"),
    "newest pickle": (pickle.dumps({"w": [1.0]}, protocol=5), "pickle", "skl2onnx"),
    "safetensors": (_safetensors(), "safetensors", "optimum-cli"),
    "Keras h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "Keras", "export("),
    "Keras zip": (_zip("config.json", "model.weights.h5"), "Keras", "tf2onnx"),
    "SavedModel": (SAVED_MODEL, "SavedModel", "--saved-model"),
    "SavedModel in a zip": (_zip("m/saved_model.pb", "m/variables/variables.index"), "SavedModel", "tf2onnx"),
    "frozen graph": (FROZEN, "frozen TensorFlow", "--graphdef"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite", "--tflite"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF", "onnxruntime-genai"),
    "ORT": (b"\x20\0\0\0ORTM" + bytes(64), ".ort", ".onnx"),
    "OpenVINO": (b'<?xml version="1.0"?>\n<net name="x" version="11">', "OpenVINO", ".onnx"),
    "array": (_npy(), "array of numpy", "data"),
    "arrays": (_zip("input.npy", "label.npy"), "array of numpy", "data"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html><title>401</title>", "web page", "browser"),
    "gzip": (b"\x1f\x8b\x08" + bytes(32), "compressed", "Unpack"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "what", "way_out"), FILES.values(), ids=FILES)
def test_each_is_named_wherever_a_network_is_taken(tmp_path, content, what, way_out):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refusals = [lambda: inspect_model(path)]
    if content.startswith(b"PK"):
        (tmp_path / "out").mkdir()
        refusals.append(lambda: inspect_archive(path, tmp_path / "out", limit=1 << 20))
    for refused in refusals:
        with pytest.raises(ModelInvalidError) as told:
            refused()
        assert what in told.value.message
        assert way_out in told.value.hint


def test_networks_are_none_of_them(tmp_path, residual_cnn):
    (tmp_path / "m.onnx").write_bytes(residual_cnn())
    assert recognise(tmp_path / "m.onnx") is None
    # An archive with a network is one, whatever else lies in it; the archive's own rules judge that.
    (tmp_path / "m.zip").write_bytes(_zip("m.onnx", "data.pkl"))
    assert recognise(tmp_path / "m.zip") is None


def test_a_folder(tmp_path):
    assert recognise(tmp_path) is None
    (tmp_path / "saved_model.pb").write_bytes(SAVED_MODEL)
    assert recognise(tmp_path).what == "a TensorFlow SavedModel"
