"""The costs of the result as shares of the original's, and what was kept of its quality."""

from collections.abc import Iterator

from engine.report.byte_account import BYTE_KINDS
from engine.report.counted_time import counted
from engine.report.figures.figure import (
    ACCENT,
    BAD,
    COMPRESSED,
    GOOD,
    QUIET,
    UNSURE,
    Figure,
    axis,
    bars_height,
    sizes,
    wrapped,
)
from engine.report.values import Quality, Report
from engine.report.wording import (
    SHARES,
    difference,
    metric_value,
    milliseconds,
    parameters_left,
    share,
    speed,
    times_less,
    times_smaller,
)
from engine.report.wording import size as size_text

# A share of the original's that nobody would notice.
_SAME = 5e-3


def before_after(report: Report) -> Figure:
    """Show what is left of each cost: size, time, memory, parameters."""
    found = list(_costs(report))
    names = [name for name, *_ in found]
    shares = [100 * left for _, left, *_ in found]
    unsure = _within_noise(report)
    return Figure(
        name="before-after",
        title="Before and after",
        caption="What is left of each cost of the original, which is 100 %. "
        + "; ".join(f"{name}: {before} to {after}" for name, _, before, after, _ in found)
        + ".",
        data=(
            {
                "type": "bar",
                "orientation": "h",
                "y": names,
                "x": shares,
                "marker": {"color": [_colour(left, sure=name not in unsure) for name, left, *_ in found]},
                "text": [f"{before} → {after}" for _, _, before, after, _ in found],
                "textposition": "auto",
                "hovertemplate": "%{y}: %{x:.1f} % of the original<extra></extra>",
            },
        ),
        layout={
            "height": bars_height(len(found)),
            "xaxis": axis("% of the original", rangemode="tozero", range=[0, max(108.0, *shares, 0) * 1.02]),
            "yaxis": axis("", autorange="reversed"),
            "shapes": [
                {"type": "line", "x0": 100, "x1": 100, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot"}}
            ],
            "showlegend": False,
        },
        head=("cost", "original", "result", "change"),
        rows=tuple((name, before, after, change) for name, _, before, after, change in found),
    )


def _colour(left: float, *, sure: bool) -> str:
    return QUIET if not sure or abs(left - 1) <= _SAME else GOOD if left < 1 else BAD


def _within_noise(report: Report) -> set[str]:
    """Give the times that may be the same, for all that was measured."""
    if report.latency is None:
        return set()
    ratios = {"latency p50": counted(report.latency).ratio, "latency p95": report.latency.ratios["p95"]}
    return {name for name, ratio in ratios.items() if ratio.interval.low <= 1 <= ratio.interval.high}


def _costs(report: Report) -> Iterator[tuple[str, float, str, str, str]]:
    size = report.size
    yield _bytes("size", size.original, size.compressed)
    if size.original_download is not None and size.compressed_download is not None:
        yield _bytes("download (deflate)", size.original_download, size.compressed_download)
    if report.latency is not None:
        time = counted(report.latency)
        for name, ratio in (("p50", time.ratio), ("p95", report.latency.ratios["p95"])):
            before, after = (
                milliseconds(getattr(of, f"{name}_ms")) for of in (report.latency.original, report.latency.compressed)
            )
            yield f"latency {name}", ratio.value, before, after, speed(ratio) + (time.said if name == "p50" else "")
    if report.generation is not None:
        for name, rate in (("prompt read", report.generation.prefill), ("text written", report.generation.decode)):
            before, after = (
                f"{each:.4g} tokens/s" for each in (rate.original_tokens_per_s, rate.compressed_tokens_per_s)
            )
            yield name, rate.ratio.value, before, after, speed(rate.ratio)
    if report.memory is not None:
        left, right = report.memory.original.peak_rss_bytes, report.memory.compressed.peak_rss_bytes
        yield "peak memory", right / max(left, 1), size_text(left), size_text(right), times_less(left, right)
    counts = report.original.parameters, report.compressed.parameters
    if counts[0]:
        change = report.more_parameters or parameters_left(*counts)
        yield "parameters", counts[1] / counts[0], f"{counts[0]:,}", f"{counts[1]:,}", change


def _bytes(name: str, before: int, after: int) -> tuple[str, float, str, str, str]:
    return name, after / max(before, 1), size_text(before), size_text(after), times_smaller(before, after)


def quality_changes(report: Report) -> Figure | None:
    """Show how much each metric of the labels changed, with its interval; None where there are no labels."""
    changed = [each for each in report.quality if each.difference is not None]
    if not changed:
        return None
    # One axis cannot hold points and other units: shares of samples are shown, the table has all.
    shown = [each for each in changed if each.metric in SHARES] or changed[:1]
    unit = 100 if shown[0].metric in SHARES else 1
    values = [unit * (each.difference or 0.0) for each in shown]
    return Figure(
        name="quality",
        title="Quality beside the original",
        caption="Change of each metric on the samples that judge, with its interval. "
        + "; ".join(f"{_named(each)} {difference(each)}" for each in changed)
        + ".",
        data=(
            {
                "type": "scatter",
                "mode": "markers",
                "y": [_named(each) for each in shown],
                "x": values,
                "marker": {"size": 11, "color": COMPRESSED},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [unit * each.interval.high - value for each, value in zip(shown, values, strict=True)],
                    "arrayminus": [value - unit * each.interval.low for each, value in zip(shown, values, strict=True)],
                    "color": COMPRESSED,
                },
                "hovertemplate": "%{y}: %{x:+.2f}<extra></extra>",
            },
        ),
        layout={
            "height": bars_height(len(shown)),
            "xaxis": axis("points" if unit == 100 else shown[0].metric, zeroline=True),
            "yaxis": axis("", autorange="reversed"),
            "showlegend": False,
        },
        head=("metric", "original", "result", "change (interval)", "samples"),
        rows=tuple(
            (
                _named(each),
                metric_value(each.metric, each.original or 0.0),
                metric_value(each.metric, each.compressed),
                difference(each),
                f"{each.samples:,}",
            )
            for each in changed
        ),
    )


