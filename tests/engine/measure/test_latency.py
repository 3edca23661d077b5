"""No assertion here reads a clock: what is tested is the bookkeeping, on injected samples, and the shape of real answers."""

import gc
from contextlib import ExitStack

import numpy as np
import pytest

from engine.errors import TargetUnavailableError
from engine.measure import latency as module
from engine.measure.intervals import block_weights
from engine.measure.latency import Turns, compare, compare_many, judge_turns, per_op, take_turns
from engine.runtime.host_lock import HostLock
from engine.runtime.kernel_times import NodeRun, summarise
from engine.runtime.sessions import session
from engine.target import Target

CPU = Target()
FEED = {"x": np.ones((1, 16, 16, 16), np.float32)}
QUICK = {"seconds": 600.0, "min_runs": 12, "precision": 1e9}


def turns(rng, count=400, ratio=0.5, *, cpu_ratio=None, again=1.0, disturbed=0.0):
    """Times that drift together, as on a machine whose clock does."""
    drift = 1 + 0.1 * np.sin(np.arange(count) / 40)
    base = np.array([[1.0], [again], [ratio]])
    wall = base * drift * rng.lognormal(0, 0.02, size=(3, count))
    cpu = wall.copy()
    cpu[2] *= (cpu_ratio or ratio) / ratio
    return Turns(("original", "original again", "candidate"), wall, cpu, rng.random((3, count)) < disturbed)


def judged(sample, target=CPU):
    return judge_turns(sample, "candidate", target, {"CPUExecutionProvider": 1})


def test_intervals_cover_the_true_ratio():
    rng = np.random.default_rng(0)
    hits = {"p50": 0, "mean": 0, "p90": 0}
    for _ in range(100):
        ratios = judged(turns(rng, 200, ratio=0.6)).ratios
        for name in hits:
            hits[name] += ratios[name].interval.low <= 0.6 <= ratios[name].interval.high
    # Nominal 95 %; 100 draws know it to about +-4.4 points, and the bootstrap runs a little short on 200 turns.
    assert all(89 <= hit <= 100 for hit in hits.values()), hits


def test_preempted_samples_are_left_out_and_counted():
    rng = np.random.default_rng(1)
    clean = turns(rng)
    spoilt = Turns(clean.names, clean.wall_ms.copy(), clean.cpu_ms, clean.disturbed.copy())
    spoilt.disturbed[2, ::4] = True
    spoilt.wall_ms[2, ::4] *= 30
    found = judged(spoilt)
    assert (found.compressed.samples, found.compressed.dropped, found.original.dropped) == (300, 100, 0)
    assert found.stable
    assert found.compressed.p99_ms < 1
    assert found.ratios["mean"].value == pytest.approx(0.5, abs=0.01)


def test_steady_samples_are_stable_and_consistent():
    found = judged(turns(np.random.default_rng(2)))
    assert found.stable
    assert found.unstable_because is None
    assert found.noise_floor.low <= 1 <= found.noise_floor.high
    for name in ("mean", "p50", "p90", "p95", "p99"):
        value, ratio = getattr(found.compressed, f"{name}_ms"), found.ratios[name]
        assert ratio.value == pytest.approx(value / getattr(found.original, f"{name}_ms"))
        assert ratio.interval.low <= ratio.value <= ratio.interval.high
        assert found.compressed.intervals[name].low <= value <= found.compressed.intervals[name].high


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"disturbed": 0.7}, "preempted"),
        ({"disturbed": 1.0}, "preempted 400 of 400"),
        ({"again": 1.2}, "The original beside itself"),
        ({"cpu_ratio": 1.0}, "by wall time but"),
    ],
)
def test_what_cannot_be_trusted_is_not_stable(how, words):
    found = judged(turns(np.random.default_rng(3), **how))
    assert not found.stable
    assert words in found.unstable_because


def test_noise_is_held_against_the_effect():
    rng = np.random.default_rng(8)
    assert judged(turns(rng, ratio=0.5, again=1.1)).stable
    assert "too noisy" in judged(turns(rng, ratio=0.9, again=1.1)).unstable_because


def test_clocks_are_compared_only_where_the_cpu_works():
    sample = turns(np.random.default_rng(4), cpu_ratio=1.0)
    found = judged(sample, Target(provider="cuda"))
    assert found.stable
    assert found.cpu_ratio is None


