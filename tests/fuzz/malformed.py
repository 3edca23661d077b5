"""Files that are no networks, data or archives, or are ones that nobody should open: made when the tests run, none is stored.

Each is by name: its kind, and what makes its bytes. Those that tests of one reader hold to its words are among them.
"""

import gzip
import io
import json
import pickle
import struct
import zipfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..engine.data.test_containers import ARRAYS, safetensors
from ..engine.graph.test_archive import HOSTILE, zipped
from ..engine.graph.test_validate import INVALID, UNSUPPORTED
from .networks import shaped

_GIANT = (1 << 63) - 1


def _value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _model(*nodes, weights=(), inputs=(("x", [2, 2]),), opset=18, **fields):
    graph = helper.make_graph(
        list(nodes),
        "net",
        [_value(name, shape) for name, shape in inputs],
        [_value("y", None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    model = shaped(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9))
    for name, value in fields.items():
        setattr(model, name, value)
    return model


def _node(kind, *inputs, out="y", **attributes):
    return helper.make_node(kind, list(inputs), [out], **attributes)


def _relu():
    return _model(_node("Relu", "x"))


def _bytes():
    return _relu().SerializeToString()


def _whole(*values):
    return np.array(values, np.int64)


def _loop(body, count=_GIANT):
    graph = helper.make_graph(
        body,
        "body",
        [_value("i", [], TensorProto.INT64), _value("c", [], TensorProto.BOOL), _value("v", None)],
        [_value("c2", [], TensorProto.BOOL), _value("v2", None)],
    )
    return _model(
        _node("Loop", "n", "go", "x", body=graph), weights=(("n", np.array(count, np.int64)), ("go", np.array(True)))
    )


def _endless():
    return _loop([_node("Identity", "c", out="c2"), _node("Identity", "v", out="v2")])


def _growing():
    return _loop([_node("Identity", "c", out="c2"), _node("Concat", "v", "v", out="v2", axis=0)])


def _named(name):
    model = _relu()
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    return model


def _dims(*dims, raw=b""):
    model = _model(_node("Add", "x", "w"))
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=raw))
    return model


def _twice_filled():
    model = _dims(1, raw=b"\0" * 4)
    model.graph.initializer[0].float_data.extend([1.0, 2.0])
    return model


def _outside(**keys):
    model = _model(_node("Add", "x", "w"))
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    for key, value in keys.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    return model


def _many_nodes():
    model = _relu()
    model.graph.node.extend([model.graph.node[0]] * 100_001)
    return model


def _same_names():
    return _model(_node("Relu", "x", out="t"), _node("Relu", "x", out="t"), _node("Relu", "t"))


def _without_graph():
    model = _relu()
    model.ClearField("graph")
    return model


