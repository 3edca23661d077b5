"""A contest on one network: everybody compresses it, then all results are judged and raced side by side."""

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.cases import Case, Data
from benchmarks.peers import environments
from benchmarks.process import TIMEOUT_S, Spent, spend
from benchmarks.scores import Array
from engine import EngineError
from engine.measure.latency import compare_many
from engine.report.values import LatencyComparison
from engine.runtime.network_files import stored_bytes
from engine.runtime.sessions import session
from engine.target import Target

HERE = Path(__file__).resolve().parent
SCRATCH = HERE.parent / "var" / "benchmarks" / "work"
OURS = "onnxpress"
ONE_THREAD = Target(provider="cpu", threads=1, batch=1)
_FEEDS = 8


@dataclass(frozen=True)
class Entry:
    """Who compresses, how: the script that does it, in which peer's environment (None: ours), with which settings.

    `untrained`: made only to be raced; its answers mean nothing. `networks`: files that the settings speak of, by their role.
    `chooses`: a peer that gets the samples to choose by too, as ours does.
    """

    maker: str
    setting: str
    script: Path
    settings: Mapping[str, Any]
    peer: str | None = None
    untrained: bool = False
    networks: Mapping[str, Path] = field(default_factory=dict)
    chooses: bool = False

    @property
    def name(self) -> str:
        """Maker and setting."""
        return f"{self.maker} {self.setting}"


@dataclass(frozen=True)
class Effort:
    """How much time a contest may take."""

    seconds: float = 60.0
    min_runs: int = 50
    samples: int | None = None

    @classmethod
    def quick(cls) -> "Effort":
        """Enough to see that everything works."""
        return cls(seconds=4.0, min_runs=10, samples=cases.QUICK_SAMPLES)


@dataclass(frozen=True)
class Result:
    """What came of one entry; a problem in words where nothing did."""

    maker: str
    setting: str
    path: str | None = None
    problem: str | None = None
    note: str | None = None
    unchanged: bool = False
    untrained: bool = False
    bytes: int | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    score: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Maker and setting."""
        return f"{self.maker} {self.setting}"

    def record(self) -> dict[str, Any]:
        """Give it as JSON values, without the path."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


def recipe(setting: str, *passes: Mapping[str, Any], gates: Sequence[Mapping[str, Any]] = ()) -> Entry:
    """Make an entry of ours."""
    settings = {"recipe": {"passes": list(passes)}, "gates": list(gates)}
    return Entry(OURS, setting, HERE / "engine_job.py", settings)


def hold(case: Case, entries: Sequence[Entry], effort: Effort, name: str, *, keep: bool = False) -> list[Result]:
    """Let everybody compress the case's network, then judge and race the results; the original is the first result.

    Their files stay in var/benchmarks/work/NAME. With `keep`, what an earlier run left there is judged and raced again where
    the network, the settings and the code that made it are still the same.
    """
    contest = Contest.open(case, effort, name, keep=keep)
    return contest.race([contest.judge(entry, contest.make(entry)) for entry in entries], effort)


