"""A profile: what a network costs on each target, beside a baseline where there is one. Resumes after a target."""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engine.compatibility import check_fit
from engine.contract import Samples
from engine.data.batches import padded, run_size
from engine.data.dataset import random_samples
from engine.errors import BaselineFailedError, EngineError, ModelInvalidError, ModelUnsupportedError
from engine.gate import TASK_METRICS, ProfileGate
from engine.graph import io
from engine.graph.validate import inspect_model
from engine.inspection import Inspection, TensorInfo
from engine.job.compress import Probe
from engine.job.workspace import open_dataset, write_atomically
from engine.measure import memory
from engine.measure.gates import Costs, judge, runs_needed
from engine.measure.intervals import critical
from engine.measure.latency import compare, measure_alone
from engine.measure.quality import Evaluator
from engine.measure.size import compare_size
from engine.measure.throughput import measure_throughput
from engine.measure.tune import find_options
from engine.report.files import report_files
from engine.report.profile_markdown import summarise_profile
from engine.report.values import (
    GateResult,
    LatencyComparison,
    Memory,
    MemoryComparison,
    Placement,
    ProfileReport,
    Quality,
    Ratio,
    Refusal,
    TargetMeasurement,
    TargetProfile,
    Verdict,
)
from engine.runtime import sessions, tracing
from engine.runtime.environment import environment
from engine.runtime.host_lock import HostLock
from engine.runtime.kernel_times import NodeRun, OpProfile, summarise
from engine.runtime.network_files import parameters
from engine.runtime.providers import PROVIDERS
from engine.runtime.sessions import Feed
from engine.spec import Profile
from engine.target import Target

Event = dict[str, Any]

# Samples that are made where a job has no dataset.
_RANDOM_SAMPLES = 32
_FEEDS = 8
_MAX_RUNS = 4000
# Some runs are preempted and dropped; so many more are made than a gate's percentile needs.
_SPARE_RUNS = 1.25
_PROFILED_RUNS, _WARM_UP = 10, 5
_SLOWEST = 20
_CALLERS_SECONDS = 1.0


def run(
    spec: Profile,
    workspace: Path,
    on_event: Callable[[Event], None],
    *,
    quiet: Path | None = None,
    crashed_steps: frozenset[int] = frozenset(),
    only: frozenset[int] | None = None,
    probe: Probe | None = None,
) -> ProfileReport:
    """Measure the network in a workspace on the spec's targets; `report.json` and `report.md` are in `out` when this returns.

    Args:
        spec: what to measure.
        workspace: holds `model/model.onnx`, and where there are any `baseline/model.onnx`, `data/data.npz` and
            `data/dataset.json`. `steps` in it keeps each target's result, so that a second call goes on after the last.
        on_event: told what happens, with JSON values only; a target is a step.
        quiet: a file that all jobs of a host lock while they measure.
        crashed_steps: targets on which an earlier attempt died; they are refused, not tried again.
        only: the targets (by index) that this process is to measure; by default all. `merge_reports` puts parts together.
        probe: measures peak memory and load times in a fresh process.

    Raises:
        TargetUnavailableError: a target is not there, or runs nothing of the network: no figure is given then.
        BaselineFailedError: the baseline does not run on a target.
        EngineError: the network runs on none of the targets, or the job cannot be done for another reason.
    """
    measure = probe or partial(memory.probe, loads=True)
    return _Profiling(spec, workspace, on_event, HostLock(quiet), measure).run(crashed_steps, only)


