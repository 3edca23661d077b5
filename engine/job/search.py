"""A search: one turn of it in a workspace, or all of it in one process; and the report of the network that it has chosen.

Both ask the same function what comes next (`engine.search.cascade`), and both keep nothing but what was measured, so that a search
goes on after a crash where it was.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from engine.errors import EngineError
from engine.estimate import estimate_job
from engine.graph import io
from engine.job.beside_original import BesideOriginal
from engine.job.frame import Frame
from engine.job.search_bench import SearchBench
from engine.job.trial import tried
from engine.job.variants import measured
from engine.job.workspace import copy_network, remove_network, write_atomically
from engine.measure import memory
from engine.report.values import Quality, Ratio, Report
from engine.runtime.host_lock import Host, HostLock
from engine.runtime.network_files import parameters, stored_bytes
from engine.search import measuring
from engine.search.cascade import Memo, next_turn
from engine.search.clock import Clock
from engine.search.feasibility import Original, cost
from engine.search.story import tell_story
from engine.search.study import Network
from engine.search.task import Task
from engine.search.turn import Finish, MeasureVariants, TryProposals, Turn
from engine.search.values import Proposal, Told, TrialValues
from engine.spec import Search
from engine.train.training_support import installed

_log = logging.getLogger(__name__)
# A trial during which the process died so often is told as failed.
_MOST_DEATHS = 2


def run(spec: Search, frame: Frame) -> Report:
    """Search in one process; the result and its report are in the workspace's `out` folder when this returns.

    The workspace holds what that of a compression does. What was measured lies in its `steps`: a second call goes on from there.

    Raises:
        EngineError: there is nothing to search, or the data do not fit; nothing is in `out`.
    """
    with frame.lock.working():
        return _LocalSearch(spec, frame).run()


def search_turn(
    spec: Search,
    workspace: Path,
    tell: Callable[[dict[str, Any]], None],
    *,
    told: Sequence[Mapping[str, Any]],
    pieces: Mapping[str, Mapping[str, Any]],
    elapsed_s: float,
    workers: int,
    lock_file: Path | Host | None = None,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Take one turn: give what is asked for as JSON, or at the end the report, with the files of the result in `out`.

    An end with the network of a trial is asked for first: the turn after it has that network in `trial/model.onnx`.

    Args:
        spec: the search.
        workspace: holds `model/model.onnx` and the data as for a compression.
        tell: told what happens, with JSON values only.
        told: every trial that has ended.
        pieces: parts of the variant library by name; empty ones could not be measured.
        elapsed_s: since the search began, without pauses.
        workers: that take trials at the same time.
        lock_file: what all jobs of a host lock.
        deadline: seconds of `time.monotonic()` at which the turn is ended from outside.
    """
    frame = Frame(workspace, tell, HostLock(lock_file), memory.probe, deadline=deadline)
    known = [Told.model_validate(each) for each in told]
    with frame.lock.working():
        with SearchBench.open(spec, frame) as bench:
            task, parts = _task(bench), measuring.parts(bench.architecture)
        clock = Clock(elapsed_s, workers, spec.allowed[0], _trains(spec))
        turn = next_turn(task, parts=parts, pieces=pieces, told=known, clock=clock)
        network = workspace / "trial" / "model.onnx"
        if not isinstance(turn, Finish) or (turn.trial is not None and not network.exists()):
            return turn.model_dump(mode="json")
        chosen = None if turn.trial is None else network
        report = _Conclusion(spec, frame).report(chosen, task, known, turn, elapsed_s=elapsed_s)
    return {"report": report.model_dump(mode="json")}


def _task(bench: SearchBench) -> Task:
    original = Original(
        size_bytes=stored_bytes(bench.original),
        parameters=parameters(bench.original),
        macs=bench.architecture.macs,
    )
    return Task(bench.spec, bench.architecture, original, network=lambda: _network(bench))


def _network(bench: SearchBench) -> Network:
    return Network(io.load(bench.prepared), bench.context("gradient"))


def _trains(spec: Search) -> bool:
    return spec.space.train and installed()


