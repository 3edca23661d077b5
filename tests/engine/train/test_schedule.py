"""The learning rate over a training, and when a budget is spent."""

import pytest

from engine.train.schedule import Pace, rate


def test_the_rate_rises_for_a_twentieth_and_falls_to_a_hundredth():
    rates = [rate(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(rates[50], rel=0.02)
    assert rates[:50] == sorted(rates[:50])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, abs=1e-4)


def test_a_very_short_training_warms_up_too():
    assert rate(0, 8) < 1
    assert max(rate(step, 8) for step in range(8)) > 0.9


def test_steps_are_done_on_every_machine_that_is_fast_enough():
    pace = Pace(seconds=100, steps=50)
    for pace.step in range(1, 51):
        pace.spent = pace.step * 1.5
        pace.replan()
        assert pace.total == 50
    assert pace.over == "steps"


def test_fewer_are_planned_on_one_that_is_not():
    pace = Pace(seconds=10, steps=50)
    pace.step, pace.spent = 5, 2.0
    pace.replan()
    assert pace.total == 25
    pace.step, pace.spent = 25, 10.0
    assert pace.over == "seconds"


def test_time_alone_gives_as_many_as_fit_and_a_deadline_shortens_it():
    pace = Pace(seconds=60)
    pace.step, pace.spent = 100, 10.0
    pace.replan()
    assert (pace.total, pace.over) == (600, None)
    pace.shorten(5.0)
    pace.replan()
    assert pace.total == 150
    pace.step, pace.spent = 150, 15.0
    assert pace.over == "seconds"
