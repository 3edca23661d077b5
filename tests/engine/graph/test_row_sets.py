"""Sets of rows, as outputs behind NonMaxSuppression are."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from engine.errors import VerificationFailedError
from engine.graph.endings import endings
from engine.graph.row_sets import distances, energy, noise, paired_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measure"))
import judged_networks

ROWS = np.random.default_rng(0).normal(size=(9, 4))


def test_order_and_repetition_do_not_matter():
    there, back = distances(ROWS, np.concatenate([ROWS[::-1], ROWS[:2]]))
    assert there.max() == back.max() == 0


def test_a_row_that_is_gone_is_as_far_as_its_nearest():
    there, back = distances(ROWS, ROWS[1:])
    assert back.max() == 0
    assert there[0] == pytest.approx(np.linalg.norm(ROWS[1:] - ROWS[0], axis=1).min())
    assert (there[1:] == 0).all()
    # Beside nothing, each row is lost with all that it holds.
    assert noise(ROWS, ROWS[:0], "y") == pytest.approx(np.square(ROWS).sum())
    assert noise(ROWS[:0], ROWS[:0], "y") == 0


def test_equal_shapes_are_compared_number_by_number():
    assert noise(ROWS, ROWS[::-1].copy(), "y") == pytest.approx(np.square(ROWS - ROWS[::-1]).sum())


def test_what_is_infinite_in_both_is_no_noise():
    masked = np.where(ROWS > 0, ROWS, -np.inf)
    assert noise(masked, masked, "y") == 0
    nothing = np.where(np.isinf(masked), masked, 0.0)
    assert noise(masked, nothing, "y") == energy(masked) == pytest.approx(np.square(ROWS[ROWS > 0]).sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_lie_along_the_axis_that_differs(axis):
    """NonZero gives (axes, places), exporters (samples, rows, numbers)."""
    wide = np.random.default_rng(1).normal(size=(5, 5, 5))
    fewer = np.delete(wide, 2, axis=axis)
    left, right = paired_rows(wide, fewer, "y")
    assert (left.shape, right.shape) == ((5, 25), (4, 25))
    assert distances(left, right)[1].max() == 0


@pytest.mark.parametrize("other", [np.zeros((8, 3)), np.zeros((9, 4, 1))])
def test_what_differs_in_more_than_the_number_of_rows_is_refused(other):
    with pytest.raises(VerificationFailedError, match="Output `y` is float64"):
        paired_rows(ROWS, other, "y")


def test_endings_see_what_counts_rows_and_what_makes_the_numbers():
    detector = endings(judged_networks.detector_with_nms().graph())["final"]
    assert detector.rows_depend_on_data
    assert endings(judged_networks.raw_detector().graph())["output0"].rows_may_swap is False
    assert endings(judged_networks.sentence_embedding(normalised=True).graph())["out"].unit_length
    pooled = endings(judged_networks.sentence_embedding(normalised=False).graph())["out"]
    assert pooled.pooled
    assert not pooled.unit_length
    assert endings(judged_networks.language_model().graph())["logits"].vocabulary == {300}
    state = endings(judged_networks.recurrent().graph())
    assert state["hn"].state_of == ("h0",)
    assert (state["speech"].op, state["speech"].state_of) == ("Sigmoid", None)
    assert endings(judged_networks.two_headed_regression().graph())["y0"].linear


def test_a_whole_activation_is_added_up_part_by_part_as_at_once():
    random = np.random.default_rng(0)
    wanted = random.standard_normal((3, 3, 1000, 1001), np.float32)
    found = wanted + random.standard_normal(wanted.shape, np.float32)
    at_once = np.square(wanted.astype(np.float64)).sum(), np.square(found.astype(np.float64) - wanted).sum()
    tracemalloc.start()
    try:
        assert (energy(wanted), noise(wanted, found, "y")) == at_once
        assert tracemalloc.get_traced_memory()[1] < wanted.nbytes
    finally:
        tracemalloc.stop()
