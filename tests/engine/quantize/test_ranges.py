"""Range search: outliers are cut where that gains, never where it costs; zero stays in range; constants survive."""

import numpy as np
import pytest

from engine.calibrate import Histogram, Range, statistic
from engine.contract import Observe
from engine.quantize.integer_types import affine
from engine.quantize.ranges import METHODS, search


def _histogram(array):
    collector = statistic(Observe("x", "histogram"))
    collector.update(np.asarray(array, np.float32).reshape(-1, 100))
    found = collector.result()
    assert isinstance(found, Histogram)
    return found


def _error(array, found):
    grid = affine(found.low, found.high, "uint8")
    codes = np.clip(np.rint(array / grid.scale) + grid.zero_point, grid.low, grid.high)
    return float(np.square((codes - grid.zero_point) * grid.scale - array).mean())


@pytest.fixture
def heavy_tailed():
    random = np.random.default_rng(3)
    numbers = random.standard_normal(200_000)
    numbers[0] = 12.0
    return numbers.astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_a_range_holds_zero_and_is_never_wider_than_what_was_seen(method, heavy_tailed):
    for array in (heavy_tailed, np.abs(heavy_tailed), -np.abs(heavy_tailed) - 1):
        found = search(_histogram(array), method)
        assert min(array.min(), 0) <= found.low <= 0 <= found.high <= max(array.max(), 0)
        assert found.high > found.low


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_a_few_outliers_are_cut_off(method, heavy_tailed):
    assert search(_histogram(heavy_tailed), method).high < 9


def test_the_mse_search_is_never_worse_than_the_whole_range(heavy_tailed):
    random = np.random.default_rng(4)
    for array in (heavy_tailed, random.uniform(-1, 1, 50_000), np.maximum(random.standard_normal(50_000), 0)):
        histogram = _histogram(array)
        best, whole = (_error(array, search(histogram, method)) for method in ("mse", "min_max"))
        assert best <= whole * 1.01


def test_even_numbers_keep_their_range():
    even = np.random.default_rng(5).uniform(-1, 1, 100_000)
    found = search(_histogram(even), "mse")
    assert found.low == pytest.approx(-1, abs=0.02)
    assert found.high == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_constants(method, value):
    found = search(_histogram(np.full(100, value)), method)
    assert min(found.low, 0.0) == min(value, 0.0)
    assert max(found.high, 0.0) == max(value, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_was_never_seen(method):
    assert search(statistic(Observe("x", "histogram")).result(), method) == Range(0.0, 0.0)
