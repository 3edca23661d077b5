"""Prune real networks by all peers and by us to the same share, judge and race the results.

    python -m benchmarks.pruning [task ...] [--only ours|peers] [--keep] [--quick]

Results go to var/benchmarks/pruning.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import cases, contest, documents, tables
from benchmarks.pruning import entries

GROUP = "pruning"


def main() -> int:
    """Entry point; gives the exit code."""
    known = {task.name: task for task in entries.TASKS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    parser.add_argument("task", nargs="*", help=", ".join(known))
    parser.add_argument("--only", choices=["ours", "peers"])
    parser.add_argument("--keep", action="store_true", help="do not make again what the last run made in the same way")
    parser.add_argument("--quick", action="store_true", help="few samples and runs: a trial, no result")
    options = parser.parse_args()
    unknown = set(options.task) - set(known)
    if unknown:
        parser.error(f"unknown task: {', '.join(sorted(unknown))}")
    missing = 0
    for name in options.task or known:
        try:
            measure(known[name], options)
        except cases.NetworkMissingError as error:
            print(error, file=sys.stderr)
            missing = 1
    return missing


def measure(task: entries.Task, options: argparse.Namespace) -> None:
    """Measure one task and store its section."""
    case = cases.named([task.case])[0]
    case = replace(case, allowed_loss=task.allowed_loss, title=f"{case.title}, {task.ratio:.0%} pruned")
    candidates = [] if options.only == "ours" else entries.peers(task)
    candidates += [] if options.only == "peers" else entries.ours(task)
    effort = contest.Effort.quick() if options.quick else contest.Effort()
    results = contest.hold(case, candidates, effort, f"{documents.group_here(GROUP)}/{task.name}", keep=options.keep)
    markdown = tables.section(case, results, quick=options.quick)
    markdown += "".join(f"\n\n{line}" for line in beside_reference(results))
    content = {"task": task.name, "ratio": task.ratio, "entries": [each.record() for each in results]}
    documents.store(GROUP, task.name, content, markdown, quick=options.quick)
    print(markdown + "\n")


def beside_reference(results: Sequence[contest.Result]) -> list[str]:
    """Say how fast each of ours is beside the same architecture built at that width."""
    built = next((tables.speed(each) for each in results if each.untrained and each.latency), None)
    if built is None:
        return []
    return [
        f"{each.name} runs at {(tables.speed(each) or 0) / built:.2f} times the speed of the same architecture built at"
        " that width."
        for each in results
        if each.maker == contest.OURS and each.latency is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
