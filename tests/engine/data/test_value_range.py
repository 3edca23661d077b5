"""The numbers of arrays, and the first that a type does not hold."""

import io
import zipfile

import numpy as np
import pytest

from engine import inspect_dataset
from engine.data.dataset import Dataset
from engine.inspection import TensorInfo


def described(path):
    return {array.name: array for array in inspect_dataset(path).arrays}


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_first_number_that_a_type_does_not_hold_is_named(tmp_path, order):
    ids = np.arange(60).reshape(20, 3)
    ids[7, 1] = 3_000_000_000
    ids[11, 0] = -9
    path = tmp_path / "d.npz"
    np.savez(path, ids=np.asarray(ids, order=order), x=np.array([[0.0, 1.0]] * 9 + [[2.5, 1e300]] * 11))
    found = described(path)
    assert (found["ids"].low, found["ids"].high) == (-9, 3_000_000_000)
    assert found["ids"].misfits["int32"] == "3000000000 in sample 7"
    assert found["ids"].misfits["uint64"] == "-9 in sample 11"
    assert found["ids"].misfits["bool"].startswith("2 in sample 0" if order == "C" else "3 in sample 1")
    assert "int64" not in found["ids"].misfits
    assert found["x"].misfits == {
        "integers": "2.5 in sample 9",
        "float16": "1e+300 in sample 9",
        "float32": "1e+300 in sample 9",
    }


def test_limits_of_integers_are_exact_for_floats(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(
        path, edge=np.array([[1.0], [2.0**31]], np.float32), below=np.array([[-(2.0**31)], [2.0**31 - 128]], np.float32)
    )
    found = described(path)
    assert found["edge"].misfits["int32"] == "2147483648.0 in sample 1"
    assert "int32" not in found["below"].misfits
    assert "int64" not in found["edge"].misfits


def test_samples_of_their_own_sizes(tmp_path):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number, values in enumerate(([1, 2, 3], [4, 500])):
            sample = io.BytesIO()
            np.savez(sample, ids=np.array(values), cache=np.zeros((2, 0, 4), np.float32))
            archive.writestr(f"{number}.npz", sample.getvalue())
    found = described(path)
    assert found["ids"].misfits["uint8"] == "500 in sample 1"
    assert found["cache"].shape == (2, 2, 0, 4)
    assert found["cache"].low is None


def test_numbers_are_fed_as_the_type_that_the_network_takes(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, ids=np.arange(12).reshape(4, 3), mask=np.ones((4, 3)))
    inputs = (
        TensorInfo(name="ids", dtype="int32", shape=("n", 3)),
        TensorInfo(name="mask", dtype="bool", shape=("n", 3)),
    )
    feed = next(Dataset.open(path, tmp_path).samples(inputs).batches(4))
    assert feed["ids"].dtype == np.int32
    assert feed["mask"].dtype == np.bool_
    assert feed["ids"].tolist() == np.arange(12).reshape(4, 3).tolist()
