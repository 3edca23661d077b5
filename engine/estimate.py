"""What a job will take, told before it is done: from shapes alone when it is asked for, from timed runs when it begins.

Each pass says how many runs, loads and sums it makes (`Pass.work`); what one of them costs is known roughly from the network's
arithmetic, and well once a sample was run. The range says how roughly.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

from engine.contract import RESULT_TIMED_S, RUN_BYTES, STEP_TIMED_S, Workload
from engine.data.parts import Sizes, part_sizes
from engine.inspection import DatasetInspection, Estimate, Inspection, StepEstimate
from engine.report.wording import rough_duration
from engine.spec import Compress, Limits, Profile, Search, Spec
from engine.target import Target

# Multiply-accumulates of a thread in a second in float32: an older processor, a usual one, a fast one.
_SLOW, _USUAL, _FAST = 2e9, 1.2e10, 5e10
# A node's call, whatever it computes.
_PER_NODE_S = 8e-6
# Threads share work less than perfectly.
_SHARED = 0.8
# Steps are verified on some samples by several sessions.
_VERIFY_RUNS = 45
# Of the time that a comparison may take: usually, where intervals are narrow soon, and beside other jobs that measure too.
_TIMED_SHARES = (0.8, 0.2, 1.5)
# Loading a network: whatever it is, and for each byte of it.
_LOAD_S, _LOAD_S_PER_BYTE = 0.03, 1.5e-9
_START_S = 2.0
# The longest of a comparison, where six turns of three networks take longer than it should.
_TURNS = 21
# What a timed run leaves unknown of a whole job: other networks are faster or slower, passes end early or try more.
_MEASURED_RANGE = (0.4, 2.2)
# Of its budget: a search that runs out of trials, and one whose last trial takes longer than it was thought.
_SEARCH_ENDS_EARLY, _SEARCH_ENDS_LATE = 0.3, 1.1
# Interpreter and libraries; sessions that keep what a run has needed.
_BASE_BYTES, _SESSIONS, _ARENA = 300 << 20, 3, 2
# Copies of the weights in graphs, sessions and serialized networks while a step is made and verified (transformers of 69 and
# 97 MB took 13 and 15); networks with external data are read and written tensor by tensor.
_COPIES, _STREAMED_COPIES = 12, 5
_LARGEST_BATCH = 32
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather", "FusedMatMul", "FusedConv")
_LEAST_SAMPLES = 32


@dataclass(frozen=True)
class Speed:
    """Seconds that a run of one sample takes, as low and as high as they may be, and bytes of activations alive in it."""

    seconds: float
    low: float
    high: float
    live_bytes: int
    basis: Literal["measured", "shapes"]


def measured_speed(seconds: float, live_bytes: int) -> Speed:
    """Give the speed that a timed run of one sample tells."""
    low, high = _MEASURED_RANGE
    return Speed(seconds, seconds * low, seconds * high, live_bytes, "measured")


def speed_by_shapes(inspection: Inspection, dataset: DatasetInspection | None, target: Target) -> Speed | None:
    """Give the speed that a network's arithmetic suggests; None where that is not known.

    The stand-ins for open sizes are replaced by the data's in proportion: arithmetic mostly grows with the input.
    """
    cost = inspection.cost
    if cost is None:
        return None
    larger = max(_elements(dataset) / cost.input_elements, 1e-3) if dataset and cost.input_elements else 1.0
    threads = max(1.0, target.threads**_SHARED)
    overhead = inspection.nodes * _PER_NODE_S
    seconds, low, high = (larger * cost.macs / (rate * threads) + overhead for rate in (_USUAL, _FAST, _SLOW))
    return Speed(seconds, low, high, round(larger * cost.live_bytes), "shapes")


def estimate_job(
    inspection: Inspection,
    dataset: DatasetInspection | None,
    spec: Spec,
    judge: DatasetInspection | None = None,
    *,
    speed: Speed | None = None,
) -> Estimate | None:
    """Say what a job will take; None where the network's cost is not known. `speed`: where it was measured."""
    sizes = part_sizes(dataset, judge, inputs=[each.name for each in inspection.inputs]) if dataset else None
    match spec:
        case Compress():
            known = speed or speed_by_shapes(inspection, dataset, spec.target)
            return None if known is None else _of_compression(inspection, sizes, spec, known)
        case Profile():
            speeds = [speed or speed_by_shapes(inspection, dataset, target) for target in spec.targets]
            return _of_profile(inspection, sizes, spec, [each for each in speeds if each is not None])
        case Search():
            known = speed or speed_by_shapes(inspection, dataset, spec.target)
            return None if known is None else _of_search(inspection, spec, known)
        case _:
            assert_never(spec)


def foreseen(found: Estimate) -> dict[str, object]:
    """Give the event that tells of an estimate."""
    return {"type": "estimate", "message": found.summary, "expected_s": found.seconds}


def beyond_limits(found: Estimate, limits: Limits) -> Iterator[str]:
    """Yield warnings where a job will most likely be ended for its own limits."""
    if found.low > limits.max_runtime_s:
        yield (
            f"The job may well take longer than its max_runtime_s ({limits.max_runtime_s}): {rough_duration(found.low)} at least,"
            f" {rough_duration(found.seconds)} most likely. Give it more, fewer samples or fewer steps."
        )
    if found.memory_bytes > limits.max_memory_mb << 20:
        yield (
            f"The job may take {found.memory_bytes / 1e9:.1f} GB of memory, its max_memory_mb is {limits.max_memory_mb}: if it"
            " is ended for that, give it more."
        )


