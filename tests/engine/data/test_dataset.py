"""Datasets: what is told of good ones, that bad ones are refused, and how samples are split, cast and batched."""

import io
import stat
import zipfile

import numpy as np
import pytest

from engine import inspect_dataset
from engine.data.dataset import Dataset, random_samples
from engine.errors import DatasetInvalidError
from engine.inspection import TensorInfo


@pytest.fixture
def write(tmp_path):
    def make(*, packed=False, **arrays):
        path = tmp_path / "data.npz"
        (np.savez_compressed if packed else np.savez)(path, allow_pickle=True, **arrays)
        return path

    return make


def _npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _zip(tmp_path, members, *, method=zipfile.ZIP_STORED):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("names", "said"),
    [(["n" * 2000], "has a name of 2000 letters"), ([f"{number:04}" * 200 for number in range(400)], "are the limit")],
)
def test_what_is_kept_of_a_dataset_is_bounded(write, names, said):
    with pytest.raises(DatasetInvalidError, match=said):
        inspect_dataset(write(**{name: np.zeros((2, 1), np.float32) for name in names}))


def test_describes_arrays_and_labels(write):
    label = np.array([-1] * 6 + [0, 1, 2, 1], np.int64)
    found = inspect_dataset(write(packed=True, image=np.zeros((10, 1, 4, 4), np.uint8), label=label))
    assert [entry.model_dump() for entry in found.arrays] == [
        {"name": "image", "dtype": "uint8", "shape": (10, 1, 4, 4), "low": 0, "high": 0, "misfits": {}}
    ]
    assert (found.samples, found.labelled, found.unlabelled, found.metric) == (10, 4, 6, "top1")


def test_the_declared_metric_wins_and_float_labels_declare_none(write):
    path = write(x=np.zeros((4, 2), np.float32), label=np.zeros((4, 3), np.float32))
    assert inspect_dataset(path).metric is None
    assert inspect_dataset(path, metric="mse").metric == "mse"
    assert inspect_dataset(path, metric="mse").labelled == 4
    with pytest.raises(DatasetInvalidError, match="not known"):
        inspect_dataset(path, metric="beauty")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([1.0, np.nan])}, "NaN"),
        ({"x": np.array([np.inf, 1.0], np.float32)}, "infinity"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((4, 2))}, "differ in the number of samples"),
        ({"x": np.zeros((0, 2))}, "no samples"),
        ({"x": np.float32(1.0)}, "single number"),
        ({"x": np.array([{}, {}], dtype=object)}, "only numbers"),
        ({"x": np.array(["a", "b"])}, "only numbers"),
        ({"x": np.array([1j, 2j])}, "only numbers"),
        ({"label": np.arange(3)}, "no inputs"),
    ],
)
def test_refuses_arrays_that_no_network_should_see(write, arrays, message):
    with pytest.raises(DatasetInvalidError, match=message):
        inspect_dataset(write(**arrays))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../x.npy", b"")], "leaves the archive"),
        ([("/x.npy", b"")], "leaves the archive"),
        ([("a\\x.npy", b"")], "leaves the archive"),
        ([("x.txt", b"hello")], "not an array"),
        ([("x.npy", b"hello")], "not a numpy array"),
        ([("x.npy", _npy(np.arange(9))[:-8])], "truncated"),
        ([("x.npy", _npy(np.arange(9)) + b"more")], "bytes behind"),
        ([], "no arrays"),
        ([(f"x{n}.npy", b"") for n in range(300)], "300 members"),
    ],
)
def test_refuses_archives_that_numpy_does_not_write(tmp_path, members, message):
    with pytest.raises(DatasetInvalidError, match=message):
        inspect_dataset(_zip(tmp_path, members))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refuses_duplicates_and_links(tmp_path):
    array = _npy(np.arange(3))
    with pytest.raises(DatasetInvalidError, match="twice"):
        inspect_dataset(_zip(tmp_path, [("x.npy", array), ("x.npy", array)]))
    link = zipfile.ZipInfo("x.npy")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DatasetInvalidError, match="symbolic link"):
        inspect_dataset(_zip(tmp_path, [(link, "target")]))