_NETWORKS = {
    "without a graph": _without_graph,
    "endless loop": _endless,
    "loop that doubles its memory": _growing,
    "names that repeat": _same_names,
    "more nodes than anybody has": _many_nodes,
    "name of 14 MB": lambda: _named("x" * 14_000_000),
    "name with a NUL": lambda: _named("x\0y"),
    "name with line ends and escapes": lambda: _named("\x1b[2J\r\n"),
    "name that is a path": lambda: _named("../../etc/passwd"),
    "empty name": lambda: _named(""),
    "dims beyond 64 bits": lambda: _dims(_GIANT, _GIANT, _GIANT),
    "dims whose product is 0 modulo 2^64": lambda: _dims(1 << 32, 1 << 32),
    "65 dims": lambda: _dims(*[1] * 65, raw=b"\0" * 4),
    "negative dims": lambda: _dims(-1, -1, raw=b"\0" * 4),
    "data in two fields": _twice_filled,
    "external data at a negative place": lambda: _outside(location="w", offset="-1", length="16"),
    "external data of no number": lambda: _outside(location="w", offset="x", length="y"),
    "external data in a device": lambda: _outside(location="/dev/zero", length="16"),
    "external data at an address": lambda: _outside(location="http://127.0.0.1/w"),
    "external data without a place": lambda: _outside(offset="0"),
    "external data with a NUL": lambda: _outside(location="w\0/../../etc/passwd"),
    "IR version of the future": lambda: _model(_node("Relu", "x"), ir_version=1 << 40),
    "IR version below zero": lambda: _model(_node("Relu", "x"), ir_version=-1),
    "pads of 2^62": lambda: _model(_node("Pad", "x", "p"), weights=(("p", _whole(1 << 62, 0, 1 << 62, 0)),)),
    "expanded to 2^60": lambda: _model(_node("Expand", "x", "s"), weights=(("s", _whole(1 << 30, 1 << 30, 2, 2)),)),
    "repeated 2^40 times": lambda: _model(_node("Tile", "x", "r"), weights=(("r", _whole(1 << 20, 1 << 20)),)),
    "filled with 2^40 values": lambda: _model(_node("ConstantOfShape", "s"), weights=(("s", _whole(1 << 40)),)),
    "unit matrix of 2^40": lambda: _model(
        _node("ConstantOfShape", "s", out="e"), _node("EyeLike", "e"), weights=(("s", _whole(1 << 20, 1 << 20)),)
    ),
    "one hot of 2^40": lambda: _model(
        _node("OneHot", "i", "d", "v"), weights=(("i", _whole(0)), ("d", _whole(1 << 40)), ("v", np.float32([0, 1])))
    ),
    "range without end": lambda: _model(
        _node("Range", "a", "b", "d"),
        weights=(("a", np.float32(0)), ("b", np.float32(1e30)), ("d", np.float32(1e-30))),
    ),
    "range of steps of zero": lambda: _model(
        _node("Range", "a", "b", "d"), weights=(("a", np.int64(0)), ("b", np.int64(9)), ("d", np.int64(0)))
    ),
    "slice by steps of zero": lambda: _model(
        _node("Slice", "x", "a", "b", "c", "d"),
        weights=(("a", _whole(0)), ("b", _whole(2)), ("c", _whole(0)), ("d", _whole(0))),
    ),
    "shape with two unknowns": lambda: _model(_node("Reshape", "x", "s"), weights=(("s", _whole(-1, -1)),)),
    "shape below minus one": lambda: _model(_node("Reshape", "x", "s"), weights=(("s", _whole(-2, 2)),)),
    "shape by a float": lambda: _model(_node("Reshape", "x", "s"), weights=(("s", np.float32([4])),)),
    "axis of 2^62": lambda: _model(_node("Softmax", "x", axis=1 << 62)),
    "permutation that repeats": lambda: _model(_node("Transpose", "x", perm=[0, 0])),
    "permutation outside": lambda: _model(_node("Transpose", "x", perm=[7, -9])),
    "split into nothing": lambda: _model(_node("Split", "x", "s", axis=0), weights=(("s", _whole(0, 0)),)),
    "blocks of zero": lambda: _model(_node("DepthToSpace", "x", blocksize=0), inputs=(("x", [1, 4, 2, 2]),)),
    "convolution of no group": lambda: _model(
        _node("Conv", "x", "w", group=0),
        weights=(("w", np.ones((1, 1, 1, 1), np.float32)),),
        inputs=(("x", [1, 1, 4, 4]),),
    ),
    "convolution by strides of zero": lambda: _model(
        _node("Conv", "x", "w", strides=[0, 0]),
        weights=(("w", np.ones((1, 1, 1, 1), np.float32)),),
        inputs=(("x", [1, 1, 4, 4]),),
    ),
    "convolution dilated by 2^62": lambda: _model(
        _node("Conv", "x", "w", dilations=[1 << 62, 1 << 62]),
        weights=(("w", np.ones((1, 1, 3, 3), np.float32)),),
        inputs=(("x", [1, 1, 4, 4]),),
    ),
    "pool by no kernel": lambda: _model(_node("MaxPool", "x", kernel_shape=[0, 0]), inputs=(("x", [1, 1, 4, 4]),)),
    "pool by a negative kernel": lambda: _model(
        _node("MaxPool", "x", kernel_shape=[-1, 1]), inputs=(("x", [1, 1, 4, 4]),)
    ),
    "resized by infinity": lambda: _model(
        _node("Resize", "x", "", "s"), weights=(("s", np.float32([1, 1, np.inf, 1e9])),), inputs=(("x", [1, 1, 4, 4]),)
    ),
    "recurrent of 2^30 units": lambda: _model(
        _node("LSTM", "x", "w", "w", hidden_size=1 << 30),
        weights=(("w", np.ones((1, 4, 1), np.float32)),),
        inputs=(("x", [1, 1, 1]),),
    ),
    "gathered from outside": lambda: _model(_node("Gather", "x", "i"), weights=(("i", _whole(1 << 40)),)),
    "the largest 2^62": lambda: _model(
        helper.make_node("TopK", ["x", "k"], ["y", "at"]), weights=(("k", _whole(1 << 62)),)
    ),
    "equation of nonsense": lambda: _model(_node("Einsum", "x", equation="->->ij,,..")),
    "branch that is missing": lambda: _model(helper.make_node("If", ["c"], ["y"]), weights=(("c", np.array(True)),)),
    "quantized without a zero point": lambda: _model(_node("QLinearConv", "x", "x", "x")),
    "cast to a type that is none": lambda: _model(_node("Cast", "x", to=99)),
    "constant of nothing": lambda: _model(_node("Constant")),
}