class _Conclusion(BesideOriginal):
    """The end of a search: its network beside the original, on samples that no trial has seen."""

    def report(
        self, chosen: Path | None, task: Task, told: Sequence[Told], finish: Finish, *, elapsed_s: float
    ) -> Report:
        """Measure the chosen network, None for the original, and write the report."""
        self._current = chosen or self._frame.model
        original = self._open_original()
        self._settle_feeding(original)
        self._estimate = estimate_job(self._inspection, self._data.described, self._spec, self._data.judge_described)
        values = next((each.values for each in told if each.number == finish.trial), None)
        with self._baseline(original, self._parts.judge) as final:
            self._check_baseline(original, final)
            del original
            report = self._measure((), final, selected=() if values is None else values.quality)
        assert isinstance(self._spec, Search)
        story = tell_story(
            task,
            told,
            chosen=finish.trial,
            stopped=finish.because,
            seconds=elapsed_s + self._frame.seconds,
            met=report.verdict.outcome in {"pass", "none"},
        )
        summary = report.summary if chosen is not None else _UNCHANGED
        return self._finished(report.model_copy(update={"search": story, "summary": summary, "seconds": story.seconds}))

    def _finished(self, report: Report) -> Report:
        self._frame.finish(report)
        return report


_UNCHANGED = "Nothing that was tried is better by the goal than the original network, so the result is that."


@dataclass
class _Records:
    """What a search in one process has measured, on the disk: parts of its library, trials with their networks, and its time."""

    folder: Path
    pieces: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for path in sorted(self.folder.glob("piece-*.json")):
            body = json.loads(path.read_bytes())
            self.pieces[body["part"]] = body["piece"]
        self.told = [Told.model_validate_json(path.read_bytes()) for path in sorted(self.folder.glob("trial-*.json"))]
        self._before_s = float(json.loads(self._clock.read_bytes())) if self._clock.exists() else 0.0
        self._began = time.monotonic()

    @property
    def _clock(self) -> Path:
        return self.folder / "elapsed.json"

    @property
    def elapsed_s(self) -> float:
        """Seconds since the search began, without those between attempts."""
        return self._before_s + time.monotonic() - self._began

    def keep_piece(self, part: str, piece: dict[str, Any]) -> None:
        """Keep a part of the library."""
        self.pieces[part] = piece
        content = json.dumps({"part": part, "piece": piece}).encode()
        write_atomically(self.folder / f"piece-{len(self.pieces):04}.json", content)
        self._keep_time()

    def keep_trial(self, told: Told) -> None:
        """Keep what came of a trial."""
        self.told.append(told)
        write_atomically(self.folder / f"trial-{told.number:04}.json", told.model_dump_json().encode())
        self._keep_time()

    def network(self, number: int) -> Path:
        """Give where a trial's network lies."""
        return self.folder / f"trial-{number:04}" / "model.onnx"

    def deaths(self, number: int) -> int:
        """Count that a trial begins; give how often it began before and did not end."""
        path = self.folder / f"begun-{number:04}"
        before = int(path.read_text()) if path.exists() else 0
        write_atomically(path, str(before + 1).encode())
        return before

    def _keep_time(self) -> None:
        write_atomically(self._clock, json.dumps(round(self.elapsed_s, 3)).encode())


