"""How well a compressed network does beside its original, on the same held-out samples, with intervals.

With labels: the task metric, judged by the *paired* difference (each sample is its own control, so a change of a fraction of a
point can be seen). Always: fidelity, which compares the two networks' main outputs without asking for labels.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from engine.contract import Samples
from engine.data.batches import padded, run_size, sample_count
from engine.errors import (
    BaselineFailedError,
    DatasetInvalidError,
    EngineError,
    ModelUnsupportedError,
    VerificationFailedError,
)
from engine.measure import metrics
from engine.measure.metrics import Array, Output
from engine.measure.scores import Fidelity, Task, new_task
from engine.report.values import Quality
from engine.runtime.host_lock import HostLock

_BATCH = 32
_MEMORY_FOR_OUTPUTS = 64 << 20
_DECIDING = frozenset({"top1", "top5", "f1", "iou", "edit_distance"})


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


class Evaluator:
    """Runs the original once, keeps what it said, and holds candidates against that.

    Memory does not grow with the number of samples: of each metric a few numbers per sample stay, and the original's main
    outputs beyond 64 MiB go to files in `scratch`. `close()` (or `with`) removes them.

    Args:
        original: the network that all candidates are compared with; it is not needed after this.
        samples: held-out data, at least two samples.
        labels: one row per sample, in the samples' order; None for fidelity only.
        metric: the task metric that `labels` are for.
        output: name of the main output; by default the first one that the labels fit, or without labels the first that
            scores classes, else the first.
        batch: samples per run; by default the network's fixed batch, else 32.
        scratch: folder for the files.
        quiet: taken round each batch.

    Raises:
        BaselineFailedError: the original gives NaN.
        DatasetInvalidError: fewer than two samples, or labels that do not fit.
    """

    def __init__(
        self,
        original: Network,
        samples: Samples,
        *,
        labels: Array | None = None,
        metric: str | None = None,
        output: str | None = None,
        batch: int | None = None,
        scratch: Path | None = None,
        quiet: HostLock | None = None,
    ) -> None:
        if len(samples) < 2:
            raise DatasetInvalidError("At least two held-out samples are needed to judge quality")
        if labels is not None and len(labels) != len(samples):
            raise DatasetInvalidError(f"There are {len(labels)} labels for {len(samples)} samples")
        self._samples, self._quiet = samples, quiet or HostLock(None)
        self._metric = metric if labels is not None else None
        self._labels = labels if metric else None
        self._fixed = run_size([port.shape for port in original.inputs], samples)
        self._batch = self._fixed or batch or _BATCH
        # True: one sample per run, and the whole output is that sample's (the samples are not on its first axis).
        self._whole = False
        self._cache = _Cache(scratch)
        self.output = ""
        self._how = Output(probabilities=False)
        self._original_task = new_task(self._metric)
        self._observe(original, output)

    def evaluate(self, candidate: Network) -> tuple[Quality, ...]:
        """Give the task metric (where there are labels) and the fidelity metrics of a candidate.

        Raises:
            VerificationFailedError: its outputs have another shape, or NaN or infinities that the original's have not.
        """
        task = new_task(self._metric)
        fidelity = Fidelity(self._how, deciding=self._metric in _DECIDING)
        for index, (outputs, label) in enumerate(self._run(candidate)):
            _refuse_nan(outputs, VerificationFailedError, "The compressed network")
            if self.output not in outputs:
                raise VerificationFailedError(f"The compressed network has lost the output `{self.output}`")
            original, compressed = self._cache[index], outputs[self.output]
            _refuse_unlike(original, compressed, self.output)
            fidelity.add(original, compressed)
            _add(task, compressed, label, self._how)
        judged = (task.beside(self._original_task),) if task else ()
        return (*judged, *fidelity.qualities())

    def close(self) -> None:
        """Remove the files."""
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _observe(self, original: Network, output: str | None) -> None:
        """Run the original over all samples and keep what it says."""
        self._settle_batch(original, output)
        for outputs, label in self._run(original):
            _refuse_nan(outputs, BaselineFailedError, "The original network")
            if not self.output:
                self.output = output or _main_output(outputs, label, self._metric)
                self._how = metrics.read_output(outputs[self.output], label)
            main = outputs[self.output]
            self._cache.append(main)
            _add(self._original_task, main, label, self._how)

    def _settle_batch(self, original: Network, output: str | None) -> None:
        """Fall back to one sample per run where the outputs do not have the samples on their first axis."""
        feed = next(iter(self._samples.batches(1)))
        with self._quiet.working():
            outputs = original.run(padded(feed, self._fixed))
        if output is not None and output not in outputs:
            raise ModelUnsupportedError(f"The network has no output `{output}`")
        main = outputs[output] if output else next(iter(outputs.values()))
        if np.ndim(main) and len(main) == (self._fixed or 1):
            return
        if self._fixed not in {None, 1}:
            raise ModelUnsupportedError("The network's output does not have the samples on its first axis")
        self._batch, self._whole = 1, True

    def _run(self, network: Network) -> Iterator[tuple[dict[str, Array], Array | None]]:
        """Give the outputs and labels of each batch, samples on the first axis."""
        at = 0
        for feed in self._samples.batches(self._batch):
            length = sample_count(feed)
            with self._quiet.working():
                outputs = network.run(padded(feed, self._fixed))
            label = None if self._labels is None else self._labels[at : at + length]
            at += length
            tensors = {name: _plain(value) for name, value in outputs.items() if isinstance(value, np.ndarray)}
            yield {name: _by_sample(value, length, whole=self._whole) for name, value in tensors.items()}, label


def _add(task: Task | None, output: Array, label: Array | None, how: Output) -> None:
    if task is not None and label is not None:
        task.add(output, label, how)


def _main_output(outputs: Mapping[str, Array], label: Array | None, metric: str | None) -> str:
    """Choose the first output that the labels fit; without labels the first that scores classes, else the first."""
    if metric is None or label is None:
        scoring = [name for name, value in outputs.items() if metrics.class_like(value)]
        return (scoring or list(outputs))[0]
    problem: DatasetInvalidError | None = None
    for name, value in outputs.items():
        task = new_task(metric)
        assert task is not None
        try:
            task.add(value, label, metrics.read_output(value, label))
        except DatasetInvalidError as error:
            problem = problem or error
        else:
            return name
    raise problem or DatasetInvalidError("The network has no output that is a tensor")


def _plain(value: Array) -> Array:
    """Give floats that numpy lacks (bfloat16, float8) as float32."""
    return value.astype(np.float32) if metrics.is_float(value) and value.dtype.kind == "V" else value


def _by_sample(value: Array, count: int, *, whole: bool) -> Array:
    """Put the samples on the first axis: padding cut off, or a whole output as its one sample's."""
    if not whole:
        return value[:count] if value.ndim else value
    if value.ndim >= 2 and value.shape[1] == 1:  # (steps, samples, ...) as recurrent networks have it
        return np.moveaxis(value, 1, 0)
    return value[None]


