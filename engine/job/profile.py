"""A profile: what a network costs on each target, beside a baseline where there is one. Resumes after a target."""

import time
from collections.abc import Sequence
from typing import Any

from engine.compatibility import check_fit
from engine.errors import EngineError, ModelInvalidError, ModelUnsupportedError
from engine.estimate import estimate_job, foreseen
from engine.gate import ProfileGate
from engine.graph import io
from engine.graph.validate import inspect_model
from engine.inspection import Inspection, TensorInfo
from engine.job.data import JobData
from engine.job.frame import Blame, Frame
from engine.job.target_profile import ProfiledNetwork, measure_target
from engine.measure.gates import Costs, judge
from engine.measure.size import compare_size
from engine.report.profile_markdown import summarise_profile
from engine.report.values import (
    GateResult,
    LatencyComparison,
    MemoryComparison,
    ProfileReport,
    Ratio,
    Refusal,
    TargetMeasurement,
    TargetProfile,
    Verdict,
)
from engine.runtime.network_files import parameters
from engine.spec import Profile

_BLAME = Blame(
    died="on this target",
    hint="The network may trigger a fault in the execution provider; report it with the network if you can.",
    code="unsupported",
)


def run(spec: Profile, frame: Frame, *, only: frozenset[int] | None = None) -> ProfileReport:
    """Measure the network in a workspace on the spec's targets; the report is in its `out` folder when this returns.

    The workspace holds `model/model.onnx`, and where there are any `baseline/model.onnx`, `data/data.npz` and
    `data/dataset.json`, and a dataset that alone judges in the same way in `judge`. A target is a step.

    Args:
        spec: what to measure.
        frame: the job's workspace and what belongs to it.
        only: the targets (by index) that this process is to measure; by default all. `merge_reports` puts parts together.

    Raises:
        TargetUnavailableError: a target is not there, or runs nothing of the network: no figure is given then.
        BaselineFailedError: the baseline does not run on a target.
        EngineError: the network runs on none of the targets, or the job cannot be done for another reason.
    """
    with frame.lock.working():
        return _Profiling(spec, frame).run(only)


class _Profiling:
    def __init__(self, spec: Profile, frame: Frame) -> None:
        self._spec, self._frame = spec, frame
        inspection = inspect_model(frame.model, mend=True)
        compared = inspect_model(frame.baseline, mend=True) if frame.baseline else None
        data = JobData.open(frame.workspace, frame.scratch)
        declared = {**data.declared, **spec.outputs}
        self._warnings = check_fit(inspection, data.described, spec, compared, data.judge_described, declared=declared)
        self._network = ProfiledNetwork(spec, frame, data, _common_inputs(inspection, compared), self._warn)
        self._failed: EngineError | None = None
        # Each target has a speed of its own, so nothing is timed for it.
        self._estimate = estimate_job(inspection, data.described, spec, data.judge_described)

    def run(self, only: frozenset[int] | None) -> ProfileReport:
        self._frame.tell({"type": "started"})
        for warning in self._warnings:
            self._frame.warn(warning)
        if self._estimate is not None:
            self._frame.tell(foreseen(self._estimate))
        chosen = [index for index in range(len(self._spec.targets)) if only is None or index in only]
        profiles = [self._frame.finished(index, TargetProfile) or self._step(index) for index in chosen]
        if self._failed is not None and not any(each.measured for each in profiles):
            raise self._failed
        report = self._report(tuple(profiles))
        self._frame.clear_results()
        self._frame.finish(report)
        return report

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            self._frame.warn(text)

    def _step(self, index: int) -> TargetProfile:
        started, target = time.monotonic(), self._spec.targets[index]
        outcome = self._frame.attempt(index, target.provider, lambda: self._measured(index), _BLAME)
        measured, refusal = (None, outcome) if isinstance(outcome, Refusal) else (outcome, None)
        found = TargetProfile(
            index=index,
            target=target,
            measured=measured,
            refusal=refusal,
            seconds=round(time.monotonic() - started, 3),
        )
        self._frame.keep(index, found, status="refused" if refusal else "measured", refusal=refusal)
        return found

    def _measured(self, index: int) -> TargetMeasurement:
        try:
            return measure_target(self._network, index)
        except (ModelInvalidError, ModelUnsupportedError) as error:
            self._failed = error
            raise

    def _report(self, targets: tuple[TargetProfile, ...]) -> ProfileReport:
        gates = [result for each in targets for result in self._judged(each)]
        parts = self._network.data.told(self._network.inputs)
        judged = any(each.measured and each.measured.quality for each in targets)
        described = self._network.data.described
        return ProfileReport(
            summary=summarise_profile(targets),
            model=io.facts(self._frame.model),
            baseline=io.facts(self._frame.baseline) if self._frame.baseline else None,
            targets=targets,
            verdict=Verdict.of(gates),
            samples=parts.judge if judged and parts is not None else 0,
            parts=parts,
            preprocessing=described.preprocessing if described is not None else None,
            seconds=self._frame.seconds,
            estimate=self._estimate,
            warnings=tuple(dict.fromkeys([*self._warnings, *_target_warnings(targets)])),
        )

    def _judged(self, profile: TargetProfile) -> list[GateResult]:
        gates = [gate for gate in self._spec.gates if gate.provider in {None, profile.target.provider}]
        if profile.measured is None:
            return [_failed_gate(gate, profile) for gate in gates]
        measured, model = profile.measured, self._frame.model
        other = self._frame.baseline or model
        costs = Costs(
            size=compare_size(other, model),
            latency=measured.comparison or _beside_itself(measured),
            memory=MemoryComparison(original=measured.baseline_memory or measured.memory, compressed=measured.memory),
            parameters=(parameters(other), parameters(model)),
            strict_tails=True,
            ratio="network / baseline",
        )
        return [judge(gate, measured.quality, costs).model_copy(update={"target": profile.index}) for gate in gates]


