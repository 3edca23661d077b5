"""Latency of networks beside each other: in one process, run by run in turn.

Blocks of runs cannot be compared on a machine that does other things too: the longer block is preempted more often. So each
sample is one run, the order rotates, a run that the kernel preempted is dropped and counted, time by the CPU's clock stands
beside time by the wall's where the processor does the work, and the original runs a second time under another name, which shows
how much of a ratio is noise. A run has ended when its results are there: on a GPU too, the wall's clock sees all of it.
"""

import gc
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.measure.gates import FEWEST_RUNS
from engine.measure.intervals import Floats, block_weights
from engine.report.counted_time import clock_that_counts
from engine.report.run_facts import SessionOptions
from engine.report.values import MOST_RUNS, Interval, Latency, LatencyComparison, Ratio
from engine.runtime.failures import explain_run
from engine.runtime.host_lock import HostLock
from engine.runtime.kernel_times import OpProfile, Run, summarise
from engine.runtime.library import run_errors
from engine.runtime.sessions import Feed, ModelSource, Session, session
from engine.runtime.tracing import nodes_by_provider, profile
from engine.target import Target

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_STATISTICS = ("mean", *_QUANTILES)

_WARM_UP_TURNS = 5
_MAX_FEEDS = 16
# Of the time for a comparison: what may go into first runs on every feed, and into runs before the first that counts.
_FEEDS_SHARE, _WARM_UP_SHARE = 0.1, 0.2
# Not even those are waited for beyond so many times the seconds that a comparison may take.
_LATEST = 8.0
_FIRST_LOOK = 12
_PROFILE_SECONDS = 4.0
# An effect is clear when it is so many times as large as what is not known of it.
_CLEAR = 3.0
# No ratio is known better than that.
_FINEST = 0.002
_RESAMPLES = 1000
# A percentile needs some samples even to be wrong about; below this all runs are used and the result is not stable.
_FEWEST_KEPT = 10
_MOST_DROPPED = 0.5
# A preempted run waits about that long. It spoils a run of which that is a noticeable part, and no longer one.
_PREEMPTED_MS, _NOTICEABLE = 4.0, 0.01
# Of the original beside itself: always allowed, or else up to this share of the effect that is measured, or never.
_SMALL_NOISE, _NOISE_OF_EFFECT, _LARGE_NOISE = 0.05, 0.25, 0.15
# How far the ratios by CPU and by wall may differ. With more threads the two also differ in how well the work is spread.
_CLOCKS_AGREE = {True: 0.10, False: 0.30}

# The processor does the work: its clock says something.
_BY_PROCESSOR = frozenset({"cpu", "openvino"})

_ORIGINAL, _AGAIN = 0, 1


@dataclass(frozen=True)
class Turns:
    """Raw samples: one row per network (the original, the original again, the candidates), one column per turn."""

    names: tuple[str, ...]
    wall_ms: Floats
    cpu_ms: Floats
    disturbed: NDArray[np.bool_]


def compare(
    original: ModelSource,
    candidate: ModelSource,
    feeds: Feed | Sequence[Feed],
    target: Target,
    *,
    lock: HostLock | None = None,
    seconds: float = 10.0,
    min_runs: int = 50,
    max_runs: int = 2000,
    precision: float = 0.02,
    against: Sequence[float] = (),
    least_runs: int | None = None,
    seed: int = 0,
    options: tuple[SessionOptions | None, SessionOptions | None] = (None, None),
) -> LatencyComparison:
    """Measure a candidate beside the original, each with its options; `compare_many` says how."""
    compared = compare_many(
        original,
        {"candidate": candidate},
        feeds,
        target,
        lock=lock,
        seconds=seconds,
        min_runs=min_runs,
        max_runs=max_runs,
        precision=precision,
        against=against,
        least_runs=least_runs,
        seed=seed,
        options=dict(zip(("original", "candidate"), options, strict=True)),
    )
    return compared["candidate"]


