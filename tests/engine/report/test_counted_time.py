"""One rule says which clock counts, and every sentence about speed goes by it."""

import pytest

from engine.report.counted_time import by_one_clock, clock_that_counts, counted
from engine.report.markdown import summarise
from engine.report.values import Interval, Latency, LatencyComparison, Ratio, Size
from engine.report.wording import times_smaller

HALF = Size(original=1000, compressed=500)


def compared(wall, cpu, *, stable, noise=(0.98, 1.02)):
    def ratio(value):
        return Ratio(value=value, interval=Interval(low=value * 0.95, high=value * 1.05))

    one = Latency(mean_ms=1, p50_ms=1, p90_ms=1, p95_ms=1, p99_ms=1, samples=14, dropped=40)
    by_cpu = None if cpu is None else ratio(cpu)
    return LatencyComparison(
        original=one,
        compressed=one,
        ratios=dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), ratio(wall)),
        cpu_ratio=by_cpu,
        noise_floor=Interval(low=noise[0], high=noise[1]),
        cpu_noise_floor=None if cpu is None else Interval(low=0.99, high=1.01),
        stable=stable,
        counts=clock_that_counts(by_cpu, stable=stable),
        nodes_by_provider={},
    )


@pytest.mark.parametrize(
    ("comparison", "headline"),
    [
        (compared(1 / 4.85, 1 / 1.84, stable=False), "1.84x as fast (1.75 to 1.94) by CPU time, because the machine was busy"),
        (compared(1 / 4.85, 1 / 1.84, stable=True), "4.85x as fast (4.62 to 5.11);"),
        # Beside a GPU there is no other clock.
        (compared(0.5, None, stable=False), "2.00x as fast (1.90 to 2.11), measured on a busy machine"),
        (compared(0.5, 0.0, stable=False), "2.00x as fast (1.90 to 2.11), measured on a busy machine"),
    ],
)  # fmt: skip
def test_the_headline_goes_by_the_clock_that_counts(comparison, headline):
    said = summarise((), HALF, comparison, (), unchanged=False) + ";"
    assert headline.rstrip(";") in said


def test_faster_and_slower_are_beyond_noise():
    assert counted(compared(0.9, 0.9, stable=True)).faster
    assert not counted(compared(0.9, 0.9, stable=True, noise=(0.9, 1.1))).faster
    assert not counted(compared(0.97, 0.97, stable=True)).faster
    assert counted(compared(1.2, 1.2, stable=True)).slower(1.05)
    assert not counted(compared(1.2, 1.2, stable=True, noise=(0.8, 1.2))).slower(1.05)
    assert not counted(compared(1.04, 1.04, stable=True)).slower(1.05)


def test_networks_of_a_race_are_compared_by_one_clock():
    quiet, busy, gpu = (
        compared(0.5, 0.6, stable=True),
        compared(0.3, 0.7, stable=False),
        compared(0.4, None, stable=False),
    )
    assert by_one_clock([quiet, quiet]) == [0.5, 0.5]
    assert by_one_clock([quiet, busy]) == [0.6, 0.7]
    assert by_one_clock([quiet, gpu]) == [0.5, 0.4]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (1000, 500, "2.00x smaller"),
        (1000, 1100, "1.10x larger"),
        (1000, 1000, "of the same size"),
        (100000, 99900, "of about the same size"),
    ],
)
def test_a_file_that_grew_is_not_called_smaller(before, after, said):
    assert times_smaller(before, after) == said
