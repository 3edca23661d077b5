"""What the original says of the samples: kept run by run, with where the samples lie in each output and what it means."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.data.labels import LabelFacts, look_at
from engine.errors import BaselineFailedError, ModelUnsupportedError
from engine.graph.endings import Ending
from engine.measure.arrangement import arranged, axis_of_all, batched_axis, has_nan
from engine.measure.kept_outputs import Folder, KeptOutput
from engine.measure.kinds import Batch
from engine.measure.label_match import match_labels
from engine.measure.label_reading import LabelReading
from engine.measure.metrics import Array, Output
from engine.measure.observed import Observed
from engine.measure.recognition import Labels, Recognition, main_output, recognise
from engine.measure.runs import Network, Run, Runs
from engine.outputs import OutputDeclaration, OutputKind
from engine.report.values import OutputReport

# What is kept on disk of all outputs but the main one, and looked at to tell what an output is.
_OTHERS_BYTES = 1 << 30
_OBSERVED_BYTES = 128 << 20


@dataclass(frozen=True)
class Hints:
    """What is known of the outputs beside their values. `main`: the output that speaks for the network, if it was named."""

    declared: Mapping[str, OutputDeclaration] = field(default_factory=dict)
    endings: Mapping[str, Ending] = field(default_factory=dict)
    metric: str | None = None
    # What holds for all labels of the dataset.
    labels: LabelFacts | None = None
    main: str | None = None
    # What outputs were taken for on other samples of the same job.
    like: Mapping[str, tuple[OutputKind, str]] = field(default_factory=dict)

    def ignores(self, name: str) -> bool:
        """Say whether the owner declared that nobody reads an output."""
        return name in self.declared and self.declared[name].ignore


class OriginalOutputs:
    """Runs the original once and keeps what it says.

    `main` names the output that speaks for the network, `how` says how labels are read off it.
    """

    def __init__(self, network: Network, runs: Runs, hints: Hints, scratch: Path | None) -> None:
        self._runs, self._hints = runs, hints
        self._folder = Folder(scratch)
        self.main = hints.main or ""
        self.how = Output(probabilities=False)
        self._reading = LabelReading(values=True)
        # The axis of each output that counts the samples of a run; None: the whole output belongs to the run.
        self._axes = self._settle_batch(network)
        if not self._keep(network):
            # Only some runs show that the outputs do not keep the samples apart.
            runs.batch = 1
            self._keep(network)
        self.recognised = self._recognise(labelled=hints.metric is not None)
        self.main = self.main or main_output(self.recognised.values()) or ""

    def close(self) -> None:
        """Remove the files."""
        self._kept.clear()
        self._folder.close()

    def runs_of(self, name: str) -> int:
        """Give how many runs of an output were kept; 0 for one that is not compared."""
        return len(self._kept[name]) if name in self._kept else 0

    def shape(self, name: str, index: int) -> tuple[int, ...]:
        """Give the shape that an output had in a run."""
        return self._kept[name].shapes[index]

    def axis(self, name: str) -> int | None:
        """Give the axis of an output that counts the samples of a run; None: the whole output belongs to the run."""
        return self._axes[name]

    def said(self, name: str, index: int) -> Array:
        """Give what an output held in a run, samples on the first axis."""
        return arranged(self._kept[name][index], self._axes[name], self._counts[index])

    def label(self, index: int) -> Array | None:
        """Give the labels of a run, as the metric takes them."""
        label = self._labels[index]
        if label is None or index >= self.runs_of(self.main):
            return label
        return self._reading(label, self.said(self.main, index))

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield what some outputs held, run by run."""
        for index in range(min(map(self.runs_of, names))):
            yield {name: self.said(name, index) for name in names}

    def reports(self) -> tuple[OutputReport, ...]:
        """Give what each output was taken for."""
        return tuple(self._report(each) for each in self.recognised.values())

    # How samples lie in runs

    def _settle_batch(self, network: Network) -> dict[str, int | None]:
        """Find each output's samples by running one sample and two; one at a time, where two cannot be told apart."""
        if not self._runs.apart:
            return {}
        one, two = (self._runs.first(network, count) for count in (1, 2))
        if (one.count, two.count) != (1, 2):
            return {}
        axes: dict[str, int | None] = {}
        for name, value in one.outputs.items():
            if self._hints.ignores(name):
                continue
            axes[name] = batched_axis(value.shape, two.outputs[name].shape, 2)
            # What does not depend on the number of samples at all is judged once per run.
            if axes[name] is None and value.shape != two.outputs[name].shape:
                self._runs.batch = 1
        return axes

    def _keep(self, network: Network) -> bool:
        """Keep each run's outputs; False where a run shows that samples have to come one at a time."""
        self._kept: dict[str, KeptOutput] = {}
        self._order: dict[str, str | None] = {}
        self._counts: list[int] = []
        self._labels: list[Array | None] = []
        self._rows_vary: set[str] = set()
        self._shapes: dict[tuple[object, ...], tuple[int, ...]] = {}
        for run in self._runs(network):
            self._refuse_nan(run)
            if self._runs.apart and not all(map(self._lies_apart, run.outputs, [run] * len(run.outputs))):
                return False
            first = not self._counts
            self._counts.append(run.count)
            self._labels.append(run.label)
            self._note(run)
            if first:
                # Its outputs were kept already as far as they are needed.
                self._first = replace(run, outputs={})
                self._settle_main()
        if not self._runs.apart:
            self._settle_axes()
        return True

    def _note(self, run: Run) -> None:
        self._order |= dict.fromkeys(run.outputs) | run.others
        fed = tuple(array.shape for array in run.feed.values())
        for name, value in run.outputs.items():
            if self._hints.ignores(name):
                continue
            self._kept.setdefault(name, KeptOutput(self._folder)).append(value)
            # Inputs of equal shapes that give another shape: the data decide.
            if self._shapes.setdefault((name, run.count, fed), value.shape) != value.shape:
                self._rows_vary.add(name)

    def _lies_apart(self, name: str, run: Run) -> bool:
        if self._hints.ignores(name):
            return True
        axis, shape = self._axes.setdefault(name, 0), run.outputs[name].shape
        return axis is None or (len(shape) > axis and shape[axis] == run.count)

    def _settle_axes(self) -> None:
        """Find the samples' axes by all runs, where each takes as many samples as the network fixes, or one."""
        for name, kept in self._kept.items():
            ending = self._hints.endings.get(name)
            by_data = name in self._rows_vary or (ending is not None and ending.rows_depend_on_data)
            self._axes[name] = axis_of_all(kept.shapes, self._runs.fixed or 1, rows_depend_on_data=by_data)

    # What the outputs are

    def _settle_main(self) -> None:
        """Choose the main output by the first run: of the others only so much is kept as there is room for."""
        if self.main and self.main not in self._kept:
            raise ModelUnsupportedError(f"The network has no output `{self.main}`")
        if not self._kept:
            raise ModelUnsupportedError(
                "The network has no output that can be compared: none is a tensor of numbers that is not ignored"
            )
        if not self._runs.apart:
            self._settle_axes()
        label, metric = self._first.label, self._hints.metric
        if metric is not None and label is not None:
            held = {name: self.said(name, 0) for name in ([self.main] if self.main else self._kept)}
            found = match_labels(held, label, self._hints.labels or look_at(label), metric)
            self.main, self._reading, self.how = found.output, found.reading, found.how
        main = self.main or main_output(self._recognise(labelled=False).values())
        for name, kept in self._kept.items():
            kept.most = None if name == main else _OTHERS_BYTES // len(self._kept)

    def _recognise(self, *, labelled: bool) -> dict[str, Recognition]:
        self._observed = {name: self._observe(name) for name in self._kept}
        known = recognise(
            self._observed,
            inputs=self._first.feed,
            shapes={name: kept.shapes[0] for name, kept in self._kept.items()},
            endings=self._hints.endings,
            rows_vary=frozenset(self._rows_vary),
            declared=self._hints.declared,
            like=self._hints.like,
            labelled=Labels(self.main, self._hints.metric, self._reading.told)
            if labelled and self._hints.metric
            else None,
        )
        unread = "the job or the dataset declares that nobody reads it"
        return {
            name: known.get(name) or Recognition(name, None, why or unread, ignored=self._hints.ignores(name))
            for name, why in self._order.items()
        }

    def _observe(self, name: str) -> Observed:
        seen, used = Observed(), 0
        for index, value in enumerate(self._kept[name]):
            seen.add(arranged(value, self._axes[name], self._counts[index]))
            used += value.nbytes
            if used > _OBSERVED_BYTES:
                break
        return seen

    def _report(self, each: Recognition) -> OutputReport:
        seen = self._observed.get(each.name)
        return OutputReport(
            name=each.name,
            kind=each.kind,
            reason=each.reason,
            weight=each.weight,
            ignored=each.ignored,
            main=each.name == self.main,
            judged_with=each.judged_with,
            dtype=None if seen is None else seen.dtype_name,
            shape=None if seen is None else seen.shape,
        )

    def _refuse_nan(self, run: Run) -> None:
        for name, value in run.outputs.items():
            if not self._hints.ignores(name) and has_nan(value):
                told = f'If nobody reads the output, declare it: "outputs": {{"{name}": {{"ignore": true}}}}.'
                raise BaselineFailedError(
                    f"The original network gives NaN in output `{name}` on the held-out data",
                    hint=told if len(run.outputs) > 1 else None,
                )
