"""The whole job: load, check, apply each pass, verify, measure, keep or roll back, and report. Resumes after a step."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from engine.calibrate import observe
from engine.compatibility import check_fit
from engine.contract import Context, Observe, Pass, Samples
from engine.data.batches import padded, run_size
from engine.data.dataset import random_samples
from engine.errors import (
    BaselineFailedError,
    EngineError,
    ModelInvalidError,
    ModelUnsupportedError,
    VerificationFailedError,
)
from engine.graph import io, verify
from engine.graph.pieces import Pieces, memory_to_load
from engine.graph.validate import inspect_model
from engine.job.workspace import open_dataset, write_atomically
from engine.measure import memory
from engine.measure.acceptance import decide
from engine.measure.gates import Costs, verdict
from engine.measure.latency import compare, compare_many
from engine.measure.quality import Evaluator
from engine.measure.size import compare_size
from engine.report.files import report_files
from engine.report.markdown import summarise
from engine.report.values import (
    Change,
    LatencyComparison,
    Memory,
    MemoryComparison,
    Quality,
    Refusal,
    Report,
    StepReport,
)
from engine.runtime import sessions
from engine.runtime.environment import environment
from engine.runtime.host_lock import HostLock
from engine.runtime.network_files import parameters
from engine.runtime.sessions import Session
from engine.spec import Compress
from engine.target import Target

Event = dict[str, Any]
Probe = Callable[[Path, Target, Path], Memory]

# Samples that are made where a job has no dataset.
_RANDOM_SAMPLES = 32
_FEEDS = 8
_RACE_SECONDS = 5.0
_STEP_SECONDS = 4.0
_FINAL_SECONDS = 12.0


def run(
    spec: Compress,
    workspace: Path,
    on_event: Callable[[Event], None],
    *,
    quiet: Path | None = None,
    crashed_steps: frozenset[int] = frozenset(),
    probe: Probe | None = None,
) -> Report:
    """Compress the network in a workspace; results are in its `out` folder when this returns.

    Args:
        spec: what to do.
        workspace: holds `model/model.onnx`, and where there are data `data/data.npz` and `data/dataset.json`. `steps` in it
            keeps what was done, so that a second call goes on after the last finished step.
        on_event: told what happens, with JSON values only.
        quiet: a file that all jobs of a host lock while they measure.
        crashed_steps: steps during which an earlier attempt died; they are refused, not tried again.
        probe: measures peak memory and load time in a fresh process.

    Raises:
        EngineError: the job cannot be done; nothing is in `out`.
    """
    return _Run(spec, workspace, on_event, HostLock(quiet), probe or memory.probe).run(crashed_steps)


class _Run:
    def __init__(
        self, spec: Compress, workspace: Path, on_event: Callable[[Event], None], quiet: HostLock, probe: Probe
    ) -> None:
        self._started = time.monotonic()
        self._spec, self._target, self._quiet, self._probe = spec, spec.target, quiet, probe
        self._tell = on_event
        self._steps, self._out, self._scratch = (workspace / name for name in ("steps", "out", "scratch"))
        self._original = workspace / "model" / "model.onnx"
        self._current = self._original
        for folder in (self._steps, self._scratch):
            folder.mkdir(exist_ok=True)
        self._inspection = inspect_model(self._original)
        self._dataset, described = open_dataset(workspace / "data", self._scratch)
        self._warnings = check_fit(self._inspection, described, spec)
        self._metric = described.metric if described is not None else None
        needed = memory_to_load(self._original)
        self._in_pieces = needed > spec.limits.max_memory_mb << 20
        if self._in_pieces:
            self._warnings.append(_too_large(needed, spec.limits.max_memory_mb))

    def run(self, crashed: frozenset[int]) -> Report:
        self._tell({"type": "started"})
        self._split()
        with self._baseline() as self._evaluator:
            reports = [
                self._finished(index) or self._step(index, step, crashed=index in crashed)
                for index, step in enumerate(self._spec.recipe.passes)
            ]
            report = self._measure(tuple(reports))
        self._write(report)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._tell({"type": "finished", "verdict": report.verdict.outcome})
        return report

    # What the job works with

    def _split(self) -> None:
        inputs = self._inspection.inputs
        if self._dataset is None:
            self._calibration = None
            self._held_out: Samples = random_samples(inputs, _RANDOM_SAMPLES, self._target.shapes)
            self._labels = None
        else:
            calibration, held_out = self._dataset.split()
            self._calibration = self._dataset.samples(inputs, calibration)
            self._held_out = self._dataset.samples(inputs, held_out)
            self._labels = self._dataset.labels(held_out)
        self._feeds = self._latency_feeds(self._calibration or self._held_out)

    def _latency_feeds(self, samples: Samples) -> list[verify.Feed]:
        size = run_size([tensor.shape for tensor in self._inspection.inputs], samples) or self._target.batch
        return [padded(feed, size) for feed in islice(samples.batches(size), _FEEDS)]

    def _baseline(self) -> Evaluator:
        """Run the original; a job on a network that does not run is over here."""
        try:
            with self._quiet.working():
                session = self._open(self._original)
                session.run(self._feeds[0])
            return Evaluator(
                session,
                self._held_out,
                labels=self._labels,
                metric=self._metric if self._labels is not None else None,
                scratch=self._scratch,
                quiet=self._quiet,
            )
        except (ModelInvalidError, ModelUnsupportedError) as error:
            raise BaselineFailedError(
                f"The original network does not run: {error.message}", node=error.node, hint=error.hint
            ) from error

    def _open(self, path: Path) -> Session | Pieces:
        return Pieces(path, self._target) if self._in_pieces else sessions.session(path, self._target)

    def _compare(self, original: Path, compressed: Path, seconds: float) -> LatencyComparison | None:
        """Measure two networks beside each other; None where they do not fit into memory."""
        if self._in_pieces:
            return None
        return compare(original, compressed, self._feeds, self._target, quiet=self._quiet, seconds=seconds)

    def _verify(self, candidate: Path, before: Path, *, lossless: bool) -> None:
        verify.verify(candidate, before, self._held_out, self._target, lossless=lossless, in_pieces=self._in_pieces)

    # Steps

    def _finished(self, index: int) -> StepReport | None:
        """Give the report of a step that an earlier attempt finished, and go on from its network."""
        record, network = self._steps / f"{index:02}.json", self._steps / f"{index:02}.onnx"
        if not record.exists():
            return None
        report = StepReport.model_validate_json(record.read_bytes())
        if report.status == "applied":
            self._current = network
        return report

    def _step(self, index: int, step: Pass, *, crashed: bool) -> StepReport:
        started = time.monotonic()
        self._tell({"type": "step_started", "step": index, "pass": _type(step)})
        candidate = self._steps / f"{index:02}.candidate.onnx"
        measured: dict[str, Any] = {}
        if crashed:
            outcome: Change | Refusal = Refusal(
                code="crashed",
                reason="The process died during this step in an earlier attempt, so it was left out.",
                hint="The network may trigger a fault in a library; report it with the network if you can.",
            )
        else:
            try:
                outcome = self._attempt(index, step, candidate, measured)
            except (VerificationFailedError, ModelInvalidError, ModelUnsupportedError) as error:
                outcome = Refusal(code="verification_failed", reason=error.message, node=error.node, hint=error.hint)
            except EngineError as error:
                error.step = index
                raise
        applied = isinstance(outcome, Change)
        report = StepReport(
            index=index,
            type=_type(step),
            parameters=step.model_dump(mode="json", exclude={"type"}),
            status="applied" if applied else "refused",
            change=outcome if isinstance(outcome, Change) else measured.pop("change", None),
            refusal=outcome if isinstance(outcome, Refusal) else None,
            seconds=round(time.monotonic() - started, 3),
            **{name: value for name, value in measured.items() if name != "change"},
        )
        if applied:
            self._current = self._steps / f"{index:02}.onnx"
            # External data keep their names: the network refers to them.
            candidate.rename(self._current)
        else:
            _remove_network(candidate)
        write_atomically(self._steps / f"{index:02}.json", report.model_dump_json().encode())
        reason = report.refusal.reason if report.refusal else None
        self._tell({"type": "step_finished", "step": index, "status": report.status, "reason": reason})
        return report

    def _attempt(self, index: int, step: Pass, candidate: Path, measured: dict[str, Any]) -> Change | Refusal:
        """Apply a pass to a copy, verify and measure it, and say whether it is worth keeping."""
        if self._in_pieces and not step.streams:
            return _needs_memory(memory_to_load(self._original), self._spec.limits.max_memory_mb)
        model = io.load(self._current)
        before = io.opset(model)
        step.prepare(model)
        if io.opset(model) != before:
            self._check_conversion(model, before)
        refusal = step.check(model)
        if refusal is not None:
            return refusal
        if step.needs_data and self._calibration is None:
            return Refusal(code="needs_data", reason="The pass needs calibration data, and the job has none.")
        context = self._context(index)
        observations = context.observe(model, step.observes(model))
        outcome = step.apply(model, observations, context)
        if isinstance(outcome, Refusal):
            return outcome
        measured["change"] = outcome
        step.ensures(model)
        io.strip(model)
        io.save(model, candidate)
        context.progress(0.8, "verifying")
        with self._quiet.working():
            self._verify(candidate, self._current, lossless=outcome.lossless)
            session = self._open(candidate)
        measured["size"] = compare_size(self._original, candidate, download=outcome.download)
        measured["quality"] = self._evaluator.evaluate(session)
        faster: LatencyComparison | None = None
        if not outcome.lossless:
            self._tell({"type": "measuring", "step": index, "what": "latency"})
            faster = self._compare(self._current, candidate, _STEP_SECONDS)
            measured["latency"] = faster
        size = compare_size(self._current, candidate, download=outcome.download)
        refused = decide(outcome, size, faster, measured["quality"], self._spec.gates)
        if refused is None:
            del measured["change"]
        return refused or outcome

    def _check_conversion(self, model: ir.Model, before: int) -> None:
        """See that converting to a later operator set, which some steps need, moved no output."""
        path = self._scratch / "converted.onnx"
        io.save(model, path)
        with self._quiet.working():
            moved = verify.same_outputs(self._current, path, self._feeds, self._target).relative
        if moved > verify.FLOAT_TOLERANCE:
            raise VerificationFailedError(
                f"The step needs operator set {io.opset(model)}, the network uses {before}, and converting it moves the"
                f" outputs by {moved:.1e} of their largest value.",
                hint="Export the network again with a later opset.",
            )

    def _context(self, index: int) -> Context:
        def progress(fraction: float, message: str) -> None:
            self._tell({"type": "progress", "step": index, "fraction": round(fraction, 3), "message": message})

        def record(model: ir.Model, requests: Sequence[Observe]) -> Mapping[Observe, Any]:
            if not requests or self._calibration is None:
                return {}
            if self._in_pieces:
                raise ModelUnsupportedError(
                    "The network is too large to record statistics of its tensors in this memory"
                )
            return observe(
                model,
                requests,
                self._calibration,
                self._target,
                scratch=self._scratch,
                quiet=self._quiet,
                progress=lambda fraction, message: progress(0.5 * fraction, message),
            )

        checkpoint = self._steps / f"{index:02}.checkpoint"
        checkpoint.mkdir(exist_ok=True)
        return Context(
            original=io.load(self._original),
            target=self._target,
            calibration=self._calibration or self._held_out,
            select=self._held_out if self._dataset is not None else None,
            evaluate=self._evaluate,
            observe=record,
            progress=progress,
            race=self._race,
            working=self._quiet.working,
            checkpoint=checkpoint,
            has_data=self._calibration is not None and not self._in_pieces,
            gates=self._spec.gates,
        )

    def _evaluate(self, model: ir.Model) -> tuple[Quality, ...]:
        path = self._scratch / "evaluate.onnx"
        io.save(model, path)
        with self._quiet.working():
            session = self._open(path)
        return self._evaluator.evaluate(session)

    def _race(self, models: Sequence[ir.Model]) -> Sequence[float]:
        """Give each network's time per run as a multiple of the first one's; by CPU time where one thread does all."""
        if self._in_pieces:
            raise ModelUnsupportedError("The network is too large to be timed in this memory")
        paths = []
        for number, model in enumerate(models):
            paths.append(self._scratch / f"race{number}.onnx")
            io.save(model, paths[-1])
        compared = compare_many(
            paths[0],
            {str(number): path for number, path in enumerate(paths) if number},
            self._feeds,
            self._target,
            quiet=self._quiet,
            seconds=_RACE_SECONDS,
            precision=0.005,
        )
        one_thread = self._target.threads == 1 and self._target.provider == "cpu"
        ratios = [(each.cpu_ratio if one_thread else each.ratios["p50"]).value for each in compared.values()]
        return [1.0, *ratios]

    # The result

    def _measure(self, steps: tuple[StepReport, ...]) -> Report:
        """Store the final network, verify it as it is stored, and measure it beside the original."""
        result = self._store()
        self._tell({"type": "measuring", "what": "quality"})
        with self._quiet.working():
            if self._current != self._original:
                self._verify(result, self._original, lossless=False)
            session = self._open(result)
        quality = self._evaluator.evaluate(session)
        self._tell({"type": "measuring", "what": "latency"})
        latency = self._compare(self._original, result, _FINAL_SECONDS)
        self._tell({"type": "measuring", "what": "memory"})
        used = self._memory(result)
        sparse = any(step.status == "applied" and step.change and step.change.download for step in steps)
        size = compare_size(self._original, result, download=sparse)
        costs = Costs(
            size=size, latency=latency, memory=used, parameters=(parameters(self._original), parameters(result))
        )
        warnings = list(self._warnings)
        if latency is not None and not latency.stable:
            warnings.append(f"The latency measurement is not stable: {latency.unstable_because}.")
        return Report(
            summary=summarise(steps, size, latency, quality, unchanged=self._current == self._original),
            unchanged=self._current == self._original,
            target=self._target,
            original=io.facts(self._original),
            compressed=io.facts(result),
            steps=steps,
            size=size,
            quality=quality,
            latency=latency,
            memory=used,
            verdict=verdict(self._spec.gates, quality, costs),
            calibration_samples=len(self._calibration) if self._calibration is not None else 0,
            held_out_samples=len(self._held_out) if self._dataset is not None else 0,
            environment=environment(self._target),
            seconds=round(time.monotonic() - self._started, 3),
            warnings=tuple(warnings),
        )

    def _store(self) -> Path:
        """Put the network in the out folder: the last kept step's, or the original bytes where nothing helped."""
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        result = self._out / "model.onnx"
        _copy_network(self._current, result)
        return result

    def _memory(self, result: Path) -> MemoryComparison | None:
        if self._in_pieces:
            return None
        feed = self._scratch / "feed.npz"
        np.savez(feed, allow_pickle=False, **dict(self._feeds[0]))
        with self._quiet.measuring():
            return MemoryComparison(
                original=self._probe(self._original, self._target, feed),
                compressed=self._probe(result, self._target, feed),
            )

    def _write(self, report: Report) -> None:
        for name, content in report_files(report).items():
            write_atomically(self._out / name, content)


def _too_large(needed: int, limit_mb: int) -> str:
    return (
        f"The network does not fit into max_memory_mb ({limit_mb}): it was verified and judged in pieces, with weights quantized"
        " without data, and neither latency nor peak memory was measured. To have them measured, give the job"
        f" {_mebibytes(needed)} MiB."
    )


def _needs_memory(needed: int, limit_mb: int) -> Refusal:
    return Refusal(
        code="too_large",
        reason=f"The pass holds the whole network, about {_mebibytes(needed)} MiB; the job's max_memory_mb is {limit_mb}.",
        hint="quantize_weights, quantize_dynamic and float16 take one tensor at a time; for others raise max_memory_mb.",
    )


def _mebibytes(size: int) -> int:
    return -(-size >> 20)


def _type(step: Pass) -> str:
    return str(type(step).model_fields["type"].default)


def _copy_network(source: Path, to: Path) -> None:
    for file in io.external_files(source):
        shutil.copyfile(file, to.with_name(file.name))
    shutil.copyfile(source, to)


def _remove_network(path: Path) -> None:
    if path.exists():
        for file in io.external_files(path):
            file.unlink(missing_ok=True)
        path.unlink()
