"""Files that people take for an ONNX network and that are none: what each is, and the line that makes a network of it.

Only the first bytes are read, and of a zip the names of its members. The client has the same file, so that nobody uploads
gigabytes to learn that they are a checkpoint.
"""

import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_HEAD_BYTES = 1 << 12
# The tag of an ONNX network's first field, its IR version.
_ONNX_TAG = b"\x08"


@dataclass(frozen=True)
class ForeignFormat:
    """What a file is, in a few words, and what its owner can do, in a sentence."""

    what: str
    way_out: str

    @property
    def sentence(self) -> str:
        """Say that it is no network."""
        return f"The file is {self.what}, not an ONNX network."


_EXPORT = (
    "Build the network by its class, load the weights into it (`model.load_state_dict(...)`), and export it:"
    ' `torch.onnx.export(model.eval(), (example_input,), "model.onnx", dynamo=True)`.'
    " One of Hugging Face: `optimum-cli export onnx --model FOLDER OUT`."
)
_CHECKPOINT = ForeignFormat("a PyTorch checkpoint", _EXPORT)
_PICKLE = ForeignFormat(
    "a Python pickle (an old PyTorch checkpoint, or a scikit-learn model)",
    f"{_EXPORT} A scikit-learn model: `skl2onnx.to_onnx(model, X[:1], options={{'zipmap': False}})`.",
)
_SCRIPT = ForeignFormat(
    "a TorchScript archive",
    "Export the module that it was made from:"
    ' `torch.onnx.export(model.eval(), (example_input,), "model.onnx", dynamo=True)`.',
)
_PROGRAM = ForeignFormat(
    "a program of torch.export (.pt2)",
    'Export it: `torch.onnx.export(torch.export.load("FILE"), (), "model.onnx", dynamo=True)`.',
)
_SAFETENSORS = ForeignFormat("a .safetensors file, which holds weights and no graph", _EXPORT)
_EXECUTORCH = ForeignFormat("an ExecuTorch program (.pte)", _SCRIPT.way_out)
_KERAS = ForeignFormat(
    "a Keras model",
    'Export it: `keras.models.load_model("FILE").export("model.onnx", format="onnx")`,'
    " or `python -m tf2onnx.convert --keras FILE --output model.onnx`.",
)
_SAVED_MODEL = ForeignFormat(
    "a TensorFlow SavedModel", "Convert it: `python -m tf2onnx.convert --saved-model FOLDER --output model.onnx`."
)
_FROZEN = ForeignFormat(
    "a frozen TensorFlow graph",
    "Convert it: `python -m tf2onnx.convert --graphdef FILE --inputs NAME:0 --outputs NAME:0 --output model.onnx`.",
)
_TFLITE = ForeignFormat(
    "a TensorFlow Lite model", "Convert it: `python -m tf2onnx.convert --tflite FILE --output model.onnx`."
)
_GGUF = ForeignFormat(
    "a GGUF file of llama.cpp",
    "Export the network that it was made from: `optimum-cli export onnx --model NAME OUT`, or the model builder of"
    " onnxruntime-genai.",
)
_ORT = ForeignFormat("in onnxruntime's own format (.ort)", "Give the .onnx file that it was made from.")
_TENSORRT = ForeignFormat("a TensorRT engine", "Give the .onnx file that it was built from.")
_OPENVINO = ForeignFormat("an OpenVINO network (.xml)", "Give the .onnx file that it was converted from.")
_COREML = ForeignFormat("a Core ML package", "Give the .onnx file, or export the network that it was converted from.")
_ARRAYS = ForeignFormat(
    "an array of numpy, which is data", "Give the .onnx file as the model, and the arrays as its data."
)
_LFS = ForeignFormat("a pointer of Git LFS to a file that was not fetched", "Fetch it: `git lfs pull`.")
_PAGE = ForeignFormat("a web page", "The download went wrong: open its address in a browser to see what it says.")
_PACKED = ForeignFormat("a compressed archive (gzip, xz, bzip2, zstd, tar or 7z)", "Unpack it and give the .onnx file.")