def _field(number, wire, body=b""):
    return bytes([number << 3 | wire]) + body


_BYTES = {
    "nothing": lambda: b"",
    "one byte": lambda: b"\x08",
    "zeros": lambda: bytes(4096),
    "text": lambda: b"This is not a network.\n" * 40,
    "page of an error": lambda: b"<!DOCTYPE html><html><head><title>404</title></head></html>",
    "JSON": lambda: json.dumps({"format": "onnx", "graph": {"node": []}}).encode(),
    "pickle": lambda: pickle.dumps({"state_dict": [1, 2, 3]}),
    "network in gzip": lambda: gzip.compress(_bytes()),
    "pointer of Git LFS": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    ),
    "program": lambda: b"\x7fELF\x02\x01\x01" + bytes(200),
    "length beyond the file": lambda: _field(7, 2, b"\xff\xff\xff\xff\x0f") + b"abc",
    "length of ten bytes": lambda: _field(7, 2, b"\xff" * 9 + b"\x01"),
    "number without end": lambda: _field(1, 0, b"\xff" * 40),
    "groups in groups": lambda: b"\x0b" * 20_000,
    "messages in messages": lambda: _deep(400),
    "fields that nobody knows": lambda: _bytes() + b"\xfa\x3f\x04abcd" * 50_000,
    "graph as a number": lambda: _field(7, 0, b"\x01"),
    "version as a text": lambda: _field(1, 2, b"\x03abc") + _bytes(),
    "name of no UTF-8": lambda: (
        _named("xxxxxxxx").SerializeToString().replace(b"xxxxxxxx", b"\xff\xfe\xed\xa0\x80\xc3\x28\x80")
    ),
    "graph twice": lambda: _bytes() + _bytes(),
    "half of a network": lambda: _bytes()[: len(_bytes()) // 2],
    "all but the last byte": lambda: _bytes()[:-1],
    "network behind rubbish": lambda: b"\0\0\0\0" + _bytes(),
}


def _deep(depth):
    body = b""
    for _ in range(depth):
        # An attribute with a graph of a node with an attribute.
        body = b"\x32" + _size(body) + body
        body = b"\x2a" + _size(body) + body
        body = b"\x0a" + _size(body) + body
    return _field(1, 0, b"\x09") + b"\x3a" + _size(body) + body


def _size(body):
    size, made = len(body), b""
    while size > 127:
        made, size = made + bytes([size & 127 | 128]), size >> 7
    return made + bytes([size])


