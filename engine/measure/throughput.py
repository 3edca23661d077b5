"""How many runs per second a session gives when several callers use it at the same time."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from engine.report.values import Throughput
from engine.runtime.failures import explain_run
from engine.runtime.host_lock import HostLock
from engine.runtime.library import run_errors
from engine.runtime.processor import cpu_profile
from engine.runtime.providers import PROVIDERS
from engine.runtime.sessions import Feed, ModelSource, captures, session
from engine.target import Target

# More callers than this only wait for each other on the hosts that we know.
_MOST_CALLERS = 16
_MOST_FEEDS = 4


def measure_throughput(
    model: ModelSource,
    feeds: Sequence[Feed],
    target: Target,
    *,
    lock: HostLock | None = None,
    seconds: float = 1.0,
    levels: Sequence[int] | None = None,
) -> tuple[Throughput, ...]:
    """Give runs per second for 1, 2, 4, ... callers up to twice the usable cores, each level for `seconds`.

    One session serves all, as in a server; each caller has inputs and outputs of its own.
    """
    lock, batches = lock or HostLock(None), feeds[:_MOST_FEEDS]
    if levels is None:
        alone = captures(target) or not PROVIDERS[target.provider].concurrent
        levels = (1,) if alone else _levels(cpu_profile().cores)
    with lock.working():
        shared = session(model, target)
        callers = [[shared.bind(feed) for feed in batches] for _ in range(max(levels))]
    found = []
    for level in levels:
        with lock.measuring():
            times, elapsed = _crowd(callers[:level], seconds)
        found.append(
            Throughput(
                concurrency=level,
                runs_per_s=len(times) / elapsed,
                samples_per_s=len(times) * target.batch / elapsed,
                p50_ms=float(np.quantile(times, 0.5, method="inverted_cdf")),
                p99_ms=float(np.quantile(times, 0.99, method="inverted_cdf")),
                runs=len(times),
            )
        )
    return tuple(found)


def _levels(cores: int) -> tuple[int, ...]:
    most = min(2 * cores, _MOST_CALLERS)
    return tuple(1 << power for power in range(most.bit_length()))


def _crowd(callers: Sequence[Sequence[Callable[[], object]]], seconds: float) -> tuple[list[float], float]:
    """Have all callers run at once; give each run's milliseconds, and the seconds from the first start to the last end."""
    times: list[list[float]] = [[] for _ in callers]
    ends = [0.0] * len(callers)
    failed: list[Exception] = []
    ready = threading.Barrier(len(callers) + 1)

    def call(place: int) -> None:
        mine, calls, now = times[place], callers[place], time.perf_counter
        ready.wait()
        start = now()
        until = start + seconds
        try:
            while start < until:
                calls[len(mine) % len(calls)]()
                end = now()
                mine.append((end - start) * 1e3)
                start = end
        except run_errors() as error:
            failed.append(error)
        ends[place] = start

    threads = [threading.Thread(target=call, args=(place,), daemon=True) for place in range(len(callers))]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    if failed:
        raise explain_run(failed[0]) from failed[0]
    return [each for mine in times for each in mine], max(ends) - began
