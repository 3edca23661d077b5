"""Give the engine a goal, and race what it finds beside recipes by hand, quantizers and other searches.

    python -m benchmarks.search [task ...] [--seconds S] [--lanes N] [--within S] [--make] [--keep] [--quick]

Each search is made on two cores and takes the seconds of its task, or `--seconds`. `--lanes` makes several networks at the same
time, each on two cores of its own; the races are held one after the other when all are made. `--within` bounds the whole: what is
not made in time for the races is left out. `--make` only makes networks; a later run with `--keep` races them. Results go to
var/benchmarks/search. The exit code is 1 where a bar was missed.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks import bars, cases, documents, tables
from benchmarks.contest import Contest, Effort, Entry, Result
from benchmarks.lanes import CORES, contest_options, lanes, make
from benchmarks.peers import environments
from benchmarks.search import outcome, tasks

GROUP = "search"
_QUICK_S = 40.0
# Of a race, beside the seconds that it is given.
_RACE_OVERHEAD_S = 6.0


@dataclass(frozen=True)
class _Open:
    task: tasks.Task
    contest: Contest
    entries: Sequence[Entry]


def main() -> int:
    """Entry point; gives the exit code."""
    started = time.monotonic()
    options = _arguments()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.peers_here:
        os.environ[environments.PLACE] = "here"
    effort = Effort(seconds=options.race)
    if options.quick:
        effort, options.seconds = Effort.quick(), min(options.seconds or _QUICK_S, _QUICK_S)
    opened, failed = [], False
    for task in tasks.named(options.task):
        try:
            opened.append(_open(task, options, effort))
        except cases.NetworkMissingError as error:
            print(error, file=sys.stderr)
            failed = True
    races = 0 if options.make else len(opened) * (effort.seconds + _RACE_OVERHEAD_S)
    made = make(
        [(each.contest, each.entries) for each in opened],
        # What the bars are about first; the longest first, so that no lane starts one when the others are done.
        [
            (not bars.needs(each.task.bars, entry.setting), -tasks.expected_seconds(entry))
            for each in opened
            for entry in each.entries
        ],
        lanes(options.lanes),
        None if options.within is None else started + options.within - races,
    )
    if options.make:
        return int(failed)
    for each, results in zip(opened, made, strict=True):
        failed |= not finish(each, results, effort, options)
    return int(failed and not options.quick)


def finish(each: _Open, made: Sequence[Result], effort: Effort, options: argparse.Namespace) -> bool:
    """Race and store one task; say whether it reached its bars."""
    results = each.contest.race(made, effort)
    held = list(bars.hold(each.task.bars, results)) if options.only != "peers" else []
    markdown = tables.section(replace(each.contest.case, name=each.task.name), results, quick=options.quick)
    for block in (outcome.lines(results), [one.line for one in held]):
        markdown += "\n\n" + "\n".join(f"* {line}" for line in block) if block else ""
    content = {
        "task": each.task.name,
        "seconds": options.seconds or each.task.seconds,
        "cores": CORES,
        "samples": each.task.samples,
        "choosing": each.contest.data.selecting,
        "bars": [{"line": one.line, "figure": one.figure, "met": one.met} for one in held],
        "entries": [result.record() for result in results],
    }
    documents.store(GROUP, each.task.name, content, markdown, quick=options.quick)
    print(markdown + "\n", flush=True)
    return all(one.met for one in held)


def _open(task: tasks.Task, options: argparse.Namespace, effort: Effort) -> _Open:
    candidates = [] if options.only == "ours" else tasks.peers(task, options.seconds)
    candidates += [] if options.only == "peers" else tasks.ours(task, options.seconds)
    candidates = [entry for entry in candidates if options.match in entry.name]
    name = f"{documents.group_here(GROUP)}/{task.name}"
    return _Open(task, Contest.open(task.contested(), effort, name, keep=options.keep), candidates)


def _arguments() -> argparse.Namespace:
    known = [task.name for task in tasks.TASKS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, help="of each search, and of who trains; by default the task's")
    return contest_options(parser, known)


if __name__ == "__main__":
    sys.exit(main())
