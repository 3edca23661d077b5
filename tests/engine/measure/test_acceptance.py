"""Do no harm: what is kept and what is rolled back."""

import pytest

from engine.gate import Gate
from engine.measure.acceptance import decide, decide_alone, in_doubt
from engine.report.values import Change, Interval, Latency, LatencyComparison, Quality, Ratio, Size

LOSSY, LOSSLESS = Change(summary=""), Change(summary="", lossless=True)
SMALLER, SAME = Size(original=100, compressed=30), Size(original=100, compressed=100)


def _latency(ratio, *, stable=True, cpu=None, noise=(1, 1)):
    def around(value):
        return Ratio(value=value, interval=Interval(low=value * 0.98, high=value * 1.02))

    one = Latency(mean_ms=1, p50_ms=1, p90_ms=1, p95_ms=1, p99_ms=1, samples=100, dropped=0)
    return LatencyComparison(
        original=one, compressed=one, ratios={name: around(ratio) for name in ("mean", "p50", "p90", "p95", "p99")},
        cpu_ratio=around(cpu or ratio), noise_floor=Interval(low=noise[0], high=noise[1]), stable=stable,
        counts="wall" if stable else "cpu", nodes_by_provider={},
    )  # fmt: skip


def _top1(difference, samples=1000):
    changed = round(abs(difference) * samples)
    return Quality(
        metric="top1", original=0.9, compressed=0.9 + difference, difference=difference,
        interval=Interval(low=difference - 0.002, high=difference + 0.002), standard_error=0.001, samples=samples,
        discordant=changed,
    )  # fmt: skip


def _fidelity(metric, value):
    interval = Interval(low=value, high=value)
    return Quality(
        metric=metric,
        original=None,
        compressed=value,
        difference=None,
        interval=interval,
        standard_error=0,
        samples=100,
    )


LATENCY = Gate(metric="latency_p50", rule="max_ratio", value=0.9)
SIZE = Gate(metric="size_bytes", rule="max_ratio", value=0.5)
DROP = Gate(metric="top1", rule="max_drop", value=0.003)


@pytest.mark.parametrize(
    ("change", "size", "latency", "quality", "gates", "code"),
    [
        (LOSSLESS, SAME, None, (), (), None),
        (LOSSLESS, Size(original=100, compressed=120), None, (), (), "no_gain"),
        (LOSSY, SMALLER, _latency(0.7), (_top1(0.0),), (), None),
        (LOSSY, SMALLER, _latency(1.4), (_top1(0.0),), (), "no_gain"),
        (LOSSY, SMALLER, _latency(1.4), (_top1(0.0),), (SIZE,), None),
        (LOSSY, SMALLER, _latency(1.04), (_top1(0.0),), (), None),
        (LOSSY, SMALLER, _latency(1.04), (_top1(0.0),), (LATENCY,), "no_gain"),
        (LOSSY, SMALLER, _latency(1.01), (_top1(0.0),), (LATENCY,), None),
        (LOSSY, SAME, _latency(0.7), (_top1(0.0),), (SIZE,), "no_gain"),
        (LOSSY, SAME, _latency(1.0), (_top1(0.0),), (), "no_gain"),
        # 2 % by a clock that reads the original itself 5 % faster than itself is nothing.
        (LOSSY, SAME, _latency(0.9), (_top1(0.0),), (), None),
        (LOSSY, SAME, _latency(0.95, noise=(0.9, 1.1)), (_top1(0.0),), (), "no_gain"),
        (LOSSY, Size(original=1000, compressed=995), _latency(1.0), (_top1(0.0),), (), "no_gain"),
        (LOSSY, Size(original=1000, compressed=990), _latency(1.0), (_top1(0.0),), (), None),
        (LOSSY, Size(original=1000, compressed=995), _latency(1.0), (_top1(0.0),), (SIZE,), "no_gain"),
        (LOSSY, SAME, _latency(0.7), (_top1(0.0),), (SIZE, LATENCY), None),
        # 4.85 times as fast by the wall's clock on a busy machine, and slower by the CPU's.
        (LOSSY, SAME, _latency(0.2, stable=False, cpu=1.2), (_top1(0.0),), (), "no_gain"),
        (LOSSY, SAME, _latency(1.03), (_top1(0.0),), (), "no_gain"),
        (LOSSY, SMALLER, _latency(1.5, stable=False, cpu=0.7), (_top1(0.0),), (LATENCY,), None),
        (LOSSY, SMALLER, _latency(0.7), (_top1(-0.02),), (), "too_lossy"),
        (LOSSY, SMALLER, _latency(0.7), (_top1(-0.009),), (), None),
        (LOSSY, SMALLER, _latency(0.7), (_top1(-0.02),), (DROP,), "too_lossy"),
        (LOSSY, SMALLER, _latency(0.7), (_top1(-0.001),), (DROP,), None),
        (LOSSY, SMALLER, _latency(0.7), (_fidelity("top1_agreement", 0.97), _fidelity("sqnr_db", 30)), (), "too_lossy"),
        (LOSSY, SMALLER, _latency(0.7), (_fidelity("top1_agreement", 0.99), _fidelity("sqnr_db", 9)), (), None),
        (LOSSY, SMALLER, _latency(0.7), (_fidelity("sqnr_db", 9),), (), "too_lossy"),
    ],
)  # fmt: skip
def test_keeps_gains_and_rolls_back_harm(change, size, latency, quality, gates, code):
    refusal = decide(change, size, latency, quality, gates)
    assert (refusal.code if refusal else None) == code
    if refusal:
        assert refusal.reason.endswith(".")


