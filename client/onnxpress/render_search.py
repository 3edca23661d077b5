"""A search as tables for a terminal: its trials, the front, and of a report what was tried, what is left and what limits it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxpress import formatting, wording
from onnxpress.search_documents import Front, FrontPoint, Trial
from onnxpress.terminal_text import safe_text

Json = Mapping[str, Any]
_PRECISIONS = {
    "float32": "in float",
    "float16": "16-bit floats",
    "static": "8-bit integers with fixed ranges",
    "dynamic": "8-bit integers with fresh ranges",
    "weights8": "weights in 8 bits",
    "weights4": "weights in 4 bits",
}
_LEVELS = {"refit": "refitted", "short": "distilled for a while", "full": "distilled"}


def point_text(point: Json, level: str) -> str:
    """Give a candidate in words: what is gone of the network, how its numbers are stored, and what was done for it."""
    dropped, widths, ranks = (len(point.get(name) or ()) for name in ("dropped", "widths", "ranks"))
    in_float = len(point.get("in_float") or ())
    options = (
        f"{name.partition('.')[2].replace('_', ' ')} {value}" for name, value in (point.get("options") or {}).items()
    )
    words = [
        _counted(dropped, "block") + " dropped" if dropped else "",
        _counted(widths, "group") + " narrower" if widths else "",
        _counted(ranks, "layer") + " at a lower rank" if ranks else "",
        _PRECISIONS.get(point["precision"], point["precision"]),
        f"{_counted(in_float, 'layer')} left in float" if in_float else "",
        *options,
        _LEVELS.get(level, level),
    ]
    return ", ".join(filter(None, words))


def front_table(front: Front) -> Table:
    """Give a front: what each point costs and loses, measured and as it was predicted."""
    title = f"front of {front.job}: the least {front.minimise} first{'' if front.final else ', so far'}"
    table = Table(title=safe_text(title), title_justify="left")
    # Time and size are shown always.
    more = {"memory": ("memory",), "macs": ("macs",)}.get(front.minimise, ())
    _figure_columns(table, more)
    table.add_column("what it is", ratio=1)
    table.add_column("")
    for point in front.points:
        table.add_row(*map(safe_text, _front_row(point, front.chosen, more)))
    return table


def _figure_columns(table: Table, more: Sequence[str] = ()) -> None:
    for name in ("", "time", "size", *more):
        table.add_column(name, justify="right", no_wrap=name != "time")
    for name in ("quality", "predicted"):
        table.add_column(name)


def _front_row(point: FrontPoint, chosen: int | None, more: Sequence[str]) -> tuple[str, ...]:
    measured = point.measured
    peak = measured.get("peak_memory")
    costs = {"memory": "" if peak is None else wording.size(peak), "macs": f"{measured['macs']:,}"}
    return (
        str(point.number),
        _raced(measured),
        wording.size(measured["size_bytes"]),
        *(costs[name] for name in more),
        _quality(measured.get("quality") or ()),
        _predicted(point.predicted),
        point_text(point.point, point.level),
        "chosen" if point.number == chosen else "",
    )


def trials_table(trials: Iterable[Trial]) -> Table:
    """Give a search's candidates in the order in which they were proposed."""
    table = Table()
    _figure_columns(table)
    table.add_column("state")
    table.add_column("what it is, and why it was tried", ratio=1)
    table.add_column("took", justify="right", no_wrap=True)
    for trial in trials:
        values = trial.values or {}
        size = wording.size(values["size_bytes"]) if values else ""
        because = f"{point_text(trial.point, trial.level)}; {trial.because}"
        failed = f". {trial.problem}" if trial.problem else ""
        row = (
            str(trial.number),
            _raced(values),
            size,
            _quality(values.get("quality") or ()),
        )
        took = formatting.duration(trial.seconds) if trial.seconds else ""
        table.add_row(*map(safe_text, (*row, _predicted(trial.predicted), trial.state, because + failed, took)))
    return table


def search_parts(search: Json) -> Iterable[RenderableType]:
    """Give the parts of a report's search: the story, the front, what limits going on, and how far predictions were right."""
    if search["story"]:
        yield _story(search["story"], search["chosen"])
    if search["front"]:
        yield _report_front(search["front"], search["chosen"])
    if search["limits"]:
        yield _limits(search["limits"])
    if search["nearest"]:
        yield _nearest(search["nearest"])
    yield from _certificates(search["certificates"])
    yield safe_text(_ended(search), style="dim")