def compare_many(
    original: ModelSource,
    candidates: Mapping[str, ModelSource],
    feeds: Feed | Sequence[Feed],
    target: Target,
    *,
    lock: HostLock | None = None,
    seconds: float = 10.0,
    min_runs: int = 50,
    max_runs: int = 2000,
    precision: float = 0.02,
    against: Sequence[float] = (),
    least_runs: int | None = None,
    seed: int = 0,
    options: Mapping[str, SessionOptions | None] | None = None,
) -> dict[str, LatencyComparison]:
    """Measure any number of candidates beside the original in the same turns.

    Turns are taken until the intervals of mean, p50, p90 and p95 of every ratio are narrower than `precision` (relative), or
    `max_runs` are made, or `seconds` are over. A comparison that only asks whether ratios are above or below some values
    names these in `against`, and ends as soon as that is clear. `min_runs` are made before it ends early for precision; of a
    network too slow for them within `seconds`, six are made and no more, and fewer where even those take eight times as
    long; `least_runs` are made whatever time they take. What goes before the first run that counts has a share of the time too. Feeds are batches as the target says, used
    in turn; all runners of a turn run on the same one. A slow network is run on fewer of them. `options` take the place of the
    target's own, by candidate and for `original`.

    Raises:
        TargetUnavailableError: none of a network's nodes ran on the target's provider.
    """
    lock = lock or HostLock(None)
    batches = [feeds] if isinstance(feeds, Mapping) else list(feeds)[:_MAX_FEEDS]
    with lock.working():
        given = {name: chosen for name, chosen in (options or {}).items() if chosen is not None}
        first = given.get("original")
        sessions = {name: session(original, target, options=first) for name in ("original", "original again")}
        sessions |= {name: session(model, target, options=given.get(name)) for name, model in candidates.items()}
        ran_on = {name: nodes_by_provider(model, target, batches[0]) for name, model in candidates.items()}
    with lock.measuring():
        turns = take_turns(
            sessions,
            batches,
            seconds=seconds,
            min_runs=min_runs,
            max_runs=max_runs,
            precision=precision,
            against=against,
            least_runs=least_runs,
            seed=seed,
        )
    threads = {name: each.target.threads for name, each in sessions.items()}
    return {
        name: judge_turns(
            turns, name, target, ran_on[name], seed=seed, same_threads=threads[name] == threads["original"]
        )
        for name in candidates
    }


def measure_alone(
    model: ModelSource,
    feeds: Feed | Sequence[Feed],
    target: Target,
    *,
    lock: HostLock | None = None,
    seconds: float = 10.0,
    min_runs: int = 50,
    max_runs: int = 2000,
    least_runs: int | None = None,
    seed: int = 0,
) -> LatencyComparison:
    """Measure a network beside itself: there is no other to compare with, but the noise shows.

    It takes all of `seconds`, or `max_runs`; its ratios are those of a network to itself.
    """
    lock = lock or HostLock(None)
    batches = [feeds] if isinstance(feeds, Mapping) else list(feeds)[:_MAX_FEEDS]
    with lock.working():
        sessions = {"original": session(model, target), "original again": session(model, target)}
        ran_on = nodes_by_provider(model, target, batches[0])
    with lock.measuring():
        turns = take_turns(
            sessions,
            batches,
            seconds=seconds,
            min_runs=min_runs,
            max_runs=max_runs,
            precision=0.0,
            least_runs=least_runs,
            seed=seed,
        )
    return judge_turns(turns, "original again", target, ran_on, seed=seed)


def per_op(
    model: ModelSource, feeds: Feed | Sequence[Feed], target: Target, *, lock: HostLock | None = None, runs: int = 10
) -> OpProfile:
    """Give where a network's time goes, from onnxruntime's own profile; the first runs are discarded.

    The profiler itself costs about a microsecond per node, so tiny nodes look dearer than they are. Of a network that takes
    seconds there are fewer runs.
    """
    batches = [feeds] if isinstance(feeds, Mapping) else list(feeds)[:_MAX_FEEDS]
    with (lock or HostLock(None)).measuring():
        made = profile(model, target, batches, runs=_WARM_UP_TURNS + runs, seconds=_PROFILE_SECONDS)
        return summarise(without_warm_up(made))


