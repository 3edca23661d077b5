"""How a dataset is parted: what calibrates, what things are chosen on, and what alone judges."""

import re

import numpy as np
import pytest

from engine import inspect_dataset
from engine.data.containers import Varying
from engine.data.dataset import Dataset
from engine.data.parts import LEAST_PARTED, MOST_CALIBRATE, MOST_SELECT, part_sizes
from engine.errors import DatasetInvalidError
from engine.inspection import TensorInfo

X = (TensorInfo(name="x", dtype="float32", shape=("n",)),)


@pytest.fixture
def data(tmp_path):
    """A dataset of `count` samples, numbered in `x`, opened and described."""

    def make(count, *, name="data", **arrays):
        path = tmp_path / f"{name}.npz"
        np.savez(path, x=np.arange(count, dtype=np.float32), **arrays)
        return Dataset.open(path, tmp_path), inspect_dataset(path)

    return make


def parts(opened, judge=None):
    dataset, described = opened
    sizes = part_sizes(described, judge and judge[1])
    drawn = dataset.parts(sizes)
    assert (len(drawn.calibrate), len(drawn.select)) == (sizes.calibrate, sizes.select)
    return sizes, drawn


def test_unlabelled_samples_calibrate_and_labelled_ones_select_and_judge(data):
    label = np.full(1300, -1)
    label[::13] = 3
    label[1::13] = 4
    sizes, drawn = parts(data(1300, label=label))
    assert drawn.calibrate.tolist() == np.flatnonzero(label < 0).tolist()
    assert (sizes.select, sizes.judge, sizes.judge_labelled, sizes.select_is_judge) == (66, 134, 134, False)
    assert sorted([*drawn.select, *drawn.judge]) == np.flatnonzero(label >= 0).tolist()


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (143, (47, 32, 64)),
        (1200, (400, 266, 534)),
        (9512, (MOST_CALIBRATE, MOST_SELECT, 9512 - MOST_CALIBRATE - MOST_SELECT)),
    ],
)
def test_where_all_are_alike_a_seeded_draw_makes_three_parts(data, labelled, count, expected):
    label = {"label": np.arange(count) % 7} if labelled else {}
    sizes, drawn = parts(data(count, **label))
    assert (sizes.calibrate, sizes.select, sizes.judge) == expected
    assert sorted([*drawn.calibrate, *drawn.select, *drawn.judge]) == list(range(count))
    assert sizes.judge_labelled == (expected[2] if labelled else 0)
    # Not the first ones: files are often sorted.
    assert not np.array_equal(drawn.calibrate, np.arange(expected[0]))


def test_the_same_file_gives_the_same_parts(data):
    first, again = (parts(data(500))[1] for _ in range(2))
    for name in ("calibrate", "select", "judge"):
        assert np.array_equal(getattr(first, name), getattr(again, name))


def test_every_class_has_its_share_in_each_part(data):
    label = np.repeat([0, 1, 2], [600, 240, 60])
    sizes, drawn = parts(data(900, label=label))
    for chosen in (drawn.calibrate, drawn.select, drawn.judge):
        counts = np.bincount(label[chosen], minlength=3)
        assert np.abs(counts - len(chosen) * np.array([600, 240, 60]) / 900).max() <= 2
    assert sizes.select == 200


@pytest.mark.parametrize(
    ("count", "unlabelled", "reason"),
    [
        (LEAST_PARTED + 9, 10, f"{LEAST_PARTED - 1} labelled samples are too few .*{LEAST_PARTED} are needed"),
        (142, 0, "142 samples are too few .*143 are needed"),
    ],
)
def test_too_few_samples_are_chosen_on_and_judge(data, count, unlabelled, reason):
    label = np.ones(count, np.int64)
    label[:unlabelled] = -1
    sizes, drawn = parts(data(count, label=label))
    assert sizes.select_is_judge
    assert sizes.select == sizes.judge == count - sizes.calibrate
    assert np.array_equal(drawn.select, drawn.judge)
    assert not set(drawn.select) & set(drawn.calibrate)
    assert re.search(reason, sizes.reason)


def test_a_dataset_says_itself_what_is_for_what(data):
    part = np.array([2, 0, 1, 1, 2, 2, 0], np.uint8)
    sizes, drawn = parts(data(7, part=part, label=np.array([1, -1, 0, 0, 1, 0, -1])))
    assert (sizes.rule, sizes.judge_labelled, sizes.select_is_judge) == ("declared", 3, False)
    assert drawn.calibrate.tolist() == [1, 6]
    assert drawn.select.tolist() == [2, 3]
    assert drawn.judge.tolist() == [0, 4, 5]


