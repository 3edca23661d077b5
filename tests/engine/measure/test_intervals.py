import numpy as np
import pytest

from engine.measure.intervals import (
    block_weights,
    change_floor,
    critical_t,
    mean_interval,
    rescale,
    rescale_ratio,
    tango,
    wilson,
)
from engine.report.values import Interval


def test_without_disagreement_the_width_is_not_zero():
    assert tango(0, 0, 100).high == pytest.approx(3.8415 / 103.8415, rel=1e-3)
    assert tango(0, 0, 100).low == pytest.approx(-3.8415 / 103.8415, rel=1e-3)
    assert change_floor(100) == pytest.approx(tango(0, 0, 100).high, rel=1e-6)


def test_tango_is_antisymmetric_and_contains_the_estimate():
    for gained, lost, count in [(3, 9, 50), (0, 5, 1000), (40, 0, 40), (12, 12, 30)]:
        here, there = tango(gained, lost, count), tango(lost, gained, count)
        assert here.low <= (gained - lost) / count <= here.high
        assert here.low == pytest.approx(-there.high, abs=1e-9)
        assert -1 <= here.low < here.high <= 1


@pytest.mark.parametrize(("gain", "loss", "count"), [(0.01, 0.01, 1000), (0.005, 0.02, 500), (0.05, 0.1, 100)])
def test_tango_covers_the_truth(gain, loss, count):
    rng = np.random.default_rng(5)
    drawn = rng.multinomial(count, [gain, loss, 1 - gain - loss], size=1500)
    known: dict[tuple[int, int], Interval] = {}
    covered = one_sided = 0
    for gained, lost in drawn[:, :2].tolist():
        both = known.setdefault((gained, lost), tango(gained, lost, count))
        below = known.setdefault((gained, -lost - 1), tango(gained, lost, count, 0.9))
        covered += both.low <= gain - loss <= both.high
        one_sided += below.low <= gain - loss
    # 1,500 draws know a share to +-1.1 points (two standard errors); score intervals stray about a point from nominal.
    assert 0.93 <= covered / 1500 <= 0.98
    assert 0.93 <= one_sided / 1500 <= 0.98


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 99, 100, 101, 250, 100_000])
def test_students_quantile_is_that_of_scipy(degrees):
    from scipy.special import stdtrit

    for confidence in (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999):
        expected = float(stdtrit(degrees, (1 + confidence) / 2))
        assert critical_t(confidence, degrees) == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_no_loss_seen_does_not_prove_no_loss():
    # If 0.3 % are lost for good, 1,000 samples show none in 5 % of the draws: a 95 % bound must reach about there.
    assert -0.0033 < tango(0, 0, 1000, 0.9).low < -0.0025


def test_mean_interval_covers_the_truth():
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(1000):
        interval, _error = mean_interval(rng.normal(3.0, 2.0, size=12))
        hits += interval.low <= 3.0 <= interval.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_wilson():
    interval = wilson(100, 100)
    assert interval.high == pytest.approx(1)
    assert interval.low == pytest.approx(100 / (100 + 3.8415), rel=1e-4)


def test_rescaled_bounds_keep_each_sides_width():
    interval = Interval(low=-1.96, high=3.92)
    assert rescale(0.0, interval, 0.975, upper=True) == pytest.approx(3.92, rel=1e-3)
    assert rescale(0.0, interval, 0.95, upper=False) == pytest.approx(-1.645, rel=1e-3)
    ratio = Interval(low=0.5, high=0.8)
    assert rescale_ratio(0.6, ratio, 0.975, upper=True) == pytest.approx(0.8)
    assert 0.6 < rescale_ratio(0.6, ratio, 0.95, upper=True) < 0.8


def test_block_weights_draw_every_turn_once_on_average():
    weights = block_weights(120, 400, seed=1)
    assert (weights.sum(axis=1) == 120).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(120), abs=0.35)
    assert (weights == block_weights(120, 400, seed=1)).all()
