"""What a job that makes a network works with: the original, its data, and the measurement of a result beside it."""

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from engine.compatibility import check_fit
from engine.contract import Labels
from engine.data.batches import padded, run_size
from engine.errors import (
    BaselineFailedError,
    EngineError,
    ModelInvalidError,
    ModelUnsupportedError,
)
from engine.estimate import Speed, beyond_limits, estimate_job, foreseen, measured_speed
from engine.graph import io, verify
from engine.graph.activations import live_bytes
from engine.graph.declaration import contradictions
from engine.graph.pieces import Pieces, memory_to_load
from engine.graph.provenance import fitting, properties, write_properties
from engine.graph.self_difference import SelfDifferences
from engine.graph.validate import inspect_model
from engine.inspection import Estimate
from engine.job.baseline_check import check_baseline, likely_layout
from engine.job.data import JobData, Labelled
from engine.job.feeding import settle_feeding
from engine.job.frame import Frame
from engine.job.learners import Learners
from engine.job.loading import loading
from engine.job.timing import Speeds, Timing
from engine.job.unsteady import is_unsteady
from engine.job.workbench import Workbench, open_network, run_bytes
from engine.job.workspace import copy_network
from engine.measure.byte_account import byte_account
from engine.measure.decoding import decoding_feeds
from engine.measure.gates import Costs, judge, labelled_output
from engine.measure.layer_costs import LayerCosts
from engine.measure.parameter_growth import explain_growth
from engine.measure.quality import Evaluator, Network
from engine.measure.rejudge import chosen_on
from engine.measure.runs import seconds_per_sample
from engine.measure.size import compare_size
from engine.report.in_float import in_float_reasons, refused_to_quantize
from engine.report.layer_cost import LayerCost
from engine.report.markdown import summarise
from engine.report.values import (
    MemoryComparison,
    Quality,
    Report,
    StepReport,
    TuningComparison,
    Verdict,
)
from engine.runtime.environment import environment
from engine.runtime.network_files import parameters, stored_bytes
from engine.runtime.sessions import Session, untimed_target
from engine.spec import Compress, Search

_FEEDS = 8
_SELF_FEEDS = 2
_LAYER_FEEDS = 4
# Of networks whose numbers few targets compute with.
_HINTS = {
    "bfloat16": "The network holds bfloat16, for which few targets have kernels: export it in float32, which every bfloat16"
    " number is, and store that in 16 bits by `float16` with `dtype: bfloat16`."
}


