"""What the passes say that train, as Markdown."""

from collections.abc import Iterator

from engine.report.detail_parts import Detail
from engine.report.training_details import DistillDetails, QuantizeAwareDetails, TrainingPoint, TrainingRecord
from engine.report.wording import share, table

_STOPPED = {
    "seconds": "its time was up",
    "steps": "its steps were done",
    "no_improvement": "the network became no better on the samples to choose on",
    "deadline": "the job's time was nearly up",
    "diverged": "the loss was no number any more",
}


def training_lines(details: Detail, step: int) -> Iterator[str]:
    """Give the curve of a training and what it was done with; nothing for the details of other passes."""
    if isinstance(details, DistillDetails):
        yield from record_lines(details.training, step)
        for left in details.not_trained_through:
            yield from ("", f"No gradient goes through `{left.node}`: {left.reason}.")
    if isinstance(details, QuantizeAwareDetails):
        yield from record_lines(details.training, step)
        yield from _integers(details, step)


def record_lines(record: TrainingRecord, step: int) -> Iterator[str]:
    """Give the curve of a training and what it was done with."""
    yield from ("", f"### Training of step {step}", "")
    yield _told(record)
    yield from ("", *_inputs(record), "")
    metric = record.metric or "quality"
    yield from table(
        ("step", "seconds", "learning rate", "loss", "loss on select", f"{metric} on select", ""),
        (_row(point, record.best_step) for point in record.points),
    )


def _integers(details: QuantizeAwareDetails, step: int) -> Iterator[str]:
    if details.weights:
        yield from ("", f"### Integers that step {step} trained", "")
        yield from table(
            ("layer", "operator", "bits", "integers changed", "scales changed by"),
            (
                (each.node, each.op, str(each.bits), share(each.codes_changed), share(each.scale_change))
                for each in details.weights
            ),
        )
    yield from ("", f"{details.activation_scales} scales of activations were trained beside them.")
    for left in details.left:
        yield from ("", f"The integers of `{left.node}` stay as they were: {left.reason}.")


def _told(record: TrainingRecord) -> str:
    tried = "; chosen by a short trial: " + ", ".join(
        f"{rate} → {loss:.4g}" for rate, loss in record.tried_rates.items()
    )
    parts = f" in {record.parts} parts" if record.parts > 1 else ""
    resumed = f" It went on from step {record.resumed_from} of an earlier attempt." if record.resumed_from else ""
    return (
        f"{record.steps:,} steps of {record.batch} samples{parts} in {record.seconds:.1f} s on {record.device}"
        f" ({record.threads} thread{'s' if record.threads > 1 else ''}), {record.parameters:,} parameters, learning rate"
        f" {record.learning_rate:g}{tried if record.tried_rates else ''}. It ended because {_STOPPED[record.stopped]}; the averaged"
        f" weights of step {record.best_step} were kept.{resumed}"
    )


def _inputs(record: TrainingRecord) -> Iterator[str]:
    learnt = [f"`{each.output}`: {each.loss}" for each in record.outputs if each.loss is not None]
    left = [f"`{each.output}` is not learnt: {each.reason}" for each in record.outputs if each.loss is None]
    yield from (f"* {text}" for text in (*learnt, *left))
    if record.boundaries:
        yield "* squared error of tensors inside: " + ", ".join(f"`{name}`" for name in record.boundaries)
    if record.labels is not None:
        yield f"* labels: {record.labels}"
    yield f"* {record.samples:,} samples; " + ("; ".join(record.augmentation) or "each as it is")


def _row(point: TrainingPoint, best: int) -> tuple[str, ...]:
    return (
        str(point.step),
        f"{point.seconds:.1f}",
        "" if point.learning_rate is None else f"{point.learning_rate:.2g}",
        "" if point.train_loss is None else f"{point.train_loss:.4g}",
        "" if point.select_loss is None else f"{point.select_loss:.4g}",
        "" if point.quality is None else f"{point.quality:.4g}",
        "kept" if point.step == best else "",
    )
