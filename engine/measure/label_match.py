"""Which output labels belong to: the first that they fit, and rather one with a score per class than one cut by a threshold."""

from collections.abc import Mapping

from engine.errors import DatasetInvalidError
from engine.measure import metrics
from engine.measure.metrics import Array
from engine.measure.scores import new_task

_CLASS_NUMBERS = frozenset({"top1", "top5", "f1", "iou", "perplexity"})


def matching_output(outputs: Mapping[str, Array], label: Array, metric: str) -> str:
    """Give the name of the output that a batch's labels fit; raises DatasetInvalidError where they fit none."""
    fitting: list[str] = []
    problem: DatasetInvalidError | None = None
    for name, value in outputs.items():
        task = new_task(metric)
        assert task is not None
        try:
            task.add(value, label, metrics.read_output(value, label))
        except DatasetInvalidError as error:
            problem = problem or error
        else:
            fitting.append(name)
    if not fitting:
        raise problem or DatasetInvalidError("The network has no output that is a tensor of numbers")
    return next(
        (name for name in fitting if metric not in _CLASS_NUMBERS or _can_name(outputs[name], label)), fitting[0]
    )


def _can_name(values: Array, label: Array) -> bool:
    """Say whether an output can name every class that is among the labels."""
    if not metrics.is_float(values):
        return True
    classes = 2 if values.size == label.size or values.ndim < 2 else values.shape[metrics.class_axis(values)]
    return bool(not label.size or label.max() < max(classes, 2))