def test_a_clock_that_stands_still_says_nothing():
    """Beside a GPU the processor waits, and on some systems its clock is coarse: it read 0, and 0 was divided by."""
    sample = turns(np.random.default_rng(4))
    still = Turns(sample.names, sample.wall_ms, np.zeros_like(sample.cpu_ms), sample.disturbed)
    found = judged(still)
    assert found.stable
    assert found.cpu_ratio is None


def test_weighted_quantiles_are_those_of_the_drawn_samples():
    rng = np.random.default_rng(5)
    times, kept = rng.random(60), rng.random(60) < 0.8
    weights = block_weights(60, 20, seed=0)
    found = module._Resampled.of(times, kept, weights)
    for row, drawn in enumerate(weights):
        sample = np.repeat(times[kept], drawn[kept])
        assert found.resampled["mean"][row] == pytest.approx(sample.mean())
        for name, share in module._QUANTILES.items():
            assert found.resampled[name][row] == np.quantile(sample, share, method="inverted_cdf")


def test_everyone_takes_every_place_equally_often():
    orders = module._orders(4, seed=0)
    places = np.zeros((4, 4), int)
    for _ in range(8 * 10):
        for place, who in enumerate(next(orders)):
            places[who, place] += 1
    assert (places == 20).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_real_comparison(convolutions, threads):
    found = compare(convolutions(3), convolutions(1), FEED, Target(threads=threads), **QUICK)
    assert found.original.samples + found.original.dropped >= 12
    assert set(found.ratios) == {"mean", "p50", "p90", "p95", "p99"}
    assert all(
        np.isfinite([ratio.value, ratio.interval.low, ratio.interval.high]).all() for ratio in found.ratios.values()
    )
    assert list(found.nodes_by_provider) == ["CPUExecutionProvider"]
    assert found.cpu_ratio.value > 0


def test_many_candidates_share_the_turns(convolutions):
    found = compare_many(
        convolutions(2), {"same": convolutions(2), "half": convolutions(1)}, [FEED, FEED], CPU, **QUICK
    )
    assert set(found) == {"same", "half"}
    assert found["same"].original == found["half"].original


def test_raw_samples_hold_every_turn(convolutions):
    sessions = {name: session(convolutions(1), CPU) for name in ("original", "original again", "candidate")}
    sample = take_turns(sessions, [FEED], seconds=0.0, min_runs=7, max_runs=20, precision=0.0, least_runs=7)
    assert sample.wall_ms.shape == sample.cpu_ms.shape == sample.disturbed.shape == (3, 7)
    assert (sample.wall_ms > 0).all()
    assert take_turns(sessions, [FEED], seconds=60.0, min_runs=7, max_runs=9, precision=0.0).wall_ms.shape == (3, 9)
    assert take_turns(sessions, [FEED], seconds=60.0, min_runs=7, max_runs=900, precision=1e9).wall_ms.shape == (3, 7)


class Slow:
    """A session whose runs take so many seconds of a clock that only they move on."""

    def __init__(self, clock, seconds):
        self.target, self.pool_threads = CPU, frozenset()
        self._clock, self._seconds, self.runs = clock, seconds, 0

    def bind(self, _feed):
        def run():
            self._clock.now += self._seconds
            self.runs += 1

        run()
        return run


