"""A compression: load, check, apply each pass, verify, measure, keep or roll back, and report. Resumes after a step."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engine.contract import Pass
from engine.errors import (
    VerificationFailedError,
)
from engine.graph import io, verify
from engine.graph.declaration import Declaration
from engine.graph.pieces import memory_to_load
from engine.graph.widening import widen
from engine.job import credit
from engine.job.beside_original import BesideOriginal, mebibytes
from engine.job.built_on import taken_back, unbuilt_on
from engine.job.frame import Blame, Frame
from engine.job.learners import Learners
from engine.job.workspace import remove_network
from engine.measure.acceptance import decide, decide_alone
from engine.measure.size import compare_size
from engine.report.values import (
    Change,
    Credit,
    LatencyComparison,
    Quality,
    Refusal,
    Report,
    StepReport,
)
from engine.runtime import heap
from engine.spec import Compress

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


class _Compression(BesideOriginal):
    def __init__(self, spec: Compress, frame: Frame) -> None:
        super().__init__(spec, frame)
        self._recipe = spec
        # What fits go back to: a student of another architecture has no layers of the original, but those that it was taught.
        self._reference = self._current

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
            for index, step in enumerate(self._recipe.recipe.passes):
                reports.append(self._finished(index) or self._step(index, step))
                reports = self._settled(reports)
            steps = tuple(self._without_idle(reports))
            said = tuple(self._learners.warnings(steps, self._recipe))
            report = self._measure(steps, final, selected=_selected(steps), warnings=said)
        self._frame.finish(report)
        return report

    # Steps

    def _finished(self, index: int) -> StepReport | None:
        """Give the report of a step that an earlier attempt finished, and go on from its network."""
        report = self._frame.finished(index, StepReport)
        if report is not None and report.status == "applied":
            self._go_on(index)
        return report

    def _settled(self, reports: list[StepReport]) -> list[StepReport]:
        """See what the last step means for those that have lost on credit, and go back where it was not won back."""
        settled = credit.settle(reports, self._recipe.recipe.passes, self._spec.gates)
        # The last first: who dies in between finds a credit that is still open.
        changed = [now for now, before in zip(settled, reports, strict=True) if now is not before][::-1]
        for report in changed:
            self._frame.keep(report.index, report, status=report.status, refusal=report.refusal)
        if any(report.status == "refused" for report in changed):
            applied = [report.index for report in settled if report.status == "applied"]
            self._current = self._network(applied[-1]) if applied else self._frame.student or self._frame.model
            taught = [index for index in applied if self._recipe.recipe.passes[index].learns]
            if self._frame.student is not None:
                self._reference = self._network(taught[-1]) if taught else self._frame.student
        return settled

    def _go_on(self, index: int) -> None:
        """Go on from the network that a step has made."""
        self._current = self._network(index)
        if self._frame.student is not None and self._recipe.recipe.passes[index].learns:
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
        if self._recipe.recipe.exact:
            del measured["change"]
            return None
        size = compare_size(self._current, candidate, download=outcome.download)

        def decided(faster: LatencyComparison | None) -> Refusal | None:
            gates = self._spec.gates
            refused = decide(outcome, size, faster, measured["quality"], gates, of_original=measured["size"])
            if refused is None or refused.code != "too_lossy" or not credit.lends(self._recipe.recipe.passes, index):
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
        if not idle or self._recipe.recipe.exact:
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


def _needs_memory(needed: int, limit_mb: int) -> Refusal:
    return Refusal(
        code="too_large",
        reason=f"The pass holds the whole network, about {mebibytes(needed)} MiB; the job's max_memory_mb is {limit_mb}.",
        hint="quantize_weights, quantize_dynamic and float16 take one tensor at a time; for others raise max_memory_mb.",
    )


def _type(step: Pass) -> str:
    return str(type(step).model_fields["type"].default)