@dataclass
class _Answers:
    """What the original says of the test samples, asked once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    known: Array | None = None


@dataclass(frozen=True)
class Contest:
    """A contest in its parts: networks may be made and judged at the same time in threads, then they are raced together."""

    case: Case
    data: Data
    folder: Path
    _answers: _Answers = field(default_factory=_Answers)

    @classmethod
    def open(cls, case: Case, effort: Effort, name: str, *, keep: bool) -> "Contest":
        """Load the samples; without `keep`, forget what an earlier run made. Raises NetworkMissingError."""
        data = case.data() if effort.samples is None else case.data().first(effort.samples)
        folder = SCRATCH / name
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(case, data, folder)

    def make(self, entry: Entry, cores: Sequence[int] = (), timeout: float = TIMEOUT_S) -> Result:
        """Let one compress, on these cores alone if any, or give what is kept."""
        record = self._record(entry)
        kept = record.read()
        if kept is not None:
            return kept
        shutil.rmtree(_place(self.folder, entry), ignore_errors=True)
        made = self._made(entry, cores, timeout)
        record.write(made)
        return made

    def judge(self, entry: Entry, made: Result) -> Result:
        """Score a network on the test samples, which nobody saw who made it, beside the original."""
        if made.path is None or made.score is not None:
            return made
        print(f"{self.case.name}: judging {made.name}", file=sys.stderr, flush=True)
        original = self._original()
        try:
            answers = self.case.answer(session(Path(made.path), ONE_THREAD), self.data)
        except EngineError as error:
            return replace(made, path=None, problem=f"does not run: {error.message.splitlines()[0]}")
        judged = replace(made, score=None if made.untrained else self._score(answers, original))
        self._record(entry).write(judged)
        return judged

    def race(self, judged: Sequence[Result], effort: Effort) -> list[Result]:
        """Race the networks beside the original, which is the first result."""
        answers = self._original()
        score = self._score(answers, answers)
        path = self.case.path
        original = Result("fp32", "original", path=str(path), bytes=stored_bytes(path), score=score)
        return race([original, *judged], self.data, effort)

    def _made(self, entry: Entry, cores: Sequence[int], timeout: float) -> Result:
        """Run one entry in its own process."""
        print(f"{self.case.name}: {entry.name}", file=sys.stderr, flush=True)
        place = _place(self.folder, entry)
        place.mkdir(parents=True, exist_ok=True)
        out = place / "model.onnx"
        try:
            spent = _order(self.case, self.data, entry, out, {"cores": cores, "timeout": timeout})
        except environments.PeerMissingError as error:
            return Result(entry.maker, entry.setting, problem=f"cannot be installed: {error}")
        result = Result(
            entry.maker,
            entry.setting,
            problem=spent.problem,
            cpu_seconds=spent.cpu_seconds,
            peak_rss_bytes=spent.peak_rss_bytes,
            told=spent.value,
            note=_refusals(spent),
            unchanged=bool(spent.value.get("unchanged")),
            untrained=entry.untrained,
        )
        if spent.problem is not None:
            return result
        if not out.exists():
            return replace(result, problem="wrote no network")
        return replace(result, path=str(out), bytes=stored_bytes(out))

    def _original(self) -> Array:
        with self._answers.lock:
            if self._answers.known is None:
                self._answers.known = self.case.answer(session(self.case.path, ONE_THREAD), self.data)
            return self._answers.known

    def _score(self, answers: Array, original: Array) -> dict[str, Any]:
        return self.case.judge(answers, original, self.data.truth).record()

    def _record(self, entry: Entry) -> "_Record":
        return _record(self.case, self.data, entry, self.folder)


@dataclass(frozen=True)
class _Record:
    """Where a result is kept, and what it depends on: network, samples, settings, and the code of engine or peer."""

    path: Path
    origin: str

    def write(self, result: Result) -> None:
        """Keep a network that runs; what failed is made again."""
        if result.path is not None:
            self.path.write_text(json.dumps({"origin": self.origin, **asdict(result)}))

    def read(self) -> Result | None:
        """Give what an earlier run made in the same way."""
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        return Result(**stored) if stored.pop("origin", None) == self.origin else None


def _record(case: Case, data: Data, entry: Entry, folder: Path) -> _Record:
    sources = [entry.script, case.path, *entry.networks.values()]
    if entry.peer is None:
        sources += sorted((HERE.parent / "engine").rglob("*.py"))
    else:
        # Scripts of peers call each other.
        sources += [environments.REQUIREMENTS / f"{entry.peer}.txt", *sorted((HERE / "peers").glob("*.py"))]
    counts = [len(data), data.selecting, len(next(iter(data.calibration.values())))]
    digest = hashlib.sha256(json.dumps([dict(entry.settings), *counts], sort_keys=True).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return _Record(_place(folder, entry) / "result.json", digest.hexdigest())


def _place(folder: Path, entry: Entry) -> Path:
    return folder / entry.name.replace(" ", "_").replace("/", "_")


def race(results: Sequence[Result], data: Data, effort: Effort) -> list[Result]:
    """Measure the latency of all networks in the same turns; those that are the original itself do not run twice."""
    original, *others = results
    assert original.path is not None
    racing = {each.name: Path(each.path) for each in others if each.path is not None and not each.unchanged}
    if not racing:
        return list(results)
    print(f"racing {len(racing)} networks beside the original", file=sys.stderr, flush=True)
    feeds = list(data.feeds(1, most=_FEEDS))
    compared = compare_many(
        Path(original.path), racing, feeds, ONE_THREAD, seconds=effort.seconds, min_runs=effort.min_runs
    )
    return [replace(each, latency=_latency(compared[each.name])) if each.name in compared else each for each in results]


def _order(case: Case, data: Data, entry: Entry, out: Path, bounds: Mapping[str, Any]) -> Spent:
    request: dict[str, Any] = {"model": str(case.path), "out": str(out)}
    place = out.parent
    inputs = place / "data.npz"
    if entry.maker == OURS:
        cases.write_dataset(data, inputs)
        request["data"] = str(inputs)
        request["spec"] = dict(entry.settings)
        request["networks"] = {role: str(path) for role, path in entry.networks.items()}
        return spend(Path(sys.executable), entry.script, request, place, **bounds)
    assert entry.peer is not None
    request["layout"] = cases.write_calibration(data, inputs)
    request["calibration"] = str(inputs)
    request["settings"] = dict(entry.settings)
    if entry.chooses:
        cases.write_choosing(data, place / "choosing.npz")
        request["choosing"] = str(place / "choosing.npz")
    return spend(environments.interpreter(entry.peer), entry.script, request, place, **bounds)


def _refusals(spent: Spent) -> str | None:
    steps = spent.value.get("steps", ())
    words = [f"{step['type']} refused: {step['reason']}" for step in steps if step["status"] == "refused"]
    return "; ".join(words) or None


def _latency(compared: LatencyComparison) -> dict[str, Any]:
    return compared.model_dump(mode="json", exclude={"original": {"intervals"}, "compressed": {"intervals"}})
