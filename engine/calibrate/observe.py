"""The augmented session: a copy of the network that also gives out the tensors somebody wants to know about."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engine.calibrate.statistics import STATISTICS, Statistic
from engine.graph import io
from engine.measure import providers
from engine.measure.quiet import Quiet
from engine.passes.contract import Observe, Samples
from engine.spec import Target

# Of activations that one run may give out; the batch size follows from it.
_BUDGET_BYTES = 64 << 20
_LARGEST_BATCH = 64


def observe(
    model: ir.Model,
    requests: Sequence[Observe],
    samples: Samples,
    target: Target,
    *,
    scratch: Path,
    batch: int | None = None,
    quiet: Quiet | None = None,
    progress: Callable[[float, str], None] = lambda _fraction, _message: None,
) -> dict[Observe, Any]:
    """Run the network once over the samples and give every requested statistic.

    Memory does not grow with the number of samples, and results do not depend on `batch`; by default the batch is as large
    as a fixed memory budget allows. A fixed batch size of the network wins over both.
    """
    quiet = quiet or Quiet(None)
    statistics: dict[Observe, Statistic] = {request: STATISTICS[request.statistic]() for request in requests}
    tensors = list(dict.fromkeys(request.tensor for request in requests))
    path = scratch / "observe.onnx"
    io.save(_augmented(model, tensors), path)
    session = providers.session(path, target)
    fixed = fixed_batch(model)
    size = fixed or batch or 1
    done = 0
    if not fixed and batch is None and len(samples):
        first = session.run(next(iter(samples.batches(1))))
        size = max(1, min(_LARGEST_BATCH, _BUDGET_BYTES // max(1, sum(array.nbytes for array in first.values()))))
    for feed in samples.batches(size):
        count = len(next(iter(feed.values())))
        if fixed and count < fixed:
            break
        with quiet.working():
            _update(statistics, {**feed, **session.run(feed)})
        done += count
        progress(done / len(samples), f"calibrated with {done} of {len(samples)} samples")
    path.unlink()
    return {request: statistic.result() for request, statistic in statistics.items()}


def fixed_batch(model: ir.Model) -> int | None:
    """Give the batch size where the network fixes it."""
    for value in network_inputs(model):
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], int):
            return value.shape[0]
    return None


def network_inputs(model: ir.Model) -> list[ir.Value]:
    """List the inputs that a caller has to give: old networks list initializers among them."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _update(statistics: Mapping[Observe, Statistic], arrays: Mapping[str, Any]) -> None:
    for request, statistic in statistics.items():
        statistic.update(arrays[request.tensor])


def _augmented(model: ir.Model, tensors: Iterable[str]) -> ir.Model:
    augmented = io.copy(model)
    present = {value.name for value in (*augmented.graph.outputs, *augmented.graph.inputs)}
    values = {value.name: value for node in augmented.graph for value in node.outputs}
    augmented.graph.outputs.extend(values[name] for name in tensors if name not in present)
    return augmented
