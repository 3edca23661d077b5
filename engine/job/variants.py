"""Measures a part of a network's variant library in a workspace."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engine.graph import io
from engine.job.frame import Frame
from engine.job.search_bench import SearchBench
from engine.measure import memory
from engine.report.values import Quality
from engine.runtime.host_lock import Host, HostLock
from engine.search import measuring
from engine.spec import Search

_NAME = "variants"


def measure_variants(
    spec: Search,
    workspace: Path,
    tell: Callable[[dict[str, Any]], None],
    *,
    part: str,
    lock_file: Path | Host | None = None,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Measure one part of the library; give it as JSON.

    The workspace holds `model/model.onnx` and, where there are data, `data`.

    Raises:
        EngineError: there is no such part, or the network cannot be searched.
    """
    frame = Frame(workspace, tell, HostLock(lock_file), memory.probe, deadline=deadline)
    with frame.lock.working(), SearchBench.open(spec, frame) as bench:
        return measured(bench, part)


def parts_of(bench: SearchBench) -> tuple[str, ...]:
    """Name the parts of the library of a bench's network."""
    return measuring.parts(bench.architecture)


def measured(bench: SearchBench, part: str) -> dict[str, Any]:
    """Measure a part on a bench that is open already; see `measure_variants`."""

    def evaluate(model: ir.Model) -> tuple[Quality, ...]:
        # On the same samples as trials that are not yet the best few.
        path = bench.frame.scratch / "variant.onnx"
        io.save(model, path)
        return bench.evaluator.evaluate(bench.workbench.open(path))

    context = replace(bench.context(_NAME, brief=True), evaluate=evaluate)
    return measuring.measure(part, io.load(bench.prepared), bench.architecture, context, bench.feeds)
