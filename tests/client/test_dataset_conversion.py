"""Folders of images and tables become the files that numpy would write."""

import numpy as np
import pytest
from PIL import Image

from onnxpress import Pixels, UsageError, csv_to_npz, images_to_npz
from onnxpress.npz import NpzWriter


def test_an_npz_is_what_numpy_writes(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with NpzWriter(tmp_path / "x.npz") as npz:
        npz.add("values", "float32", (2, 3), [values[:1].tobytes(), values[1:].tobytes()])
        npz.add("label", "int64", (2,), [np.array([1, -1], "<i8").tobytes()])
        npz.add("none", "uint8", (0, 4), [])
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["values"], values)
        assert list(found["label"]) == [1, -1]
        assert (found["none"].shape, found["none"].dtype) == ((0, 4), np.uint8)
    with NpzWriter(tmp_path / "y.npz") as npz, pytest.raises(ValueError, match="4 bytes too few"):
        npz.add("values", "float32", (1, 2), [bytes(4)])


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    made = {}
    for name in ("dogs/1.png", "cats/2.png", "cats/1.png"):
        made[name] = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made[name]).save(folder / name)
    (folder / "notes").mkdir()
    return folder, np.stack([made[name] for name in ("cats/1.png", "cats/2.png", "dogs/1.png")])


def test_subfolders_are_classes(pictures, tmp_path):
    folder, images = pictures
    target = tmp_path / "data.npz"
    done = images_to_npz(folder, target, name="image", pixels=Pixels(6, 8))
    assert (done.samples, done.classes) == (3, ("cats", "dogs"))
    with np.load(target, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["image"], images.transpose(0, 3, 1, 2))
        assert list(found["label"]) == [0, 0, 1]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_values_are_scaled_as_in_training(pictures, tmp_path, layout):
    folder, images = pictures
    pixels = Pixels(6, 8, layout=layout, scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    images_to_npz(folder, tmp_path / "x.npz", name="image", pixels=pixels)
    wanted = (images / 255 - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.3, 0.4])
    with np.load(tmp_path / "x.npz") as found:
        assert found["image"].dtype == np.float32
        got = found["image"].transpose(0, 2, 3, 1) if layout == "nchw" else found["image"]
        np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_bytes_in_the_other_order_gray_and_smaller(pictures, tmp_path):
    folder, images = pictures
    images_to_npz(folder / "dogs", tmp_path / "x.npz", name="image", pixels=Pixels(6, 8, layout="nhwc"))
    with np.load(tmp_path / "x.npz") as found:
        np.testing.assert_array_equal(found["image"], images[2:])
        assert "label" not in found
    images_to_npz(folder, tmp_path / "y.npz", name="image", pixels=Pixels(3, 4, gray=True))
    with np.load(tmp_path / "y.npz") as found:
        assert found["image"].shape == (3, 1, 3, 4)


def test_what_is_no_image(pictures, tmp_path):
    folder, _ = pictures
    (folder / "cats" / "0.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"0\.png is not a readable image"):
        images_to_npz(folder, tmp_path / "x.npz", name="image", pixels=Pixels(6, 8))
    with pytest.raises(UsageError, match="holds no images"):
        images_to_npz(folder / "notes", tmp_path / "x.npz", name="image", pixels=Pixels(6, 8))


def test_a_table(tmp_path):
    (tmp_path / "t.csv").write_text("a,kind,b\n1,cat,2.5\n-3,dog,4e1\n0,,1\n")
    done = csv_to_npz(tmp_path / "t.csv", tmp_path / "t.npz", name="x", label="kind")
    assert (done.samples, done.classes) == (3, ("cat", "dog"))
    with np.load(tmp_path / "t.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["x"], np.array([[1, 2.5], [-3, 40], [0, 1]], np.float32))
        assert list(found["label"]) == [0, 1, -1]


def test_a_table_of_numbers_without_a_label(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    csv_to_npz(tmp_path / "t.csv", tmp_path / "t.npz", name="x")
    with np.load(tmp_path / "t.npz") as found:
        assert list(found) == ["x", "dataset.json"]


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("a,b\n1,x\n", None, "line 2"),
        ("a,b\n1\n", None, "1 values for 2 columns"),
        ("a,b\n", None, "no rows"),
        ("", None, "no rows"),
        ("a\n1\n", "a", "no columns but"),
        ("a,b\n1,2\n", "c", "no column 'c'"),
    ],
)
def test_what_is_no_table(tmp_path, text, label, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        csv_to_npz(tmp_path / "t.csv", tmp_path / "t.npz", name="x", label=label)
