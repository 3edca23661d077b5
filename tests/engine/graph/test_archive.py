"""Networks in archives: good ones are unpacked, each hostile kind is refused, and nothing is repaired."""

import io
import stat
import struct
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.errors import EngineError
from engine.graph.archive import inspect_archive

LIMIT = 1 << 30


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A network with external data: its two files."""
    folder = tmp_path_factory.mktemp("network")
    weights = numpy_helper.from_array(np.ones((64, 32), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    return {name: (folder / name).read_bytes() for name in ("net.onnx", "net.onnx.data")}


@pytest.fixture
def inspected(tmp_path):
    def inspected(content, limit=LIMIT):
        path, out = tmp_path / "archive.zip", tmp_path / "out"
        path.write_bytes(content)
        out.mkdir()
        return inspect_archive(path, out, limit=limit), sorted(file.name for file in out.iterdir())

    return inspected


def zipped(members, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("folder", ["", "export/net/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_network_and_its_external_data(inspected, parts, folder, method):
    members = [(folder + name, content) for name, content in parts.items()]
    found, files = inspected(zipped([*([(folder, b"")] if folder else []), *members], method))
    assert found.external_data
    assert found.size_bytes == sum(map(len, parts.values()))
    assert files == ["model.onnx", "net.onnx.data"]


def renamed(content, old, new):
    """Change a member's name in both of its places; zipfile would not write the new one."""
    assert len(old) == len(new)
    return content.replace(old, new)


def linked(parts):
    link = zipfile.ZipInfo("net.onnx.data")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped([("net.onnx", parts["net.onnx"]), (link, b"/etc/passwd")])


def encrypted(content):
    """Set the flag of encryption in all headers."""
    data = bytearray(content)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            data[start + at] |= 1
    return bytes(data)


def overlapping(content):
    """Have the second member's directory entry point at the first member's bytes."""
    data = bytearray(content)
    second = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    return bytes(data)


def understated(content):
    """Say in the directory that the last member is shorter than it is."""
    data = bytearray(content)
    last = data.rfind(b"PK\x01\x02")
    data[last + 24 : last + 28] = struct.pack("<I", 10)
    return bytes(data)


HOSTILE = {
    "absolute": lambda parts: zipped([("/net.onnx", parts["net.onnx"]), ("/net.onnx.data", b"x")]),
    "climbing": lambda parts: zipped([("../net.onnx", parts["net.onnx"])]),
    "climbing from inside": lambda parts: zipped([*parts.items(), ("a/../../x", b"x")]),
    "backslash": lambda parts: zipped([*parts.items(), ("a\\x", b"x")]),
    "nul": lambda parts: renamed(zipped([*parts.items(), ("evilX.txt", b"x")]), b"evilX.txt", b"evil\x00.txt"),
    "duplicate": lambda parts: renamed(zipped([*parts.items(), ("net.onnx.datb", b"x")]), b".datb", b".data"),
    "symlink": linked,
    "encrypted": lambda parts: encrypted(zipped(parts.items())),
    "nested": lambda parts: zipped([("net.onnx", parts["net.onnx"]), ("net.onnx.data", zipped(parts.items()))]),
    "overlapping": lambda parts: overlapping(zipped(parts.items(), zipfile.ZIP_STORED)),
    "understated": lambda parts: understated(zipped(parts.items())),
    "ratio": lambda parts: zipped([*parts.items(), ("zeros", bytes(300 << 20))]),
    "bzip2": lambda parts: zipped(parts.items(), zipfile.ZIP_BZIP2),
    "stray": lambda parts: zipped([*parts.items(), ("README.md", b"hello")]),
    "elsewhere": lambda parts: zipped(
        [("net.onnx", parts["net.onnx"]), ("data/net.onnx.data", parts["net.onnx.data"])]
    ),
    "missing": lambda parts: zipped([("net.onnx", parts["net.onnx"])]),
    "two networks": lambda parts: zipped([*parts.items(), ("other.onnx", parts["net.onnx"])]),
    "no network": lambda parts: zipped([("net.onnx.data", parts["net.onnx.data"])]),
    "many": lambda parts: zipped([*parts.items(), *((f"f{n}", b"") for n in range(2048))]),
    "truncated": lambda parts: zipped(parts.items())[:-40],
    "damaged": lambda parts: zipped(parts.items(), zipfile.ZIP_STORED).replace(parts["net.onnx"][:8], b"\xff" * 8),
    "unusual name": lambda parts: zipped([*parts.items(), ("a\nb", b"x")]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_refused(inspected, parts, kind, tmp_path):
    with pytest.raises(EngineError) as refusal:
        inspected(HOSTILE[kind](parts))
    assert refusal.value.blame == "user"
    assert str(tmp_path) not in refusal.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.zip", "out"]


def test_the_limit_is_on_all_files_together(inspected, parts):
    with pytest.raises(EngineError, match="limit"):
        inspected(zipped(parts.items()), limit=sum(map(len, parts.values())) - 1)
