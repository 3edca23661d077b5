"""A profile as pictures: times on each target, where they go, and how many runs at a time."""

from collections.abc import Iterator

from engine.report import wording
from engine.report.figures.figure import ACCENT, COMPRESSED, LEGEND, ORIGINAL, QUIET, Figure, axis, bars_height
from engine.report.figures.latency import distributions, ratios
from engine.report.values import ProfileReport, TargetMeasurement, TargetProfile
from engine.report.wording import milliseconds, share

_MOST_KINDS = 12


def profile_figures(report: ProfileReport) -> Iterator[Figure]:
    """Yield the figures of a profile: all targets beside each other, then each target."""
    measured = [(target, target.measured) for target in report.targets if target.measured is not None]
    if len(measured) > 1:
        yield _targets(measured)
    for target, found in measured:
        if found.comparison is not None:
            yield _at(target, distributions(found.comparison, ("baseline", "network")))
            yield _at(target, ratios(found.comparison))
        if found.by_type:
            yield _at(target, _operators(found))
        if len(found.throughput) > 1:
            yield _at(target, _throughput(found))


def _at(target: TargetProfile, figure: Figure) -> Figure:
    update = {"name": f"{figure.name}-{target.index}", "title": f"{figure.title}: {target_name(target)}"}
    return figure.model_copy(update=update)


def target_name(profile: TargetProfile) -> str:
    """Name a target."""
    return wording.target_name(profile.target)


def _targets(measured: list[tuple[TargetProfile, TargetMeasurement]]) -> Figure:
    names = [target_name(target) for target, _ in measured]
    best = min(measured, key=lambda each: each[1].latency.p50_ms)
    return Figure(
        name="targets",
        title="Time of a run by target",
        caption="The median, and the times that 95 and 99 of 100 runs stay below. The fastest:"
        f" {target_name(best[0])}, {milliseconds(best[1].latency.p50_ms)}.",
        data=tuple(
            {
                "type": "bar",
                "orientation": "h",
                "name": statistic,
                "y": names,
                "x": [getattr(found.latency, f"{statistic}_ms") for _, found in measured],
                "marker": {"color": colour},
            }
            for statistic, colour in (("p50", COMPRESSED), ("p95", ORIGINAL), ("p99", QUIET))
        ),
        layout={
            "height": bars_height(2 * len(names)),
            "barmode": "group",
            "xaxis": axis("ms", rangemode="tozero"),
            "yaxis": axis("", autorange="reversed"),
            "legend": LEGEND,
        },
        head=("target", "p50", "p95", "p99", "runs"),
        rows=tuple(
            (
                name,
                *(milliseconds(getattr(found.latency, f"{statistic}_ms")) for statistic in ("p50", "p95", "p99")),
                str(found.latency.samples),
            )
            for name, (_, found) in zip(names, measured, strict=True)
        ),
    )


def _operators(found: TargetMeasurement) -> Figure:
    shown = found.by_type[:_MOST_KINDS]
    return Figure(
        name="operators",
        title="Where the time goes",
        caption=f"Time of one run by operator. Most of it: {shown[0].op_type}, {share(shown[0].share, digits=0)}.",
        data=(
            {
                "type": "bar",
                "orientation": "h",
                "y": [f"{each.count} {each.op_type}" for each in shown],
                "x": [each.ms for each in shown],
                "marker": {"color": COMPRESSED},
                "hovertemplate": "%{y}: %{x:.3f} ms<extra></extra>",
            },
        ),
        layout={
            "height": bars_height(len(shown)),
            "xaxis": axis("ms per run"),
            "yaxis": axis("", autorange="reversed"),
            "showlegend": False,
        },
        head=("operator", "nodes", "provider", "time of a run", "share"),
        rows=tuple(
            (each.op_type, str(each.count), each.provider, milliseconds(each.ms), share(each.share))
            for each in found.by_type
        ),
    )


def _throughput(found: TargetMeasurement) -> Figure:
    callers = [each.concurrency for each in found.throughput]
    most = max(found.throughput, key=lambda each: each.samples_per_s)
    return Figure(
        name="throughput",
        title="Callers at the same time",
        caption=f"Samples per second by the number of callers of one session. The most: {most.samples_per_s:.1f} with"
        f" {most.concurrency}.",
        data=(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": callers,
                "y": [each.samples_per_s for each in found.throughput],
                "line": {"color": ACCENT},
                "marker": {"color": ACCENT, "size": 9},
            },
        ),
        layout={
            "height": 280,
            "xaxis": axis("callers", tickvals=callers, type="log"),
            "yaxis": axis("samples per second", rangemode="tozero"),
            "showlegend": False,
        },
        head=("callers", "samples per second", "p50", "p99"),
        rows=tuple(
            (
                str(each.concurrency),
                f"{each.samples_per_s:.1f}",
                milliseconds(each.p50_ms),
                milliseconds(each.p99_ms),
            )
            for each in found.throughput
        ),
    )
