"""Do no harm: what is kept and what is rolled back."""

import pytest

from engine.gate import Gate
from engine.measure.acceptance import decide
from engine.report.values import Change, Interval, Latency, LatencyComparison, Quality, Ratio, Size

LOSSY, LOSSLESS = Change(summary=""), Change(summary="", lossless=True)
SMALLER, SAME = Size(original=100, compressed=30), Size(original=100, compressed=100)


def _latency(ratio, *, stable=True, cpu=None):
    def around(value):
        return Ratio(value=value, interval=Interval(low=value * 0.98, high=value * 1.02))

    one = Latency(mean_ms=1, p50_ms=1, p90_ms=1, p95_ms=1, p99_ms=1, samples=100, dropped=0)
    return LatencyComparison(
        original=one, compressed=one, ratios={name: around(ratio) for name in ("mean", "p50", "p90", "p95", "p99")},
        cpu_ratio=around(cpu or ratio), noise_floor=Interval(low=1, high=1), stable=stable, nodes_by_provider={},
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
        (LOSSY, SAME, _latency(1.0), (_top1(0.0),), (), None),
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
