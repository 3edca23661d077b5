"""A compression: load, check, apply each pass, verify, measure, keep or roll back, and report. Resumes after a step."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engine.compatibility import check_fit
from engine.contract import Labels, Pass
from engine.data.batches import padded, run_size
from engine.errors import (
    BaselineFailedError,
    EngineError,
    ModelInvalidError,
    ModelUnsupportedError,
    VerificationFailedError,
)
from engine.estimate import Speed, beyond_limits, estimate_job, measured_speed
from engine.gate import FIDELITY_METRICS, TASK_METRICS
from engine.graph import io, verify
from engine.graph.activations import live_bytes
from engine.graph.declaration import Declaration, contradictions
from engine.graph.pieces import Pieces, memory_to_load
from engine.graph.self_difference import SelfDifferences
from engine.graph.validate import inspect_model
from engine.graph.widening import widen
from engine.inspection import Estimate
from engine.job import credit
from engine.job.baseline_check import check_baseline, likely_layout
from engine.job.built_on import taken_back, unbuilt_on
from engine.job.data import JobData, Labelled
from engine.job.feeding import settle_feeding
from engine.job.frame import Blame, Frame
from engine.job.learners import Learners
from engine.job.timing import Speeds, Timing
from engine.job.workbench import Workbench, open_network, run_bytes
from engine.job.workspace import copy_network, remove_network
from engine.measure.acceptance import decide, decide_alone
from engine.measure.byte_account import byte_account
from engine.measure.decoding import decoding_feeds
from engine.measure.gates import Costs, judge, labelled_output
from engine.measure.parameter_growth import explain_growth
from engine.measure.quality import Evaluator, Network
from engine.measure.runs import seconds_per_sample
from engine.measure.size import compare_size
from engine.report.in_float import in_float_reasons
from engine.report.markdown import summarise
from engine.report.values import (
    Change,
    Credit,
    GateResult,
    LatencyComparison,
    MemoryComparison,
    Quality,
    Refusal,
    Report,
    StepReport,
    TuningComparison,
    Verdict,
)
from engine.runtime import heap
from engine.runtime.environment import environment
from engine.runtime.network_files import parameters, stored_bytes
from engine.runtime.sessions import Session, untimed_target
from engine.spec import Compress

_FEEDS = 8
_SELF_FEEDS = 2
# Of networks whose numbers few targets compute with.
_HINTS = {
    "bfloat16": "The network holds bfloat16, for which few targets have kernels: export it in float32, which every bfloat16"
    " number is, and store that in 16 bits by `float16` with `dtype: bfloat16`."
}
_BLAME = Blame(
    died="during this step",
    hint="The network may trigger a fault in a library; report it with the network if you can.",
    code="verification_failed",
)


def run(spec: Compress, frame: Frame) -> Report:
    """Compress the network in a workspace; results are in its `out` folder when this returns.

    The workspace holds `model/model.onnx`, and where there are data `data/data.npz` and `data/dataset.json`; a dataset that
    alone judges lies in the same way in `judge`.

    Raises:
        EngineError: the job cannot be done; nothing is in `out`.
    """
    with frame.lock.working():
        return _Compression(spec, frame).run()


class _Compression:
    def __init__(self, spec: Compress, frame: Frame) -> None:
        self._spec, self._target, self._frame = spec, spec.target, frame
        # Whatever is not timed runs on all cores.
        self._untimed = untimed_target(spec.target)
        self._current = frame.student or frame.model
        # What fits go back to: a student of another architecture has no layers of the original, but those that it was taught.
        self._reference = self._current
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

    def run(self) -> Report:
        self._frame.tell({"type": "started"})
        for warning in self._warnings:
            self._frame.warn(warning)
        with ExitStack() as stack:
            original = self._open_original()
            self._settle_feeding(original)
            self._foresee(original)
            select = stack.enter_context(self._baseline(original, self._parts.select))
            # Nothing but the report's measurement may have it. It is made now so that data that do not fit end the job at once.
            final = (
                stack.enter_context(self._baseline(original, self._parts.judge, select))
                if self._parts.apart
                else select
            )
            self._check_baseline(original, select)
            self._learners = Learners.of(self._frame, self._target, self._feeds[0], original, select)
            # What it said is kept; it would be held in memory beside every candidate.
            del original
            heap.give_back(self._bytes)
            self._bench = self._workbench(select)
            reports: list[StepReport] = []
            for index, step in enumerate(self._spec.recipe.passes):
                reports.append(self._finished(index) or self._step(index, step))
                reports = self._settled(reports)
            report = self._measure(tuple(self._without_idle(reports)), final)
        self._frame.finish(report)
        return report

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
            self._frame.tell({"type": "estimate", "message": self._estimate.summary})
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
            return open_network(self._frame.model, self._untimed, in_pieces=self._in_pieces)
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
        """Say before the work what speaks against the original or its data; made-up samples show nothing."""
        if self._parts.told is None or self._in_pieces:
            return
        for text in check_baseline(original, select, self._parts.select, io.load(self._frame.model), self._untimed):
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

    # Steps

    def _finished(self, index: int) -> StepReport | None:
        """Give the report of a step that an earlier attempt finished, and go on from its network."""
        report = self._frame.finished(index, StepReport)
        if report is not None and report.status == "applied":
            self._go_on(index)
        return report

    def _settled(self, reports: list[StepReport]) -> list[StepReport]:
        """See what the last step means for those that have lost on credit, and go back where it was not won back."""
        settled = credit.settle(reports, self._spec.recipe.passes, self._spec.gates)
        # The last first: who dies in between finds a credit that is still open.
        changed = [now for now, before in zip(settled, reports, strict=True) if now is not before][::-1]
        for report in changed:
            self._frame.keep(report.index, report, status=report.status, refusal=report.refusal)
        if any(report.status == "refused" for report in changed):
            applied = [report.index for report in settled if report.status == "applied"]
            self._current = self._network(applied[-1]) if applied else self._frame.student or self._frame.model
            taught = [index for index in applied if self._spec.recipe.passes[index].learns]
            if self._frame.student is not None:
                self._reference = self._network(taught[-1]) if taught else self._frame.student
        return settled

    def _go_on(self, index: int) -> None:
        """Go on from the network that a step has made."""
        self._current = self._network(index)
        if self._frame.student is not None and self._spec.recipe.passes[index].learns:
            self._reference = self._current

    def _network(self, index: int) -> Path:
        return self._frame.steps / f"{index:02}.onnx"

    def _step(self, index: int, step: Pass) -> StepReport:
        started = time.monotonic()
        candidate = self._frame.steps / f"{index:02}.candidate.onnx"
        measured: dict[str, Any] = {}
        outcome = self._frame.attempt(
            index,
            _type(step),
            lambda: self._attempt(index, step, candidate, measured),
            _BLAME,
            resumable=step.resumable,
        )
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
            # External data keep their names: the network refers to them.
            candidate.rename(self._network(index))
            self._go_on(index)
            if self._timing:
                self._timing.same_network(candidate, self._current)
        else:
            remove_network(candidate)
        if self._timing:
            self._timing.forget(candidate)
        self._frame.keep(index, report, status=report.status, refusal=report.refusal)
        return report

    def _attempt(self, index: int, step: Pass, candidate: Path, measured: dict[str, Any]) -> Change | Refusal:
        """Apply a pass to a copy, verify and measure it, and say whether it is worth keeping."""
        if self._in_pieces and not step.streams:
            return _needs_memory(memory_to_load(self._frame.model), self._spec.limits.max_memory_mb)
        model = io.load(self._current)
        before, declared = io.opset(model), Declaration.of(model)
        widened = widen(model) if step.widens else None
        step.prepare(model)
        if io.opset(model) != before:
            self._check_conversion(model, before)
        refusal = step.check(model)
        if refusal is not None:
            return refusal
        if step.needs_data and self._parts.calibrate is None:
            return Refusal(code="needs_data", reason="The pass needs calibration data, and the job has none.")
        context = self._bench.context(self._reference, self._frame.checkpoint(index), _progress(self._frame, index))
        if step.widens:
            widen(context.original)
        observations = context.observe(model, step.observes(model))
        outcome = step.apply(model, observations, context)
        if isinstance(outcome, Refusal):
            return outcome
        measured["change"] = outcome
        step.ensures(model)
        if widened is not None:
            widened.narrow(model)
        declared.restore(model, widths_may_change=step.widths_may_change)
        io.strip(model)
        io.save(model, candidate)
        context.progress(0.8, "verifying")
        # Networks are loaded now, beside what the pass has left.
        del model, observations, context
        heap.give_back(self._bytes)
        self._verify(candidate, self._current, lossless=outcome.lossless)
        measured["size"] = compare_size(self._frame.model, candidate, download=outcome.download)
        measured["quality"] = self._bench.evaluator.evaluate(self._bench.open(candidate))
        return self._decided(index, outcome, candidate, measured) or outcome

    def _decided(self, index: int, outcome: Change, candidate: Path, measured: dict[str, Any]) -> Refusal | None:
        """Measure the speed where it matters, and say why the step is not worth keeping, if it is not."""
        size = compare_size(self._current, candidate, download=outcome.download)

        def decided(faster: LatencyComparison | None) -> Refusal | None:
            gates = self._spec.gates
            refused = decide(outcome, size, faster, measured["quality"], gates, of_original=measured["size"])
            if refused is None or refused.code != "too_lossy" or not credit.lends(self._spec.recipe.passes, index):
                return refused
            measured["credit"] = Credit(reason=refused.reason)
            return decide(outcome, size, faster, (), credit.not_on_quality(gates), of_original=measured["size"])

        if outcome.lossless and not any(gate.metric.startswith("latency_") for gate in self._spec.gates):
            refused = decided(None)
        else:
            self._frame.measuring("latency", index)
            faster = self._step_speed(candidate, tuned=False)
            refused = decided(faster)
            if refused is not None and refused.code == "no_gain" and self._spec.tune is not None and faster is not None:
                # It may pay with other options than the target's own.
                faster = self._step_speed(candidate, tuned=True)
                refused = decided(faster)
            measured["latency"] = faster and without_runs(faster)
        if refused is None:
            del measured["change"]
        else:
            measured.pop("credit", None)
        return refused

    def _without_idle(self, reports: Sequence[StepReport]) -> list[StepReport]:
        """Take back steps without loss that nothing was built on, where they gain nothing by themselves."""
        idle = unbuilt_on(reports)
        if not idle:
            return list(reports)
        kept = [step for step in reports if step.status == "applied" and step.index < idle[0].index]
        before, after = (
            self._network(kept[-1].index) if kept else self._frame.student or self._frame.model,
            self._current,
        )
        self._frame.measuring("latency", idle[-1].index)
        latency = self._timing.of_step(before, after, tuned=self._spec.tune is not None) if self._timing else None
        operators = (io.operators(before), io.operators(after))
        refusal = decide_alone(compare_size(before, after), operators, latency, self._spec.gates)
        if refusal is None:
            return list(reports)
        self._current = before
        settled = list(reports)
        for step in idle:
            last = step.index == len(reports) - 1
            settled[step.index] = taken_back(step, refusal, last=last)
            self._frame.keep(step.index, settled[step.index], status="refused", refusal=settled[step.index].refusal)
            remove_network(self._network(step.index))
        return settled

    def _step_speed(self, candidate: Path, *, tuned: bool) -> LatencyComparison | None:
        return self._timing.of_step(self._current, candidate, tuned=tuned) if self._timing else None

    def _check_conversion(self, model: ir.Model, before: int) -> None:
        """See that converting to a later operator set, which some steps need, moved no output."""
        path = self._frame.scratch / "converted.onnx"
        io.save(model, path)
        moved = verify.same_outputs(self._current, path, self._feeds, self._untimed).relative
        if moved > verify.FLOAT_TOLERANCE:
            raise VerificationFailedError(
                f"The step needs operator set {io.opset(model)}, the network uses {before}, and converting it moves the"
                f" outputs by {moved:.1e} of their largest value.",
                hint="Export the network again with a later opset.",
            )

    # The result

    def _measure(self, steps: tuple[StepReport, ...], final: Evaluator) -> Report:
        """Store the final network, verify it as it is stored, and measure it beside the original."""
        frame, unchanged = self._frame, self._current == self._frame.model
        result = self._store()
        frame.measuring("quality")
        if not unchanged:
            self._verify(result, frame.model, lossless=False)
        quality = final.evaluate(self._bench.open(result))
        frame.measuring("latency")
        speeds, tuning = self._speeds(result)
        latency, speed = speeds.latency, speeds.generation
        frame.measuring("memory")
        used = self._memory(result, unchanged=unchanged)
        sparse = any(step.status == "applied" and step.change and step.change.download for step in steps)
        size = compare_size(frame.model, result, download=sparse)
        counts = (parameters(frame.model), parameters(result))
        costs = Costs(size=size, latency=latency, decode=speeds.decode, memory=used, parameters=counts)
        warnings = [*self._warnings, *self._learners.warnings(steps, self._spec)]
        if latency is not None and not latency.stable:
            warnings.append(f"The latency measurement is not stable: {latency.unstable_because}.")
        if speed is not None and not speed.decode.stable:
            warnings.append(f"The measurement of writing is not stable: {speed.decode.unstable_because}.")
        told = self._parts.told
        return Report(
            summary=summarise(steps, size, latency, quality, unchanged=unchanged, generation=speed),
            unchanged=unchanged,
            target=self._target,
            original=io.facts(frame.model),
            student=self._learners.student,
            teacher=self._learners.teacher,
            compressed=io.facts(result),
            bytes=byte_account(result, in_float_reasons(steps)),
            steps=steps,
            size=size,
            quality=quality,
            outputs=final.outputs,
            selected_quality=_selected(steps) if self._parts.apart else (),
            latency=latency,
            generation=speed,
            tuning=tuning,
            memory=used,
            verdict=self._verdict(quality, costs),
            parts=told,
            preprocessing=self._preprocessing,
            self_difference=self._own[frame.model].told(self._feeds[:_SELF_FEEDS], verify.FLOAT_TOLERANCE),
            calibration_samples=told.calibrate if told is not None else 0,
            held_out_samples=told.judge if told is not None else 0,
            environment=environment(self._target),
            seconds=frame.seconds,
            estimate=self._estimate,
            more_parameters=explain_growth(frame.model, result),
            warnings=tuple(warnings),
        )

    def _verdict(self, quality: Sequence[Quality], costs: Costs) -> Verdict:
        """Judge the gates, and say so where the samples that judge are those that steps were chosen on."""
        results = [judge(gate, quality, costs) for gate in self._spec.gates]
        if self._parts.told is not None and self._parts.told.select_is_judge:
            results = [_chosen_on(each) for each in results]
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


def without_runs(compared: LatencyComparison) -> LatencyComparison:
    """Leave the raw samples out: those of steps say nothing that anybody plots."""
    return compared.model_copy(
        update={name: getattr(compared, name).model_copy(update={"runs_ms": ()}) for name in ("original", "compressed")}
    )


def _progress(frame: Frame, index: int) -> Callable[[float, str], None]:
    def tell(fraction: float, message: str) -> None:
        frame.tell({"type": "progress", "step": index, "fraction": round(fraction, 3), "message": message})

    return tell


def _selected(steps: Sequence[StepReport]) -> tuple[Quality, ...]:
    """Give the final network's quality where it was chosen: that of the last step that was kept."""
    return next((step.quality for step in reversed(steps) if step.status == "applied"), ())


def _chosen_on(result: GateResult) -> GateResult:
    if result.gate.metric not in (*TASK_METRICS, *FIDELITY_METRICS):
        return result
    return result.model_copy(update={"reason": f"{result.reason}; steps were chosen on the same samples"})


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