@pytest.mark.parametrize(
    ("part", "shared", "calibrate", "words"),
    [
        ([0, 0, 1, 1], True, [0, 1], "none to judge"),
        ([0, 2, 2, 0], True, [0, 3], "none to select"),
        ([1, 1, 2, 2], False, [0, 1], "none to calibrate"),
    ],
)
def test_a_part_that_is_left_out_is_shared_and_said(data, part, shared, calibrate, words):
    sizes, drawn = parts(data(4, part=np.array(part)))
    assert sizes.select_is_judge is shared
    assert drawn.calibrate.tolist() == calibrate
    assert words in sizes.reason


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"part": np.array([0.0, 1, 2, 2])}, "float64"),
        ({"part": np.zeros((4, 2), int)}, "one whole number per sample"),
        ({"part": np.array([0, 1, 3, 2])}, "holds 3 for sample 2"),
        ({"part": np.array([-1, 1, 2, 2])}, "holds -1 for sample 0"),
        ({"part": np.zeros(4, int)}, "no sample to choose or judge on"),
        ({"part": np.array([0, 1, 2, 2]), "label": np.array([-1, 1, 1, -1])}, r"Part 2 \(judge\).* 1 have no label"),
    ],
)
def test_an_array_part_that_says_nonsense_is_refused(data, arrays, message):
    _, described = data(4, **arrays)
    with pytest.raises(DatasetInvalidError, match=message):
        part_sizes(described)


def test_a_network_with_an_input_called_part_gets_it(data):
    dataset, described = data(600, part=np.linspace(0, 1, 600, dtype=np.float32))
    sizes = part_sizes(described, inputs=["x", "part"])
    assert (sizes.rule, sizes.calibrate) == ("seeded", 200)
    inputs = (*X, TensorInfo(name="part", dtype="float32", shape=("n",)))
    feed = next(dataset.samples(inputs, dataset.parts(sizes).select).batches(4))
    assert feed["part"].shape == (4,)


def test_a_second_dataset_judges_and_the_first_one_calibrates_and_selects(data):
    judge = data(50, name="judge", label=np.zeros(50, int))
    sizes, drawn = parts(data(300), judge)
    assert (sizes.calibrate, sizes.select, sizes.judge, sizes.judge_labelled) == (150, 150, 50, 50)
    assert not sizes.select_is_judge
    assert not set(drawn.calibrate) & set(drawn.select)
    label = np.r_[np.full(20, -1), np.ones(5, int)]
    assert parts(data(25, label=label), judge)[1].select.tolist() == [20, 21, 22, 23, 24]
    sizes, drawn = parts(data(6, part=np.array([0, 0, 1, 1, 2, 2])), judge)
    assert (sizes.judge, drawn.select.tolist()) == (50, [2, 3])
    assert "2 samples that judge are left out" in sizes.reason


def test_a_second_dataset_that_cannot_judge_is_refused(data):
    _, described = data(40)
    with pytest.raises(DatasetInvalidError, match="one sample"):
        part_sizes(described, data(1, name="judge")[1])
    with pytest.raises(DatasetInvalidError, match="The dataset that judges holds 3 samples, of which 1"):
        part_sizes(described, data(3, name="judge", label=np.array([1, -1, 1]))[1])
    with pytest.raises(DatasetInvalidError, match="At least two samples"):
        part_sizes(data(1)[1])


def test_a_copied_part_leads_to_no_other_sample(data, tmp_path, monkeypatch):
    dataset, _ = data(100)
    chosen = np.array([3, 50, 7])
    for limit in (1 << 20, 0):  # in memory, and in a file of its own
        monkeypatch.setattr("engine.data.dataset._HELD_BYTES", limit)
        copy = dataset.only(chosen, X, tmp_path)
        assert np.array_equal(copy.arrays["x"], [3, 50, 7])
        array = copy.arrays["x"]
        assert isinstance(array, np.memmap) is (limit == 0)
        while array is not None:
            assert np.asarray(array).nbytes == 12 if isinstance(array, np.ndarray) else len(array) == 12
            array = getattr(array, "base", None)


def test_samples_of_their_own_sizes_are_copied_too(tmp_path):
    rows = [np.full((length, 2), length, np.float32) for length in (3, 1, 4, 1, 5)]
    array = Varying([row.shape for row in rows], rows[0].dtype, lambda index: rows[index])
    inputs = (TensorInfo(name="x", dtype="float32", shape=("n", "t", 2)),)
    copy = Dataset({"x": array}, None).only(np.array([4, 1]), inputs, tmp_path)
    feeds = [feed["x"] for feed in copy.samples(inputs).batches(2)]
    assert [feed.shape for feed in feeds] == [(1, 5, 2), (1, 1, 2)]
    assert [feed.flat[0] for feed in feeds] == [5, 1]
