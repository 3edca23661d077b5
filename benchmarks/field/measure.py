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
_TIMEOUT_S = 900.0
_RACE_FEEDS = 8

SIMPLIFY: Mapping[str, Any] = {"type": "simplify"}
FUSE: Mapping[str, Any] = {"type": "fuse"}
RECIPES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "static": (SIMPLIFY, FUSE, {"type": "quantize_static"}),
    "dynamic": (SIMPLIFY, FUSE, {"type": "quantize_dynamic"}),
    "mixed": (SIMPLIFY, FUSE, {"type": "mixed_precision"}),
}
PEERS: Mapping[str, Mapping[str, Any]] = {
    "static": {"kind": "static", "activations": "uint8", "weights": "int8", "per_channel": True},
    "static per tensor": {"kind": "static", "activations": "uint8", "weights": "int8"},
    "dynamic": {"kind": "dynamic", "weights": "int8", "per_channel": True},
}


@dataclass(frozen=True)
class Result:
    """What came of one recipe or setting.

    clock: in words, which clock `speed` was read from, where that is not the wall's on a quiet machine.
    faults: the bars that it misses, in words.
    """

    maker: str
    setting: str
    problem: str | None = None
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
    network: Network
    arrays: Feed
    part: Array

    @classmethod
    def of(cls, network: Network, downloads: Path) -> "_Samples":
        part = np.repeat([CALIBRATE, SELECT, JUDGE], network.counts)
        return cls(network, network.feed(downloads, network.samples), np.random.default_rng(0).permutation(part))

    def feeds(self, part: int) -> Iterator[Feed]:
        for index in np.flatnonzero(self.part == part):
            one = {name: array[index : index + 1] for name, array in self.arrays.items()}
            moved = {name: np.moveaxis(array, 0, self.network.sample_axis.get(name, 0)) for name, array in one.items()}
            yield {**{name: np.ascontiguousarray(array) for name, array in moved.items()}, **self.network.constants}

    def write_dataset(self, path: Path) -> None:
        same = {
            name: np.broadcast_to(one, (len(self.part), *one.shape)) for name, one in self.network.constants.items()
        }
        np.savez(path, allow_pickle=False, part=self.part, **self.arrays, **same)

    def write_calibration(self, path: Path) -> dict[str, Any]:
        chosen = {name: array[self.part == CALIBRATE] for name, array in self.arrays.items()}
        np.savez(path, allow_pickle=False, **chosen, **self.network.constants)
        return {"constants": sorted(self.network.constants), "sample_axis": dict(self.network.sample_axis)}


def measure(
    network: Network, downloads: Path, folder: Path, *, recipes: Sequence[str], seconds: float, peers: bool = True
) -> list[Result]:
    """Compress, judge, race and hold to the bars; the original is the first result. Files stay in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = network.unpack(downloads, folder)
    samples = _Samples.of(network, downloads)
    made = [_ours(model, samples, setting, folder / f"ours_{setting}") for setting in recipes]
    if peers:
        made += [
            _peer(model, samples, setting, folder / f"onnxruntime_{setting.replace(' ', '_')}") for setting in PEERS
        ]
    results = [Result("fp32", "original", bytes=stored_bytes(model)), *(result for result, _ in made)]
    paths = {"fp32 original": model} | {result.name: path for result, path in made if path is not None}
    judged = _raced(_judged(results, paths, samples), paths, samples, seconds)
    return [replace(each, faults=tuple(_faults(network, each, judged))) for each in judged]


def _ours(model: Path, samples: _Samples, setting: str, place: Path) -> tuple[Result, Path | None]:
    place.mkdir()
    _say(f"{samples.network.name}: onnxpress {setting}")
    samples.write_dataset(place / "data.npz")
    spec = {"recipe": {"passes": [dict(step) for step in RECIPES[setting]]}}
    request = {"model": str(model), "data": str(place / "data.npz"), "spec": spec, "out": str(place / "model.onnx")}
    spent = spend(Path(sys.executable), HERE / "engine_job.py", request, place, timeout=_TIMEOUT_S)
    report = json.loads((place / "report.json").read_text()) if spent.problem is None else {}
    steps = [_step(step) for step in spent.value.get("steps", ())]
    outputs = {one["name"]: one["kind"] or "not compared" for one in report.get("outputs", ()) if not one["ignored"]}
    result = _result("onnxpress", setting, spent)
    return _stored(
        replace(
            result,
            steps=tuple(steps),
            outputs=outputs,
            unchanged=bool(spent.value.get("unchanged")),
            summary=spent.value.get("summary"),
        ),
        place,
    )


def _peer(model: Path, samples: _Samples, setting: str, place: Path) -> tuple[Result, Path | None]:
    place.mkdir()
    _say(f"{samples.network.name}: onnxruntime {setting}")
    layout = samples.write_calibration(place / "data.npz")
    request = {
        "model": str(model),
        "calibration": str(place / "data.npz"),
        "layout": layout,
        "settings": dict(PEERS[setting]),
        "out": str(place / "model.onnx"),
    }
    script = HERE / "peers" / "onnxruntime_quantize.py"
    spent = spend(environments.interpreter("onnxruntime"), script, request, place, timeout=_TIMEOUT_S)
    return _stored(_result("onnxruntime", setting, spent), place)


def _result(maker: str, setting: str, spent: Spent) -> Result:
    return Result(
        maker,
        setting,
        problem=spent.problem,
        seconds=spent.seconds,
        cpu_seconds=spent.cpu_seconds,
        peak_bytes=spent.peak_rss_bytes,
    )


def _stored(result: Result, place: Path) -> tuple[Result, Path | None]:
    path = place / "model.onnx"
    if result.problem is not None or not path.exists():
        return replace(result, problem=result.problem or "wrote no network"), None
    return replace(result, bytes=stored_bytes(path)), path


def _step(step: Mapping[str, Any]) -> str:
    reason = f": {step['reason']}" if step["reason"] else ""
    return f"{step['type']} {step['status']}{reason}"


def _judged(results: Sequence[Result], paths: Mapping[str, Path], samples: _Samples) -> list[Result]:
    network = samples.network
    original = _answers(session(paths[results[0].name], ONE_THREAD), samples)
    judged = []
    for result in results:
        if result.name not in paths:
            judged.append(result)
            continue
        try:
            answers = _answers(session(paths[result.name], ONE_THREAD), samples)
            judged.append(replace(result, score=network.judge.score(answers, original)))
        except (EngineError, ValueError) as error:
            judged.append(replace(result, problem=f"does not run: {error}".splitlines()[0]))
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
    if result.maker != "onnxpress":
        return
    if result.problem is not None:
        if not _is_refusal(result.problem):
            yield f"traceback: {result.problem}"
        return
    main = network.main or next(iter(result.outputs), None)
    if main is not None and result.outputs.get(main) not in network.kinds:
        yield f"`{main}` is judged as {result.outputs.get(main)}, and is {' or '.join(network.kinds)}"
    if (result.peak_bytes or 0) > MOST_BYTES:
        yield f"takes {(result.peak_bytes or 0) / 1e9:.1f} GB"
    if (result.seconds or 0) > MOST_SECONDS:
        yield f"takes {result.seconds:.0f} s"
    better = [other for other in results if other.maker == "onnxruntime" and _beats(network, other, result)]
    yield from (f"{other.name} is better at no more size and time" for other in better)


def _is_refusal(problem: str) -> bool:
    named = getattr(engine.errors, problem.partition(":")[0], None)
    return isinstance(named, type) and issubclass(named, EngineError)


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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