def fidelity(report: Report) -> Figure | None:
    """Show how near every output is to the original's, by the metrics that are shares; None where none is."""
    compared = [each for each in report.quality if each.difference is None]
    shown = [each for each in compared if each.metric in SHARES or each.metric == "cosine"]
    if not shown:
        return None
    values = [100 * each.compressed for each in shown]
    lowest = min(100 * min(each.interval.low, each.compressed) for each in shown)
    return Figure(
        name="fidelity",
        title="Outputs beside the original's",
        caption="How near each output is to the original's; 100 % is the same. "
        + "; ".join(f"{_named(each)} {metric_value(each.metric, each.compressed)}" for each in shown)
        + ".",
        data=(
            {
                "type": "scatter",
                "mode": "markers",
                "y": [_named(each) for each in shown],
                "x": values,
                "marker": {"size": 11, "color": ACCENT},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [max(0.0, 100 * (each.interval.high - each.compressed)) for each in shown],
                    "arrayminus": [max(0.0, 100 * (each.compressed - each.interval.low)) for each in shown],
                    "color": ACCENT,
                },
                "hovertemplate": "%{y}: %{x:.3f} %<extra></extra>",
            },
        ),
        layout={
            "height": bars_height(len(shown)),
            "xaxis": axis("%", range=[min(99.0, lowest - 0.5), 100.1]),
            "yaxis": axis("", autorange="reversed"),
            "showlegend": False,
        },
        head=("metric", "value", "low", "high", "samples"),
        rows=tuple(
            (
                _named(each),
                metric_value(each.metric, each.compressed),
                metric_value(each.metric, each.interval.low),
                metric_value(each.metric, each.interval.high),
                f"{each.samples:,}",
            )
            for each in compared
        ),
    )


def _named(quality: Quality) -> str:
    return quality.metric if quality.output is None else f"{quality.metric} of {quality.output}"


def bytes_left(report: Report) -> Figure | None:
    """Show what the bytes of the result are; None in reports that do not tell."""
    account = report.bytes
    if account is None or not account.total:
        return None
    rows = sorted(account.rows, key=lambda row: -row.bytes)
    names = [BYTE_KINDS[row.kind] + (f": {row.reason}" if row.reason else "") for row in rows]
    biggest = f"{names[0]}, {share(rows[0].bytes / account.total, digits=0)}"
    return Figure(
        name="bytes",
        title="Where the bytes are",
        caption=f"What the {size_text(account.total)} of the result hold. Most of it: {biggest}.",
        data=(
            {
                "type": "bar",
                "orientation": "h",
                # In two lines, which leaves room for the bars on a phone.
                "y": [wrapped(name if len(name) < 48 else name[:46] + "…", 24) for name in names],
                "x": [row.bytes for row in rows],
                "marker": {"color": [UNSURE if row.reason else COMPRESSED for row in rows]},
                "hovertemplate": "%{y}: %{x:,} bytes<extra></extra>",
            },
        ),
        layout={
            "height": bars_height(len(rows)),
            "xaxis": sizes("size"),
            "yaxis": axis("", autorange="reversed"),
            "showlegend": False,
        },
        head=("what", "tensors", "bytes", "share"),
        rows=tuple(
            (name, str(row.tensors or ""), f"{row.bytes:,}", share(row.bytes / account.total))
            for name, row in zip(names, rows, strict=True)
        ),
    )
