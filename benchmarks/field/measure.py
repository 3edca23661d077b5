"""One network in everybody's hands: compressed by our recipes and by onnxruntime, judged on the same samples, held to the bars."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import engine.errors
from benchmarks.contest import HERE, ONE_THREAD
from benchmarks.field.inputs import Array, Feed
from benchmarks.field.networks import Network
from benchmarks.peers import environments
from benchmarks.process import Spent, spend
from engine.data.parts import CALIBRATE, JUDGE, SELECT
from engine.errors import EngineError
from engine.measure.latency import compare_many
from engine.report.counted_time import counted
from engine.report.values import LatencyComparison
from engine.runtime.network_files import stored_bytes
from engine.runtime.sessions import Session, session

MOST_BYTES = 2 << 30
MOST_SECONDS = 240.0
# Networks this close in size or time are of the same size or speed.
_SAME_SIZE, _SAME_SPEED = 1.02, 1.05
TIMEOUT_S = 900.0
OURS, PEER = "onnxpress", "onnxruntime"
_MODEL, _DATASET, _CALIBRATION, _RESULT = "model.onnx", "data.npz", "calibration.npz", "result.json"
_RACE_FEEDS = 8

SIMPLIFY: Mapping[str, Any] = {"type": "simplify"}
FUSE: Mapping[str, Any] = {"type": "fuse"}
RECIPES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "static": (SIMPLIFY, FUSE, {"type": "quantize_static"}),
    "dynamic": (SIMPLIFY, FUSE, {"type": "quantize_dynamic"}),
    "mixed": (SIMPLIFY, FUSE, {"type": "mixed_precision"}),
    "weights": (SIMPLIFY, FUSE, {"type": "quantize_weights"}),
}
# The others are for networks of which something else is claimed.
EVERYWHERE = ("static", "dynamic", "mixed")
PEERS: Mapping[str, Mapping[str, Any]] = {
    "static": {"kind": "static", "activations": "uint8", "weights": "int8", "per_channel": True},
    "static per tensor": {"kind": "static", "activations": "uint8", "weights": "int8"},
    "dynamic": {"kind": "dynamic", "weights": "int8", "per_channel": True},
}


@dataclass(frozen=True)
class Result:
    """What came of one recipe or setting.

    timed_out: it was ended because its time was over.
    clock: in words, which clock `speed` was read from, where that is not the wall's on a quiet machine.
    faults: the bars that it misses, in words.
    """

    maker: str
    setting: str
    problem: str | None = None
    timed_out: bool = False
    unchanged: bool = False
    steps: tuple[str, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)
    summary: str | None = None
    bytes: int | None = None
    score: float | None = None
    speed: float | None = None
    clock: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Maker and setting."""
        return f"{self.maker} {self.setting}"

    def record(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Samples:
    """What a network is fed, and which part each sample belongs to; they lie in the network's folder, for several processes."""

    network: Network
    arrays: Feed
    part: Array

    @classmethod
    def of(cls, network: Network, downloads: Path) -> "_Samples":
        part = np.repeat([CALIBRATE, SELECT, JUDGE], network.counts)
        return cls(network, network.feed(downloads, network.samples), np.random.default_rng(0).permutation(part))

    @classmethod
    def stored(cls, network: Network, folder: Path) -> "_Samples":
        with np.load(folder / _DATASET) as stored:
            names = set(stored.files) - {"part"} - set(network.constants)
            return cls(network, {name: stored[name] for name in sorted(names)}, stored["part"])

    @staticmethod
    def are_stored(network: Network, folder: Path) -> bool:
        """Say whether the network and as many samples of each part as it asks for lie there."""
        if not all((folder / name).exists() for name in (_MODEL, _DATASET, _CALIBRATION)):
            return False
        with np.load(folder / _DATASET) as stored:
            return tuple(np.bincount(stored["part"], minlength=3)) == network.counts

    def feeds(self, part: int) -> Iterator[Feed]:
        for index in np.flatnonzero(self.part == part):
            one = {name: array[index : index + 1] for name, array in self.arrays.items()}
            moved = {name: np.moveaxis(array, 0, self.network.sample_axis.get(name, 0)) for name, array in one.items()}
            yield {**{name: np.ascontiguousarray(array) for name, array in moved.items()}, **self.network.constants}

    def store(self, folder: Path) -> None:
        same = {
            name: np.broadcast_to(one, (len(self.part), *one.shape)) for name, one in self.network.constants.items()
        }
        np.savez(folder / _DATASET, allow_pickle=False, part=self.part, **self.arrays, **same)
        chosen = {name: array[self.part == CALIBRATE] for name, array in self.arrays.items()}
        np.savez(folder / _CALIBRATION, allow_pickle=False, **chosen, **self.network.constants)


def prepare(network: Network, downloads: Path, folder: Path, *, keep: bool = False) -> None:
    """Put the network and its samples into `folder`, which is emptied first; with `keep` only where other samples lie there."""
    if keep and _Samples.are_stored(network, folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    network.unpack(downloads, folder)
    _Samples.of(network, downloads).store(folder)


def ours(folder: Path, setting: str, timeout: float = TIMEOUT_S, *, keep: bool = False) -> Result:
    """Compress a prepared network by one recipe, in a process of its own; with `keep` only where that was not done yet."""
    place = _place(folder, OURS, setting)
    if keep and (kept := _kept(place)) is not None:
        return kept
    spec = {"recipe": {"passes": [dict(step) for step in RECIPES[setting]]}}
    request = {
        "model": str(folder / _MODEL),
        "data": str(folder / _DATASET),
        "spec": spec,
        "out": str(place / _MODEL),
    }
    spent = spend(Path(sys.executable), HERE / "engine_job.py", request, place, timeout=timeout)
    report = json.loads((place / "report.json").read_text()) if spent.problem is None else {}
    steps = [_step(step) for step in spent.value.get("steps", ())]
    outputs = {one["name"]: one["kind"] or "not compared" for one in report.get("outputs", ()) if not one["ignored"]}
    result = replace(
        _result(OURS, setting, spent, place),
        steps=tuple(steps),
        outputs=outputs,
        unchanged=bool(spent.value.get("unchanged")),
        summary=spent.value.get("summary"),
    )
    _keep(result, place)
    return result


def peer(network: Network, folder: Path, setting: str, timeout: float = TIMEOUT_S, *, keep: bool = False) -> Result:
    """Quantize a prepared network by onnxruntime's own tool, in its environment; with `keep` only where it was not done yet."""
    place = _place(folder, PEER, setting)
    if keep and (kept := _kept(place)) is not None:
        return kept
    request = {
        "model": str(folder / _MODEL),
        "calibration": str(folder / _CALIBRATION),
        "layout": {"constants": sorted(network.constants), "sample_axis": dict(network.sample_axis)},
        "settings": dict(PEERS[setting]),
        "out": str(place / _MODEL),
    }
    script = HERE / "peers" / "onnxruntime_quantize.py"
    spent = spend(environments.interpreter("onnxruntime"), script, request, place, timeout=timeout)
    result = _result(PEER, setting, spent, place)
    _keep(result, place)
    return result


def judged(network: Network, folder: Path, made: Sequence[Result], seconds: float) -> list[Result]:
    """Judge what was made, race it and hold it to the bars; the original is the first result."""
    samples = _Samples.stored(network, folder)
    original = folder / _MODEL
    results = [Result("fp32", "original", bytes=stored_bytes(original)), *made]
    paths = {each.name: _place(folder, each.maker, each.setting) / _MODEL for each in made if each.bytes is not None}
    paths["fp32 original"] = original
    found = _raced(_judged(results, paths, samples), paths, samples, seconds)
    return [replace(each, faults=tuple(_faults(network, each, found))) for each in found]


def _place(folder: Path, maker: str, setting: str) -> Path:
    return folder / f"{maker}_{setting.replace(' ', '_')}"


def _result(maker: str, setting: str, spent: Spent, place: Path) -> Result:
    path = place / _MODEL
    problem = spent.problem or (None if path.exists() else "wrote no network")
    return Result(
        maker,
        setting,
        problem=problem,
        timed_out=spent.timed_out,
        bytes=None if problem else stored_bytes(path),
        seconds=spent.seconds,
        cpu_seconds=spent.cpu_seconds,
        peak_bytes=spent.peak_rss_bytes,
    )


def _keep(result: Result, place: Path) -> None:
    """Store what was made, for a run that keeps it; what failed is made again."""
    if result.bytes is not None:
        (place / _RESULT).write_text(json.dumps(result.record()))


def _kept(place: Path) -> Result | None:
    path = place / _RESULT
    return Result(**json.loads(path.read_text())) if path.exists() else None


def _step(step: Mapping[str, Any]) -> str:
    reason = f": {step['reason']}" if step["reason"] else ""
    return f"{step['type']} {step['status']}{reason}"


def _judged(results: Sequence[Result], paths: Mapping[str, Path], samples: _Samples) -> list[Result]:
    """Score what has no score yet; that of a kept network was kept with it."""
    network = samples.network
    if all(result.score is not None for result in results[1:] if result.name in paths):
        return list(results)
    original = _answers(session(paths[results[0].name], ONE_THREAD), samples)
    judged = []
    for result in results:
        if result.name not in paths or result.score is not None:
            judged.append(result)
            continue
        try:
            answers = _answers(session(paths[result.name], ONE_THREAD), samples)
        except (EngineError, ValueError) as error:
            judged.append(replace(result, problem=f"does not run: {error}".splitlines()[0]))
            continue
        judged.append(replace(result, score=network.judge.score(answers, original)))
        if result.maker != results[0].maker:
            _keep(judged[-1], paths[result.name].parent)
    return judged


def _answers(running: Session, samples: _Samples) -> list[Array]:
    answers = []
    for feed in samples.feeds(JUDGE):
        outputs = running.run(feed)
        answers.append(np.asarray(outputs[samples.network.main or next(iter(outputs))]))
    return answers


def _raced(results: Sequence[Result], paths: Mapping[str, Path], samples: _Samples, seconds: float) -> list[Result]:
    racing = {
        each.name: paths[each.name]
        for each in results[1:]
        if each.problem is None and not each.unchanged and each.name in paths
    }
    feeds = [feed for feed, _ in zip(samples.feeds(JUDGE), range(_RACE_FEEDS), strict=False)]
    original = paths[results[0].name]
    found = compare_many(original, racing, feeds, ONE_THREAD, seconds=seconds, min_runs=10) if racing else {}
    timed = [_timed(each, found[each.name]) if each.name in found else each for each in results]
    # What is the original itself did not run twice.
    return [replace(each, speed=1.0) if each.unchanged else each for each in timed]


def _timed(result: Result, compared: LatencyComparison) -> Result:
    time = counted(compared)
    return replace(result, speed=1 / time.ratio.value, clock=time.said)


def _faults(network: Network, result: Result, results: Sequence[Result]) -> Iterator[str]:
    """Yield the bars that one of our results misses."""
    if result.maker != OURS:
        return
    if result.timed_out:
        # What was ended sooner was left out for want of time, and nobody knows how long it takes.
        if (result.seconds or 0) > MOST_SECONDS:
            yield f"takes more than {result.seconds:.0f} s"
        return
    if result.problem is not None:
        if refusal(result.problem) is None:
            yield f"traceback: {result.problem}"
        return
    main = network.main or next(iter(result.outputs), None)
    if main is not None and result.outputs.get(main) not in network.kinds:
        yield f"`{main}` is judged as {result.outputs.get(main)}, and is {' or '.join(network.kinds)}"
    if (result.peak_bytes or 0) > MOST_BYTES:
        yield f"takes {(result.peak_bytes or 0) / 1e9:.1f} GB"
    if (result.seconds or 0) > MOST_SECONDS:
        yield f"takes {result.seconds:.0f} s"
    better = [other for other in results if other.maker == PEER and _beats(network, other, result)]
    yield from (f"{other.name} is better at no more size and time" for other in better)


def refusal(problem: str) -> str | None:
    """Give the sentence of a problem that is the engine's own refusal; None: it is an error of the machine room."""
    name, _, sentence = problem.partition(": ")
    named = getattr(engine.errors, name, None)
    return sentence if isinstance(named, type) and issubclass(named, EngineError) else None


def _beats(network: Network, other: Result, ours: Result) -> bool:
    """Say whether another's is better at no more size and time. Nobody is held to what was not measured."""
    theirs, mine = _Standing.of(other), _Standing.of(ours)
    if theirs is None or mine is None:
        return False
    no_larger, no_slower = theirs.bytes <= _SAME_SIZE * mine.bytes, theirs.speed * _SAME_SPEED >= mine.speed
    return no_larger and no_slower and theirs.score > mine.score + network.judge.margin


@dataclass(frozen=True)
class _Standing:
    """What two results are compared by, all of it measured."""

    score: float
    bytes: int
    speed: float

    @classmethod
    def of(cls, result: Result) -> "_Standing | None":
        if result.score is None or result.bytes is None or result.speed is None:
            return None
        return cls(result.score, result.bytes, result.speed)
