import pytest

from engine.gate import Gate
from engine.measure.gates import Costs, judge, runs_needed, verdict
from engine.measure.intervals import tango
from engine.report.run_facts import Memory
from engine.report.values import Interval, Latency, LatencyComparison, MemoryComparison, Quality, Ratio, Size

NONE = Costs()


def top1(gained, lost, samples=1000, original=0.9):
    net = (gained - lost) / samples
    return Quality(
        metric="top1",
        original=original,
        compressed=original + net,
        difference=net,
        interval=tango(gained, lost, samples),
        standard_error=0.0,
        samples=samples,
        compressed_interval=Interval(low=original + net - 0.02, high=original + net + 0.02),
        discordant=gained + lost,
    )


def mse(difference, half):
    return Quality(
        metric="mse",
        original=1.0,
        compressed=1.0 + difference,
        difference=difference,
        interval=Interval(low=difference - half, high=difference + half),
        standard_error=half / 2,
        samples=100,
        compressed_interval=Interval(low=0.5, high=1.5),
    )


def latency(ratio=0.5, half=0.02, *, stable=True, cpu=None, noise=(0.99, 1.01), samples=100):
    one = Latency(mean_ms=2, p50_ms=2, p90_ms=2, p95_ms=2, p99_ms=2, samples=samples, dropped=0)
    names = ("mean", "p50", "p90", "p95", "p99")
    intervals = {name: Interval(low=0.9, high=1.1) for name in names}
    other = Latency(mean_ms=1, p50_ms=1, p90_ms=1, p95_ms=1, p99_ms=1, samples=samples, dropped=0, intervals=intervals)
    value = Ratio(value=ratio, interval=Interval(low=ratio - half, high=ratio + half))
    return LatencyComparison(
        original=one,
        compressed=other,
        ratios=dict.fromkeys(names, value),
        cpu_ratio=None if cpu is None else Ratio(value=cpu, interval=Interval(low=cpu - half, high=cpu + half)),
        noise_floor=Interval(low=noise[0], high=noise[1]),
        stable=stable,
        unstable_because=None if stable else "Other programs ran",
        counts="wall" if stable or cpu is None else "cpu",
        nodes_by_provider={},
    )


def gate(metric, rule, value, **more):
    return Gate(metric=metric, rule=rule, value=value, **more)


@pytest.mark.parametrize(
    ("quality", "limit", "outcome"),
    [
        (top1(2, 3), 0.01, "pass"),
        (top1(0, 8), 0.01, "inconclusive"),
        (top1(0, 12), 0.01, "inconclusive"),
        (top1(1, 40), 0.01, "fail"),
        (top1(0, 0), 0.003, "pass"),
        (top1(0, 0), 0.0, "inconclusive"),  # no loss in 1,000 samples does not prove none
        (top1(0, 0, samples=100), 0.01, "inconclusive"),
        (top1(30, 5), 0.0, "pass"),
    ],
)
def test_a_drop_is_judged_by_its_one_sided_bound(quality, limit, outcome):
    assert judge(gate("top1", "max_drop", limit), [quality], NONE).outcome == outcome


def test_the_bound_is_tangos_at_the_gates_confidence():
    found = judge(gate("top1", "max_drop", 0.05, confidence=0.9), [top1(4, 9)], NONE)
    assert found.bound == pytest.approx(-tango(4, 9, 1000, 0.8).low)
    assert found.measured == pytest.approx(0.005)
    assert found.reason == (
        "the loss of top1 is 0.5 points, allowed is at most 5 points; with 90 % confidence it is not above 1.01 points"
    )


def test_a_reason_has_its_units_and_hides_no_difference():
    size = Costs(size=Size(original=400_000, compressed=123_456))
    said = "size_bytes is 123.5 kB, allowed is at most 200 kB"
    assert judge(gate("size_bytes", "max", 200_000), [], size).reason == said
    said = "size_bytes compressed / original is 30.9 %, allowed is at most 30 %"
    assert judge(gate("size_bytes", "max_ratio", 0.3), [], size).reason == said
    said = "size_bytes is 123456, allowed is at most 123450"
    assert judge(gate("size_bytes", "max", 123_450), [], size).reason == said


