"""What the contests are scored on took no part in them."""

import numpy as np
import pytest

from benchmarks import cases
from benchmarks.cases import SELECT_SAMPLES, Data, write_dataset
from engine import inspect_dataset
from engine.data.dataset import Dataset
from engine.data.parts import part_sizes
from tests.engine.conftest import residual


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(residual())
    return tmp_path


def numbered(count):
    """Give images that are told apart by their number."""
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, 2, 2))


def numbers(feed, name="image"):
    return set(feed[name].reshape(len(feed[name]), -1)[:, 0].tolist())


@pytest.mark.parametrize(("labelled", "selecting"), [(5000, SELECT_SAMPLES), (300, 150)])
def test_labelled_samples_that_ours_chooses_on_are_not_scored(folder, labelled, selecting):
    label = np.r_[np.full(40, -1), np.arange(labelled) % 10]
    np.savez(folder / "data.npz", image=numbered(40 + labelled), label=label)
    data = cases._labelled(folder)
    parts = [numbers(each) for each in (data.calibration, data.select, data.test)]
    assert [len(part) for part in parts] == [40, selecting, labelled - selecting]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert len(data.truth) == len(data)
    # The file that ours gets holds none of what is scored, and is parted as the contest says.
    write_dataset(data, folder / "ours.npz")
    with np.load(folder / "ours.npz") as stored:
        assert numbers({"image": stored["image"]}) == parts[0] | parts[1]
    sizes = part_sizes(inspect_dataset(folder / "ours.npz"))
    assert (sizes.calibrate, sizes.select) == (40, selecting)
    quick = data.first(20)
    assert (quick.selecting, len(quick)) == (20, 20)


def test_without_labels_every_other_calibration_sample_is_chosen_on(tmp_path):
    path = tmp_path / "ours.npz"
    write_dataset(Data({"x": np.arange(7.0)}, {"x": np.arange(100.0, 104)}, constants={"rate": np.array(16000)}), path)
    described, data = inspect_dataset(path), Dataset.open(path, tmp_path)
    drawn = data.parts(part_sizes(described))
    assert drawn.calibrate.tolist() == [0, 2, 4, 6]
    assert drawn.select.tolist() == [1, 3, 5]
    assert data.arrays["rate"].tolist() == [16000] * 7


def test_speech_is_scored_on_frames_that_calibrated_nothing(tmp_path):
    np.savez(tmp_path / "frames.npz", input=numbered(80), state=numbered(80))
    data = cases._speech(tmp_path)
    assert numbers(data.calibration, "input") == set(range(0, 40, 4))
    assert numbers(data.test, "input") == set(range(40, 80))