class BesideOriginal:
    """The original and its data, opened and checked. Kinds of jobs that make networks go on from here."""

    def __init__(self, spec: Compress | Search, frame: Frame) -> None:
        self._spec, self._target, self._frame = spec, spec.target, frame
        # Whatever is not timed runs on all cores.
        self._untimed = untimed_target(spec.target)
        # What is measured beside the original in the end.
        self._current = frame.student or frame.model
        self._inspection = inspect_model(frame.model, mend=True)
        self._bytes = stored_bytes(frame.model)
        student, teacher = (
            None if path is None else inspect_model(path, mend=True) for path in (frame.student, frame.teacher)
        )
        data = JobData.open(frame.workspace, frame.scratch)
        self._declared = {**data.declared, **spec.outputs}
        self._preprocessing = data.described.preprocessing if data.described is not None else None
        self._warnings = check_fit(
            self._inspection,
            data.described,
            spec,
            judge=data.judge_described,
            student=student,
            teacher=teacher,
            declared=self._declared,
        )
        needed = memory_to_load(frame.model)
        self._in_pieces = needed > spec.limits.max_memory_mb << 20
        if self._in_pieces:
            self._warnings.append(_too_large(needed, spec.limits.max_memory_mb))
        self._parts = data.parted(self._inspection.inputs, frame.scratch, shapes=self._target.shapes)
        # None where the network does not fit into memory: then nothing is timed.
        self._timing: Timing | None = None
        self._data = data
        self._estimate: Estimate | None = None
        # How far the original, and each network that a step began with, differs from itself.
        self._own = {frame.model: SelfDifferences(frame.model, self._untimed, in_pieces=self._in_pieces)}
        # Who took part in learning besides the original.
        self._learners = Learners()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the job's owner should know, as far as it is known yet."""
        return tuple(self._warnings)

    def _foresee(self, original: Session | Pieces) -> None:
        """Time a run of the original and say what the job will take. One that does not run is told of later."""
        try:
            # A run in pieces reads all weights: it is not made for an estimate.
            speed = None if self._in_pieces else self._measured_speed(original)
        except EngineError:
            return
        self._estimate = estimate_job(
            self._inspection, self._data.described, self._spec, self._data.judge_described, speed=speed
        )
        if self._estimate is not None:
            self._frame.tell(foreseen(self._estimate))
            for warning in beyond_limits(self._estimate, self._spec.limits):
                self._warn(warning)

    def _measured_speed(self, original: Session | Pieces) -> Speed:
        samples = self._parts.select.samples
        with self._frame.lock.working():
            seconds = seconds_per_sample(original, samples)
        alive = live_bytes(io.load(self._frame.model), next(iter(samples.batches(1))))
        return measured_speed(seconds, alive or 0)

    # What the job works with

    def _open_original(self) -> Session | Pieces:
        try:
            return self._open(self._frame.model)
        except (ModelInvalidError, ModelUnsupportedError) as error:
            raise _does_not_run(error, _HINTS.get(self._inspection.float_type)) from error

    def _settle_feeding(self, original: Session | Pieces) -> None:
        """See whether the original takes several samples together; in pieces every run would read all weights."""
        if not self._in_pieces:
            self._parts, alone = settle_feeding(original, self._parts, self._inspection.inputs)
            if alone is not None:
                self._warn(alone)
        self._feeds = self._latency_feeds()

    def _check_baseline(self, original: Session | Pieces, select: Evaluator) -> None:
        """Say before the work what speaks against the original or its data; made-up samples show little."""
        if self._in_pieces:
            return
        model = io.load(self._frame.model)
        with self._frame.lock.working():
            unsteady = is_unsteady(original, model, self._feeds[0])
        if unsteady is not None:
            self._warn(unsteady)
        if self._parts.told is None:
            return
        for text in check_baseline(original, select, self._parts.select, model, self._untimed):
            self._warn(text)

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._frame.warn(text)

    def _baseline(self, original: Session | Pieces, data: Labelled, like: Evaluator | None = None) -> Evaluator:
        """Run the original; a job on a network that does not run is over here."""
        frame = self._frame
        try:
            graph, outputs = io.load(frame.model), original.run(self._feeds[0])
            if like is None:
                for each in contradictions(graph, outputs):
                    self._warn(each)
                self._timing = self._timed(original)
            return Evaluator(
                original,
                data.samples,
                labels=data.labels,
                label_facts=data.facts,
                metric=data.metric,
                output=labelled_output(self._spec.gates),
                declared=self._declared,
                graph=graph,
                like=like,
                run_bytes=run_bytes(self._spec.limits.max_memory_mb),
                scratch=frame.scratch,
                lock=frame.lock,
            )
        except (ModelInvalidError, ModelUnsupportedError) as error:
            likely = likely_layout(io.load(frame.model), self._feeds[0])
            raise _does_not_run(error, likely or _HINTS.get(self._inspection.float_type)) from error

    def _open(self, path: Path) -> Session | Pieces:
        """Open a network to run it, where nobody times it."""
        return open_network(path, self._untimed, in_pieces=self._in_pieces)

    def _workbench(self, evaluator: Evaluator) -> Workbench:
        part = self._parts.calibrate
        calibrate = part.samples if part is not None else None
        labels = None
        if part is not None and part.labels is not None and part.metric is not None:
            labels = Labels(part.labels, part.metric)
        return Workbench(
            target=self._target,
            scratch=self._frame.scratch,
            lock=self._frame.lock,
            calibrate=calibrate,
            select=self._parts.select.samples,
            has_data=calibrate is not None,
            evaluator=evaluator,
            feeds=self._timing.racing if self._timing else self._feeds,
            gates=self._spec.gates,
            declared=self._declared,
            in_pieces=self._in_pieces,
            deadline=self._frame.deadline,
            run_bytes=run_bytes(self._spec.limits.max_memory_mb),
            teacher=self._frame.teacher or (self._frame.model if self._frame.student is not None else None),
            memory_limit=self._spec.limits.max_memory_mb << 20,
            labels=labels,
        )

    def _latency_feeds(self) -> list[verify.Feed]:
        samples = (self._parts.calibrate or self._parts.select).samples
        size = run_size([tensor.shape for tensor in self._inspection.inputs], samples) or self._target.batch
        return [padded(feed, size) for feed in islice(samples.batches(size), _FEEDS)]

    def _timed(self, original: Network) -> Timing | None:
        """Prepare what networks are timed on."""
        if self._in_pieces:
            return None
        try:
            decoding = decoding_feeds(original, self._feeds, self._inspection.inputs)
        except ModelUnsupportedError as error:
            self._warn(f"How fast the network writes token by token is not measured: {error.message}")
            decoding = []
        return Timing(self._frame, self._spec, self._feeds, decoding, self._inspection.inputs)

    def _verify(self, candidate: Path, before: Path, *, lossless: bool) -> None:
        samples = self._parts.select.samples
        own = self._own.setdefault(before, SelfDifferences(before, self._untimed, in_pieces=self._in_pieces))
        verify.verify(candidate, before, samples, self._untimed, lossless=lossless, in_pieces=self._in_pieces, own=own)

    # The result

    def _spare_bytes(self, made: int) -> int:
        """Give how many bytes a file may grow by to say what it is.

        A quarter of what was saved at most, and nothing that a gate needs: words never undo what was asked for.
        """
        room = (self._bytes - made) // 4
        for gate in self._spec.gates:
            if gate.metric == "size_bytes" and gate.rule in {"max", "max_ratio"}:
                allowed = gate.value * (self._bytes if gate.rule == "max_ratio" else 1)
                room = min(room, math.floor(allowed) - made)
        return max(room, 0)

    def _measure(
        self,
        steps: tuple[StepReport, ...],
        final: Evaluator,
        *,
        selected: tuple[Quality, ...] = (),
        warnings: Sequence[str] = (),
    ) -> Report:
        """Store the final network, verify it as it is stored, and measure it beside the original.

        Args:
            steps: that made it.
            final: the samples that judge.
            selected: its quality on those that it was chosen by.
            warnings: what is to be said besides.
        """
        frame, unchanged = self._frame, self._current == self._frame.model
        result = self._store()
        frame.measuring("quality")
        if not unchanged:
            self._verify(result, frame.model, lossless=False)
        quality = final.evaluate(self._open(result))
        frame.measuring("latency")
        speeds, tuning = self._speeds(result)
        latency, speed = speeds.latency, speeds.generation
        frame.measuring("memory")
        used = self._memory(result, unchanged=unchanged)
        where, source = environment(self._target), io.facts(frame.model)
        if not unchanged:
            # After what is timed and before what is counted: every byte of it is in the report's figures.
            told_in_file = properties(
                source.sha256,
                steps,
                quality=quality,
                target=self._target,
                environment=where,
                preprocessing=self._preprocessing,
            )
            write_properties(result, fitting(told_in_file, self._spare_bytes(stored_bytes(result))))
        sparse = any(step.status == "applied" and step.change and step.change.download for step in steps)
        size = compare_size(frame.model, result, download=sparse)
        counts = (parameters(frame.model), parameters(result))
        costs = Costs(size=size, latency=latency, decode=speeds.decode, memory=used, parameters=counts)
        said = [*self._warnings, *warnings]
        if latency is not None and not latency.stable:
            said.append(f"The latency measurement is not stable: {latency.unstable_because}.")
        if speed is not None and not speed.decode.stable:
            said.append(f"The measurement of writing is not stable: {speed.decode.unstable_because}.")
        told = self._parts.told
        return Report(
            kind=self._spec.kind,
            summary=summarise(steps, size, latency, quality, unchanged=unchanged, generation=speed),
            unchanged=unchanged,
            target=self._target,
            original=source,
            student=self._learners.student,
            teacher=self._learners.teacher,
            compressed=io.facts(result),
            bytes=byte_account(result, in_float_reasons(steps), refused_to_quantize(steps)),
            layers=self._layers(result, by_steps=bool(steps)),
            steps=steps,
            size=size,
            quality=quality,
            outputs=final.outputs,
            selected_quality=selected if self._parts.apart else (),
            latency=latency,
            generation=speed,
            tuning=tuning,
            memory=used,
            verdict=self._verdict(quality, costs),
            parts=told,
            preprocessing=self._preprocessing,
            loading=loading(result, self._target, tuning.compressed if tuning is not None else None),
            self_difference=self._own[frame.model].told(self._feeds[:_SELF_FEEDS], verify.FLOAT_TOLERANCE),
            calibration_samples=told.calibrate if told is not None else 0,
            held_out_samples=told.judge if told is not None else 0,
            environment=where,
            seconds=frame.seconds,
            estimate=self._estimate,
            more_parameters=explain_growth(frame.model, result),
            warnings=tuple(said),
        )

    def _layers(self, result: Path, *, by_steps: bool) -> tuple[LayerCost, ...]:
        """Say what each layer holds and takes; how near its output is, where no step says it."""
        found = LayerCosts(self._frame.model, result)
        if self._in_pieces:
            return found.costs
        feeds = self._feeds[:_LAYER_FEEDS]
        # A column of a table is no reason to lose a result that is measured.
        with suppress(EngineError):
            found.time(feeds, self._target, self._frame.lock)
        if not by_steps:
            with suppress(EngineError), self._frame.lock.working():
                found.compare_outputs(feeds, self._untimed)
        return found.costs

    def _verdict(self, quality: Sequence[Quality], costs: Costs) -> Verdict:
        """Judge the gates, and say so where the samples that judge are those that steps were chosen on."""
        results = [judge(gate, quality, costs) for gate in self._spec.gates]
        if self._parts.told is not None and self._parts.told.select_is_judge:
            results = [chosen_on(each) for each in results]
        return Verdict.of(results)

    def _store(self) -> Path:
        """Put the network in the out folder: the last kept step's, or the original bytes where nothing helped."""
        self._frame.clear_results()
        result = self._frame.out / "model.onnx"
        copy_network(self._current, result)
        return result

    def _speeds(self, result: Path) -> tuple[Speeds, TuningComparison | None]:
        if self._timing is None:
            return Speeds(), None
        self._timing.same_network(self._current, result)
        speeds = self._timing.of_result(result)
        original, compressed = self._timing.tuning(self._frame.model), self._timing.tuning(result)
        return speeds, TuningComparison(original=original, compressed=compressed) if original and compressed else None

    def _memory(self, result: Path, *, unchanged: bool) -> MemoryComparison | None:
        """Measure what both take; the same bytes are loaded once."""
        if self._in_pieces:
            return None
        original = self._frame.memory(self._frame.model, self._target, self._feeds[0])
        compressed = original if unchanged else self._frame.memory(result, self._target, self._feeds[0])
        return MemoryComparison(original=original, compressed=compressed)


def _does_not_run(error: EngineError, likely: str | None = None) -> BaselineFailedError:
    return BaselineFailedError(
        f"The original network does not run: {error.message}", node=error.node, hint=likely or error.hint
    )


def _too_large(needed: int, limit_mb: int) -> str:
    return (
        f"The network does not fit into max_memory_mb ({limit_mb}): it was verified and judged in pieces, with weights quantized"
        " without data, and neither latency nor peak memory was measured. To have them measured, give the job"
        f" {mebibytes(needed)} MiB."
    )


def mebibytes(size: int) -> int:
    """Give a size in MiB, rounded up."""
    return -(-size >> 20)