def _common_inputs(model: Inspection, baseline: Inspection | None) -> tuple[TensorInfo, ...]:
    """Give the network's inputs with the sizes that either of the two fixes."""
    if baseline is None:
        return model.inputs
    others = {tensor.name: tensor.shape for tensor in baseline.inputs}
    return tuple(
        tensor.model_copy(update={"shape": _narrower(tensor.shape, others.get(tensor.name))}) for tensor in model.inputs
    )


def _narrower(one: Sequence[Any] | None, other: Sequence[Any] | None) -> Sequence[Any] | None:
    if one is None or other is None or len(one) != len(other):
        return one if one is not None else other
    return [
        right if isinstance(right, int) and not isinstance(left, int) else left
        for left, right in zip(one, other, strict=True)
    ]


def _beside_itself(measured: TargetMeasurement) -> LatencyComparison:
    """Give what gates are judged by where there is no baseline: the network in both places."""
    one = Ratio(value=1.0, interval=measured.noise_floor)
    return LatencyComparison(
        original=measured.latency,
        compressed=measured.latency,
        ratios=dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), one),
        cpu_ratio=None,
        noise_floor=measured.noise_floor,
        stable=measured.stable,
        unstable_because=measured.unstable_because,
        nodes_by_provider=measured.placement.nodes_by_provider,
    )


def _failed_gate(gate: ProfileGate, profile: TargetProfile) -> GateResult:
    why = profile.refusal.reason if profile.refusal else ""
    return GateResult(
        gate=gate,
        target=profile.index,
        measured=None,
        bound=None,
        outcome="fail",
        reason=f"the network does not run on {profile.target.provider}: {why}",
    )


def _target_warnings(targets: Sequence[TargetProfile]) -> list[str]:
    told = []
    for each in targets:
        if each.measured is None:
            continue
        name, placement = each.target.provider, each.measured.placement
        if not each.measured.stable:
            told.append(f"The latency measurement on {name} is not stable: {each.measured.unstable_because}.")
        if placement.fallbacks:
            told.append(
                f"{len(placement.fallbacks)} of {len(placement.nodes)} nodes do not run on {name}; they take"
                f" {placement.fallback_share:.0%} of the kernels' time."
            )
    return told
