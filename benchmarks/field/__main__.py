"""Networks out of wheels of the Python index, with real inputs: what comes of three recipes, beside onnxruntime's own quantization.

    python -m benchmarks.field [network ...] [--recipe static|dynamic|mixed] [--lanes N] [--seconds S] [--quick] [--no-peers]

With `--lanes`, as many jobs run at the same time, each on its share of the cores that the process may use; with `--seconds`, in
the order of the networks that are named, what has not ended by then is left out, and what was made is judged. Each job runs through the engine in a process of its own. Its bars: no traceback; the main output judged as what it is; at
most 2 GiB of memory and four minutes; and no network of onnxruntime's quantization that is no larger, no slower and closer to
the original. The table says which of them a result misses, and the exit code is 1 where one does. Needs Pillow, the
recordings of Debian's `pocketsphinx-testdata` and its `fonts-dejavu`. Wheels and results go to var/field; tables to var/benchmarks/field.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import documents
from benchmarks.documents import megabytes
from benchmarks.field import networks
from benchmarks.field.lanes import Bench, Plan
from benchmarks.field.measure import RECIPES, Result
from benchmarks.field.networks import Network

FOLDER = Path(__file__).resolve().parents[2] / "var" / "field"
HEADER = ("result", "size", "smaller", "speed", "quality", "time", "peak memory", "what it is, or why not")


def main() -> int:
    """Entry point; gives the exit code."""
    known = [network.name for network in networks.NETWORKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.field", description=__doc__.partition("\n")[0])
    parser.add_argument("network", nargs="*", help=", ".join(known))
    parser.add_argument("--recipe", action="append", choices=list(RECIPES), help="repeatable; by default all three")
    parser.add_argument(
        "--lanes", type=int, default=1, help="jobs at the same time, each on cores of its own; by default 1"
    )
    parser.add_argument("--seconds", type=float, help="judge what is ready then; by default all of it ends")
    parser.add_argument(
        "--race", type=float, default=20.0, help="seconds that a network's results are raced; by default 20"
    )
    parser.add_argument("--quick", action="store_true", help="a short race: a trial, no result")
    parser.add_argument("--no-peers", action="store_true", help="leave onnxruntime's quantization out")
    options = parser.parse_args()
    unknown = set(options.network) - set(known)
    if unknown:
        parser.error(f"unknown network: {', '.join(sorted(unknown))}")
    plan = Plan(
        recipes=options.recipe or list(RECIPES),
        peers=not options.no_peers,
        lanes=options.lanes,
        seconds=options.seconds,
        race_s=3.0 if options.quick else options.race,
    )
    faults = 0
    for network, results in Bench(networks.named(options.network), plan, FOLDER / "downloads", FOLDER).results():
        markdown = section(network, results, quick=options.quick)
        content = {"network": network.name, "results": [each.record() for each in results]}
        documents.store("field", network.name, content, markdown, quick=options.quick)
        print(markdown + "\n", flush=True)
        faults += sum(len(each.faults) for each in results)
    return 1 if faults else 0


def section(network: Network, results: Sequence[Result], *, quick: bool) -> str:
    """Give the Markdown of one network: a table, and under it the bars that are missed."""
    original = results[0].bytes or 0
    rows = [_row(network, each, original) for each in results[1:]]
    counts = "/".join(map(str, network.counts))
    trial = " **A trial: no result.**" if quick else ""
    told = [f"* {each.name}: {fault}" for each in results for fault in each.faults] or [_held(results)]
    about = f"{network.package.name} {network.package.version}, {megabytes(original)}; {counts} samples.{trial}"
    return "\n\n".join([f"### {network.name}", about, documents.table(HEADER, rows), "\n".join(told)])


def _held(results: Sequence[Result]) -> str:
    if any(each.timed_out for each in results):
        return "What was measured holds every bar; what did not end in time is left out."
    return "Every bar holds."


def _row(network: Network, result: Result, original: int) -> list[str]:
    judged = "" if result.score is None else f"{network.judge.name} {result.score:.2f} {network.judge.unit}".strip()
    speed = "" if result.speed is None else f"{result.speed:.2f}x{result.clock}"
    kinds = ", ".join(f"{name}: {kind}" for name, kind in result.outputs.items())
    spent = "" if result.seconds is None else f"{result.seconds:.0f} s, {result.cpu_seconds or 0:.0f} s CPU"
    return [
        f"**{result.name}**" if result.maker == "onnxpress" else result.name,
        megabytes(result.bytes),
        f"{original / result.bytes:.2f}x" if result.bytes else "",
        "fp32 kept" if result.unchanged else speed,
        judged,
        spent,
        megabytes(result.peak_bytes),
        result.problem or "; ".join([*result.steps, *([kinds] if kinds else [])]),
    ]


if __name__ == "__main__":
    sys.exit(main())