def _story(lines: Sequence[Json], chosen: int | None) -> Table:
    table = Table(title="what was tried", title_justify="left")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("tried", ratio=3)
    table.add_column("measured", ratio=2)
    table.add_column("predicted", ratio=1)
    table.add_column("holds all limits")
    table.add_column("", ratio=3)
    for line in lines:
        number = f"{line['trial']}" + "*" * (line["trial"] == chosen)
        fate = safe_text(f"{'kept' if line['kept'] else 'dropped'}: {line['why']}", "green" if line["kept"] else "")
        measured = _measured(line.get("measured")) or line["state"]
        tried = f"{line['tried']} ({line['because']})"
        table.add_row(
            number,
            safe_text(tried),
            safe_text(measured),
            _predicted(line.get("predicted")),
            _holds(line.get("holds")),
            fate,
        )
    return table


def _report_front(points: Sequence[Json], chosen: int | None) -> Table:
    table = Table(title="front: what there is to choose from", title_justify="left")
    _figure_columns(table)
    table.add_column("holds all limits")
    table.add_column("what it is", ratio=1)
    table.add_column("")
    for point in points:
        measured = point["measured"]
        table.add_row(
            str(point["trial"]),
            _measured_speed(measured),
            wording.size(measured["size_bytes"]),
            safe_text(_quality(measured["quality"])),
            _predicted(point.get("predicted")),
            _holds(point["holds"]),
            safe_text(point["tried"]),
            "chosen" if point["trial"] == chosen else "",
        )
    return table


def _limits(standings: Sequence[Json]) -> Table:
    table = Table(title="what limits going on", title_justify="left")
    table.add_column("limit")
    table.add_column("held by", justify="right")
    table.add_column("best", justify="right")
    table.add_column("why", ratio=1)
    for one in standings:
        gate = one["gate"]
        best = "" if one["best"] is None else wording.gate_value(gate["metric"], gate["rule"], one["best"])
        best += f" (trial {one['best_trial']})" if best else ""
        table.add_row(safe_text(one["limit"]), str(one["held_by"]), best, safe_text(one["limited_by"]))
    return table


def _nearest(points: Sequence[Json]) -> Table:
    table = Table(title="what comes nearest to every limit", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("what it is", ratio=1)
    table.add_column("measured", ratio=1)
    table.add_column("misses", ratio=1)
    for point in points:
        misses = "; ".join(map(miss_text, point["misses"]))
        table.add_row(
            str(point["trial"]), safe_text(point["tried"]), safe_text(_measured(point["measured"])), safe_text(misses)
        )
    return table


def miss_text(miss: Json) -> str:
    """Say which limit a candidate misses, and by how much."""
    if miss["measured"] is None:
        return f"{miss['limit']}: not measured"
    by = "" if miss["by"] is None else f", off by {100 * miss['by']:.3g} %"
    gate, measured = miss.get("gate"), miss["measured"]
    value = wording.gate_value(gate["metric"], gate["rule"], measured) if gate else wording.limit_value(measured)
    return f"{miss['limit']}: {value}{by}"


def _certificates(certificates: Json) -> Iterable[Text]:
    if certificates["median_error"] is None:
        return
    count = len(certificates["compared"])
    told = f"the time of {_counted(count, 'network')} was predicted from measured parts before it was made"
    yield safe_text(f"{told}: off by {100 * certificates['median_error']:.1f} % (median)", style="dim")


def _ended(search: Json) -> str:
    counts, took = search["trials"], formatting.duration(search["seconds"])
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    strategy = f"strategy {search['strategy']}, seed {search['seed']}"
    found = f"searched for {took}: {_counted(counts['succeeded'], 'candidate')} measured{failed}"
    return f"{found}. {search['stopped'].rstrip('.')}. ({strategy})"


def _measured(measured: Json | None) -> str:
    if measured is None:
        return ""
    speed = _measured_speed(measured)
    return ", ".join(
        filter(None, (speed, wording.size(measured["size_bytes"]), _quality(measured.get("quality") or ())))
    )


def _raced(values: Json) -> str:
    """Give the speed of a trial with its interval."""
    latency = values.get("latency")
    return "" if latency is None else wording.speed(latency)


def _measured_speed(measured: Json) -> str:
    """Give the speed of what a report tells of, with its interval where there is one."""
    names = ("latency_ratio", "latency_low", "latency_high")
    ratio, low, high = (measured.get(name) for name in names)
    return wording.speed_between(ratio, low, high) if ratio else ""


def _speed(ratio: float | None) -> str:
    return "" if not ratio else wording.speed_between(ratio)


def _quality(qualities: Sequence[Json]) -> str:
    """Give the metric that speaks for the network, which comes first."""
    return wording.metric_change(qualities[0]) if qualities else ""


def _predicted(predicted: Json | None) -> str:
    if predicted is None:
        return ""
    return f"{_speed(predicted['latency_ratio'])}, {wording.size(predicted['size_bytes'])}"


def _holds(holds: bool | None) -> str:
    return "" if holds is None else "yes" if holds else "not shown"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