class _LocalSearch:
    """All turns in one process, what they ask for done one after the other."""

    def __init__(self, spec: Search, frame: Frame) -> None:
        self._spec, self._frame = spec, frame
        self._records = _Records(frame.steps / "search")
        self._memo: Memo = {}

    def run(self) -> Report:
        frame, records = self._frame, self._records
        frame.tell({"type": "started"})
        # It says what does not fit before any work is done.
        conclusion = _Conclusion(self._spec, frame)
        for warning in conclusion.warnings:
            frame.warn(warning)
        with SearchBench.open(self._spec, frame) as bench:
            task, parts = _task(bench), measuring.parts(bench.architecture)
            while True:
                turn = self._turn(task, parts)
                match turn:
                    case MeasureVariants():
                        self._measure(bench, turn.parts[0], len(records.pieces) / max(1, len(parts)))
                    case TryProposals():
                        self._forget(turn.drop)
                        self._try(bench, turn.proposals[0])
                    case Finish():
                        break
                    case _:
                        assert_never(turn)
        chosen = None if turn.trial is None else records.network(turn.trial)
        return conclusion.report(chosen, task, records.told, turn, elapsed_s=records.elapsed_s - frame.seconds)

    def _turn(self, task: Task, parts: Sequence[str]) -> Turn:
        clock = Clock(self._records.elapsed_s, 1, self._spec.allowed[0], _trains(self._spec))
        return next_turn(
            task, parts=parts, pieces=self._records.pieces, told=self._records.told, clock=clock, memo=self._memo
        )

    def _measure(self, bench: SearchBench, part: str, fraction: float) -> None:
        message = f"measuring variants: {part}"
        self._frame.tell({"type": "progress", "step": 0, "fraction": round(fraction, 3), "message": message})
        try:
            piece = measured(bench, part)
        except EngineError as error:
            piece = self._unmeasured(part, error.message)
        except Exception as error:  # noqa: BLE001  # told with its trace; as with workers, a fault costs one part and not the search
            _log.exception("part %s", part)
            piece = self._unmeasured(part, f"{type(error).__name__}: {error}")
        self._records.keep_piece(part, piece)

    def _unmeasured(self, part: str, why: str) -> dict[str, Any]:
        """Tell that a part could not be measured, and give what stands for it."""
        self._frame.warn(f"The part {part} of the variant library could not be measured: {why}")
        return {}

    def _try(self, bench: SearchBench, proposal: Proposal) -> None:
        records, number = self._records, len(self._records.told) + 1
        self._frame.tell(
            {
                "type": "trial_started",
                "number": number,
                "round": proposal.round,
                "level": proposal.level,
                "tried": bench.architecture.describe(proposal.point),
                "because": proposal.because,
            }
        )
        began = time.monotonic()
        values, problem = self._attempt(bench, proposal, number)
        told = Told(
            number=number,
            proposal=proposal,
            state="succeeded" if values is not None else "failed",
            values=values,
            problem=problem,
            seconds=round(time.monotonic() - began, 3),
        )
        records.keep_trial(told)
        self._frame.tell(_ended(told, self._spec))

    def _attempt(
        self, bench: SearchBench, proposal: Proposal, number: int
    ) -> tuple[TrialValues | None, dict[str, Any] | None]:
        if self._records.deaths(number) >= _MOST_DEATHS:
            return None, {"code": "crashed", "message": "The process died twice during this trial."}
        inherited = self._frame.workspace / "inherited"
        shutil.rmtree(inherited, ignore_errors=True)
        if proposal.inherits is not None:
            inherited.mkdir()
            copy_network(self._records.network(proposal.inherits), inherited / "model.onnx")
        try:
            values = tried(bench, proposal)
        except EngineError as error:
            return None, error.problem()
        except Exception as error:  # noqa: BLE001  # told with its trace; as with workers, a fault costs one trial and not the search
            _log.exception("trial %d", number)
            return None, {"code": "internal", "message": f"{type(error).__name__}: {error}"}
        network = self._records.network(number)
        network.parent.mkdir(exist_ok=True)
        copy_network(self._frame.out / "model.onnx", network)
        self._frame.clear_results()
        return values, None

    def _forget(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            remove_network(self._records.network(number))


def _ended(told: Told, spec: Search) -> dict[str, Any]:
    """Say in an event what came of a trial."""
    values = told.values
    return {
        "type": "trial_ended",
        "number": told.number,
        "state": told.state,
        **_told_latency(None if values is None else values.latency),
        "size_bytes": None if values is None else values.size_bytes,
        "quality": None if values is None else _told_quality(values.quality),
        "cost": None if values is None else cost(values, spec.goal.minimise),
        "seconds": told.seconds,
        "message": None if told.problem is None else told.problem.get("message"),
    }


def _told_latency(ratio: Ratio | None) -> dict[str, float | None]:
    if ratio is None:
        return dict.fromkeys(("latency_ratio", "latency_low", "latency_high"))
    low, high = ratio.interval.low, ratio.interval.high
    return {"latency_ratio": round(ratio.value, 4), "latency_low": round(low, 4), "latency_high": round(high, 4)}


def _told_quality(quality: Sequence[Quality]) -> dict[str, Any] | None:
    """Give the first metric: that of the labels where there are any, else the main output's."""
    if not quality:
        return None
    first = quality[0]
    return {"metric": first.metric, "value": first.compressed, "difference": first.difference}