def test_a_value_and_its_bound_may_read_the_same():
    found = mse(0.0, 0.0001).model_copy(
        update={"metric": "sqnr_db", "compressed": 1.331842, "compressed_interval": Interval(low=1.3299, high=1.3341)}
    )
    result = judge(gate("sqnr_db", "min", 20.0), [found], NONE)
    assert result.reason == "sqnr_db is 1.3 dB, allowed is at least 20 dB"
    # Against the limit each is told apart.
    result = judge(gate("sqnr_db", "min", 1.34), [found], NONE)
    assert result.reason == "sqnr_db is 1.331842, allowed is at least 1.34"


def test_for_errors_a_drop_is_a_rise():
    assert judge(gate("mse", "max_drop", 0.1), [mse(0.05, 0.04)], NONE).outcome == "pass"
    assert judge(gate("mse", "max_drop", 0.1), [mse(0.05, 0.2)], NONE).outcome == "inconclusive"
    assert judge(gate("mse", "max_drop", 0.1), [mse(0.4, 0.2)], NONE).outcome == "fail"
    assert judge(gate("mse", "max_drop", 0.0), [mse(-0.4, 0.2)], NONE).outcome == "pass"


def test_values_are_judged_by_their_own_interval():
    quality = [top1(0, 0)]
    assert judge(gate("top1", "min", 0.85), quality, NONE).outcome == "pass"
    assert judge(gate("top1", "min", 0.89), quality, NONE).outcome == "inconclusive"
    assert judge(gate("top1", "min", 0.95), quality, NONE).outcome == "fail"
    assert judge(gate("mse", "max", 2.0), [mse(0, 0.1)], NONE).outcome == "pass"


@pytest.mark.parametrize(
    ("limit", "outcome"), [(0.6, "pass"), (0.51, "inconclusive"), (0.5, "inconclusive"), (0.4, "fail")]
)
def test_latency_ratios(limit, outcome):
    assert judge(gate("latency_p95", "max_ratio", limit), [], Costs(latency=latency())).outcome == outcome


def test_a_biased_noise_floor_widens_the_bound():
    biased = latency().model_copy(update={"noise_floor": Interval(low=1.04, high=1.06)})
    plain = judge(gate("latency_p95", "max_ratio", 0.6), [], Costs(latency=latency()))
    found = judge(gate("latency_p95", "max_ratio", 0.6), [], Costs(latency=biased))
    assert found.bound == pytest.approx(plain.bound * 1.04)


@pytest.mark.parametrize(
    ("options", "limit", "outcome"),
    [
        # 4.85 times as fast by the wall's clock, 1.84 by the processor's.
        ({"ratio": 0.206, "cpu": 0.543}, 0.9, "pass"),
        ({"ratio": 0.206, "cpu": 0.543}, 0.5, "inconclusive"),
        ({"ratio": 0.206, "cpu": 0.543}, 0.1, "fail"),
        ({"ratio": 0.5, "cpu": 0.5, "noise": (0.6, 1.7)}, 0.9, "pass"),
        ({"ratio": 0.5, "cpu": 0.5, "noise": (0.6, 1.7)}, 0.8, "inconclusive"),
        # No other clock confirms it.
        ({"ratio": 0.5}, 0.9, "pass"),
        ({"ratio": 0.5, "noise": (0.8, 1.25)}, 0.9, "inconclusive"),
        ({"ratio": 0.5, "cpu": 0.5, "samples": 5}, 0.9, "inconclusive"),
    ],
)
def test_a_busy_machine_decides_where_the_effect_dwarfs_the_noise(options, limit, outcome):
    for statistic in ("p50", "p95"):
        compared = latency(stable=False, **options)
        found = judge(gate(f"latency_{statistic}", "max_ratio", limit), [], Costs(latency=compared))
        assert found.outcome == outcome, statistic
        assert found.reason.startswith("undecided: ") == (outcome == "inconclusive")
        assert "other programs ran" in found.reason or "too few" in found.reason