class _Profiling:
    def __init__(
        self, spec: Profile, workspace: Path, on_event: Callable[[Event], None], quiet: HostLock, probe: Probe
    ) -> None:
        self._started = time.monotonic()
        self._spec, self._tell, self._quiet, self._probe = spec, on_event, quiet, probe
        self._steps, self._out, self._scratch = (workspace / name for name in ("steps", "out", "scratch"))
        for folder in (self._steps, self._scratch):
            folder.mkdir(exist_ok=True)
        self._model = workspace / "model" / "model.onnx"
        baseline = workspace / "baseline" / "model.onnx"
        self._baseline = baseline if baseline.exists() else None
        self._inspection = inspect_model(self._model)
        compared = inspect_model(self._baseline) if self._baseline else None
        self._inputs = _common_inputs(self._inspection, compared)
        self._dataset, described = open_dataset(workspace / "data", self._scratch)
        self._metric = described.metric if described is not None else None
        self._warnings = check_fit(self._inspection, described, spec, compared)
        self._failed: EngineError | None = None

    def run(self, crashed: frozenset[int], only: frozenset[int] | None) -> ProfileReport:
        self._tell({"type": "started"})
        chosen = [index for index in range(len(self._spec.targets)) if only is None or index in only]
        profiles = [self._finished(index) or self._step(index, crashed=index in crashed) for index in chosen]
        if self._failed is not None and not any(each.measured for each in profiles):
            raise self._failed
        report = self._report(tuple(profiles))
        self._write(report)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._tell({"type": "finished", "verdict": report.verdict.outcome})
        return report

    # Targets

    def _finished(self, index: int) -> TargetProfile | None:
        """Give what an earlier attempt found out about a target."""
        record = self._record(index)
        return TargetProfile.model_validate_json(record.read_bytes()) if record.exists() else None

    def _record(self, index: int) -> Path:
        return self._steps / f"{index:02}.json"

    def _step(self, index: int, *, crashed: bool) -> TargetProfile:
        started, target = time.monotonic(), self._spec.targets[index]
        self._tell({"type": "step_started", "step": index, "pass": target.provider})
        measured, refusal = None, None
        if crashed:
            refusal = Refusal(
                code="crashed",
                reason="The process died on this target in an earlier attempt, so it was left out.",
                hint="The network may trigger a fault in the execution provider; report it with the network if you can.",
            )
        else:
            try:
                measured = _Measuring(self, index, target).run()
            except (ModelInvalidError, ModelUnsupportedError) as error:
                self._failed = error
                refusal = Refusal(code="unsupported", reason=error.message, node=error.node, hint=error.hint)
            except EngineError as error:
                error.step = index
                raise
        found = TargetProfile(
            index=index,
            target=target,
            measured=measured,
            refusal=refusal,
            seconds=round(time.monotonic() - started, 3),
        )
        write_atomically(self._record(index), found.model_dump_json().encode())
        status, reason = ("refused", refusal.reason) if refusal else ("measured", None)
        self._tell({"type": "step_finished", "step": index, "status": status, "reason": reason})
        return found

    # What the targets share

    @property
    def spec(self) -> Profile:
        return self._spec

    @property
    def quiet(self) -> HostLock:
        return self._quiet

    @property
    def model(self) -> Path:
        return self._model

    @property
    def baseline(self) -> Path | None:
        return self._baseline

    def memory(self, model: Path, target: Target, feed: Feed) -> Memory:
        """Load and run a network in a process of its own."""
        path = self._scratch / "feed.npz"
        np.savez(path, allow_pickle=False, **dict(feed))
        with self._quiet.measuring():
            return self._probe(model, target, path)

    def measuring(self, index: int, what: str) -> None:
        """Tell what is measured now."""
        self._tell({"type": "measuring", "step": index, "what": what})

    def warn(self, text: str) -> None:
        """Add a warning to the report."""
        self._warnings.append(text)

    def feeds(self, target: Target) -> list[Feed]:
        """Give some batches as the target wants them, that the network and the baseline both take."""
        samples = self._samples(target)
        size = run_size([tensor.shape for tensor in self._inputs], samples) or target.batch
        return [padded(feed, size) for feed in islice(samples.batches(size), _FEEDS)]

    def _samples(self, target: Target) -> Samples:
        if self._dataset is None:
            return random_samples(self._inputs, _RANDOM_SAMPLES, target.shapes)
        return self._dataset.samples(self._inputs, np.arange(len(self._dataset)))

    def quality(self, target: Target) -> tuple[Quality, ...]:
        """Judge the network beside the baseline on held-out data; alone it has its task metric where there are labels."""
        if self._dataset is None:
            return ()
        _, held_out = self._dataset.split()
        labels = self._dataset.labels(held_out)
        if self._baseline is None and (labels is None or self._metric is None):
            return ()
        with self._quiet.working():
            network = sessions.session(self._model, target)
            reference = network if self._baseline is None else sessions.session(self._baseline, target)
        samples = self._dataset.samples(self._inputs, held_out)
        metric = self._metric if labels is not None else None
        with Evaluator(
            reference, samples, labels=labels, metric=metric, scratch=self._scratch, quiet=self._quiet
        ) as judge_by:
            found = judge_by.evaluate(network)
        return found if self._baseline is not None else tuple(_alone(each) for each in found if _is_task(each))

    # The report

    def _report(self, targets: tuple[TargetProfile, ...]) -> ProfileReport:
        gates = [result for each in targets for result in self._judged(each)]
        judged = any(each.measured and each.measured.quality for each in targets)
        return ProfileReport(
            summary=summarise_profile(targets),
            model=io.facts(self._model),
            baseline=io.facts(self._baseline) if self._baseline else None,
            targets=targets,
            verdict=Verdict.of(gates),
            samples=len(self._dataset.split()[1]) if judged and self._dataset is not None else 0,
            seconds=round(time.monotonic() - self._started, 3),
            warnings=tuple(dict.fromkeys([*self._warnings, *_target_warnings(targets)])),
        )

    def _judged(self, profile: TargetProfile) -> list[GateResult]:
        gates = [gate for gate in self._spec.gates if gate.provider in {None, profile.target.provider}]
        if profile.measured is None:
            return [_failed_gate(gate, profile) for gate in gates]
        measured = profile.measured
        other = self._baseline or self._model
        costs = Costs(
            size=compare_size(other, self._model),
            latency=measured.comparison or _beside_itself(measured),
            memory=MemoryComparison(original=measured.baseline_memory or measured.memory, compressed=measured.memory),
            parameters=(parameters(other), parameters(self._model)),
            strict_tails=True,
            ratio="network / baseline",
        )
        return [judge(gate, measured.quality, costs).model_copy(update={"target": profile.index}) for gate in gates]

    def _write(self, report: ProfileReport) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        for name, content in report_files(report).items():
            write_atomically(self._out / name, content)