@pytest.mark.parametrize(
    ("size", "of_original", "latency", "quality", "gates", "code"),
    [
        (SAME, SAME, None, (_top1(-0.02),), (), None),
        (SAME, SAME, None, (_top1(-0.02),), (DROP,), "no_gain"),
        (SAME, SAME, None, (_fidelity("sqnr_db", 90),), (Gate(metric="sqnr_db", rule="min", value=100),), "no_gain"),
        # The original itself is not so good, so no step has broken it.
        (SAME, SAME, None, (_top1(-0.0),), (Gate(metric="top1", rule="min", value=0.99),), None),
        (
            Size(original=1000, compressed=1005), Size(original=1000, compressed=1005), None, (),
            (Gate(metric="size_bytes", rule="max_ratio", value=1.0),), "no_gain",
        ),
        (
            Size(original=1000, compressed=1005), Size(original=2000, compressed=1005), None, (),
            (Gate(metric="size_bytes", rule="max_ratio", value=0.6),), None,
        ),
        (SAME, SAME, _latency(1.2), (), (LATENCY,), "no_gain"),
        (SAME, SAME, _latency(1.03), (), (LATENCY,), None),
        (SAME, SAME, _latency(1.2, noise=(0.8, 1.25)), (), (LATENCY,), None),
    ],
)  # fmt: skip
def test_a_step_without_loss_may_not_break_a_gate_either(size, of_original, latency, quality, gates, code):
    refusal = decide(LOSSLESS, size, latency, quality, gates, of_original=of_original)
    assert (refusal.code if refusal else None) == code


def test_a_refusal_says_what_was_asked_and_by_which_clock():
    gates = (Gate(metric="parameters", rule="max_ratio", value=0.5),)
    larger = Size(original=1000, compressed=1100)
    assert decide(LOSSY, larger, None, (), gates).reason == "A gate asks for parameters, but the file is 10.0% larger."
    busy = decide(LOSSY, SAME, _latency(0.2, stable=False, cpu=1.2), (), ())
    assert "1.20 times as long as before by CPU time, because the machine was busy" in busy.reason


@pytest.mark.parametrize(
    ("size", "gates", "code"),
    [
        (Size(original=100, compressed=100, original_download=90, compressed_download=50), (), None),
        (Size(original=100, compressed=100, original_download=90, compressed_download=50), (SIZE,), None),
        (Size(original=100, compressed=100, original_download=90, compressed_download=92), (), "no_gain"),
        # Whole channels went: the file itself is smaller.
        (Size(original=100, compressed=80, original_download=90, compressed_download=92), (), None),
    ],
)
def test_zeros_are_judged_by_the_download(size, gates, code):
    refusal = decide(Change(summary="", download=True), size, _latency(1.0), (_top1(0.0),), gates)
    assert (refusal.code if refusal else None) == code


@pytest.mark.parametrize(
    ("size", "operators", "latency", "gates", "code"),
    [
        # One operator of 95 is nothing, and neither is half a percent.
        (SAME, (95, 93), _latency(1.0), (), "no_gain"),
        (Size(original=1000, compressed=1005), (95, 93), _latency(1.0), (), "no_gain"),
        (SAME, (95, 93), None, (), "no_gain"),
        (Size(original=1000, compressed=985), (95, 93), _latency(1.0), (), None),
        (SAME, (95, 93), _latency(0.9), (), None),
        # The runtime has a sixth less to load and to plan.
        (SAME, (433, 358), _latency(1.0), (), None),
        (SAME, (433, 358), None, (), None),
        (SAME, (433, 358), _latency(1.15), (), "no_gain"),
        (SAME, (433, 358), _latency(1.0), (SIZE,), None),
        (SAME, (95, 93), _latency(1.0), (SIZE,), "no_gain"),
    ],
)
def test_steps_without_loss_that_nothing_was_built_on_gain_something_by_themselves(
    size, operators, latency, gates, code
):
    refusal = decide_alone(size, operators, latency, gates)
    assert (refusal.code if refusal else None) == code


@pytest.mark.parametrize(
    ("ratio", "stable", "doubtful"),
    [(1.04, False, True), (1.04, True, False), (0.9, False, False), (1.3, False, False)],
)
def test_a_noisy_measurement_that_leaves_open_whether_a_step_slows_down_is_in_doubt(ratio, stable, doubtful):
    assert in_doubt(_latency(ratio, stable=stable)) is doubtful
