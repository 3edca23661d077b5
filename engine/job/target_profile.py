"""What a profile measures on one target: latency, operators, throughput, memory, quality, session options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from engine.data.batches import padded, run_size
from engine.errors import BaselineFailedError, EngineError, ModelInvalidError, ModelUnsupportedError
from engine.gate import TASK_METRICS
from engine.graph import io
from engine.graph.declaration import contradictions
from engine.inspection import TensorInfo
from engine.job.baseline_check import check_baseline
from engine.job.data import JobData
from engine.job.feeding import settle_feeding
from engine.job.frame import Frame
from engine.job.workbench import run_bytes
from engine.measure.gates import labelled_output, runs_needed
from engine.measure.intervals import critical
from engine.measure.latency import compare, measure_alone, without_warm_up
from engine.measure.quality import Evaluator
from engine.measure.throughput import measure_throughput
from engine.measure.tune import find_options
from engine.report.run_facts import Memory
from engine.report.values import LatencyComparison, OutputReport, Placement, Quality, TargetMeasurement
from engine.runtime import sessions, tracing
from engine.runtime.environment import environment
from engine.runtime.kernel_times import NodeRun, OpProfile, summarise
from engine.runtime.providers import PROVIDERS
from engine.runtime.sessions import Feed
from engine.spec import Profile
from engine.target import Target

_FEEDS = 8
_MAX_RUNS = 4000
# Some runs are preempted and dropped; so many more are made than a gate's percentile needs.
_SPARE_RUNS = 1.25
_PROFILED_RUNS, _WARM_UP = 10, 5
_SLOWEST = 20
_CALLERS_SECONDS = 1.0


@dataclass(frozen=True)
class ProfiledNetwork:
    """What all targets of a profile share. `inputs` are what the network and the baseline both take."""

    spec: Profile
    frame: Frame
    data: JobData
    inputs: tuple[TensorInfo, ...]
    warn: Callable[[str], None]


def measure_target(network: ProfiledNetwork, index: int) -> TargetMeasurement:
    """Measure the network on one of its spec's targets.

    Raises:
        TargetUnavailableError: the target is not there, or runs nothing of the network.
        BaselineFailedError: the baseline does not run there.
        ModelInvalidError, ModelUnsupportedError: the network does not.
    """
    return _Measuring(network, index).run()


class _Measuring:
    def __init__(self, network: ProfiledNetwork, index: int) -> None:
        self._network, self._index = network, index
        self._spec, self._frame = network.spec, network.frame
        self._target: Target = network.spec.targets[index]
        self._parts = network.data.parted(network.inputs, self._frame.scratch, shapes=self._target.shapes, alone=False)
        self._feeds: list[Feed] = []

    def run(self) -> TargetMeasurement:
        self._settle_feeding()
        self._baseline_runs()
        self._tell("latency")
        latency = self._latency()
        self._tell("operators")
        costs, placement = self._operators()
        self._tell("throughput")
        throughput = measure_throughput(
            self._frame.model,
            self._feeds,
            self._target,
            lock=self._frame.lock,
            seconds=min(_CALLERS_SECONDS, self._spec.measure_seconds),
        )
        self._tell("memory")
        own, other = self._memory()
        self._tell("quality")
        quality, outputs = self._quality()
        tuning = None
        if self._spec.tune is not None:
            self._tell("session options")
            tuning = find_options(
                self._frame.model,
                self._feeds,
                self._target,
                max_seconds=self._spec.tune.max_seconds,
                max_threads=self._spec.tune.max_threads,
                lock=self._frame.lock,
            )
        return TargetMeasurement(
            environment=environment(self._target),
            latency=latency.compressed,
            noise_floor=latency.noise_floor,
            stable=latency.stable,
            unstable_because=latency.unstable_because,
            comparison=latency if self._frame.baseline else None,
            throughput=throughput,
            memory=own,
            baseline_memory=other,
            by_type=costs.by_type,
            slowest=costs.by_node[:_SLOWEST],
            placement=placement,
            quality=quality,
            outputs=outputs,
            tuning=tuning,
        )

    def _tell(self, what: str) -> None:
        self._frame.measuring(what, self._index)

    def _settle_feeding(self) -> None:
        network = sessions.session(self._frame.model, self._target)
        self._parts, alone = settle_feeding(network, self._parts, self._network.inputs)
        if alone is not None:
            self._network.warn(alone)
        self._feeds = self._batches()
        for each in contradictions(io.load(self._frame.model), network.run(self._feeds[0])):
            self._network.warn(each)

    def _batches(self) -> list[Feed]:
        """Give some batches as the target wants them, of samples that do not judge."""
        samples = (self._parts.calibrate or self._parts.select).samples
        size = run_size([tensor.shape for tensor in self._network.inputs], samples) or self._target.batch
        return [padded(feed, size) for feed in islice(samples.batches(size), _FEEDS)]

    def _baseline_runs(self) -> None:
        if self._frame.baseline is None:
            return
        try:
            sessions.session(self._frame.baseline, self._target).run(self._feeds[0])
        except (ModelInvalidError, ModelUnsupportedError) as error:
            raise BaselineFailedError(
                f"The baseline does not run on {self._target.provider}: {error.message}",
                node=error.node,
                hint=error.hint,
            ) from error

    def _latency(self) -> LatencyComparison:
        needed = max((runs_needed(gate) for gate in self._spec.gates), default=1)
        # A gate on a tail gets its runs, whatever time they take.
        least = round(needed * _SPARE_RUNS) if needed > 1 else None
        # All of the time is taken: tails take runs, and a precise median says nothing of them.
        if self._frame.baseline is None:
            return measure_alone(
                self._frame.model,
                self._feeds,
                self._target,
                lock=self._frame.lock,
                seconds=self._spec.measure_seconds,
                least_runs=least,
                max_runs=_MAX_RUNS,
            )
        return compare(
            self._frame.baseline,
            self._frame.model,
            self._feeds,
            self._target,
            lock=self._frame.lock,
            seconds=self._spec.measure_seconds,
            least_runs=least,
            max_runs=_MAX_RUNS,
            precision=0.0,
        )

    def _operators(self) -> tuple[OpProfile, Placement]:
        with self._frame.lock.measuring():
            traced = tracing.trace(
                self._frame.model,
                self._target,
                self._feeds,
                runs=_WARM_UP + _PROFILED_RUNS,
                seconds=self._spec.measure_seconds,
            )
        runs = without_warm_up(traced.runs)
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
        feed, baseline = self._feeds[0], self._frame.baseline
        own = self._frame.memory(self._frame.model, self._target, feed)
        return own, None if baseline is None else self._frame.memory(baseline, self._target, feed)

    def _quality(self) -> tuple[tuple[Quality, ...], tuple[OutputReport, ...]]:
        try:
            return self._judged()
        except EngineError as error:
            self._network.warn(f"Quality was not judged on {self._target.provider}: {error.message}.")
            return (), ()

    def _judged(self) -> tuple[tuple[Quality, ...], tuple[OutputReport, ...]]:
        """Judge the network beside the baseline; alone it has its task metric where there are labels."""
        judge, baseline = self._parts.judge, self._frame.baseline
        if self._parts.told is None or (baseline is None and judge.metric is None):
            return (), ()
        network = sessions.session(self._frame.model, self._target)
        reference = network if baseline is None else sessions.session(baseline, self._target)
        with Evaluator(
            reference,
            judge.samples,
            labels=judge.labels,
            label_facts=judge.facts,
            metric=judge.metric,
            output=labelled_output(self._spec.gates),
            declared={**self._network.data.declared, **self._spec.outputs},
            graph=io.load(baseline or self._frame.model),
            run_bytes=run_bytes(self._spec.limits.max_memory_mb),
            scratch=self._frame.scratch,
            lock=self._frame.lock,
        ) as judge_by:
            found, outputs = judge_by.evaluate(network), judge_by.outputs
            for text in check_baseline(
                reference, judge_by, judge, io.load(baseline or self._frame.model), self._target
            ):
                self._network.warn(text)
        if baseline is None:
            found = tuple(_alone(each) for each in found if _is_task(each))
        return found, outputs


def _share_elsewhere(kernels: Sequence[NodeRun], wanted: str) -> float:
    total = sum(kernel.microseconds for kernel in kernels)
    elsewhere = sum(kernel.microseconds for kernel in kernels if kernel.provider != wanted)
    return elsewhere / total if total else 0.0


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
