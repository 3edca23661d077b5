"""Statistics in constant memory: the same however the numbers are cut up, sentinels left out, constants survive."""

import numpy as np
import pytest

from engine.calibrate import ChannelRange, Histogram, Range, statistic
from engine.contract import Observe

KINDS = ("min_max", "moving_average", "histogram", "channel_range", "channel_mean")


def _collected(kind, array, batch):
    collector = statistic(Observe("x", kind))
    for start in range(0, len(array), batch):
        collector.update(array[start : start + batch])
    return collector.result()


def _fields(value):
    return {name: np.asarray(field, np.float64) for name, field in vars(value).items()}


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    # Later rows are larger: the histogram has to grow on the way.
    return (random.standard_normal((200, 6, 50)) * np.geomspace(1e-3, 40, 200)[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_does_not_depend_on_batches(kind, rows):
    one = _fields(_collected(kind, rows, 1))
    for batch in (7, 64, 200):
        for name, value in _fields(_collected(kind, rows, batch)).items():
            np.testing.assert_allclose(value, one[name], rtol=1e-12, atol=1e-12)


def test_a_histogram_is_the_same_in_any_order(rows):
    forwards, backwards = _collected("histogram", rows, 7), _collected("histogram", rows[::-1], 7)
    assert forwards.width == backwards.width
    np.testing.assert_array_equal(forwards.counts, backwards.counts)


def test_a_histogram_counts_what_numpy_counts(rows):
    found = _collected("histogram", rows, 13)
    edges = (np.arange(len(found.counts) + 1) + found.start) * found.width
    np.testing.assert_array_equal(found.counts, np.histogram(rows, edges)[0])
    assert found.counts.sum() == rows.size
    assert (found.low, found.high) == (rows.min(), rows.max())
    assert max(rows.max(), -rows.min()) / found.width > 2048


@pytest.mark.parametrize("kind", KINDS)
def test_sentinels_poison_nothing(kind):
    clean = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    masked = np.array([[[1.0, -3.4e38], [2.0, np.inf]], [[3.0, np.nan], [5.0, -np.inf]]], np.float32)
    found = _collected(kind, masked, 1)
    if kind in {"min_max", "histogram"}:
        assert (found.low, found.high) == (1.0, 5.0)
    if kind == "moving_average":
        assert (found.low, found.high) == pytest.approx((1.02, 2.03))
    if kind == "channel_range":
        assert isinstance(found, ChannelRange)
        assert list(found.low) == [1.0, 2.0]
        assert list(found.high) == [3.0, 5.0]
    if kind == "histogram":
        assert found.counts.sum() == clean.size
    if kind == "channel_mean":
        assert np.isfinite(found.mean).all()


@pytest.mark.parametrize("value", [0.0, 3.0, -0.25])
def test_a_constant_has_a_histogram_of_one_bin(value):
    found = _collected("histogram", np.full((5, 4), value, np.float32), 2)
    assert (found.low, found.high, found.counts.sum() + found.zeros) == (value, value, 20)
    assert (found.zeros == 20) == (value == 0)
    assert len(found.counts) == 1
    assert list(found.centres) == [value]


@pytest.mark.parametrize("kind", KINDS)
def test_without_numbers_there_is_a_result_still(kind):
    found = statistic(Observe("x", kind)).result()
    collector = statistic(Observe("x", kind))
    collector.update(np.zeros((0, 3), np.float32))
    assert _fields(collector.result()).keys() == _fields(found).keys()
    if isinstance(found, Range | Histogram):
        assert (found.low, found.high) == (0.0, 0.0)


def test_memory_does_not_grow_with_the_samples():
    collector = statistic(Observe("x", "histogram"))
    collector.update(np.ones((4, 4), np.float32))
    before = sum(np.asarray(value).nbytes for value in vars(collector).values() if isinstance(value, np.ndarray))
    for size in range(1, 200):
        collector.update(np.full((4, 4), float(size), np.float32))
    after = sum(np.asarray(value).nbytes for value in vars(collector).values() if isinstance(value, np.ndarray))
    assert before == after