def _npy(header, body=b"", version=(1, 0)):
    text = header.encode("latin1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + body


def _described(descr="'<f4'", shape="(2, 2)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def _npz(*members, compression=zipfile.ZIP_STORED):
    return zipped(members, compression)


def _arrays(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


_DATA = {
    "objects": lambda: _arrays(x=np.array([{"a": 1}, print], object)),
    "texts": lambda: _arrays(x=np.array(["a", "b"])),
    "records": lambda: _arrays(x=np.zeros(3, [("a", "f4"), ("b", "i4")])),
    "complex numbers": lambda: _arrays(x=np.zeros(3, np.complex64)),
    "dates": lambda: _arrays(x=np.zeros(3, "M8[s]")),
    "not numbers": lambda: _arrays(x=np.full((3, 2), np.nan, np.float32)),
    "numbers without end": lambda: _arrays(x=np.full((3, 2), np.inf, np.float32)),
    "no samples": lambda: _arrays(x=np.zeros((0, 2), np.float32)),
    "one number": lambda: _arrays(x=np.float32(1)),
    "samples that do not match": lambda: _arrays(x=np.zeros((3, 2), np.float32), y=np.zeros((4, 2), np.float32)),
    "no array": _npz,
    "something else than arrays": lambda: _npz(("x.txt", b"hello")),
    "array outside": lambda: _npz(("../x.npy", _npy(_described(), bytes(16)))),
    "array of a truncated header": lambda: _npz(("x.npy", b"\x93NUMPY\x01\x00\xff\xff{")),
    "array of a version that is none": lambda: _npz(("x.npy", _npy(_described(), bytes(16), version=(9, 9)))),
    "header that is a program": lambda: _npz(("x.npy", _npy("__import__('os').getpid()\n"))),
    "header in brackets": lambda: _npz(("x.npy", _npy("(" * 2000 + ")" * 2000 + "\n"))),
    "header of other names": lambda: _npz(("x.npy", _npy("{'a': 1}\n"))),
    "shape of 2^62": lambda: _npz(("x.npy", _npy(_described(shape=f"({1 << 62},)")))),
    "shape below zero": lambda: _npz(("x.npy", _npy(_described(shape="(-1, 4)"), bytes(16)))),
    "shape of floats": lambda: _npz(("x.npy", _npy(_described(shape="(2.0, 2)"), bytes(16)))),
    "shape of 65 sizes": lambda: _npz(("x.npy", _npy(_described(shape="(" + "1, " * 65 + ")"), bytes(4)))),
    "shape of no bytes": lambda: _npz(("x.npy", _npy(_described(shape=f"({1 << 62}, 0)")))),
    "type of no bytes": lambda: _npz(("x.npy", _npy(_described(descr="'<V0'")))),
    "type of 2^31 bytes": lambda: _npz(("x.npy", _npy(_described(descr="'<U2147483647'")))),
    "fewer bytes than said": lambda: _npz(("x.npy", _npy(_described(), bytes(3)))),
    "zeros of 32 MB": lambda: _npz(
        ("x.npy", _npy(_described(descr="'|u1'", shape="(33554432,)"), bytes(32 << 20))),
        compression=zipfile.ZIP_DEFLATED,
    ),
    "half of a zip": lambda: _arrays(x=np.zeros((3, 2), np.float32))[:100],
    "damaged bytes": lambda: _arrays(x=np.arange(600, dtype=np.float32).reshape(300, 2)).replace(
        b"\0\0\x80\x3f", b"\0\1\x80\x3f"
    ),
}
_TENSORS = {
    "header longer than the file": lambda: (1 << 40).to_bytes(8, "little") + b"{}",
    "header of no JSON": lambda: b"\x04\0\0\0\0\0\0\0{{{{",
    "header that is a list": lambda: b"\x02\0\0\0\0\0\0\0[]",
    "header of no UTF-8": lambda: b"\x0c\0\0\0\0\0\0\0" + b'{"\xff\xfe": {}}'[:12],
    "header in brackets, again": lambda: (40_000).to_bytes(8, "little") + b"[" * 40_000,
    "type that is a list": lambda: safetensors(ARRAYS, x={"dtype": ["F32"]}),
    "type that is a number": lambda: safetensors(ARRAYS, x={"dtype": 7}),
    "sizes that are true": lambda: safetensors(ARRAYS, x={"shape": [True, 4]}),
    "sizes beyond 64 bits": lambda: safetensors(ARRAYS, x={"shape": [1 << 70]}),
    "65 sizes": lambda: safetensors(ARRAYS, x={"shape": [6, 4, *[1] * 63]}),
    "places below zero": lambda: safetensors(ARRAYS, x={"data_offsets": [-96, 0]}),
    "places of no number": lambda: safetensors(ARRAYS, x={"data_offsets": [None, "a"]}),
    "three places": lambda: safetensors(ARRAYS, x={"data_offsets": [0, 48, 96]}),
    "name of a NUL": lambda: safetensors({"x\0y": ARRAYS["x"]}),
    "array that is none": lambda: b"\x0b\0\0\0\0\0\0\0" + b'{"x": null}',
    "array without a place": lambda: b"\x16\0\0\0\0\0\0\0" + b'{"x": {"dtype": "F32"}}'[:22],
}


def _network(make):
    """The bytes of what makes a network or bytes."""
    made = make()
    return made.SerializeToString() if isinstance(made, onnx.ModelProto) else made


def _parts():
    """A network with its weights in a file beside it, by name."""
    return {"net.onnx": _outside(location="net.onnx.data", offset="0", length="16").SerializeToString(), "net.onnx.data": b"\0\0\x80\x3f" * 4}  # fmt: skip


CASES = {
    **{f"network: {name}": ("network", lambda make=make: _network(make))
       for name, make in {**INVALID, **UNSUPPORTED, **_NETWORKS, **_BYTES}.items()},
    **{f"npz: {name}": ("npz", make) for name, make in _DATA.items()},
    **{f"safetensors: {name}": ("safetensors", make) for name, make in _TENSORS.items()},
    **{f"archive: {name}": ("archive", lambda make=make: make(_parts())) for name, make in HOSTILE.items()},
}  # fmt: skip