class _Measuring:
    """The measurements on one target."""

    def __init__(self, job: _Profiling, index: int, target: Target) -> None:
        self._job, self._index, self._target = job, index, target
        self._feeds = job.feeds(target)

    def run(self) -> TargetMeasurement:
        self._baseline_runs()
        self._job.measuring(self._index, "latency")
        latency = self._latency()
        self._job.measuring(self._index, "operators")
        costs, placement = self._operators()
        self._job.measuring(self._index, "throughput")
        throughput = measure_throughput(
            self._job.model,
            self._feeds,
            self._target,
            quiet=self._job.quiet,
            seconds=min(_CALLERS_SECONDS, self._job.spec.measure_seconds),
        )
        self._job.measuring(self._index, "memory")
        own, other = self._memory()
        self._job.measuring(self._index, "quality")
        quality = self._quality()
        tuning = None
        if self._job.spec.tune is not None:
            self._job.measuring(self._index, "session options")
            tuning = find_options(
                self._job.model,
                self._feeds,
                self._target,
                max_seconds=self._job.spec.tune.max_seconds,
                max_threads=self._job.spec.tune.max_threads,
                quiet=self._job.quiet,
            )
        return TargetMeasurement(
            environment=environment(self._target),
            latency=latency.compressed,
            noise_floor=latency.noise_floor,
            stable=latency.stable,
            unstable_because=latency.unstable_because,
            comparison=latency if self._job.baseline else None,
            throughput=throughput,
            memory=own,
            baseline_memory=other,
            by_type=costs.by_type,
            slowest=costs.by_node[:_SLOWEST],
            placement=placement,
            quality=quality,
            tuning=tuning,
        )

    def _baseline_runs(self) -> None:
        if self._job.baseline is None:
            return
        try:
            with self._job.quiet.working():
                sessions.session(self._job.baseline, self._target).run(self._feeds[0])
        except (ModelInvalidError, ModelUnsupportedError) as error:
            raise BaselineFailedError(
                f"The baseline does not run on {self._target.provider}: {error.message}",
                node=error.node,
                hint=error.hint,
            ) from error

    def _latency(self) -> LatencyComparison:
        spec = self._job.spec
        needed = max((runs_needed(gate) for gate in spec.gates), default=1)
        runs = max(50, round(needed * _SPARE_RUNS))
        # All of the time is taken: tails take runs, and a precise median says nothing of them.
        if self._job.baseline is None:
            return measure_alone(
                self._job.model,
                self._feeds,
                self._target,
                quiet=self._job.quiet,
                seconds=spec.measure_seconds,
                min_runs=runs,
                max_runs=_MAX_RUNS,
            )
        return compare(
            self._job.baseline,
            self._job.model,
            self._feeds,
            self._target,
            quiet=self._job.quiet,
            seconds=spec.measure_seconds,
            min_runs=runs,
            max_runs=_MAX_RUNS,
            precision=0.0,
        )

    def _operators(self) -> tuple[OpProfile, Placement]:
        with self._job.quiet.measuring():
            traced = tracing.trace(self._job.model, self._target, self._feeds, runs=_WARM_UP + _PROFILED_RUNS)
        runs = traced.runs[_WARM_UP:]
        counts = tracing.count_nodes(runs[-1], self._target)
        wanted = PROVIDERS[self._target.provider].runtime
        costs = summarise(runs)
        return costs, Placement(
            nodes_by_provider=counts,
            nodes=traced.nodes,
            fallbacks=tuple(node for node in traced.nodes if node.provider != wanted),
            fallback_share=_share_elsewhere(runs[-1], wanted),
        )

    def _memory(self) -> tuple[Memory, Memory | None]:
        feed, baseline = self._feeds[0], self._job.baseline
        own = self._job.memory(self._job.model, self._target, feed)
        return own, None if baseline is None else self._job.memory(baseline, self._target, feed)

    def _quality(self) -> tuple[Quality, ...]:
        try:
            return self._job.quality(self._target)
        except EngineError as error:
            self._job.warn(f"Quality was not judged on {self._target.provider}: {error.message}.")
            return ()


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
        cpu_ratio=one,
        noise_floor=measured.noise_floor,
        stable=measured.stable,
        unstable_because=measured.unstable_because,
        nodes_by_provider=measured.placement.nodes_by_provider,
    )


def _share_elsewhere(kernels: Sequence[NodeRun], wanted: str) -> float:
    total = sum(kernel.microseconds for kernel in kernels)
    elsewhere = sum(kernel.microseconds for kernel in kernels if kernel.provider != wanted)
    return elsewhere / total if total else 0.0


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


def _is_task(quality: Quality) -> bool:
    return quality.metric in TASK_METRICS


def _alone(quality: Quality) -> Quality:
    """Take out what compares a network with itself."""
    interval = quality.compressed_interval or quality.interval
    return quality.model_copy(
        update={
            "original": None,
            "difference": None,
            "discordant": None,
            "interval": interval,
            "standard_error": (interval.high - interval.low) / 2 / critical(interval.confidence),
            "compressed_interval": None,
        }
    )
