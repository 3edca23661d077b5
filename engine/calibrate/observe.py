"""The augmented session: a copy of the network that also gives out the tensors somebody wants to know about."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engine.calibrate import cache
from engine.calibrate.cache import StoredStatistics
from engine.calibrate.statistics import Statistic, statistic
from engine.contract import RUN_BYTES, Observe, Samples
from engine.data.batches import run_size, sample_count
from engine.graph import io
from engine.graph.activations import affordable_batch
from engine.runtime import sessions
from engine.runtime.host_lock import HostLock
from engine.target import Target

_LARGEST_BATCH = 64


def observe(
    model: ir.Model,
    requests: Sequence[Observe],
    samples: Samples,
    target: Target,
    *,
    scratch: Path,
    stored: StoredStatistics | None = None,
    batch: int | None = None,
    run_bytes: int = RUN_BYTES,
    lock: HostLock | None = None,
    progress: Callable[[float, str], None] = lambda _fraction, _message: None,
) -> dict[Observe, Any]:
    """Run the network once over the samples and give every requested statistic.

    Memory does not grow with the number of samples, and results do not depend on `batch`; by default the batch is as large
    as `run_bytes` of activations allow, those included that are given out. A fixed batch size of the network wins over both. What is `stored` for
    this network and these requests already is read from there, and what is not, is stored.
    """
    path = scratch / "observe.onnx"
    augmented = with_outputs(model, list(dict.fromkeys(request.tensor for request in requests)))
    io.save(augmented, path)
    try:
        known = stored.file(path, requests, target) if stored is not None else None
        found = cache.read(known, requests) if known is not None else None
        if found is None:
            fixed = fixed_batch(model, samples)
            size = fixed or batch
            if size is None:
                size = affordable_batch(augmented, samples, _LARGEST_BATCH, budget=run_bytes, target=target)
            runner = _Runner(path, samples, target, lock or HostLock(None), progress)
            found = runner.run(requests, size, fixed=fixed is not None)
            if known is not None:
                cache.write(known, requests, found)
    finally:
        for file in (*io.external_files(path), path):
            file.unlink()
    return found


@dataclass(frozen=True)
class _Runner:
    """Runs the augmented network."""

    path: Path
    samples: Samples
    target: Target
    lock: HostLock
    progress: Callable[[float, str], None]

    def run(self, requests: Sequence[Observe], size: int, *, fixed: bool) -> dict[Observe, Any]:
        """Collect the statistics, `size` samples at a time."""
        statistics = {request: statistic(request) for request in requests}
        session = sessions.session(self.path, self.target)
        done = 0
        for feed in self.samples.batches(size):
            length = sample_count(feed)
            if fixed and length < size:
                break
            with self.lock.working():
                _update(statistics, {**feed, **session.run(feed)})
            done += length
            self.progress(done / len(self.samples), f"calibrated with {done} of {len(self.samples)} samples")
        return {request: collector.result() for request, collector in statistics.items()}


def fixed_batch(model: ir.Model, samples: Samples | None) -> int | None:
    """Give how many samples the network takes at a time where that is fixed: by its inputs, or because they come alone."""
    return run_size([io.sizes(value) for value in network_inputs(model)], samples)


def network_inputs(model: ir.Model) -> list[ir.Value]:
    """List the inputs that a caller has to give: old networks list initializers among them."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _update(statistics: Mapping[Observe, Statistic], arrays: Mapping[str, Any]) -> None:
    for request, collector in statistics.items():
        collector.update(arrays[request.tensor])


def with_outputs(model: ir.Model, tensors: Iterable[str]) -> ir.Model:
    """Give a copy that gives these tensors of its main graph too."""
    augmented = io.copy(model)
    present = {value.name for value in (*augmented.graph.outputs, *augmented.graph.inputs)}
    values = {value.name: value for node in augmented.graph for value in node.outputs}
    augmented.graph.outputs.extend(values[name] for name in tensors if name not in present)
    return augmented
