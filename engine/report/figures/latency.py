"""Times of runs: both networks' distributions, and the interval of their ratio."""

from typing import Any

from engine.report.counted_time import counted
from engine.report.figures.figure import COMPRESSED, ORIGINAL, QUIET, Figure, axis, bars_height
from engine.report.values import Latency, LatencyComparison
from engine.report.wording import milliseconds, speed

# Of the slower network's p99: where the picture ends.
_BEYOND_TAIL = 1.2
_QUANTILES = ("p50", "p90", "p95", "p99")


def distributions(latency: LatencyComparison, names: tuple[str, str] = ("original", "result")) -> Figure:
    """Show how long runs took, of both networks."""
    both = tuple(zip(names, (latency.original, latency.compressed), (ORIGINAL, COMPRESSED), strict=True))
    medians = " and ".join(f"{milliseconds(of.p50_ms)} ({name})" for name, of, _ in both)
    # A few runs that something disturbed would leave no room for the others.
    end = _BEYOND_TAIL * max(of.p99_ms for _, of, _ in both)
    slower = sum(run > end for _, of, _ in both for run in of.runs_ms)
    outside = f" {slower} of all runs took more than {milliseconds(end)}, outside of the picture." if slower else ""
    return Figure(
        name="latency",
        title="Time of a run",
        caption=f"Each network's runs, made in turn. Half of the runs take at most {medians}.{outside}",
        data=tuple(_trace(name, of, colour) for name, of, colour in both),
        layout={
            "height": 300,
            "xaxis": axis("ms", range=[0, end]),
            "yaxis": axis("", showticklabels=True),
            "showlegend": False,
            "violingap": 0.1,
        },
        head=("network", "mean", *_QUANTILES, "slowest", "runs", "left out"),
        rows=tuple(
            (
                name,
                milliseconds(of.mean_ms),
                *(milliseconds(getattr(of, f"{each}_ms")) for each in _QUANTILES),
                "" if of.max_ms is None else milliseconds(of.max_ms),
                f"{of.samples:,}",
                f"{of.dropped:,}",
            )
            for name, of, _ in both
        ),
    )


def _trace(name: str, latency: Latency, colour: str) -> dict[str, Any]:
    if len(latency.runs_ms) < 5:
        # Reports of older workers keep no runs: their quantiles have to do.
        values = [getattr(latency, f"{each}_ms") for each in _QUANTILES]
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": values,
            "y": [name] * len(values),
            "text": list(_QUANTILES),
            "marker": {"color": colour, "size": 9},
            "line": {"color": colour},
            "hovertemplate": "%{text}: %{x:.3f} ms<extra>" + name + "</extra>",
        }
    return {
        "type": "violin",
        "orientation": "h",
        "name": name,
        "x": [round(run, 4) for run in latency.runs_ms],
        "y0": name,
        "side": "positive",
        "width": 1.6,
        "points": False,
        "meanline": {"visible": False},
        "box": {"visible": True, "width": 0.12},
        "line": {"color": colour, "width": 1.5},
        "spanmode": "hard",
        "hoveron": "violins",
    }


def ratios(latency: LatencyComparison) -> Figure:
    """Show the ratio of the times by statistic, each with its interval, beside what the original reads beside itself."""
    told = {name: ratio for name, ratio in latency.ratios.items() if ratio.value > 0}
    names = [name if name == "mean" else f"{name}" for name in told]
    noise = latency.noise_floor
    time = counted(latency)
    return Figure(
        name="latency-ratio",
        title="Time as a share of the original's",
        caption=f"Ratios with their intervals; below 1 is faster. {speed(time.ratio)}{time.said}. The band is what the original"
        f" reads beside itself: {noise.low:.3f} to {noise.high:.3f}."
        + (f" {latency.unstable_because}" if latency.unstable_because else ""),
        data=(
            {
                "type": "scatter",
                "mode": "markers",
                "y": names,
                "x": [ratio.value for ratio in told.values()],
                "marker": {"size": 11, "color": COMPRESSED},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [ratio.interval.high - ratio.value for ratio in told.values()],
                    "arrayminus": [ratio.value - ratio.interval.low for ratio in told.values()],
                    "color": COMPRESSED,
                },
                "hovertemplate": "%{y}: %{x:.3f} of the original's time<extra></extra>",
            },
        ),
        layout={
            "height": bars_height(len(names)),
            "xaxis": axis("result / original", rangemode="tozero"),
            "yaxis": axis("", autorange="reversed"),
            "shapes": [
                {
                    "type": "rect",
                    "x0": noise.low,
                    "x1": noise.high,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "fillcolor": QUIET,
                    "opacity": 0.25,
                    "line": {"width": 0},
                },
                {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot"}},
            ],
            "showlegend": False,
        },
        head=("statistic", "ratio", "low", "high", "speed"),
        rows=tuple(
            (name, f"{ratio.value:.3f}", f"{ratio.interval.low:.3f}", f"{ratio.interval.high:.3f}", speed(ratio))
            for name, ratio in told.items()
        ),
    )
