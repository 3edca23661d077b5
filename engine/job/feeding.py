"""How many samples a network takes together: found out by trying, for what is declared is not always what runs.

Exporters leave the first axis open and fix the number of samples inside, in the constant of a Reshape as a rule; others add up
over it. Such networks are fed as many samples as they take, one at a time as a rule.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.contract import Samples
from engine.data.batches import run_size, sample_count
from engine.errors import EngineError
from engine.inspection import TensorInfo
from engine.job.data import Parts
from engine.measure.arrangement import batched_axis

# Kernels of other sizes round differently, and dynamic quantization takes one scale for all samples of a run.
_MIXED = 0.1
_SIZES = (2, 4, 8, 16, 32, 64)

Feed = Mapping[str, npt.NDArray[Any]]


class Runnable(Protocol):
    """What can be run."""

    def run(self, feed: Feed) -> dict[str, Any]:
        """Give every output by name."""
        ...


def settle_feeding(network: Runnable, parts: Parts, inputs: Sequence[TensorInfo]) -> tuple[Parts, str | None]:
    """Give the parts as the network takes them, and why samples come one at a time where they have to, in a sentence."""
    samples = (parts.calibrate or parts.select).samples
    if run_size([tensor.shape for tensor in inputs], samples) is not None:
        return parts, None
    declared = "though the inputs are declared for any number"
    one = _run(network, next(iter(samples.batches(1))))
    if isinstance(one, EngineError):
        size = _only_size(network, samples)
        if size is None:
            # What does not run at all is told where the network is first run.
            return parts, None
        said = f"Samples are fed {size} at a time, {declared}: with one, the network does not run."
        return parts.at_a_time(size), said
    why = _objection(network, samples, one)
    if why is None:
        return parts, None
    return parts.at_a_time(1), f"Samples are fed one at a time, {declared}: {why}"


def _run(network: Runnable, feed: Feed) -> dict[str, Any] | EngineError:
    try:
        return network.run(feed)
    except EngineError as error:
        return error


def _only_size(network: Runnable, samples: Samples) -> int | None:
    """Give the usual size of a batch that the network runs on, where it does not run on a single sample."""
    for size in _SIZES:
        feed = next(iter(samples.batches(size)))
        if sample_count(feed) == size and not isinstance(_run(network, feed), EngineError):
            return size
    return None


def _objection(network: Runnable, samples: Samples, first: Mapping[str, Any]) -> str | None:
    """Say why two samples cannot be run together, beside what the first one gives alone."""
    two = next(iter(samples.batches(2)))
    if sample_count(two) < 2:
        return None
    together = _run(network, two)
    if isinstance(together, EngineError):
        where = f" (node `{together.node}`)" if together.node else ""
        return f"with two it does not run{where}: {together.message.rstrip('.')}."
    second = _run(network, {name: array[1:] for name, array in two.items()})
    if isinstance(second, EngineError):
        return None
    mixed = next((name for name in together if _mixes(name, (first, second), together)), None)
    return None if mixed is None else f"with two, output `{mixed}` is another than for each of them alone."


def _mixes(name: str, alone: Sequence[Mapping[str, Any]], together: Mapping[str, Any]) -> bool:
    """Say whether an output that keeps its samples apart depends on the other sample of the run."""
    values = [each[name] for each in (*alone, together)]
    if any(not isinstance(value, np.ndarray) or value.dtype.kind != "f" for value in values):
        return False
    axis = batched_axis(values[0].shape, values[2].shape, 2)
    if axis is None or values[0].shape != values[1].shape:
        return False
    wanted = np.concatenate(values[:2], axis=axis).astype(np.float64)
    moved = np.abs(np.nan_to_num(values[2].astype(np.float64)) - np.nan_to_num(wanted))
    return bool(moved.max(initial=0.0) > _MIXED * np.abs(np.nan_to_num(wanted)).max(initial=0.0))