def test_a_budget_in_milliseconds_on_a_busy_machine_can_be_kept_but_not_missed():
    compared = Costs(latency=latency(stable=False))
    assert judge(gate("latency_p50", "max", 9), [], compared).outcome == "pass"
    assert judge(gate("latency_p50", "max", 0.5), [], compared).outcome == "inconclusive"


def test_latency_in_milliseconds():
    assert judge(gate("latency_mean", "max", 1.2), [], Costs(latency=latency())).outcome == "pass"
    assert judge(gate("latency_mean", "max", 1.05), [], Costs(latency=latency())).outcome == "inconclusive"
    assert judge(gate("latency_mean", "max", 0.8), [], Costs(latency=latency())).outcome == "fail"


def test_what_is_exact_has_no_doubt():
    size = Costs(size=Size(original=1000, compressed=300), parameters=(100, 100))
    found = judge(gate("size_bytes", "max_ratio", 0.3), [], size)
    assert (found.outcome, found.measured, found.bound) == ("pass", 0.3, 0.3)
    assert judge(gate("size_bytes", "max_ratio", 0.29), [], size).outcome == "fail"
    assert judge(gate("size_bytes", "max", 300), [], size).outcome == "pass"
    assert judge(gate("parameters", "max_ratio", 1), [], size).outcome == "pass"
    before, after = (Memory(peak_rss_bytes=peak, load_ms=1, first_run_ms=1) for peak in (200, 150))
    memory = Costs(memory=MemoryComparison(original=before, compressed=after))
    assert judge(gate("peak_memory", "max_ratio", 0.7), [], memory).outcome == "fail"


def test_what_was_not_measured_is_inconclusive():
    found = judge(gate("top1", "max_drop", 0.1), [], NONE)
    assert (found.outcome, found.measured, found.bound) == ("inconclusive", None, None)
    assert "labelled" in found.reason
    assert judge(gate("size_bytes", "max", 10), [], NONE).outcome == "inconclusive"
    assert judge(gate("latency_p50", "max", 10), [], NONE).outcome == "inconclusive"


def test_the_verdict_takes_errors_together_and_lets_warnings_be():
    size = Costs(size=Size(original=1000, compressed=300))
    passes, fails = gate("size_bytes", "max", 400), gate("size_bytes", "max", 200)
    warns, unknown = gate("size_bytes", "max", 200, level="warn"), gate("kl", "max", 1)
    assert verdict([], [], size).outcome == "none"
    assert verdict([passes, warns], [], size).outcome == "pass"
    assert verdict([passes, unknown], [], size).outcome == "inconclusive"
    assert verdict([unknown, fails], [], size).outcome == "fail"
    assert [result.outcome for result in verdict([passes, warns], [], size).gates] == ["pass", "fail"]


@pytest.mark.parametrize(("metric", "confidence", "runs"), [("p99", 0.95, 299), ("p95", 0.95, 59), ("p99", 0.9, 230)])
def test_a_percentile_takes_runs_that_bound_it(metric, confidence, runs):
    gate = Gate(metric=f"latency_{metric}", rule="max", value=5, confidence=confidence)
    assert runs_needed(gate) == runs
    share = float(metric[1:]) / 100
    assert share**runs <= 1 - confidence < share ** (runs - 1)
    few = latency()
    many = few.model_copy(update={"compressed": few.compressed.model_copy(update={"samples": runs})})
    one_less = few.model_copy(update={"compressed": few.compressed.model_copy(update={"samples": runs - 1})})
    assert judge(gate, [], Costs(latency=many, strict_tails=True)).outcome == "pass"
    refused = judge(gate, [], Costs(latency=one_less, strict_tails=True))
    assert refused.outcome == "inconclusive"
    assert f"{runs - 1} runs are too few to bound it, {runs} are needed" in refused.reason


def test_other_metrics_need_no_runs():
    assert runs_needed(Gate(metric="size_bytes", rule="max", value=5)) == 1
    assert runs_needed(Gate(metric="latency_mean", rule="max", value=5)) == 1