class Clock:
    """In the place of `time`: stands still while nobody runs."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def perf_counter_ns(self):
        return round(self.now * 1e9)

    thread_time_ns = process_time_ns = perf_counter_ns


@pytest.mark.parametrize(
    ("run", "options", "turns", "most_seconds"),
    [
        # 55 runs of each of three would take 25 minutes.
        (5.0, {"seconds": 4.0}, 2, 60),
        (0.5, {"seconds": 4.0}, 6, 20),
        (0.01, {"seconds": 4.0}, None, 5),
        (0.5, {"seconds": 4.0, "least_runs": 40}, 40, 80),
    ],
)
def test_a_slow_network_is_not_run_fifty_times(monkeypatch, run, options, turns, most_seconds):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    sessions = {name: Slow(clock, run) for name in ("original", "original again", "candidate")}
    sample = take_turns(sessions, [FEED] * 8, min_runs=50, max_runs=2000, precision=0.0, **options)
    made = sample.wall_ms.shape[1]
    assert turns is None or made == turns
    assert clock.now <= most_seconds
    if made < 6:
        assert "There was time for 2 runs" in judged(sample).unstable_because


def test_what_is_only_asked_for_a_side_ends_when_the_side_is_clear(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    sessions = {name: Slow(clock, 0.01) for name in ("original", "original again")} | {"candidate": Slow(clock, 0.004)}
    options = {"seconds": 600.0, "min_runs": 50, "max_runs": 300, "precision": 0.0}
    assert take_turns(sessions, [FEED], **options, against=(1.0, 1.05)).wall_ms.shape[1] == 12
    assert take_turns(sessions, [FEED], **options).wall_ms.shape[1] == 300
    # A ratio of just 0.4 says nothing clear about being above or below it.
    assert take_turns(sessions, [FEED], **options, against=(0.4,)).wall_ms.shape[1] == 300


def test_a_preemption_is_nothing_to_a_run_of_a_second(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module._Runner, "preemptions", lambda runner: runner._run_by.runs)
    for seconds, disturbed in ((0.05, True), (1.0, False)):
        sessions = {name: Slow(clock, seconds) for name in ("original", "original again", "candidate")}
        sample = take_turns(sessions, [FEED], seconds=1e9, min_runs=6, max_runs=6, precision=0.0)
        assert (sample.disturbed == disturbed).all()


@pytest.mark.parametrize("runs", [40, 4000])
def test_the_report_keeps_raw_samples_but_not_without_end(runs):
    random = np.random.default_rng(runs)
    wall = 1 + np.arange(3 * runs).reshape(3, runs) / 1e3
    disturbed = random.random((3, runs)) < 0.1
    turns = module.Turns(("original", "again", "candidate"), wall, wall, disturbed)
    found = module.judge_turns(turns, "candidate", CPU, {}).compressed
    kept = wall[2][~disturbed[2]]
    assert len(found.runs_ms) == min(len(kept), 1000)
    assert set(found.runs_ms) <= set(kept.round(4).tolist())
    # In the order of the runs, from the first to the last.
    assert list(found.runs_ms) == sorted(found.runs_ms)
    assert (found.runs_ms[0], found.runs_ms[-1]) == (round(kept[0], 4), round(kept[-1], 4))
    # Evenly: no stretch of the measurement is left out.
    assert np.diff(found.runs_ms).max() < 5 * (wall[2, -1] - wall[2, 0]) / len(found.runs_ms)


def test_preemptions_of_the_pool_are_seen(convolutions):
    with ExitStack() as stack:
        runner = module._Runner(session(convolutions(1), Target(threads=2)), FEED, stack)
        assert len(runner._pool) == 1
        assert runner.preemptions() >= 0


def test_garbage_is_not_collected_while_timing(convolutions, monkeypatch):
    seen = []
    real = module._Record.take
    monkeypatch.setattr(
        module._Record, "take", lambda *args, **more: (seen.append(gc.isenabled()), real(*args, **more))
    )
    compare(convolutions(1), convolutions(1), FEED, CPU, **QUICK)
    assert not any(seen)
    assert gc.isenabled()


def test_the_host_is_held_alone(convolutions, tmp_path, monkeypatch):
    lock, seen = HostLock(tmp_path / "quiet"), []
    real = module._Record.take
    monkeypatch.setattr(
        module._Record, "take", lambda *args, **more: (seen.append(lock._held.mode), real(*args, **more))
    )
    compare(convolutions(1), convolutions(1), FEED, CPU, lock=lock, **QUICK)
    assert set(seen) == {"measuring"}


def test_an_absent_target_is_refused(convolutions):
    with pytest.raises(TargetUnavailableError):
        compare(convolutions(1), convolutions(1), FEED, Target(provider="tensorrt"), **QUICK)


def test_time_per_operator(convolutions):
    found = per_op(convolutions(3), FEED, CPU, runs=3)
    conv = next(cost for cost in found.by_type if cost.op_type == "Conv")
    assert conv.count == 3
    assert sum(cost.share for cost in found.by_node) == pytest.approx(1)
    assert found.nodes_by_provider["CPUExecutionProvider"] == len(found.by_node)
    assert list(found.by_node) == sorted(found.by_node, key=lambda cost: -cost.ms)


def test_control_flow_is_not_counted_twice():
    run = [NodeRun("If", "branch", "cpu", 1000), NodeRun("Conv", "a", "cpu", 600), NodeRun("Relu", "b", "cpu", 200)]
    found = summarise([run, run])
    assert [cost.op_type for cost in found.by_type] == ["Conv", "Relu"]
    assert [cost.ms for cost in found.by_type] == pytest.approx([0.6, 0.2])
    assert [cost.share for cost in found.by_type] == pytest.approx([0.75, 0.25])
