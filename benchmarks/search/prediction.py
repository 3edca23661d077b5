"""Hold what a search predicts of composed networks against what they take: latency, bytes and multiplications.

    python -m benchmarks.search.prediction [case ...] [--networks N] [--precisions P ...] [--damage]

The networks are drawn at random from the space of each case: every group at a width of its own, some branches gone. None of them
is among those that the library is measured on. `--damage` measures the parts of the library that tell of damage too and makes,
refits and evaluates the networks, which takes longer. Ends with code 1 where the median error of latency is above 10 %.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from benchmarks import cases
from benchmarks.search.bench import opened
from engine.goal import Precision
from engine.graph import io, macs
from engine.job.search_bench import SearchBench
from engine.job.variants import measured, parts_of
from engine.measure.latency import compare
from engine.report.counted_time import counted
from engine.search.architecture import Architecture
from engine.search.candidate import make
from engine.search.damage import damage_of
from engine.search.library import VariantLibrary
from engine.search.prediction import Prediction
from engine.search.sketch import Sketches
from engine.search.values import Point

CASES = ("residual_cnn", "se_cnn", "vit")
BAR = 0.10
_TIMED_S = 2.0


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.prediction", description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="case")
    parser.add_argument("--networks", type=int, default=12, metavar="N", help="that are composed in each precision")
    parser.add_argument("--precisions", nargs="+", default=["float32", "static"], metavar="P")
    parser.add_argument("--damage", action="store_true", help="measure and predict damage too")
    options = parser.parse_args()
    errors: list[float] = []
    for case in cases.named(list(options.cases)):
        with opened(case, tuple(options.precisions)) as bench:
            errors += _held(bench, case.name, options.networks, damage=options.damage)
    median = statistics.median(errors)
    print(f"all: median error of latency {median:.1%} over {len(errors)} networks")
    return int(median > BAR)


def _held(bench: SearchBench, case: str, count: int, *, damage: bool) -> list[float]:
    pieces, seconds = {}, {}
    for part in parts_of(bench):
        if damage or part == "structure" or part.startswith("times"):
            started = time.monotonic()
            pieces[part] = measured(bench, part)
            kind = part.partition(":")[0]
            seconds[kind] = seconds.get(kind, 0.0) + time.monotonic() - started
    told = ", ".join(f"{kind} {spent:.1f} s" for kind, spent in seconds.items())
    print(f"{case}: the library took {sum(seconds.values()):.1f} s ({told})")
    prediction = Prediction.of(bench.architecture, VariantLibrary.of(pieces), [])
    errors: list[float] = []
    for precision in bench.architecture.precisions:
        points = _points(bench.architecture, precision, count)
        errors += _compared(bench, prediction, case, points, made=damage)
    return errors


def _points(architecture: Architecture, precision: Precision, count: int) -> list[Point]:
    rng = np.random.default_rng(7)
    found: list[Point] = []
    while len(found) < count:
        drawn = architecture.random(rng).model_copy(update={"precision": precision, "ranks": {}})
        point = architecture.normalise(drawn)
        if point.widths and point not in found:
            found.append(point)
    return found


def _compared(
    bench: SearchBench, prediction: Prediction, case: str, points: Sequence[Point], *, made: bool
) -> list[float]:
    model, context = io.load(bench.prepared), bench.context("prediction")
    sketches = Sketches(model, bench.architecture, context)
    latency, size, work, harm = [], [], [], []
    for point in points:
        network = make(model, point, bench.architecture, context).model if made else sketches.make(point)
        path = bench.frame.scratch / "composed.onnx"
        io.save(network, path)
        compared = compare(bench.original, path, bench.feeds, bench.spec.target, seconds=_TIMED_S)
        predicted = prediction.predict(point)
        latency.append(_error(predicted.latency_ratio, counted(compared).ratio.value))
        size.append(_error(predicted.size_bytes, path.stat().st_size))
        work.append(_error(predicted.macs, macs.total(network)) if point.precision == "float32" else 0.0)
        if made:
            found = damage_of(bench.evaluator.evaluate(bench.workbench.open(path)))
            harm.append(_error(predicted.damage, found or 1e-9))
    said = f"; damage off by {statistics.median(harm):.0%}" if harm else ""
    print(
        f"{case} {points[0].precision}: median error of latency {statistics.median(latency):.1%} (worst"
        f" {max(latency):.1%}), of bytes {statistics.median(size):.2%}, of multiplications {max(work):.2%}{said}"
    )
    return latency


def _error(predicted: float, found: float) -> float:
    return abs(predicted / found - 1)


if __name__ == "__main__":
    raise SystemExit(main())
