"""A trial of a search: make a candidate, verify it, evaluate it on the samples to choose by, race it beside the original."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import VerificationFailedError
from engine.graph import io, verify
from engine.job.frame import Frame
from engine.job.search_bench import SearchBench
from engine.measure import memory
from engine.measure.latency import compare
from engine.report.counted_time import counted
from engine.runtime import heap
from engine.runtime.host_lock import Host, HostLock
from engine.runtime.network_files import parameters, stored_bytes
from engine.search.candidate import make
from engine.search.values import Level, Proposal, TrialValues
from engine.spec import Search

# How long a candidate races beside the original, by level.
_TIMED_S: dict[Level, float] = {"refit": 1.5, "short": 1.5, "full": 4.0}
_MEMORY = "peak_memory"


def try_candidate(
    spec: Search,
    workspace: Path,
    tell: Callable[[dict[str, Any]], None],
    *,
    proposal: Proposal,
    lock_file: Path | Host | None = None,
    deadline: float | None = None,
) -> TrialValues:
    """Do one trial in a workspace; its network is `out/model.onnx` when this returns.

    The workspace holds `model/model.onnx`, where there are data `data`, and where the trial goes on from another one's network
    that as `inherited/model.onnx`.

    Raises:
        EngineError: the candidate cannot be made, or does not compute what it says; nothing is in `out`.
    """
    frame = Frame(workspace, tell, HostLock(lock_file), memory.probe, deadline=deadline)
    with frame.lock.working(), SearchBench.open(spec, frame) as bench:
        return tried(bench, proposal)


def tried(bench: SearchBench, proposal: Proposal) -> TrialValues:
    """Do a trial on a bench that is open already; see `try_candidate`."""
    frame, started = bench.frame, time.monotonic()
    frame.clear_results()
    inherited = frame.workspace / "inherited" / "model.onnx"
    checkpoint = "trial"
    made = make(
        io.load(bench.prepared),
        proposal.point,
        bench.architecture,
        bench.context(checkpoint, brief=proposal.level == "refit"),
        level=proposal.level,
        train_s=proposal.train_s,
        seed=bench.spec.seed,
        inherited=io.load(inherited) if proposal.inherits is not None and inherited.exists() else None,
    )
    result = frame.out / "model.onnx"
    io.save(made.model, result)
    left_out = made.left_out
    work = made.macs
    del made
    heap.give_back(stored_bytes(result))
    try:
        values = _measured(bench, proposal, result)
    except VerificationFailedError:
        frame.clear_results()
        raise
    shutil.rmtree(frame.steps / f"{checkpoint}.checkpoint", ignore_errors=True)
    return TrialValues(macs=work, left_out=left_out, seconds=round(time.monotonic() - started, 3), **values)


def _measured(bench: SearchBench, proposal: Proposal, result: Path) -> dict[str, Any]:
    frame, workbench = bench.frame, bench.workbench
    verify.verify(result, bench.original, workbench.select, workbench.untimed, lossless=False, own=bench.own)
    frame.measuring("quality")
    evaluator = bench.careful if proposal.level == "full" else bench.evaluator
    quality = evaluator.evaluate(workbench.open(result))
    frame.measuring("latency")
    latency = compare(
        bench.original,
        result,
        bench.feeds,
        bench.spec.target,
        lock=frame.lock,
        seconds=_TIMED_S[proposal.level],
        seed=bench.spec.seed,
    )
    return {
        "size_bytes": stored_bytes(result),
        "parameters": parameters(result),
        "quality": quality,
        "latency": counted(latency).ratio,
        "latency_stable": latency.stable,
        "p99": latency.ratios["p99"],
        "p50_ms": round(latency.compressed.p50_ms, 4),
        "p99_ms": round(latency.compressed.p99_ms, 4),
        "peak_memory": _peak_memory(bench, result),
    }


def _peak_memory(bench: SearchBench, result: Path) -> int | None:
    """Measure it where the goal is about memory: it takes a process of its own."""
    goal = bench.spec.goal
    if goal.minimise != "memory" and all(gate.metric != _MEMORY for gate in goal.subject_to):
        return None
    bench.frame.measuring("memory")
    return bench.frame.memory(result, bench.spec.target, bench.feeds[0]).peak_rss_bytes
