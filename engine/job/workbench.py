"""What a pass works with: the original, samples to calibrate and to choose on, evaluation, statistics, races.

A pass reaches all of this through its context, so nothing here leads to the samples that judge.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engine.calibrate import observe
from engine.calibrate.cache import StoredStatistics, digest_of
from engine.contract import RUN_BYTES, Context, Labels, Observe, Samples
from engine.errors import ModelUnsupportedError
from engine.gate import Gate
from engine.graph import io
from engine.graph.pieces import Pieces
from engine.graph.verify import Feed
from engine.measure.latency import compare_many
from engine.measure.quality import Evaluator
from engine.outputs import OutputDeclaration
from engine.report.counted_time import by_one_clock
from engine.report.values import LatencyComparison, Quality
from engine.runtime import sessions
from engine.runtime.host_lock import HostLock
from engine.runtime.sessions import Session
from engine.target import Target

# More networks than so many race one group after the other, each group beside the original.
_RACE_SECONDS, _RACED_AT_ONCE = 5.0, 4
# Several networks are loaded at a time, each takes about three times what is alive in a run, and the job has other needs.
_RUNS_SHARE = 32
_LEAST_RUN_BYTES = 8 << 20


@dataclass(frozen=True)
class Workbench:
    """The tools of a job's steps. `in_pieces`: the network does not fit into the job's memory."""

    target: Target
    scratch: Path
    lock: HostLock
    calibrate: Samples | None
    select: Samples
    # False: the samples are made up.
    has_data: bool
    # On `select`.
    evaluator: Evaluator
    feeds: Sequence[Feed]
    gates: Sequence[Gate]
    declared: Mapping[str, OutputDeclaration]
    in_pieces: bool
    deadline: float | None
    run_bytes: int
    # What is learnt from, where that is not the original.
    teacher: Path | None = None
    # Bytes that the whole job may take; None: no limit.
    memory_limit: int | None = None
    # Of `calibrate`, where all of its samples have one.
    labels: Labels | None = None
    # How long networks race beside each other; None: as long as a decision needs that is taken once.
    race_s: float | None = None

    @property
    def untimed(self) -> Target:
        """Give the target for runs that nobody times."""
        return sessions.untimed_target(self.target)

    def context(self, original: Path, checkpoint: Path, tell: Callable[[float, str], None]) -> Context:
        """Give what a pass may ask of the job in one step; `original` is what its fits go back to."""

        def progress(fraction: float, message: str) -> None:
            tell(fraction, message)
            self.lock.give_way()

        def record(model: ir.Model, requests: Sequence[Observe]) -> Mapping[Observe, Any]:
            return self._observe(model, requests, checkpoint, lambda done, message: progress(0.5 * done, message))

        return Context(
            original=io.load(original),
            target=self.target,
            runs_on=self.untimed,
            calibration=self.calibrate or self.select,
            select=self.select if self.has_data else None,
            evaluate=self.evaluate,
            observe=record,
            progress=progress,
            race=self.race,
            working=self.lock.working,
            measuring=self.lock.measuring,
            checkpoint=checkpoint,
            deadline=self.deadline,
            has_data=self.calibrate is not None and not self.in_pieces,
            gates=self.gates,
            outputs=self.declared,
            recognised=self.evaluator.outputs,
            labels=self.labels,
            run_bytes=self.run_bytes,
            teacher=self.teacher,
            memory_limit=self.memory_limit,
        )

    def open(self, path: Path) -> Session | Pieces:
        """Open a network to run it."""
        return open_network(path, self.untimed, in_pieces=self.in_pieces)

    def evaluate(self, model: ir.Model) -> tuple[Quality, ...]:
        """Give a network's quality on the samples that things are chosen on."""
        path = self.scratch / "evaluate.onnx"
        io.save(model, path)
        return self.evaluator.evaluate(self.open(path))

    def race(self, models: Sequence[ir.Model]) -> Sequence[float]:
        """Give each network's time per run as a multiple of the first one's, by the clock that counts."""
        if self.in_pieces:
            raise ModelUnsupportedError("The network is too large to be timed in this memory")
        paths = []
        for number, model in enumerate(models):
            paths.append(self.scratch / f"race{number}.onnx")
            io.save(model, paths[-1])
        compared: dict[str, LatencyComparison] = {}
        for first in range(1, len(paths), _RACED_AT_ONCE):
            # Each network that is loaded keeps what its runs have needed.
            some = {str(number): paths[number] for number in range(first, len(paths))[:_RACED_AT_ONCE]}
            compared |= compare_many(
                paths[0],
                some,
                self.feeds,
                self.target,
                lock=self.lock,
                seconds=_RACE_SECONDS if self.race_s is None else self.race_s,
                precision=0.005,
            )
        return [1.0, *by_one_clock(list(compared.values()))]

    def _observe(
        self,
        model: ir.Model,
        requests: Sequence[Observe],
        checkpoint: Path,
        progress: Callable[[float, str], None],
    ) -> Mapping[Observe, Any]:
        if not requests or self.calibrate is None:
            return {}
        if self.in_pieces:
            raise ModelUnsupportedError("The network is too large to record statistics of its tensors in this memory")
        return observe(
            model,
            requests,
            self.calibrate,
            self.untimed,
            scratch=self.scratch,
            stored=StoredStatistics(checkpoint, self._calibrate_digest),
            run_bytes=self.run_bytes,
            lock=self.lock,
            progress=progress,
        )

    @cached_property
    def _calibrate_digest(self) -> str:
        assert self.calibrate is not None
        return digest_of(self.calibrate)


def run_bytes(max_memory_mb: int) -> int:
    """Give the bytes of activations that one run may hold alive in a job with this much memory."""
    return max(_LEAST_RUN_BYTES, min(RUN_BYTES, (max_memory_mb << 20) // _RUNS_SHARE))


def open_network(path: Path, target: Target, *, in_pieces: bool) -> Session | Pieces:
    """Open a network to run it, part by part where it is too large for memory."""
    return Pieces(path, target) if in_pieces else sessions.session(path, target)
