"""Running networks over samples, batch by batch, with what is known of each run."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from engine.contract import Samples
from engine.data.batches import padded, run_size, sample_count
from engine.graph.activations import affordable_batch
from engine.measure.arrangement import tensors
from engine.measure.metrics import Array
from engine.runtime.host_lock import HostLock

_BATCH = 32
_TIMED_RUNS, _TIMED_SECONDS = 5, 1.0


class Port(Protocol):
    """An input of a network."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Sizes, open ones as names or None."""
        ...


class Network(Protocol):
    """What can be run: a Session, or anything that acts like one."""

    @property
    def inputs(self) -> Sequence[Port]:
        """What it takes."""
        ...

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Give every output by name."""
        ...


@dataclass(frozen=True)
class Run:
    """What one run gave. `outputs` are the tensors as they came; `others` says why the rest is not compared.

    `feed` is what went in, `count` how many of its samples are no padding, `label` theirs.
    """

    outputs: dict[str, Array]
    others: dict[str, str]
    feed: Mapping[str, Array]
    count: int
    label: Array | None


def seconds_per_sample(network: Network, samples: Samples, clock: Callable[[], float] = time.perf_counter) -> float:
    """Give the time of the fastest of a few runs, for each sample: the others were disturbed. A slow network runs twice."""
    size = run_size([port.shape for port in network.inputs], samples) or 1
    feed = padded(next(iter(samples.batches(size))), size)
    network.run(feed)
    times: list[float] = []
    while len(times) < _TIMED_RUNS and sum(times) < _TIMED_SECONDS:
        started = clock()
        network.run(feed)
        times.append(clock() - started)
    return min(times) / size


class Runs:
    """The same samples in the same batches for every network."""

    def __init__(
        self, network: Network, samples: Samples, labels: Array | None, batch: int | None, lock: HostLock
    ) -> None:
        self._samples, self._labels, self._lock = samples, labels, lock
        # The network's own batch, where it takes no other.
        self._target = getattr(network, "target", None)
        self.fixed = run_size([port.shape for port in network.inputs], samples)
        self.batch = self.fixed or batch or _BATCH

    def afford(self, graph: ir.Model, run_bytes: int) -> None:
        """Put as many samples into a run as `run_bytes` of the network's activations allow, but no more than by default."""
        if self.fixed is None:
            with self._lock.working():
                self.batch = affordable_batch(graph, self._samples, self.batch, budget=run_bytes, target=self._target)

    @property
    def apart(self) -> bool:
        """Say whether samples are put together freely, so that an axis of the outputs has to tell them apart."""
        return self.fixed is None and self.batch > 1

    def first(self, network: Network, count: int) -> Run:
        """Run the first samples alone."""
        return self._run(network, next(iter(self._samples.batches(count))), None)

    def __call__(self, network: Network) -> Iterator[Run]:
        """Give what each run gives."""
        at = 0
        for feed in self._samples.batches(self.batch):
            count = sample_count(feed)
            label = None if self._labels is None else self._labels[at : at + count]
            at += count
            yield self._run(network, feed, label)

    def _run(self, network: Network, feed: Mapping[str, Array], label: Array | None) -> Run:
        full = padded(feed, self.fixed)
        with self._lock.working():
            outputs, others = tensors(network.run(full))
        return Run(outputs, others, full, sample_count(feed), label)
