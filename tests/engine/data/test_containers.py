"""Datasets in other files than `.npz`: safetensors, and a zip of one `.npz` per sample."""

import io
import json
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine import inspect_dataset
from engine.compatibility import check_arrays
from engine.data.dataset import Dataset
from engine.errors import DatasetInvalidError
from engine.inspection import Inspection, TensorInfo

KINDS = {"float32": "F32", "uint8": "U8", "int64": "I64", "bool": "BOOL", "float16": "F16"}


def safetensors(arrays, **changes):
    """Write the format by its specification."""
    header, body = {"__metadata__": {"made": "here"}}, b""
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        places = [len(body), len(body) + len(data)]
        header[name] = {"dtype": KINDS[array.dtype.name], "shape": list(array.shape), "data_offsets": places}
        body += data
    for name, more in changes.items():
        header[name] |= more
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


ARRAYS = {"x": np.arange(24, dtype=np.float32).reshape(6, 4), "label": np.array([0, 1, 2, -1, 1, 0], np.int64)}


def stored(tmp_path, content):
    path = tmp_path / "data.safetensors"
    path.write_bytes(content)
    return path


def test_safetensors_are_as_good_as_npz(tmp_path):
    path = stored(tmp_path, safetensors(ARRAYS))
    np.savez(tmp_path / "same.npz", **ARRAYS)
    assert inspect_dataset(path) == inspect_dataset(tmp_path / "same.npz")
    opened = Dataset.open(path, tmp_path)
    np.testing.assert_array_equal(opened.arrays["x"], ARRAYS["x"])
    np.testing.assert_array_equal(opened.label, ARRAYS["label"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors(ARRAYS)[:-1], "truncated"),
        (safetensors(ARRAYS) + b"x", "bytes behind"),
        (safetensors(ARRAYS, x={"data_offsets": [0, 95]}), "bytes that its shape needs"),
        (safetensors(ARRAYS, x={"data_offsets": [48, 144]}), "overlap"),
        (safetensors(ARRAYS, x={"shape": [-6, -4]}), "describe"),
        (safetensors(ARRAYS, x={"shape": [6.0, 4]}), "describe"),
        (safetensors(ARRAYS, x={"shape": "6"}), "describe"),
        (safetensors(ARRAYS, x={"dtype": "BF16"}), "not taken"),
        (safetensors(ARRAYS, x={"shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]}), "overlap|samples"),
        (safetensors(ARRAYS, x={"shape": [1 << 62, 0], "data_offsets": [0, 0]}), "overlap|samples"),
        (safetensors(ARRAYS, x={"shape": [1, 1 << 62, 0], "data_offsets": [0, 0]}), "overlap|larger"),
        (safetensors(ARRAYS, x={"shape": [1] * 63 + [6, 4]}), "65 axes"),
        (safetensors(ARRAYS, x={"dtype": ["F32"]}), "describe"),
        (safetensors(ARRAYS, x={"dtype": {}}), "describe"),
        (safetensors(ARRAYS, __metadata__={"dataset.json": "\ud800"}), "does not say"),
        (safetensors({"x": np.array([[np.nan]], np.float32)}), "NaN"),
        (safetensors({}), "no arrays"),
        (b"\x05\0\0\0\0\0\0\0{nope" + b" " * 20, "cannot be read"),
        (b"\x30\0\0\0\0\0\0\0" + b'{"x": {}, "x": {}}'.ljust(48) + b"abc", "twice"),
        (b"\xff\xff\xff\xff\0\0\0\0{" + b" " * 20, "not an .npz"),
    ],
)
def test_safetensors_that_are_refused(tmp_path, content, message):
    with pytest.raises(DatasetInvalidError, match=message):
        inspect_dataset(stored(tmp_path, content))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "\ud800"]),
    lambda inner: st.lists(inner, max_size=70) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60 if settings.get_current_profile_name() != "fuzz" else 3000)
