"""Each metric against a value worked out by hand."""

import numpy as np
import pytest

from engine.errors import DatasetInvalidError
from engine.measure import metrics
from engine.measure.kinds.tokens import Tokens
from engine.measure.metrics import Output

LOGITS = Output(probabilities=False)


def test_top1_and_its_ties():
    scores = np.array([[0.1, 0.9], [0.5, 0.5], [0.2, 0.1]])
    assert metrics.right_at_1(scores, np.array([1, 1, 0]), LOGITS).tolist() == [1, 0, 1]


def test_top5_gives_a_collapsed_network_no_gift():
    collapsed = np.zeros((10, 10))
    assert metrics.right_at_5(collapsed, np.arange(10), LOGITS).mean() == 0.5
    scores = np.arange(10.0)[None].repeat(2, 0)
    assert metrics.right_at_5(scores, np.array([5, 4]), LOGITS).tolist() == [1, 0]


def test_positions_without_a_label_do_not_count():
    scores = np.zeros((1, 3, 4))
    scores[0, :, 2] = 1
    assert metrics.right_at_1(scores, np.array([[2, -1, 0]]), LOGITS).tolist() == [0.5]


def test_a_single_column_is_decided_by_its_threshold():
    probabilities, label = np.array([[0.2], [0.7]]), np.array([0, 1])
    how = metrics.read_output(probabilities, label)
    assert metrics.right_at_1(probabilities, label, how).tolist() == [1, 1]
    logits = np.array([[-3.0], [0.2]])
    assert metrics.right_at_1(logits, label, metrics.read_output(logits, label)).tolist() == [1, 1]


def test_integers_are_decisions_already():
    assert metrics.right_at_1(np.array([3, 1]), np.array([3, 2]), LOGITS).tolist() == [1, 0]


def test_errors():
    output, label = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [3.0, 1.0]])
    assert metrics.squared_error(output, label, LOGITS).tolist() == [2.5, 5.0]
    assert metrics.absolute_error(output, label, LOGITS).tolist() == [1.5, 2.0]


@pytest.mark.parametrize("shape", [(1, 1, 2, 4), (1, 2, 4)])
def test_iou_of_a_mask(shape):
    label = np.array([[[1, 1, 0, 0], [0, 0, 0, 0]]]).reshape(1, 2, 4)
    mask = np.array([0.9, 0.1, 0.8, 0, 0, 0, 0, 0]).reshape(shape)
    assert metrics.intersection_over_union(mask, label, metrics.read_output(mask, label)) == pytest.approx([1 / 3])


def test_iou_is_the_mean_over_the_classes_that_occur():
    label = np.array([[[0, 0], [1, 1]]])
    scores = np.zeros((1, 5, 2, 2))
    scores[0, 0, 0, :] = 1
    scores[0, 1, 1, 0] = 1
    scores[0, 0, 1, 1] = 1
    assert metrics.intersection_over_union(scores, label, LOGITS) == pytest.approx([(2 / 3 + 1 / 2) / 2])


@pytest.mark.parametrize(
    ("left", "right", "edits"),
    [
        ([], [], 0),
        ([], [1, 2], 2),
        ([1, 2], [], 2),
        ([7, 1, 2, 3], [1, 2, 3], 1),
        ([1, 2, 3, 4], [1, 3, 2, 4], 2),
        ([5, 5, 6], [6, 5, 5, 5], 2),
    ],
)
def test_levenshtein(left, right, edits):
    assert metrics.levenshtein(left, right) == metrics.levenshtein(right, left) == edits


def test_a_number_that_is_missing_changes_none_of_those_behind_it():
    compared = Tokens("kept", LOGITS)
    compared.add({"kept": np.array([[7, 1, 2, 3]])}, {"kept": np.array([[1, 2, 3]])}, None)
    (quality,) = compared.qualities()
    assert (quality.metric, quality.compressed) == ("token_agreement", 0.75)


def test_edit_distance_reads_ctc():
    steps = np.eye(4)[[0, 1, 1, 0, 1, 2, 0, 3]][None]  # 1 1 2 3
    assert metrics.edit_distance(steps, np.array([[1, 1, 2, 3, -1]]), LOGITS).tolist() == [0]
    assert metrics.edit_distance(steps, np.array([[1, 2, 3, -1, -1]]), LOGITS) == pytest.approx([1 / 3])
    assert metrics.edit_distance(np.array([[5, 6, -1]]), np.array([[5, 7, 8]]), LOGITS) == pytest.approx([2 / 3])


def test_token_losses_read_logits_and_probabilities():
    probabilities = np.array([[[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]])
    label = np.array([[1, 0, -1]])
    losses, tokens = metrics.token_losses(probabilities, label, metrics.read_output(probabilities, None))
    assert losses == pytest.approx([-np.log(0.75) - np.log(0.5)])
    assert tokens.tolist() == [2]
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) + 7
    assert metrics.token_losses(logits, label, LOGITS)[0] == pytest.approx(losses)


def test_fidelity_by_hand():
    left, right = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]), np.array([[3.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    signal, noise = metrics.energies(left, right)
    assert (signal.tolist(), noise.tolist()) == ([25, 0, 1], [1, 0, 1])
    assert metrics.cosines(left, right) == pytest.approx([21 / (5 * 18**0.5), 1, 0])
    even, odd = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert metrics.divergences(even, odd, LOGITS) == pytest.approx([0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)])


def test_masked_classes_have_no_probability():
    left = np.array([[0.0, 1.0, -np.inf]])
    assert metrics.divergences(left, left, LOGITS).tolist() == [0]
    assert metrics.cosines(left, left) == pytest.approx([1])


def test_labels_that_do_not_fit_are_refused():
    for metric, output, label in [
        ("top1", np.zeros((2, 3)), np.zeros((2, 3), int)),
        ("top5", np.zeros((2, 3)), np.array([0, 3])),
        ("top5", np.zeros((2, 1)), np.array([0, 1])),
        ("mse", np.zeros((2, 3)), np.zeros((2, 2))),
    ]:
        with pytest.raises(DatasetInvalidError):
            metrics.MEAN_METRICS[metric](output, label, LOGITS)
