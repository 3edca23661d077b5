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
from dataclasses import dataclass, replace

from benchmarks import bars, cases, documents, tables
from benchmarks import lanes as many
from benchmarks.contest import Contest, Effort, Entry, Result
from benchmarks.distillation import entries
from benchmarks.distillation.training import lines
from benchmarks.lanes import CORES, contest_options, lanes
from benchmarks.peers import environments

GROUP = "distillation"
_QUICK_S = 8.0
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


def make(
    opened: Sequence[_Open], free_lanes: Sequence[Sequence[int]], deadline: float | None = None
) -> list[list[Result]]:
    """Make and judge all networks of all tasks, what the bars are about first; the results are as the entries."""
    ranks = [_rank(each.task, entry, bounded=deadline is not None) for each in opened for entry in each.entries]
    return many.make([(each.contest, each.entries) for each in opened], ranks, free_lanes, deadline)


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
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, for everybody")
    parser.add_argument("--gpu", action="store_true", help="let ours and PyTorch train on a GPU")
    return contest_options(parser, known)


if __name__ == "__main__":
    sys.exit(main())
