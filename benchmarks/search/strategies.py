"""Hold each strategy against as many random candidates: the area that its front dominates, over networks and seeds.

    python -m benchmarks.search.strategies [case ...] [--trials N] [--seeds S] [--made-up] [--precisions P ...]

The variant library of each case is measured once and kept in var/benchmarks/search/strategies, and so is every candidate that was
made: it is cut, refitted and evaluated on the samples to choose by, as a trial of a search is; its time is the library's prediction.
`--made-up` makes no candidate: its damage is the library's sum, more where much comes together, and off by up to a third by
chance, which no strategy can know. That is thousands of candidates a minute, and says how strategies search, not how they predict.
The exit code is 1 where TPE or NSGA-II covers less than random candidates on the mean of a case, or not more on most.
"""

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter

from benchmarks import cases
from benchmarks.search.bench import opened
from engine.errors import EngineError
from engine.goal import Precision, Strategy
from engine.graph import io
from engine.job.search_bench import SearchBench
from engine.job.variants import measured, parts_of
from engine.report.values import Interval, Quality
from engine.search import study
from engine.search.candidate import make
from engine.search.damage import damage_of
from engine.search.front import hypervolume
from engine.search.library import LIBRARY_VERSION, VariantLibrary
from engine.search.prediction import Prediction
from engine.search.values import Point, Proposal, Told, TrialValues

CASES = ("residual_cnn", "se_cnn", "vit", "minilm")
KEPT = Path("var/benchmarks/search/strategies")
GUIDED: tuple[Strategy, ...] = ("tpe", "nsga2", "reinforce")
HELD_TO_BARS = ("tpe", "nsga2")
# As many as two workers are given at a time.
_BATCH = 6
# Damage in the middle of the plane, in nats of divergence, and a cost that adds nothing.
_MUCH, _WORST_COST = 0.1, 1.1
_QUALITY: TypeAdapter[tuple[Quality, ...]] = TypeAdapter(tuple[Quality, ...])

Evaluate = Callable[[Point], tuple[Quality, ...]]


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.strategies", description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="case")
    parser.add_argument("--trials", type=int, default=60, metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="S")
    parser.add_argument("--made-up", action="store_true", help="take damage from a made-up law, make no candidate")
    parser.add_argument("--precisions", nargs="+", default=["static"], metavar="P", choices=get_args(Precision))
    parser.add_argument("--strategies", nargs="+", default=list(GUIDED), metavar="S", choices=GUIDED)
    options = parser.parse_args()
    gains: dict[str, list[float]] = {name: [] for name in options.strategies}
    for case in cases.named(list(options.cases)):
        with opened(case, tuple(options.precisions)) as bench:
            for name, gain in _held(bench, case.name, options).items():
                gains[name].append(gain)
    failed = False
    for name in options.strategies:
        worse, better = sum(gain < 0 for gain in gains[name]), sum(gain > 0 for gain in gains[name])
        print(f"{name}: better than random on {better} of {len(gains[name])} networks, worse on {worse}")
        failed |= name in HELD_TO_BARS and (worse > 0 or better * 2 <= len(gains[name]))
    return int(failed)


def _held(bench: SearchBench, case: str, options: argparse.Namespace) -> dict[str, float]:
    """Print a line for each strategy; give its mean gain over random candidates."""
    library = _library(bench, case)
    plain = Prediction.of(bench.architecture, library, [])
    areas: dict[Strategy, list[float]] = {}
    strategies: tuple[Strategy, ...] = ("random", *options.strategies)
    for name in strategies:
        started = time.monotonic()
        for seed in range(options.seeds):
            with _made_up(library) if options.made_up else _real(bench, case) as evaluate:
                told = _searched(bench, library, name, seed, trials=options.trials, evaluate=evaluate)
            areas.setdefault(name, []).append(_area(told, plain))
        spread = ", ".join(f"{area:.3f}" for area in areas[name])
        how = "made-up damage" if options.made_up else "candidates really refitted and evaluated"
        mean, took = statistics.mean(areas[name]), time.monotonic() - started
        print(f"{case} {name}: area {mean:.3f} ({spread}) at {options.trials} trials, {how}, {took:.0f} s", flush=True)
    return {name: statistics.mean(areas[name]) - statistics.mean(areas["random"]) for name in options.strategies}