def _finite(values: Array) -> NDArray[np.bool_]:
    return np.isfinite(values) if metrics.is_float(values) else np.ones(values.shape, np.bool_)


def _refuse_nan(outputs: Mapping[str, Array], error: type[EngineError], who: str) -> None:
    for name, value in outputs.items():
        if metrics.is_float(value) and np.isnan(value).any():
            raise error(f"{who} gives NaN in output `{name}` on the held-out data")


def _refuse_unlike(original: Array, compressed: Array, name: str) -> None:
    if original.shape != compressed.shape:
        raise VerificationFailedError(
            f"Output `{name}` has the shape {compressed.shape}, the original's is {original.shape}"
        )
    if not np.array_equal(_finite(original), _finite(compressed)):
        raise VerificationFailedError(f"Output `{name}` is infinite where the original's is not, or the reverse")


class _Cache:
    """The original's main outputs, batch by batch; those beyond 64 MiB in files."""

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._held: list[Array | Path] = []
        self._bytes = 0
        self._folder: Path | None = None
        self._cleaner: weakref.finalize[Any, Any] | None = None

    def append(self, output: Array) -> None:
        """Keep a batch."""
        self._bytes += output.nbytes
        if self._bytes <= _MEMORY_FOR_OUTPUTS:
            self._held.append(output)
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="original-outputs-", dir=self._scratch))
            self._cleaner = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{len(self._held)}.npy"
        np.save(path, output, allow_pickle=False)
        self._held.append(path)

    def __getitem__(self, index: int) -> Array:
        held = self._held[index]
        return np.load(held, allow_pickle=False) if isinstance(held, Path) else held

    def close(self) -> None:
        """Remove the files."""
        self._held.clear()
        if self._cleaner:
            self._cleaner()
