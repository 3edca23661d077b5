"""The steps of a recipe in time: what each did or why it was refused."""

from engine.report.figures.figure import GOOD, QUIET, Figure, axis, bars_height, wrapped
from engine.report.values import Report, StepReport
from engine.report.wording import rough_duration


def timeline(report: Report) -> Figure | None:
    """Show when each step ran, how long, and whether it was kept; None without steps."""
    if not report.steps:
        return None
    begins = [sum(step.seconds for step in report.steps[:place]) for place in range(len(report.steps))]
    refused = sum(step.status == "refused" for step in report.steps)
    return Figure(
        name="timeline",
        title="Steps",
        caption=f"{len(report.steps)} steps in {rough_duration(sum(step.seconds for step in report.steps))}, one after the other;"
        f" {refused or 'none'} of them refused.",
        data=(
            {
                "type": "bar",
                "orientation": "h",
                "y": [f"{step.number}: {step.type}" for step in report.steps],
                "x": [max(step.seconds, 0.01) for step in report.steps],
                "base": begins,
                "marker": {"color": [GOOD if step.status == "applied" else QUIET for step in report.steps]},
                "text": [step.status for step in report.steps],
                "textposition": "auto",
                "hovertext": [wrapped(f"{step.seconds:.1f} s. {happened(step)}") for step in report.steps],
                "hovertemplate": "%{hovertext}<extra></extra>",
            },
        ),
        layout={
            "height": bars_height(len(report.steps)),
            "xaxis": axis("seconds"),
            "yaxis": axis("", autorange="reversed"),
            "showlegend": False,
        },
        head=("step", "status", "seconds", "what happened"),
        rows=tuple(
            (f"{step.number}: {step.type}", step.status, f"{step.seconds:.1f}", happened(step)) for step in report.steps
        ),
    )


def happened(step: StepReport) -> str:
    """Say what a step did, or why it was refused and what to do."""
    if step.refusal is not None:
        return f"{step.refusal.reason} {step.refusal.hint or ''}".strip()
    told = "" if step.change is None else step.change.summary
    if step.credit is not None:
        told += f" It lost more than is allowed, which training won back: {step.credit.reason}"
    return told.strip()
