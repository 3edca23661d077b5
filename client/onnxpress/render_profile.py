"""A profile's report as tables for a terminal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxpress import wording
from onnxpress.terminal_text import safe_text

Json = Mapping[str, Any]
PERCENTILES = ("p50", "p90", "p95", "p99")
# The report holds them all.
_MOST_ROWS = 8


def parts(report: Json, *, title: str | None = None) -> Iterator[RenderableType]:
    """Yield what is to be shown of the targets: all side by side, then each on its own."""
    yield _overview(report["targets"], title)
    for one in report["targets"]:
        measured = one["measured"]
        if measured is None:
            yield safe_text(f"{_name(one)}: {_refusal(one)}", style="yellow")
            continue
        yield _throughput(one)
        yield _operators(one)
        yield _placed(one)
        if measured["quality"]:
            yield _quality(one)
        if measured["tuning"]:
            yield from tuning_parts(measured["tuning"], f"{_name(one)}: session options")


def names(report: Json) -> dict[int, str]:
    """Give what each target is called, by its index."""
    return {one["index"]: _name(one) for one in report["targets"]}


def _name(profile: Json) -> str:
    return wording.target_name(profile["target"])


def _refusal(profile: Json) -> str:
    refusal = profile["refusal"] or {}
    return " ".join(str(refusal[key]) for key in ("reason", "hint") if refusal.get(key)) or "not measured"


def _where(environment: Json) -> str:
    return f"{environment.get('gpu') or environment['cpu']}, {environment.get('distribution') or 'onnxruntime'} {environment['onnxruntime']}"


def _overview(targets: Iterable[Json], title: str | None) -> Table:
    measured = [one for one in targets if one["measured"]]
    table = _table(title, "target", *PERCENTILES, "max", "cold load", "warm load", "peak memory", "beside the baseline")
    if measured:
        # Each target may have been measured by another worker, on another runtime.
        where = dict.fromkeys(_where(one["measured"]["environment"]) for one in measured)
        table.caption, table.caption_justify = safe_text("; ".join(where)), "left"
    for one in targets:
        if one["measured"] is None:
            table.add_row(safe_text(_name(one)), safe_text("not measured", style="yellow"))
            continue
        table.add_row(*map(safe_text, _row(one)))
    return table


def _row(profile: Json) -> Iterator[str]:
    measured = profile["measured"]
    latency, memory, comparison = measured["latency"], measured["memory"], measured["comparison"]
    yield _name(profile)
    for name in (*PERCENTILES, "max"):
        yield _ms(latency.get(f"{name}_ms"))
    yield _ms(memory["load_ms"])
    yield _ms(memory.get("warm_load_ms"))
    yield wording.size(memory["peak_rss_bytes"])
    yield "" if comparison is None else wording.speed(comparison["ratios"]["p50"])


def _throughput(profile: Json) -> Table:
    table = _table(f"{_name(profile)}: callers at the same time", "callers", "runs/s", "samples/s", "p50", "p99")
    for one in profile["measured"]["throughput"]:
        rates = (f"{one['runs_per_s']:.1f}", f"{one['samples_per_s']:.1f}")
        table.add_row(str(one["concurrency"]), *rates, _ms(one["p50_ms"]), _ms(one["p99_ms"]))
    return table


def _operators(profile: Json) -> Table:
    table = _table(f"{_name(profile)}: where the time goes", "operator", "provider", "nodes", "time", "share")
    for one in profile["measured"]["by_type"][:_MOST_ROWS]:
        row = (one["op_type"], one["provider"], one["count"], _ms(one["ms"]), wording.share(one["share"]))
        table.add_row(*map(safe_text, row))
    return table


def _placed(profile: Json) -> Text:
    placement = profile["measured"]["placement"]
    counts: dict[str, int] = {}
    for node in placement["nodes"]:
        counts[node["provider"]] = counts.get(node["provider"], 0) + 1
    text = f"nodes: {', '.join(f'{count} on {provider}' for provider, count in sorted(counts.items()))}"
    fell = [f"{node['node']} ({node['op_type']})" for node in placement["fallbacks"]]
    if fell:
        more = f" and {len(fell) - _MOST_ROWS} more" if len(fell) > _MOST_ROWS else ""
        text += f"; fell back: {', '.join(fell[:_MOST_ROWS])}{more}"
    return safe_text(text, style="yellow" if fell else "")


def _quality(profile: Json) -> Table:
    table = _table(f"{_name(profile)}: quality", "", "baseline", "network", "change")
    for one in profile["measured"]["quality"]:
        original = "" if one["original"] is None else wording.metric_value(one["metric"], one["original"])
        value = wording.metric_value(one["metric"], one["compressed"])
        table.add_row(*map(safe_text, (_metric(one), original, value, wording.quality_change(one))))
    return table


def _metric(quality: Json) -> str:
    output = quality.get("output")
    return str(quality["metric"]) if output is None else f"{quality['metric']} of {output}"


def tuning_parts(tuning: Json, title: str) -> Iterator[RenderableType]:
    """Give a search for session options: what was tried, what came of it, and Python that makes the best session."""
    told = any(_own_options(one["options"]) for one in tuning["trials"])
    head = ("threads", "mode", "graph optimisation", "spinning", *(("options",) if told else ()))
    table = _table(title, *head, "p50", "beside the target's own", "")
    for one in tuning["trials"]:
        options = one["options"]
        cells = (
            str(options["threads"]),
            options["execution_mode"],
            options["graph_optimization"],
            "yes" if options["spinning"] else "no",
            *((_own_options(options),) if told else ()),
            _ms(one["p50_ms"]),
            wording.speed(one["ratio"]) + ("" if one["stable"] else ", not stable"),
            "chosen" if options == tuning["chosen"] else "",
        )
        table.add_row(*map(safe_text, cells))
    yield table
    yield safe_text(tuning["reason"])
    if tuning["chosen"] and tuning.get("usage"):
        yield safe_text(tuning["usage"].rstrip(), style="dim")


def _own_options(options: Json) -> str:
    named = [f"{name}={value}" for name, value in (options.get("provider_options") or {}).items()]
    named += [f"fixed {axis}={size}" for axis, size in (options.get("fixed_axes") or {}).items()]
    return ", ".join([*named, *(("inputs on the device",) if options.get("inputs_on_device") else ())])


def _table(title: str | None, *columns: str) -> Table:
    table = Table(title=safe_text(title) if title else None, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _ms(milliseconds: float | None) -> str:
    return "" if milliseconds is None else wording.milliseconds(milliseconds)
