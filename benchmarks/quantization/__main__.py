"""Quantize real networks by all peers and by us, judge and race the results.

    python -m benchmarks.quantization [case ...] [--only ours|peers] [--keep] [--quick]

Cases are those of benchmarks.cases, and `int4`, `calibration`, `large`, `gptq`, `gptq_decoder`, `gptq_encoder_layers`
and `gptq_decoder_layers`. Results go to var/benchmarks/quantization.
"""

import argparse
import sys
from functools import partial

from benchmarks import cases, contest, documents, tables
from benchmarks.quantization import calibration, entries, gptq, int4, large

SPECIAL = {"int4": int4.measure, "calibration": calibration.measure, "large": large.measure}
SPECIAL |= {case: partial(gptq.measure, case) for case in gptq.SHAPES}
GROUP = "quantization"


def main() -> int:
    """Entry point; gives the exit code."""
    known = [case.name for case in cases.CASES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__)
    parser.add_argument("case", nargs="*", help=", ".join([*known, *SPECIAL]))
    parser.add_argument("--only", choices=["ours", "peers"])
    parser.add_argument("--keep", action="store_true", help="do not make again what the last run made in the same way")
    parser.add_argument("--quick", action="store_true", help="few samples and runs: a trial, no result")
    parser.add_argument("--match", default="", help="only entries whose name contains this")
    options = parser.parse_args()
    unknown = set(options.case) - {*known, *SPECIAL}
    if unknown:
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    missing = 0
    for name in options.case or [*known, *SPECIAL]:
        try:
            measure(name, options)
        except cases.NetworkMissingError as error:
            print(error, file=sys.stderr)
            missing = 1
    return missing


def measure(name: str, options: argparse.Namespace) -> None:
    """Measure one case and store its section."""
    if name in SPECIAL:
        content, markdown = SPECIAL[name](quick=options.quick)
        documents.store(GROUP, name, content, markdown, quick=options.quick)
        print(markdown + "\n")
        return
    case = cases.named([name])[0]
    candidates = [] if options.only == "ours" else entries.peers(case)
    candidates += [] if options.only == "peers" else entries.ours(case)
    candidates = [entry for entry in candidates if options.match in entry.name]
    effort = contest.Effort.quick() if options.quick else contest.Effort()
    results = contest.hold(case, candidates, effort, f"{documents.group_here(GROUP)}/{name}", keep=options.keep)
    markdown = tables.section(case, results, quick=options.quick)
    documents.store(
        GROUP, name, {"case": name, "entries": [each.record() for each in results]}, markdown, quick=options.quick
    )
    print(markdown + "\n")


if __name__ == "__main__":
    sys.exit(main())