def without_warm_up(runs: Sequence[Run]) -> Sequence[Run]:
    """Leave out the first runs, but never more than half of them."""
    return runs[min(_WARM_UP_TURNS, len(runs) // 2) :]


def take_turns(
    sessions: Mapping[str, Session],
    feeds: Sequence[Feed],
    *,
    seconds: float,
    min_runs: int,
    max_runs: int,
    precision: float,
    against: Sequence[float] = (),
    least_runs: int | None = None,
    seed: int = 0,
) -> Turns:
    """Take the raw samples. The first two sessions are of the original."""
    most = max(max_runs, min_runs, least_runs or 0)
    fewest, latest = (min(FEWEST_RUNS, min_runs), _LATEST * seconds) if least_runs is None else (least_runs, np.inf)
    record = _Record(len(sessions), most)
    started = time.monotonic()
    with ExitStack() as stack:
        runners = _runners(list(sessions.values()), feeds, _FEEDS_SHARE * seconds, stack)
        orders = _orders(len(runners), seed)
        stack.enter_context(_no_garbage_collection())
        for turn in range(_WARM_UP_TURNS):
            if time.monotonic() > started + (_FEEDS_SHARE + _WARM_UP_SHARE) * seconds:
                break
            record.take(runners, next(orders), turn, column=0)
        done, next_look = 0, min(_FIRST_LOOK, min_runs)
        while done < most and not (done and time.monotonic() - started > (seconds if done >= fewest else latest)):
            record.take(runners, next(orders), done, column=done)
            done += 1
            if done == next_look:
                turns = record.turns(sessions, done)
                if (against and _clear(turns, against, seed)) or (
                    done >= min_runs and _widest(turns, seed) < precision
                ):
                    break
                # The first look at precision is after `min_runs`, whatever was looked at before.
                following = done + max(done // 2, 10)
                next_look = min_runs if done < min_runs < following else following
    return record.turns(sessions, done)


def _runners(sessions: Sequence[Session], feeds: Sequence[Feed], seconds: float, stack: ExitStack) -> list["_Runner"]:
    """Prepare runs of every session on as many of the feeds as their first runs have time for: all on the same ones."""
    started = time.monotonic()
    runners = [_Runner(each, feeds[0], stack) for each in sessions]
    for feed in feeds[1:]:
        spent = time.monotonic() - started
        if spent + spent / len(runners[0].calls) > seconds:
            break
        for runner in runners:
            runner.add(feed)
    return runners


def judge_turns(
    turns: Turns, name: str, target: Target, ran_on: Mapping[str, int], *, seed: int = 0, same_threads: bool = True
) -> LatencyComparison:
    """Compare one candidate with the original, and say whether the samples can be trusted.

    Time by the processor's clock tells nothing where the two do not spread their work over the same number of threads.
    """
    candidate = turns.names.index(name)
    weights = block_weights(turns.wall_ms.shape[1], _RESAMPLES, seed)
    kept = [_kept(turns, row) for row in (_ORIGINAL, _AGAIN, candidate)]
    walls = [
        _Resampled.of(turns.wall_ms[row], mask, weights)
        for row, mask in zip((_ORIGINAL, _AGAIN, candidate), kept, strict=True)
    ]
    cpus = [
        _Resampled.of(turns.cpu_ms[row], mask, weights)
        for row, mask in zip((_ORIGINAL, _AGAIN, candidate), kept, strict=True)
    ]
    ratios = {statistic: walls[2].ratio_to(walls[0], statistic) for statistic in _STATISTICS}
    # Where another device does the work the processor's clock says nothing, and some are too coarse to see a short run.
    counted = target.provider in _BY_PROCESSOR and min(cpus[0].value["p50"], cpus[2].value["p50"]) > 0
    cpu_ratio = cpus[2].ratio_to(cpus[0], "p50") if counted else None
    noise = walls[1].ratio_to(walls[0], "p50").interval
    reason = (
        _too_disturbed(turns, (_ORIGINAL, _AGAIN, candidate))
        or _too_noisy(noise, ratios["p50"])
        or (_clocks_disagree(ratios["p50"], cpu_ratio, target) if same_threads and cpu_ratio is not None else None)
    )
    return LatencyComparison(
        original=walls[0].latency(turns, _ORIGINAL),
        compressed=walls[2].latency(turns, candidate),
        ratios=ratios,
        cpu_ratio=cpu_ratio,
        noise_floor=noise,
        cpu_noise_floor=None if cpu_ratio is None else cpus[1].ratio_to(cpus[0], "p50").interval,
        stable=reason is None,
        unstable_because=reason,
        counts=clock_that_counts(cpu_ratio if same_threads else None, stable=reason is None),
        nodes_by_provider=dict(ran_on),
    )


@dataclass(frozen=True)
class _Resampled:
    """The statistics of one network's kept samples, and of every bootstrap resample of them."""

    samples: int
    value: Mapping[str, float]
    resampled: Mapping[str, Floats]

    @classmethod
    def of(cls, times: Floats, kept: NDArray[np.bool_], weights: NDArray[np.int32]) -> "_Resampled":
        """Weigh the kept samples by how often each resample drew their turn."""
        chosen = np.flatnonzero(kept)
        chosen = chosen[np.argsort(times[chosen], kind="stable")]
        ordered, drawn = times[chosen], np.take(weights, chosen, axis=1)
        # All resamples behind each other, so that one search finds a quantile in each: nobody else works while this does.
        reached = np.cumsum(drawn, dtype=np.int32)
        ends = np.arange(1, len(drawn) + 1) * len(ordered)
        before = np.concatenate([np.zeros(1, np.int32), reached[ends[:-1] - 1]])
        totals = np.maximum(reached[ends - 1] - before, 1)
        value = {"mean": float(ordered.mean())}
        resampled = {"mean": np.einsum("ij,j->i", drawn, ordered) / totals}
        for name, share in _QUANTILES.items():
            # The quantile is always a run that was made, never something between two.
            value[name] = float(np.quantile(ordered, share, method="inverted_cdf"))
            wanted = np.ceil(share * totals).astype(reached.dtype)
            rank = np.searchsorted(reached, before + wanted) - (ends - len(ordered))
            resampled[name] = ordered[np.minimum(rank, len(ordered) - 1)]
        return cls(len(ordered), value, resampled)

    def ratio_to(self, other: "_Resampled", statistic: str) -> Ratio:
        value = self.value[statistic] / max(other.value[statistic], 1e-9)
        spread = self.resampled[statistic] / np.maximum(other.resampled[statistic], 1e-9)
        return Ratio(value=value, interval=_interval(value, spread))

    def latency(self, turns: Turns, row: int) -> Latency:
        value = self.value
        return Latency(
            mean_ms=value["mean"],
            p50_ms=value["p50"],
            p90_ms=value["p90"],
            p95_ms=value["p95"],
            p99_ms=value["p99"],
            samples=self.samples,
            # Where too few would be left, none is left out.
            dropped=int((~_kept(turns, row)).sum()),
            max_ms=float(turns.wall_ms[row].max()),
            runs_ms=_thinned(turns.wall_ms[row][_kept(turns, row)]),
            intervals={name: _interval(value[name], self.resampled[name]) for name in _STATISTICS},
        )


def _thinned(times: Floats) -> tuple[float, ...]:
    """Give at most as many as a report keeps, evenly from the first to the last, to the tenth of a microsecond."""
    chosen = np.linspace(0, len(times) - 1, min(len(times), MOST_RUNS)).round().astype(np.int64)
    return tuple(times[chosen].round(4).tolist())


def _interval(value: float, spread: Floats) -> Interval:
    low, high = np.quantile(spread, [0.025, 0.975])
    return Interval(low=min(float(low), value), high=max(float(high), value))


def _kept(turns: Turns, row: int) -> NDArray[np.bool_]:
    kept = ~turns.disturbed[row]
    return kept if kept.sum() >= _FEWEST_KEPT else np.ones_like(kept)


def _too_disturbed(turns: Turns, rows: Sequence[int]) -> str | None:
    for row in rows:
        dropped, made = int(turns.disturbed[row].sum()), turns.disturbed.shape[1]
        if made < FEWEST_RUNS:
            return f"There was time for {made} runs of each network; an interval takes at least {FEWEST_RUNS}"
        if dropped > _MOST_DROPPED * made or made - dropped < min(_FEWEST_KEPT, made):
            return f"The kernel preempted {dropped} of {made} runs: other programs are using the processor"
    return None


def _too_noisy(noise: Interval, ratio: Ratio) -> str | None:
    """Refuse a noise floor that is wide beside the effect: a ratio of 0.5 stands where one of 0.95 would be lost."""
    allowed = min(max(_SMALL_NOISE, _NOISE_OF_EFFECT * abs(np.log(ratio.value))), _LARGE_NOISE)
    if noise.low < 1 - allowed or noise.high > 1 + allowed:
        return f"The original beside itself reads {noise.low:.2f} to {noise.high:.2f}: the machine is too noisy"
    return None


def _clocks_disagree(wall: Ratio, cpu: Ratio, target: Target) -> str | None:
    if cpu.value <= 0:
        return None
    apart = abs(np.log(cpu.value / wall.value)) > _CLOCKS_AGREE[target.threads == 1]
    overlap = cpu.interval.low <= wall.interval.high and wall.interval.low <= cpu.interval.high
    if apart and not overlap:
        return f"The ratio is {wall.value:.2f} by wall time but {cpu.value:.2f} by CPU time"
    return None


def _widest(turns: Turns, seed: int) -> float:
    """Give the widest relative interval among the ratios, of fewer resamples than the final answer."""
    weights = block_weights(turns.wall_ms.shape[1], _RESAMPLES // 5, seed)
    rows = [
        _Resampled.of(turns.wall_ms[row], _kept(turns, row), weights)
        for row in (_ORIGINAL, *range(_AGAIN + 1, len(turns.names)))
    ]
    ratios = [row.ratio_to(rows[0], name) for row in rows[1:] for name in ("mean", "p50", "p90", "p95")]
    return max(((ratio.interval.high - ratio.interval.low) / ratio.value for ratio in ratios), default=0.0)


def _clear(turns: Turns, against: Sequence[float], seed: int) -> bool:
    """Say whether every candidate's ratio is on one side of all these values, by far more than what is not known of it."""
    if any(_kept(turns, row).sum() < turns.wall_ms.shape[1] * (1 - _MOST_DROPPED) for row in range(len(turns.names))):
        return False
    weights = block_weights(turns.wall_ms.shape[1], _RESAMPLES // 5, seed)
    rows = [_Resampled.of(turns.wall_ms[row], _kept(turns, row), weights) for row in range(len(turns.names))]
    noise = rows[_AGAIN].ratio_to(rows[_ORIGINAL], "p50")
    unknown = max(abs(np.log(noise.interval.low)), abs(np.log(noise.interval.high)), _FINEST)
    for row in rows[_AGAIN + 1 :]:
        ratio = row.ratio_to(rows[_ORIGINAL], "p50")
        half = max(np.log(ratio.interval.high / ratio.interval.low) / 2, unknown)
        if any(abs(np.log(ratio.value / value)) < _CLEAR * half for value in against):
            return False
    return True


class _Runner:
    """A session with its runs prepared, and the preemptions of the threads that do its work."""

    def __init__(self, run_by: Session, feed: Feed, stack: ExitStack) -> None:
        self._run_by = run_by
        self.calls = [run_by.bind(feed)]
        alone = run_by.target.provider == "cpu" and run_by.target.threads == 1
        # A thread's own clock leaves out whatever else this process does; a pool's work is only in the process's.
        self.cpu_clock: Callable[[], int] = time.thread_time_ns if alone else time.process_time_ns
        self._pool = [] if alone else [_open_status(thread, stack) for thread in sorted(run_by.pool_threads)]

    def add(self, feed: Feed) -> None:
        """Prepare a run on one more feed; its first run is made."""
        self.calls.append(self._run_by.bind(feed))

    def preemptions(self) -> int:
        """Count the involuntary context switches so far of this thread and the session's pool."""
        own = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        return own + sum(_read_preemptions(descriptor) for descriptor in self._pool)


def _open_status(thread: str, stack: ExitStack) -> int:
    descriptor = os.open(f"/proc/self/task/{thread}/status", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _read_preemptions(descriptor: int) -> int:
    return int(os.pread(descriptor, 4096, 0).rpartition(b"nonvoluntary_ctxt_switches:")[2])


class _Record:
    """Room for the samples, made before the first run."""

    def __init__(self, runners: int, turns: int) -> None:
        self.wall = np.zeros((runners, turns), np.int64)
        self.cpu = np.zeros((runners, turns), np.int64)
        self.disturbed = np.zeros((runners, turns), np.bool_)

    def take(self, runners: Sequence[_Runner], order: Sequence[int], turn: int, column: int) -> None:
        """Run each runner once. Between the two readings of a clock there is nothing but the run."""
        now, broken = time.perf_counter_ns, run_errors()
        for row in order:
            runner = runners[row]
            call, cpu_clock = runner.calls[turn % len(runner.calls)], runner.cpu_clock
            before = runner.preemptions()
            cpu_start = cpu_clock()
            start = now()
            try:
                call()
            except broken as error:
                raise explain_run(error) from error
            end = now()
            cpu_end = cpu_clock()
            waited_ms = (runner.preemptions() - before) * _PREEMPTED_MS
            self.disturbed[row, column] = waited_ms * 1e6 > _NOTICEABLE * (end - start)
            self.wall[row, column] = end - start
            self.cpu[row, column] = cpu_end - cpu_start

    def turns(self, names: Iterable[str], done: int) -> Turns:
        """Give what was recorded so far."""
        return Turns(tuple(names), self.wall[:, :done] / 1e6, self.cpu[:, :done] / 1e6, self.disturbed[:, :done].copy())


def _orders(runners: int, seed: int) -> Iterator[Sequence[int]]:
    """Give the order of each turn: everyone takes every place equally often, after ever new neighbours."""
    random = np.random.default_rng(seed)
    while True:
        lap: list[int] = random.permutation(runners).tolist()
        for shift in range(runners):
            order = lap[shift:] + lap[:shift]
            yield order
            yield order[::-1]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
