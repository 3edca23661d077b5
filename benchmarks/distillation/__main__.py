"""Make networks smaller, train what is left, and race it beside fp32, networks of integers only, and PyTorch's own loop.

    python -m benchmarks.distillation [task ...] [--seconds 300] [--lanes N] [--within S] [--make] [--keep] [--quick]

Each network is made on two cores. `--lanes` makes several at the same time, each on two cores of its own; the races are held one
after the other when all are made. `--within` bounds the whole: what is not made in time for the races is left out. `--make` only
makes networks; a later run with `--keep` races them. Results go to var/benchmarks/distillation. The exit code is 1 where a bar was
missed.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue

from benchmarks import cases, contest, documents, tables
from benchmarks.contest import Contest, Effort, Entry, Result
from benchmarks.distillation import bars, entries
from benchmarks.distillation.training import lines
from benchmarks.peers import environments
from benchmarks.process import TIMEOUT_S

GROUP = "distillation"
CORES = 2
"""So many cores make a network: what the bars are set for."""
_QUICK_S = 8.0
_LEAST_S = 10.0
# Of a race, beside the seconds that it is given.
_RACE_OVERHEAD_S = 4.0


@dataclass(frozen=True)
class _Open:
    task: entries.Task
    contest: Contest
    entries: Sequence[Entry]


def main() -> int:
    """Entry point; gives the exit code."""
    started = time.monotonic()
    options = _arguments()
    if not options.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.peers_here:
        os.environ[environments.PLACE] = "here"
    effort = Effort(seconds=options.race)
    if options.quick:
        effort, options.seconds = Effort.quick(), min(options.seconds, _QUICK_S)
    opened, failed = [], False
    for task in entries.TASKS:
        if options.task and task.name not in options.task:
            continue
        try:
            opened.append(_open(task, options, effort))
        except cases.NetworkMissingError as error:
            print(error, file=sys.stderr)
            failed = True
    races = 0 if options.make else len(opened) * (effort.seconds + _RACE_OVERHEAD_S)
    made = make(opened, lanes(options.lanes), None if options.within is None else started + options.within - races)
    if options.make:
        return int(failed)
    for each, results in zip(opened, made, strict=True):
        failed |= not finish(each, results, effort, options)
    return int(failed and not options.quick)


def lanes(count: int) -> list[list[int]]:
    """Give the cores of each lane; raises SystemExit where the machine has too few."""
    cores = sorted(os.sched_getaffinity(0))
    if count * CORES > max(len(cores), CORES):
        raise SystemExit(f"{len(cores)} cores are enough for {len(cores) // CORES} lanes of {CORES}, not for {count}.")
    return [cores[CORES * lane : CORES * (lane + 1)] for lane in range(count)]


def make(
    opened: Sequence[_Open], free_lanes: Sequence[Sequence[int]], deadline: float | None = None
) -> list[list[Result]]:
    """Make and judge all networks of all tasks, as many at the same time as there are lanes; the results are as the entries."""
    free: SimpleQueue[Sequence[int]] = SimpleQueue()
    for cores in free_lanes:
        free.put(cores)

    def run(one: tuple[Contest, Entry]) -> Result:
        each, entry = one
        cores = free.get()
        try:
            left = TIMEOUT_S if deadline is None else deadline - time.monotonic()
            if left < _LEAST_S:
                return Result(entry.maker, entry.setting, problem="left out, time was over")
            return each.judge(entry, each.make(entry, cores, min(TIMEOUT_S, left)))
        finally:
            free.put(cores)

    jobs = [(each.contest, entry) for each in opened for entry in each.entries]
    ranks = [_rank(each.task, entry, bounded=deadline is not None) for each in opened for entry in each.entries]
    order = sorted(range(len(jobs)), key=ranks.__getitem__)
    with ThreadPoolExecutor(len(free_lanes)) as pool:
        done = dict(zip(order, pool.map(run, [jobs[index] for index in order]), strict=True))
    results = iter([done[index] for index in range(len(jobs))])
    return [[next(results) for _ in each.entries] for each in opened]


def _rank(task: entries.Task, entry: Entry, *, bounded: bool) -> tuple[bool, float]:
    """Put what the bars are about first; the longest first, so that no lane starts one when the others are done.

    Where time is bounded, the short ones of the rest go first, so that most of it is there in the end.
    """
    needed = bars.needs(task.bars, entry.setting)
    seconds = entries.expected_seconds(entry) + (task.beside_s if entry.setting in task.recipes else 0.0)
    return not needed, seconds if bounded and not needed else -seconds


def finish(each: _Open, made: Sequence[Result], effort: Effort, options: argparse.Namespace) -> bool:
    """Race and store one task; say whether it reached its bars."""
    case = each.contest.case
    results = each.contest.race(made, effort)
    held = list(bars.hold(each.task.bars, results)) if options.only != "peers" else []
    markdown = tables.section(replace(case, name=each.task.name), results, quick=options.quick)
    for block in (lines(results), [one.line for one in held]):
        markdown += "\n\n" + "\n".join(f"* {line}" for line in block) if block else ""
    content = {
        "task": each.task.name,
        "seconds": options.seconds,
        "cores": CORES,
        "samples": each.task.samples,
        "bars": [{"line": one.line, "figure": one.figure, "met": one.met} for one in held],
        "entries": [result.record() for result in results],
    }
    documents.store(GROUP, each.task.name, content, markdown, quick=options.quick)
    print(markdown + "\n", flush=True)
    return all(one.met for one in held)


def _open(task: entries.Task, options: argparse.Namespace, effort: Effort) -> _Open:
    candidates = [] if options.only == "ours" else entries.peers(task, options.seconds)
    candidates += [] if options.only == "peers" else entries.ours(task, options.seconds)
    candidates = [entry for entry in candidates if options.match in entry.name]
    name = f"{documents.group_here(GROUP)}/{task.name}"
    return _Open(task, Contest.open(task.contested(), effort, name, keep=options.keep), candidates)


def _arguments() -> argparse.Namespace:
    known = [task.name for task in entries.TASKS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distillation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", nargs="*", help=", ".join(known))
    parser.add_argument("--only", choices=["ours", "peers"])
    parser.add_argument("--match", default="", help="only entries whose name contains this")
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, for everybody")
    parser.add_argument("--race", type=float, default=contest.Effort.seconds, help="seconds of each race")
    parser.add_argument("--lanes", type=int, default=1, help=f"networks made at the same time, each on {CORES} cores")
    parser.add_argument("--within", type=float, metavar="S", help="seconds for everything; what is late is left out")
    parser.add_argument(
        "--make", action="store_true", help="make the networks, and leave the race to a run with --keep"
    )
    parser.add_argument("--keep", action="store_true", help="do not make again what the last run made in the same way")
    parser.add_argument(
        "--peers-here", action="store_true", help="run peers in this environment, as far as it has them"
    )
    parser.add_argument("--gpu", action="store_true", help="let ours and PyTorch train on a GPU")
    parser.add_argument("--quick", action="store_true", help="few samples, seconds and runs: a trial, no result")
    options = parser.parse_args()
    unknown = set(options.task) - set(known)
    if unknown:
        parser.error(f"unknown task: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
