"""Networks of many contests made at the same time, each on cores of its own, so that none takes another's time."""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from benchmarks.contest import Contest, Effort, Entry, Result
from benchmarks.process import TIMEOUT_S

CORES = 2
"""So many cores make a network: what the bars are set for."""
_LEAST_S = 10.0


def contest_options(parser: argparse.ArgumentParser, known: Sequence[str]) -> argparse.Namespace:
    """Read what every benchmark of several contests is asked for, beside its own options."""
    parser.add_argument("task", nargs="*", help=", ".join(known))
    parser.add_argument("--only", choices=["ours", "peers"])
    parser.add_argument("--match", default="", help="only entries whose name contains this")
    parser.add_argument("--race", type=float, default=Effort.seconds, help="seconds of each race")
    parser.add_argument("--lanes", type=int, default=1, help=f"networks made at the same time, each on {CORES} cores")
    parser.add_argument("--within", type=float, metavar="S", help="seconds for everything; what is late is left out")
    parser.add_argument(
        "--make", action="store_true", help="make the networks, and leave the race to a run with --keep"
    )
    parser.add_argument("--keep", action="store_true", help="do not make again what the last run made in the same way")
    parser.add_argument(
        "--peers-here", action="store_true", help="run peers in this environment, as far as it has them"
    )
    parser.add_argument("--quick", action="store_true", help="few samples, seconds and runs: a trial, no result")
    options = parser.parse_args()
    unknown = set(options.task) - set(known)
    if unknown:
        parser.error(f"unknown task: {', '.join(sorted(unknown))}")
    return options


def lanes(count: int) -> list[list[int]]:
    """Give the cores of each lane; raises SystemExit where the machine has too few."""
    cores = sorted(os.sched_getaffinity(0))
    if count * CORES > max(len(cores), CORES):
        raise SystemExit(f"{len(cores)} cores are enough for {len(cores) // CORES} lanes of {CORES}, not for {count}.")
    return [cores[CORES * lane : CORES * (lane + 1)] for lane in range(count)]


def make(
    contests: Sequence[tuple[Contest, Sequence[Entry]]],
    ranks: Sequence[Any],
    free_lanes: Sequence[Sequence[int]],
    deadline: float | None = None,
) -> list[list[Result]]:
    """Make and judge all networks of all contests, as many at the same time as there are lanes; the results are as the entries.

    Args:
        contests: each with who takes part.
        ranks: of every entry, in the same order; the smallest goes first.
        free_lanes: cores of each lane.
        deadline: seconds of `time.monotonic()` after which nothing is begun.
    """
    free: SimpleQueue[Sequence[int]] = SimpleQueue()
    for cores in free_lanes:
        free.put(cores)

    def run(one: tuple[Contest, Entry]) -> Result:
        contest, entry = one
        cores = free.get()
        try:
            left = TIMEOUT_S if deadline is None else deadline - time.monotonic()
            if left < _LEAST_S:
                return Result(entry.maker, entry.setting, problem="left out, time was over")
            return contest.judge(entry, contest.make(entry, cores, min(TIMEOUT_S, left)))
        finally:
            free.put(cores)

    jobs = [(contest, entry) for contest, entries in contests for entry in entries]
    order = sorted(range(len(jobs)), key=ranks.__getitem__)
    with ThreadPoolExecutor(len(free_lanes)) as pool:
        done = dict(zip(order, pool.map(run, [jobs[index] for index in order]), strict=True))
    results = iter([done[index] for index in range(len(jobs))])
    return [[next(results) for _ in entries] for _, entries in contests]