@given(
    st.sampled_from(["dtype", "shape", "data_offsets", None]),
    st.sampled_from(["x", "label", "__metadata__"]),
    JSON_VALUES,
)
def test_no_header_of_safetensors_is_the_services_fault(tmp_path_factory, field, name, value):
    content = safetensors(ARRAYS, **{name: {field or "dataset.json": value}})
    path = stored(tmp_path_factory.mktemp("one"), content)
    # Anything else that is raised would be the service's.
    with suppress(DatasetInvalidError):
        inspect_dataset(path).model_dump_json()


def npy(shape, dtype="<f4", data=b""):
    """A member of an archive with a header of any kind."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


SIZES = st.sampled_from([0, 1, 2, 6, 2**31, 2**62, 2**63, 2**70, -1])


@settings(max_examples=60 if settings.get_current_profile_name() != "fuzz" else 3000)
@given(
    st.lists(SIZES, max_size=4).map(tuple) | st.integers(60, 70).map(lambda axes: (2, *(1,) * axes)),
    st.sampled_from(
        [
            "<f4",
            "<i8",
            "|b1",
            "|V0",
            "|S0",
            "<U0",
            "|O",
            "<f16",
            "<c8",
            "V4",
            [("a", "<f4")],
            ("<f4", (2,)),
            "",
            5,
            None,
        ]
    ),
    st.sampled_from([b"", bytes(8), bytes(16), bytes(48)]),
)
@example((1 << 62, 0), "<f4", b"")
@example((2, *(1,) * 64), "<f4", bytes(8))
def test_no_header_of_an_array_is_the_services_fault(tmp_path_factory, shape, dtype, data):
    folder = tmp_path_factory.mktemp("one")
    path = of_samples(folder, [("x.npy", npy(shape, dtype, data))])
    try:
        inspect_dataset(path).model_dump_json()
        opened = Dataset.open(path, folder)
    except DatasetInvalidError:
        return
    assert opened.arrays["x"].shape == shape


def sample(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def of_samples(tmp_path, samples):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in samples:
            archive.writestr(name, content)
    return path


def text(length, label):
    return sample(ids=np.arange(length, dtype=np.int64), mask=np.ones(length, np.int8), label=np.int64(label))


LENGTHS = [3, 3, 5, 3, 7]


@pytest.fixture
def texts(tmp_path):
    return of_samples(tmp_path, [(f"{n:03}.npz", text(length, n % 2)) for n, length in enumerate(LENGTHS)])


def test_sizes_may_vary_from_sample_to_sample(texts, tmp_path):
    found = inspect_dataset(texts)
    assert {array.name: array.shape for array in found.arrays} == {"ids": (5, None), "mask": (5, None)}
    assert (found.samples, found.labelled, found.metric) == (5, 5, "top1")
    inputs = tuple(TensorInfo(name=name, dtype="int64", shape=("n", "t")) for name in ("ids", "mask"))
    dataset = Dataset.open(texts, tmp_path)
    assert list(dataset.label) == [0, 1, 0, 1, 0]
    feeds = list(dataset.samples(inputs, np.arange(5)).batches(2))
    # Only neighbours of one size share a batch; the order is kept.
    assert [feed["ids"].shape for feed in feeds] == [(2, 3), (1, 5), (1, 3), (1, 7)]
    assert all(feed["mask"].dtype == np.int64 for feed in feeds)
    np.testing.assert_array_equal(feeds[1]["ids"], [np.arange(5)])


def test_varying_data_need_open_axes(texts):
    def network(shape):
        tensors = [{"name": name, "dtype": "int64", "shape": shape} for name in ("ids", "mask")]
        common = {"opset": {"": 17}, "ir_version": 9, "producer": "", "parameters": 1, "size_bytes": 1, "nodes": 1}
        more = {"ops": {}, "quantized": "none", "float_type": "none", "external_data": False}
        return Inspection.model_validate({"inputs": tensors, "outputs": [], **common, **more})

    found = inspect_dataset(texts)
    check_arrays(network(["n", "t"]), found)
    check_arrays(network([1, "t"]), found)
    for shape, message in (((2, "t"), "takes 2 at a time"), (("n", 3), "varying sizes")):
        with pytest.raises(DatasetInvalidError, match=message):
            check_arrays(network(shape), found)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (sample(ids=np.arange(2, dtype=np.int64)), "same arrays"),
        (text(4, 1)[:-30], "damaged"),
        (b"no archive", "damaged"),
        (sample(ids=np.arange(2, dtype=np.int32), mask=np.ones(2, np.int8), label=np.int64(0)), "another type"),
        (sample(ids=np.ones((2, 2), np.int64), mask=np.ones(2, np.int8), label=np.int64(0)), "number of axes"),
        (sample(ids=np.ones(0, np.int64), mask=np.ones(2, np.int8), label=np.int64(0)), "empty"),
        (sample(ids=np.ones(1, np.int64), mask=np.ones(2, np.int8), label=np.zeros(3, np.int64)), "number of axes"),
    ],
)
def test_samples_that_do_not_belong_together(tmp_path, second, message):
    with pytest.raises(DatasetInvalidError, match=message):
        inspect_dataset(of_samples(tmp_path, [("0.npz", text(3, 0)), ("1.npz", second)]))


def test_labels_of_several_sizes(tmp_path):
    samples = [(f"{n}.npz", sample(x=np.ones(n, np.float32), label=np.zeros(n, np.int64))) for n in (1, 2)]
    with pytest.raises(DatasetInvalidError, match="labels differ"):
        inspect_dataset(of_samples(tmp_path, samples))


def test_a_zip_of_samples_and_something_else(tmp_path):
    with pytest.raises(DatasetInvalidError, match="something else"):
        inspect_dataset(of_samples(tmp_path, [("0.npz", text(3, 0)), ("notes.txt", b"x")]))


SAID = {
    "kind": "images",
    "summary": "2 images, 4 x 4.",
    "parameters": {"scale": 0.25, "mean": [1, 2.5], "crop": None},
    "classes": ["cat", "dog"],
    "made_by": "a script",
}


def declared(path, said, samples=None):
    """Write arrays, or samples of their own sizes, and beside them what is said of them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, arrays in (samples or {}).items():
            stream = io.BytesIO()
            np.savez(stream, **arrays)
            archive.writestr(f"{name}.npz", stream.getvalue())
        for name, values in ({} if samples else ARRAYS).items():
            stream = io.BytesIO()
            np.save(stream, values)
            archive.writestr(f"{name}.npy", stream.getvalue())
        archive.writestr("dataset.json", said if isinstance(said, bytes) else json.dumps(said))
    return path


