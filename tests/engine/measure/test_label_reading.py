"""Labels as people store them, beside the outputs of networks: read as they are meant, or refused with what is wrong."""

import numpy as np
import pytest

from engine.data.labels import look_at
from engine.errors import DatasetInvalidError
from engine.measure.label_match import match_labels
from engine.measure.quality import Evaluator
from engine.runtime.sessions import session
from engine.target import Target

CPU = Target()
DRAW = np.random.default_rng(5)
WEIGHT = DRAW.normal(size=(8, 10))
X = DRAW.normal(size=(120, 8)).astype(np.float32)
SCORES = X @ WEIGHT.astype(np.float32)
# Two thirds of them are what the network says.
CLASSES = np.where(DRAW.random(120) < 0.67, SCORES.argmax(1), DRAW.integers(0, 10, 120))
RIGHT = float((SCORES.argmax(1) == CLASSES).mean())
SMOOTH = np.eye(10)[CLASSES] * 0.9 + 0.01


def quality(linear, arrays, label, metric):
    with Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), labels=label, metric=metric) as evaluator:
        return {each.metric: each for each in evaluator.evaluate(session(linear(WEIGHT), CPU))}[metric], evaluator


@pytest.mark.parametrize(
    "label",
    [
        np.eye(10, dtype=np.int64)[CLASSES],
        np.eye(10, dtype=np.float32)[CLASSES],
        np.eye(10, dtype=np.bool_)[CLASSES],
        np.eye(10, dtype=np.uint8)[CLASSES][:, None],
        SMOOTH.astype(np.float32),
        CLASSES.astype(np.float64),
        CLASSES[:, None],
        CLASSES[:, None].astype(np.float32),
    ],
    ids=[
        "one-hot",
        "one-hot floats",
        "one-hot booleans",
        "one-hot bytes (N, 1, C)",
        "smoothed",
        "floats",
        "(N, 1)",
        "float (N, 1)",
    ],
)
@pytest.mark.parametrize("metric", ["top1", "top5", "f1"])
def test_classes_are_read_however_they_are_written(linear, arrays, label, metric):
    found, _ = quality(linear, arrays, label, metric)
    plain, _ = quality(linear, arrays, CLASSES, metric)
    assert found == plain
    if metric == "top1":
        assert found.original == pytest.approx(RIGHT)


def test_the_report_says_how_labels_were_read(linear, arrays):
    _, evaluator = quality(linear, arrays, np.eye(10)[CLASSES], "top1")
    assert "top1 and read as one-hot rows, fit it" in evaluator.outputs[0].reason


def test_several_classes_at_once_are_judged_by_f1_of_each(linear, arrays):
    wanted = (SCORES + DRAW.normal(size=SCORES.shape) > 0).astype(np.int64)
    found, _ = quality(linear, arrays, wanted, "f1")
    decided = SCORES > 0
    scores = [
        2 * (decided[:, at] & (wanted[:, at] == 1)).sum() / (decided[:, at].sum() + wanted[:, at].sum())
        for at in range(10)
    ]
    assert found.original == pytest.approx(np.mean(scores))
    with pytest.raises(DatasetInvalidError, match="several classes at once, of which top1 says nothing") as refused:
        quality(linear, arrays, wanted, "top1")
    assert "f1" in refused.value.hint


@pytest.mark.parametrize(
    ("label", "metric", "message"),
    [
        (CLASSES + 1, "top1", "names class 10, the network has 10 classes"),
        (CLASSES - 5, "top1", "A label names class -5"),
        (CLASSES + 0.5, "top1", r"top1 takes class numbers, but a label is \d\.5"),
        (np.full((120, 10), 0.1), "top1", "in some no class has more than half"),
        (np.eye(10)[CLASSES] * (np.arange(120) % 2)[:, None], "top1", "some hold no 1"),
        (np.eye(9)[CLASSES % 9], "top1", "they do not fit"),
        (SCORES, "f1", "class numbers, but a label is"),
        (SCORES.T.reshape(120, 5, 2), "mse", None),
        (SCORES[:, :5], "mse", "they do not fit"),
    ],
)
def test_what_cannot_be_read_is_refused(linear, arrays, label, metric, message):
    if message is None:
        assert quality(linear, arrays, label, metric)
        return
    with pytest.raises(DatasetInvalidError, match=message):
        quality(linear, arrays, label, metric)


def test_labels_that_count_from_one_are_told_so(linear, arrays):
    with pytest.raises(DatasetInvalidError) as refused:
        quality(linear, arrays, CLASSES + 1, "top1")
    assert "count from 1" in refused.value.hint


def read(output, label, metric):
    found = match_labels({"y": output}, label, look_at(label), metric)
    return found.reading(label, output)


@pytest.mark.parametrize("axis", [1, 3], ids=["channels first", "channels last"])
def test_one_hot_masks(axis):
    output = DRAW.normal(size=(4, 3, 5, 6)).astype(np.float32)
    classes = DRAW.integers(0, 3, (4, 5, 6))
    assert np.array_equal(read(output, np.moveaxis(np.eye(3)[classes], 3, axis), "iou"), classes)


def test_marks_of_what_does_not_count():
    output = DRAW.normal(size=(4, 3, 5, 6)).astype(np.float32)
    classes = DRAW.integers(0, 3, (4, 5, 6))
    void = classes.astype(np.uint8)
    void[:, 0] = 255
    found = read(output, void, "iou")
    assert (found[:, 0] == -1).all()
    assert np.array_equal(found[:, 1:], classes[:, 1:])
    tags = DRAW.normal(size=(4, 6, 3)).astype(np.float32)
    torch = np.where(np.arange(6) < 4, classes[:, 0], -100)
    assert np.array_equal(read(tags, torch, "top1"), np.where(torch < 0, -1, torch))
    # One-hot positions that are filled up with zeros.
    filled = np.eye(3)[classes[:, 0]] * (np.arange(6) < 4)[:, None]
    assert np.array_equal(read(tags, filled, "top1"), np.where(torch < 0, -1, torch))


def test_a_mask_of_0_and_255_is_not_guessed_at():
    output = DRAW.normal(size=(4, 1, 5, 6)).astype(np.float32)
    with pytest.raises(DatasetInvalidError, match="class 255, but the output is one number that says yes"):
        read(output, (DRAW.integers(0, 2, (4, 5, 6)) * 255).astype(np.uint8), "iou")


def test_labels_of_shorter_samples_are_cut():
    tags = DRAW.normal(size=(1, 3, 4)).astype(np.float32)
    label = np.array([[1, 0, 3, -1, -1]])
    assert read(tags, label, "perplexity").tolist() == [[1, 0, 3]]
    with pytest.raises(DatasetInvalidError, match="do not fit"):
        read(tags, np.array([[1, 0, 3, 2, -1]]), "perplexity")


def test_a_transposed_mask_is_refused():
    output = DRAW.normal(size=(4, 3, 5, 6)).astype(np.float32)
    with pytest.raises(DatasetInvalidError, match="do not fit"):
        read(output, DRAW.integers(0, 3, (4, 6, 5)), "top1")


def test_a_yes_or_no_takes_no_third_class():
    output = DRAW.normal(size=(30, 1)).astype(np.float32)
    with pytest.raises(DatasetInvalidError, match="class 2, but the output is one number that says yes"):
        read(output, np.arange(30) % 3, "top1")
    assert read(output, (np.arange(30) % 2).astype(np.float32), "top1").tolist() == (np.arange(30) % 2).tolist()
