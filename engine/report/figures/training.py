"""How training went: losses, quality, and the step that was kept."""

from collections.abc import Iterator
from typing import Any

from engine.report.figures.figure import ACCENT, COMPRESSED, LEGEND, ORIGINAL, Figure, axis
from engine.report.training_details import DistillDetails, QuantizeAwareDetails, TrainingRecord
from engine.report.values import Report


def training_curves(report: Report) -> Iterator[Figure]:
    """Yield a figure for each step that trained, whether it was kept or not."""
    for step in report.steps:
        told = step.change or step.refusal
        details = None if told is None else told.details
        if isinstance(details, DistillDetails | QuantizeAwareDetails) and len(details.training.points) > 1:
            yield _curve(step.number, step.type, details.training)


def _curve(index: int, kind: str, record: TrainingRecord) -> Figure:
    points = record.points
    steps = [point.step for point in points]
    data: list[dict[str, Any]] = [
        _line("loss while training", steps, [point.train_loss for point in points], ORIGINAL),
        _line("loss on samples to choose by", steps, [point.select_loss for point in points], COMPRESSED),
    ]
    layout: dict[str, Any] = {
        "height": 340,
        "xaxis": axis("step"),
        "yaxis": axis("loss", type="log"),
        "legend": LEGEND,
        "shapes": [
            {
                "type": "line",
                "x0": record.best_step,
                "x1": record.best_step,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"dash": "dot", "color": ACCENT},
            }
        ],
    }
    if any(point.quality is not None for point in points):
        quality = _line(record.metric or "quality", steps, [point.quality for point in points], ACCENT)
        data.append({**quality, "yaxis": "y2"})
        layout["yaxis2"] = axis(record.metric or "quality", overlaying="y", side="right", showgrid=False)
    return Figure(
        name=f"training-{index}",
        title=f"Training of step {index}, {kind}",
        caption=f"{record.steps:,} steps over {record.samples:,} samples on {record.device} in {record.seconds:.0f} s; the weights of"
        f" step {record.best_step} were kept. It ended because of: {record.stopped.replace('_', ' ')}.",
        data=tuple(data),
        layout=layout,
        head=("step", "seconds", "loss while training", "loss on samples to choose by", record.metric or "quality"),
        rows=tuple(
            (
                str(point.step),
                f"{point.seconds:.1f}",
                _number(point.train_loss),
                _number(point.select_loss),
                _number(point.quality),
            )
            for point in points
        ),
    )


def _line(name: str, steps: list[int], values: list[float | None], colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": steps,
        "y": values,
        "line": {"color": colour},
        "marker": {"color": colour, "size": 6},
        "connectgaps": True,
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