def test_a_file_says_what_was_done_to_its_data(tmp_path):
    varying = {f"{at}": {"x": np.zeros(at + 1, np.float32)} for at in range(2)}
    metadata = safetensors(ARRAYS)
    length = int.from_bytes(metadata[:8], "little")
    header = json.loads(metadata[8 : 8 + length])
    header["__metadata__"]["dataset.json"] = json.dumps(SAID)
    text = json.dumps(header).encode()
    paths = (
        declared(tmp_path / "data.npz", SAID),
        declared(tmp_path / "samples.zip", SAID, varying),
        stored(tmp_path, len(text).to_bytes(8, "little") + text + metadata[8 + length :]),
    )
    for path in paths:
        found = inspect_dataset(path)
        assert found.preprocessing.model_dump(mode="json") == SAID, path
        assert [array.name for array in found.arrays] == ["x"]
        assert list(Dataset.open(path, tmp_path).arrays) == ["x"]
    np.savez(tmp_path / "silent.npz", **ARRAYS)
    assert inspect_dataset(tmp_path / "silent.npz").preprocessing is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"no json", "JSON"),
        ({"kind": "images"}, "summary"),
        (SAID | {"summary": "x" * 5000}, "summary"),
        (b'{"kind": "k", "summary": "s", "parameters": {"mean": NaN}}', "cannot say"),
        (SAID | {"classes": ["x" * 1000] * 100}, "larger than"),
    ],
)
def test_what_says_nothing_readable_is_refused(tmp_path, said, told):
    with pytest.raises(DatasetInvalidError, match=r"dataset\.json") as refused:
        inspect_dataset(declared(tmp_path / "data.npz", said))
    assert told in refused.value.message
