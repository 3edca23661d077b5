"""Which output labels belong to: the first that they fit, and rather one with a score per class than one cut by a threshold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.data.labels import CLASS_METRICS, LabelFacts
from engine.errors import DatasetInvalidError
from engine.measure import metrics
from engine.measure.label_reading import LabelReading, read_labels
from engine.measure.metrics import Array, Output
from engine.measure.scores import new_task


@dataclass(frozen=True)
class LabelMatch:
    """The output that labels fit, how they are read, and how the output is read beside them."""

    output: str
    reading: LabelReading
    how: Output


def match_labels(outputs: Mapping[str, Array], label: Array, facts: LabelFacts, metric: str) -> LabelMatch:
    """Find the output that labels fit by one batch; `facts` are those of all labels.

    Raises:
        DatasetInvalidError: they fit none, or cannot be read without a guess.
    """
    fitting: list[LabelMatch] = []
    problem: DatasetInvalidError | None = None
    for name, value in outputs.items():
        try:
            fitting.append(_match(name, value, label, facts, metric))
        except DatasetInvalidError as error:
            problem = problem or error
    if not fitting:
        raise problem or DatasetInvalidError("The network has no output that is a tensor of numbers")
    scoring = (each for each in fitting if metric not in CLASS_METRICS or not _cut(outputs[each.output], each.how))
    return next(scoring, fitting[0])


def _match(name: str, value: Array, label: Array, facts: LabelFacts, metric: str) -> LabelMatch:
    reading = read_labels(facts, label, value, metric)
    read = reading(label, value)
    how = replace(metrics.read_output(value, read), several=reading.several)
    task = new_task(metric)
    assert task is not None
    task.add(value, read, how)
    return LabelMatch(name, reading, how)


def _cut(values: Array, how: Output) -> bool:
    """Say whether the numbers of an output are decided by a threshold, though labels of more classes may be meant."""
    return metrics.is_float(values) and how.one_each and not how.several and values.ndim <= 2
