"""Every figure of a report, in the order in which it is read."""

from collections.abc import Iterator
from typing import assert_never

from engine.report.figures.before_after import before_after, bytes_left, fidelity, quality_changes
from engine.report.figures.figure import Figure
from engine.report.figures.latency import distributions, ratios
from engine.report.figures.layers import sensitivity
from engine.report.figures.profile import profile_figures
from engine.report.figures.search import candidates, front_figure, story_figure
from engine.report.figures.steps import timeline
from engine.report.figures.training import training_curves
from engine.report.values import AnyReport, ProfileReport, Report


def figures(report: AnyReport) -> tuple[Figure, ...]:
    """Give what a report shows as pictures; a figure that it has no numbers for is left out."""
    match report:
        case Report():
            return tuple(figure for figure in _of_compression(report) if figure is not None)
        case ProfileReport():
            return tuple(profile_figures(report))
        case _:
            assert_never(report)


def _of_compression(report: Report) -> Iterator[Figure | None]:
    yield before_after(report)
    if report.search is not None:
        tried, minimise = candidates(report.search), report.search.goal.minimise
        yield front_figure(minimise, tried, report.search.chosen)
    if report.latency is not None:
        yield distributions(report.latency)
        yield ratios(report.latency)
    yield quality_changes(report)
    yield fidelity(report)
    if report.search is not None:
        yield story_figure(minimise, tried, report.search.chosen)
    yield timeline(report)
    yield from training_curves(report)
    yield sensitivity(report)
    yield bytes_left(report)
