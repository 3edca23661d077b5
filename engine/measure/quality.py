"""How well a compressed network does beside its original, on the same held-out samples, with intervals.

With labels: the task metric of the output that they fit, judged by the *paired* difference (each sample is its own control, so a
change of a fraction of a point can be seen). Always: fidelity, which compares every output of the two networks as what it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx_ir as ir

from engine.contract import RUN_BYTES, Samples
from engine.data.labels import LabelFacts, look_at
from engine.data.padding import valid_positions
from engine.errors import DatasetInvalidError, VerificationFailedError
from engine.graph.endings import endings
from engine.measure.arrangement import arranged, finite, has_nan
from engine.measure.kinds import KINDS, Batch, Comparison, Subject
from engine.measure.metrics import Array, Output
from engine.measure.original_outputs import Hints, OriginalOutputs
from engine.measure.recognition import Recognition
from engine.measure.runs import Network, Port, Run, Runs
from engine.measure.scores import Task, new_task
from engine.outputs import OutputDeclaration
from engine.report.values import OutputReport, Quality
from engine.runtime.host_lock import HostLock

__all__ = ["Evaluator", "Network", "Port"]


class Evaluator:
    """Runs the original once, keeps what it said, and holds candidates against that.

    Memory does not grow with the number of samples: of each metric a few numbers per sample stay, of embeddings a thousand
    vectors, and the original's outputs beyond 64 MiB go to files in `scratch`. `close()` (or `with`) removes them.

    Args:
        original: the network that all candidates are compared with; it is not needed after this.
        samples: held-out data, at least two samples.
        labels: one row per sample, in the samples' order; None for fidelity only.
        metric: the task metric that `labels` are for.
        output: name of the main output; by default the one that the labels fit, or without labels the first that decides
            something, else the first that is no state.
        declared: what the owner says of outputs, by name.
        graph: the original as a graph, by which outputs are recognised; without it names and values have to do.
        like: one of the same network on other samples; outputs are taken for the same.
        batch: samples per run; by default the network's fixed batch, else 32, or with a graph as many of those as
            `run_bytes` of activations allow.
        run_bytes: see engine.graph.activations.
        scratch: folder for the files.
        lock: taken round each batch.
        label_facts: what holds for all labels of the dataset, where `labels` are some of them.

    Raises:
        BaselineFailedError: the original gives NaN.
        DatasetInvalidError: fewer than two samples, or labels that do not fit.
        ModelUnsupportedError: there is no such output, or none that can be compared.
    """

    def __init__(
        self,
        original: Network,
        samples: Samples,
        *,
        labels: Array | None = None,
        metric: str | None = None,
        output: str | None = None,
        declared: Mapping[str, OutputDeclaration] | None = None,
        graph: ir.Model | None = None,
        like: "Evaluator | None" = None,
        batch: int | None = None,
        run_bytes: int = RUN_BYTES,
        scratch: Path | None = None,
        lock: HostLock | None = None,
        label_facts: LabelFacts | None = None,
    ) -> None:
        if len(samples) < 2:
            raise DatasetInvalidError("At least two held-out samples are needed to judge quality")
        if labels is not None and len(labels) != len(samples):
            raise DatasetInvalidError(f"There are {len(labels)} labels for {len(samples)} samples")
        self._metric = metric if labels is not None else None
        self._runs = Runs(original, samples, labels if metric else None, batch, lock or HostLock(None))
        if batch is None and graph is not None:
            self._runs.afford(graph, run_bytes)
        taken = {} if like is None else {each.name: (each.kind, each.reason) for each in like.outputs if each.kind}
        facts = None if labels is None or self._metric is None else label_facts or look_at(labels)
        self._hints = Hints(declared or {}, {} if graph is None else endings(graph), self._metric, facts, output, taken)
        self._original = OriginalOutputs(original, self._runs, self._hints, scratch)
        self._recognised = self._original.recognised
        self._makers = {name: self._maker(each) for name, each in self._recognised.items() if each.judged}
        self._original_task = new_task(self._metric)
        self._score_original()

    @property
    def output(self) -> str:
        """Name the output that speaks for the network."""
        return self._original.main

    @property
    def outputs(self) -> tuple[OutputReport, ...]:
        """Give what each output was taken for, in the network's order."""
        return self._original.reports()

    def said(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield what the original said in the main output, run by run, with the labels as the metric takes them."""
        for index in range(self._original.runs_of(self.output)):
            yield self._original.said(self.output, index), self._original.label(index)

    @property
    def metric(self) -> str | None:
        """Name the labels' metric, None without labels."""
        return self._metric

    @property
    def how(self) -> Output:
        """Say how the main output is read."""
        return self._original.how

    def evaluate(self, candidate: Network) -> tuple[Quality, ...]:
        """Give the task metric (where there are labels) and each output's fidelity metrics, the main output's first.

        Raises:
            VerificationFailedError: its outputs have another shape, or NaN or infinities that the original's have not.
        """
        task = new_task(self._metric)
        comparisons = {name: make() for name, make in self._makers.items()}
        for index, run in enumerate(self._runs(candidate)):
            compressed = self._compared(run, index)
            original = {name: self._original.said(name, index) for name in compressed}
            for name in compressed:
                if not self._recognised[name].rows_vary:
                    _refuse_unlike(original[name], compressed[name], name)
            valid = valid_positions(run.feed, run.count)
            for name, comparison in comparisons.items():
                if name in compressed:
                    comparison.add(original, compressed, None if self._original.axis(name) is None else valid)
            label = self._original.label(index)
            if task is not None and label is not None:
                task.add(compressed[self.output], label, self._original.how)
        return tuple(self._qualities(task, comparisons))

    def close(self) -> None:
        """Remove the files."""
        self._original.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _maker(self, recognition: Recognition) -> Callable[[], Comparison]:
        """Let the output's kind look at what the original said, and give what makes a comparison."""
        assert recognition.kind is not None
        label = self._original.label(0) if recognition.name == self.output and self._metric else None
        subject = Subject(recognition.name, recognition.rows_vary, recognition.companions, label)
        names = (recognition.name, *recognition.companions.values())
        return KINDS[recognition.kind].read(subject, _Said(self._original, names))

    def _score_original(self) -> None:
        if self._original_task is None:
            return
        for index in range(self._original.runs_of(self.output)):
            label = self._original.label(index)
            assert label is not None
            self._original_task.add(self._original.said(self.output, index), label, self._original.how)

    def _compared(self, run: Run, index: int) -> dict[str, Array]:
        """Give a candidate's outputs that are judged in this run, samples first."""
        for name, value in run.outputs.items():
            if not self._hints.ignores(name) and has_nan(value):
                raise VerificationFailedError(
                    f"The compressed network gives NaN in output `{name}` on the held-out data"
                )
        found = {}
        for name, recognition in self._recognised.items():
            if recognition.kind is None or recognition.ignored or index >= self._original.runs_of(name):
                continue
            if name not in run.outputs:
                raise VerificationFailedError(f"The compressed network has lost the output `{name}`")
            axis, shape, before = self._original.axis(name), run.outputs[name].shape, self._original.shape(name, index)
            if len(shape) != len(before) or (axis is not None and shape[axis] != before[axis]):
                raise VerificationFailedError(f"Output `{name}` has the shape {shape}, the original's is {before}")
            found[name] = arranged(run.outputs[name], axis, run.count)
        return found

    def _qualities(self, task: Task | None, comparisons: Mapping[str, Comparison]) -> Iterator[Quality]:
        if task is not None:
            for each in task.all_beside(self._original_task):
                yield _about(each, self._recognised[self.output])
        for name in sorted(comparisons, key=lambda name: name != self.output):
            for each in comparisons[name].qualities():
                yield _about(each, self._recognised[name])


@dataclass(frozen=True)
class _Said:
    """What the original said in some outputs; it may be gone through several times."""

    original: OriginalOutputs
    names: Sequence[str]

    def __iter__(self) -> Iterator[Batch]:
        return self.original.batches(self.names)


def _about(quality: Quality, output: Recognition) -> Quality:
    return quality.model_copy(update={"output": output.name, "kind": output.kind, "weight": output.weight})


def _refuse_unlike(original: Array, compressed: Array, name: str) -> None:
    if original.shape != compressed.shape:
        raise VerificationFailedError(
            f"Output `{name}` has the shape {compressed.shape}, the original's is {original.shape}"
        )
    if not np.array_equal(finite(original), finite(compressed)):
        raise VerificationFailedError(f"Output `{name}` is infinite where the original's is not, or the reverse")
