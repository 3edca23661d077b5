"""A job's data: what calibrates, what is chosen on and what judges, opened for a network's inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from engine.data.dataset import Dataset, Samples, random_samples
from engine.data.labels import LabelFacts
from engine.data.parts import Sizes, part_sizes
from engine.inspection import DatasetInspection, TensorInfo
from engine.job.workspace import declared_outputs, open_dataset
from engine.outputs import OutputDeclaration
from engine.report.values import DataParts

# Samples that are made where a job has no dataset.
_RANDOM_SAMPLES = 32


@dataclass(frozen=True)
class Labelled:
    """Some samples, their labels where all have one, and the metric that the labels are for."""

    samples: Samples
    labels: npt.NDArray[Any] | None = None
    metric: str | None = None
    # What holds for all labels of the dataset.
    facts: LabelFacts | None = None


@dataclass(frozen=True)
class Parts:
    """The three parts. Without data `calibrate` is None, and the others are made up."""

    calibrate: Labelled | None
    select: Labelled
    judge: Labelled
    told: DataParts | None = None

    def at_a_time(self, count: int) -> "Parts":
        """Give the same parts for a network that takes so many samples at a time and no other number."""

        def of(part: Labelled) -> Labelled:
            return replace(part, samples=part.samples.at_a_time(count))

        calibrate = None if self.calibrate is None else of(self.calibrate)
        return replace(self, calibrate=calibrate, select=of(self.select), judge=of(self.judge))

    @property
    def apart(self) -> bool:
        """Whether what judges is not what was chosen on."""
        return self.told is not None and not self.told.select_is_judge


@dataclass(frozen=True)
class JobData:
    """The datasets in a workspace: `data`, and the one that judges where a job names one."""

    data: Dataset | None
    described: DatasetInspection | None
    judge: Dataset | None
    judge_described: DatasetInspection | None
    # What they say of the network's outputs, the first before the second.
    declared: Mapping[str, OutputDeclaration] = field(default_factory=dict)

    @classmethod
    def open(cls, workspace: Path, scratch: Path) -> Self:
        """Open and check them; raises DatasetInvalidError."""
        return cls(
            *open_dataset(workspace / "data", scratch),
            *open_dataset(workspace / "judge", scratch),
            {**declared_outputs(workspace / "judge"), **declared_outputs(workspace / "data")},
        )

    def sizes(self, inputs: tuple[TensorInfo, ...]) -> Sizes | None:
        """Say how many samples each part has for a network with these inputs; None without data."""
        if self.described is None:
            return None
        return part_sizes(self.described, self.judge_described, inputs=[tensor.name for tensor in inputs])

    def told(self, inputs: tuple[TensorInfo, ...]) -> DataParts | None:
        """Say how they are parted for a network with these inputs, as a report does; None without data."""
        sizes = self.sizes(inputs)
        if sizes is None:
            return None
        return DataParts(
            calibrate=sizes.calibrate,
            select=sizes.select,
            judge=sizes.judge,
            select_is_judge=sizes.select_is_judge,
            reason=sizes.reason,
        )

    def parted(
        self,
        inputs: tuple[TensorInfo, ...],
        scratch: Path,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        alone: bool = True,
    ) -> Parts:
        """Give the parts as feeds for these inputs; `shapes` are those of made-up samples where there are no data.

        With `alone`, nothing leads from `calibrate` and `select` to the samples that judge: these are in another file, or
        were not copied along, unless the same samples do both.
        """
        sizes = self.sizes(inputs)
        if self.data is None or self.described is None or sizes is None:
            made_up = Labelled(random_samples(inputs, _RANDOM_SAMPLES, shapes))
            return Parts(None, made_up, made_up)
        drawn, data = self.data.parts(sizes), self.data.completed(inputs)
        metric, hidden = self.described.metric, alone and self.judge is None and not sizes.select_is_judge

        def of(indices: npt.NDArray[Any], *, copied: bool = False) -> Labelled:
            labels = data.labels(indices)
            known = metric if labels is not None else None
            if not copied:
                return Labelled(data.samples(inputs, indices), labels, known, data.label_facts)
            copy = data.only(indices, inputs, scratch)
            return Labelled(copy.samples(inputs), labels, known, data.label_facts)

        return Parts(
            calibrate=of(drawn.calibrate, copied=hidden),
            select=of(drawn.select, copied=hidden),
            judge=of(drawn.judge) if self.judge is None else self._judging(inputs),
            told=self.told(inputs),
        )

    def _judging(self, inputs: tuple[TensorInfo, ...]) -> Labelled:
        assert self.judge is not None
        assert self.judge_described is not None
        judge = self.judge.completed(inputs)
        labels = judge.labels()
        metric = self.judge_described.metric if labels is not None else None
        return Labelled(judge.samples(inputs), labels, metric, judge.label_facts)