def _searched(
    bench: SearchBench, library: VariantLibrary, strategy: Strategy, seed: int, *, trials: int, evaluate: Evaluate
) -> list[Told]:
    told: list[Told] = []
    while len(told) < trials:
        proposals = study.propose(
            bench.architecture,
            Prediction.of(bench.architecture, library, told),
            told,
            strategy=strategy,
            seed=seed,
            count=min(_BATCH, trials - len(told)),
            goal=bench.spec.goal,
        )
        if not proposals:
            break
        for each in proposals:
            told.append(_tried(len(told), each, evaluate))
    return told


def _tried(number: int, proposal: Proposal, evaluate: Evaluate) -> Told:
    predicted = proposal.predicted
    assert predicted is not None
    try:
        quality = evaluate(proposal.point)
    except EngineError as error:
        return Told(number=number, proposal=proposal, state="failed", problem={"detail": error.message})
    values = TrialValues(
        size_bytes=predicted.size_bytes,
        macs=predicted.macs,
        parameters=0,
        latency=None,
        quality=quality,
        seconds=0.0,
    )
    return Told(number=number, proposal=proposal, state="succeeded", values=values)


def _area(told: Sequence[Told], prediction: Prediction) -> float:
    places = []
    for each in told:
        damage = None if each.values is None else damage_of(each.values.quality)
        if damage is not None and math.isfinite(damage):
            places.append((prediction.predict(each.proposal.point).latency_ratio, damage / (damage + _MUCH)))
    return hypervolume(places, (_WORST_COST, 1.0))


def _library(bench: SearchBench, case: str) -> VariantLibrary:
    """Measure what of the library is not kept from an earlier run."""
    names = "-".join(bench.architecture.precisions)
    kept = KEPT / f"{case}-{names}-{LIBRARY_VERSION}.json"
    pieces = json.loads(kept.read_text()) if kept.exists() else {}
    started = time.monotonic()
    missing = [part for part in parts_of(bench) if part not in pieces]
    for part in missing:
        pieces[part] = measured(bench, part)
        _write(kept, pieces)
    print(
        f"{case}: {len(missing)} of {len(pieces)} parts of the library measured in {time.monotonic() - started:.0f} s"
    )
    return VariantLibrary.of(pieces)


@contextmanager
def _real(bench: SearchBench, case: str) -> Iterator[Evaluate]:
    """Make, refit and evaluate candidates; those of earlier runs are kept."""
    kept = KEPT / f"{case}-candidates.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    model = io.load(bench.prepared)

    def evaluate(point: Point) -> tuple[Quality, ...]:
        key = point.model_dump_json()
        if key not in known:
            context = bench.context(f"candidate{len(known)}")
            network = make(model, point, bench.architecture, context).model
            path = bench.frame.scratch / "candidate.onnx"
            io.save(network, path)
            quality = bench.evaluator.evaluate(bench.workbench.open(path))
            known[key] = _QUALITY.dump_python(quality, mode="json")
            _write(kept, known)
        return _QUALITY.validate_python(known[key])

    yield evaluate


@contextmanager
def _made_up(library: VariantLibrary) -> Iterator[Evaluate]:
    def evaluate(point: Point) -> tuple[Quality, ...]:
        luck = int(hashlib.sha256(point.model_dump_json().encode()).hexdigest(), 16) % 1000 / 1000
        added = library.damage(point)
        damage = added * (1 + added) * math.exp(0.6 * (luck - 0.5)) if math.isfinite(added) else math.inf
        return (
            Quality(
                metric="kl",
                original=None,
                compressed=damage,
                difference=None,
                interval=Interval(low=damage, high=damage),
                standard_error=0.0,
                samples=1,
            ),
        )

    yield evaluate


def _write(path: Path, body: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


if __name__ == "__main__":
    raise SystemExit(main())