def _of_compression(inspection: Inspection, sizes: Sizes | None, spec: Compress, speed: Speed) -> Estimate:
    load = Workload(
        calibrate=sizes.calibrate if sizes else 0,
        select=sizes.select if sizes else _LEAST_SAMPLES,
        layers=sum(inspection.ops.get(kind, 0) for kind in _LAYERS),
        parameters=inspection.parameters,
    )
    judging = sizes.judge if sizes and not sizes.select_is_judge else 0
    totals = []
    for seconds, share in zip((speed.seconds, speed.low, speed.high), _TIMED_SHARES, strict=True):
        around = _START_S + seconds * (load.select + 2 * judging + _VERIFY_RUNS) + 8 * _load_s(inspection)
        steps = list(_steps(inspection, spec, load, seconds, share))
        totals.append((around + _timed(share * RESULT_TIMED_S, seconds, spec.target) + sum(steps), steps))
    return _told(
        speed,
        [total for total, _ in totals],
        tuple(
            StepEstimate(index=index, type=step.type, seconds=round(seconds, 1))
            for index, (step, seconds) in enumerate(zip(spec.recipe.passes, totals[0][1], strict=True))
        ),
        _memory(inspection, speed, spec.target.batch, min(RUN_BYTES, (spec.limits.max_memory_mb << 20) // 32)),
    )


def _steps(inspection: Inspection, spec: Compress, load: Workload, seconds: float, share: float) -> Iterator[float]:
    for step in spec.recipe.passes:
        work = step.work(load)
        own = min(work.runs * seconds, work.most_s) + work.networks * _load_s(inspection)
        own += share * work.timed_s + work.per_weight_s * load.parameters
        frame = seconds * (_VERIFY_RUNS + load.select) + 4 * _load_s(inspection)
        yield own + frame + (0.0 if step.lossless else _timed(share * STEP_TIMED_S, seconds, spec.target))


def _of_profile(inspection: Inspection, sizes: Sizes | None, spec: Profile, speeds: list[Speed]) -> Estimate | None:
    if len(speeds) < len(spec.targets):
        return None
    judging = sizes.judge if sizes else 0
    totals = []
    for which in ("seconds", "low", "high"):
        total = _START_S
        for target, speed in zip(spec.targets, speeds, strict=True):
            seconds = getattr(speed, which)
            total += 2 * judging * seconds + 12 * _load_s(inspection)
            total += max(spec.measure_seconds, _TURNS * seconds * target.batch) + 15 * seconds * target.batch
            total += 4 * min(1.0, spec.measure_seconds) + (spec.tune.max_seconds if spec.tune else 0.0)
        totals.append(total)
    most = max(speeds, key=lambda each: each.live_bytes)
    batch = max(target.batch for target in spec.targets)
    return _told(most, totals, (), _memory(inspection, most, batch, RUN_BYTES))


def _of_search(inspection: Inspection, spec: Search, speed: Speed) -> Estimate:
    """A search takes what its budget lets it, unless its trials run out before."""
    seconds, trials = spec.allowed
    memory = _memory(inspection, speed, spec.target.batch, min(RUN_BYTES, (spec.limits.max_memory_mb << 20) // 32))
    return Estimate(
        seconds=seconds,
        low=round(_SEARCH_ENDS_EARLY * seconds, 1),
        high=round(_SEARCH_ENDS_LATE * seconds, 1),
        memory_bytes=memory,
        basis=speed.basis,
        summary=f"About {rough_duration(seconds)} and {memory / 1e9:.1f} GB of memory: the search's budget, less where its"
        f" {trials} trials are over before.",
    )


def _told(speed: Speed, totals: list[float], steps: tuple[StepEstimate, ...], memory: int) -> Estimate:
    seconds, low, high = totals
    basis = (
        f"a sample takes {rough_duration(speed.seconds)} here"
        if speed.basis == "measured"
        else "reckoned from the network's arithmetic, which is rough; the job measures when it begins"
    )
    text = f"About {rough_duration(seconds)} ({rough_duration(low)} to {rough_duration(high)}) and {memory / 1e9:.1f} GB of memory: {basis}."
    return Estimate(
        seconds=round(seconds, 1),
        low=round(low, 1),
        high=round(high, 1),
        memory_bytes=memory,
        basis=speed.basis,
        steps=steps,
        summary=text,
    )


def _timed(seconds: float, per_sample: float, target: Target) -> float:
    """Give how long a comparison in turn takes: its seconds, or what the fewest turns of a slow network take."""
    return max(seconds, _TURNS * per_sample * target.batch)


def _load_s(inspection: Inspection) -> float:
    return _LOAD_S + _LOAD_S_PER_BYTE * inspection.size_bytes


def _memory(inspection: Inspection, speed: Speed, batch: int, run_bytes: int) -> int:
    affordable = max(1, min(_LARGEST_BATCH, run_bytes // max(speed.live_bytes, 1)))
    alive = speed.live_bytes * max(affordable, batch)
    copies = _STREAMED_COPIES if inspection.external_data else _COPIES
    return _BASE_BYTES + copies * inspection.size_bytes + _SESSIONS * _ARENA * alive


def _elements(dataset: DatasetInspection) -> int:
    """Give how many elements a sample has; sizes that vary count as one."""
    return sum(math.prod(size or 1 for size in array.shape[1:]) for array in dataset.arrays)