def test_refuses_bombs(tmp_path):
    bomb = _npy(np.zeros(300 << 20, np.uint8))
    with pytest.raises(DatasetInvalidError, match="100 times"):
        inspect_dataset(_zip(tmp_path, [("x.npy", bomb)], method=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 100])
def test_refuses_other_files(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DatasetInvalidError, match=r"not an \.npz"):
        inspect_dataset(path)


def test_refuses_flipped_and_missing_bytes(write):
    path = write(packed=True, x=np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    whole = path.read_bytes()
    for at in (len(whole) // 2, len(whole) // 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(DatasetInvalidError):
            inspect_dataset(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(DatasetInvalidError):
        inspect_dataset(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_are_cast_by_value_and_complete(write, tmp_path, packed, order):
    image = np.asarray(np.random.default_rng(0).integers(0, 255, (10, 3, 4), np.uint8), order=order)
    data = Dataset.open(write(packed=packed, image=image), tmp_path)
    inputs = (TensorInfo(name="image", dtype="float32", shape=("n", 3, 4)),)
    samples = data.samples(inputs, np.arange(10))
    batches = list(samples.batches(4))
    assert [len(batch["image"]) for batch in batches] == [4, 4, 2]
    assert all(batch["image"].dtype == np.float32 for batch in batches)
    assert np.array_equal(np.concatenate([batch["image"] for batch in batches]), image.astype(np.float32))


def test_stored_arrays_are_mapped_not_read(write, tmp_path):
    data = Dataset.open(write(x=np.zeros((1000, 100), np.float32)), tmp_path)
    assert isinstance(data.arrays["x"], np.memmap)


def test_random_samples_fit_the_inputs():
    inputs = (
        TensorInfo(name="image", dtype="float32", shape=("n", 3, None, "w")),
        TensorInfo(name="ids", dtype="int64", shape=("n", "seq")),
    )
    feed = next(random_samples(inputs, 5, {"ids": (1, 7)}).batches(2))
    assert feed["image"].shape == (2, 3, 8, 8)
    assert feed["ids"].shape == (2, 7)
    assert feed["ids"].dtype == np.int64


def test_random_samples_of_a_network_with_state_are_whole_inputs():
    inputs = (
        TensorInfo(name="x", dtype="float32", shape=(None, None)),
        TensorInfo(name="state", dtype="float32", shape=(2, None, 8)),
        TensorInfo(name="rate", dtype="int64", shape=()),
    )
    feeds = list(random_samples(inputs, 5, {"x": (1, 64)}).batches(2))
    assert len(feeds) == 5
    assert {name: array.shape for name, array in feeds[0].items()} == {"x": (1, 64), "state": (2, 1, 8), "rate": ()}


def test_samples_whose_batch_axis_is_not_the_first_come_one_at_a_time(write, tmp_path):
    state = np.arange(6 * 2 * 3, dtype=np.float32).reshape(6, 2, 3)
    data = Dataset.open(write(x=np.zeros((6, 4), np.float32), state=state, rate=np.arange(6)), tmp_path)
    inputs = (
        TensorInfo(name="x", dtype="float32", shape=("n", 4)),
        TensorInfo(name="state", dtype="float32", shape=(2, "n", 3)),
        TensorInfo(name="rate", dtype="int64", shape=()),
    )
    feeds = list(data.samples(inputs, np.array([1, 5])).batches(4))
    assert [feed["rate"].item() for feed in feeds] == [1, 5]
    assert feeds[1]["x"].shape == (1, 4)
    assert np.array_equal(feeds[1]["state"], state[5][:, None])


def test_labels_of_words_are_told_how_to_be_numbered(write):
    with pytest.raises(DatasetInvalidError, match="`label` holds words") as refused:
        inspect_dataset(write(x=np.zeros((2, 3)), label=np.array(["cat", "dog"])))
    assert "0 for the network's first" in refused.value.hint


def test_ragged_arrays_are_told_how_to_be_written(write):
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.zeros(3), np.zeros(4)]
    with pytest.raises(DatasetInvalidError) as refused:
        inspect_dataset(write(frames=ragged))
    assert "one .npz per sample" in refused.value.hint
    assert "`frames_length`" in refused.value.hint