_BEGINNINGS: tuple[tuple[bytes, ForeignFormat], ...] = (
    (b"GGUF", _GGUF),
    (b"\x89HDF\r\n\x1a\n", _KERAS),
    (b"\x93NUMPY", _ARRAYS),
    (b"ptrt", _TENSORRT),
    (b"ftrt", _TENSORRT),
    (b"version https://git-lfs", _LFS),
    (b"\x1f\x8b", _PACKED),
    (b"\xfd7zXZ", _PACKED),
    (b"BZh", _PACKED),
    (b"\x28\xb5\x2f\xfd", _PACKED),
    (b"7z\xbc\xaf\x27\x1c", _PACKED),
)
# FlatBuffers have their name after an offset of four bytes.
_NAMED = {b"TFL3": _TFLITE, b"ORTM": _ORT, b"ET12": _EXECUTORCH, b"ET13": _EXECUTORCH}
_PICKLE_PROTOCOLS = {b"\x02", b"\x03", b"\x04", b"\x05"}


_MEMBERS: tuple[tuple[set[str], ForeignFormat], ...] = (
    ({"data.pkl"}, _CHECKPOINT),
    ({"serialized_exported_program.json", "archive_format"}, _PROGRAM),
    ({"model.weights.h5"}, _KERAS),
    ({"saved_model.pb"}, _SAVED_MODEL),
    ({"model.mlmodel"}, _COREML),
    ({"model.safetensors", "pytorch_model.bin"}, ForeignFormat("an archive of a checkpoint", _EXPORT)),
)


def recognise(path: Path) -> ForeignFormat | None:
    """Say what a file is that is certainly no ONNX network; None where it may be one, or is unknown.

    A file that starts as networks do is only recognised by what no network holds; ask once more when it turned out to be none.
    """
    if path.is_dir():
        return _SAVED_MODEL if (path / "saved_model.pb").is_file() else None
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return _of_zip(path)
    return None if head.startswith(_ONNX_TAG) else _of_head(head)


def recognise_broken(path: Path) -> ForeignFormat | None:
    """Say what a file is that starts as networks do, but could not be read as one."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    # Version 1 and then a MetaGraphDef, whose first field is a message; a network has a producer's name there.
    return _SAVED_MODEL if head.startswith(b"\x08\x01\x12") else _of_head(head)


def _of_head(head: bytes) -> ForeignFormat | None:
    named = _NAMED.get(head[4:8]) or next((found for start, found in _BEGINNINGS if head.startswith(start)), None)
    if named is not None:
        return named
    if head[:1] == b"\x80" and head[1:2] in _PICKLE_PROTOCOLS:
        return _PICKLE
    # The header's length in eight bytes, then the header, a JSON object.
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 30:
        return _SAFETENSORS
    if head[257:262] == b"ustar":
        return _PACKED
    if head.startswith(b"\x0a") and any(word in head for word in (b"Placeholder", b"\x12\x05Const")):
        return _FROZEN
    return _of_text(head.lstrip().lower())


def _of_text(head: bytes) -> ForeignFormat | None:
    if head.startswith((b"<!doctype html", b"<html")):
        return _PAGE
    return _OPENVINO if head.startswith(b"<?xml") and b"<net " in head else None


def _of_zip(path: Path) -> ForeignFormat | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    return None if any(name.lower().endswith(".onnx") for name in names) else _of_members(names)


def _of_members(names: Collection[str]) -> ForeignFormat | None:
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" in last and "constants.pkl" in last and any("/code/" in name for name in names):
        return _SCRIPT
    for members, found in _MEMBERS:
        if last & members:
            return found
    return _ARRAYS if names and all(name.endswith((".npy", ".npz")) for name in names) else None
