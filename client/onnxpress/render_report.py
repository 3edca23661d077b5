"""A job's report as tables for a terminal; it needs the report's JSON alone, wherever that came from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxpress import formatting, render_profile, render_search, wording
from onnxpress.terminal_text import safe_text

STYLES = {
    "pass": "bold green",
    "fail": "bold red",
    "inconclusive": "bold yellow",
    "none": "dim",
    "applied": "green",
    "refused": "yellow",
    "warn": "yellow",
}
BYTE_KINDS = {
    "quantized": "quantized values",
    "scales": "scales",
    "zero_points": "zero points",
    "float_weights": "weights in float",
    "other_floats": "biases and other small floats",
    "other_tensors": "other tensors",
    "tree_ensembles": "tree ensembles",
    "graph": "operators, names and framing",
}
Json = Mapping[str, Any]


def show(report: Json, console: Console, *, title: str | None = None) -> None:
    """Print the whole result: numbers beside the original's, steps, gates, verdict, warnings."""
    console.print(_unfinished(report) if report.get("kind") == "unfinished" else result(report, title=title))


def result(report: Json, *, title: str | None = None) -> RenderableType:
    """Give the whole result as one renderable."""
    verdict, is_profile = report["verdict"], report.get("kind") == "profile"
    parts: list[RenderableType] = []
    if is_profile:
        parts += render_profile.parts(report, title=title)
    else:
        parts += [numbers(report, title=title), *outputs(report.get("outputs") or ()), *bytes_held(report.get("bytes"))]
        parts += learners(report)
        if report.get("search"):
            parts += render_search.search_parts(report["search"])
        if report["steps"]:
            parts.append(steps(report["steps"]))
        for network, tuning in (report.get("tuning") or {}).items():
            parts += render_profile.tuning_parts(tuning, f"session options of the {network} network")
    if verdict["gates"]:
        parts.append(gates(verdict["gates"], render_profile.names(report) if is_profile else {}))
    parts.append(safe_text(report["summary"]))
    if report.get("preprocessing"):
        parts.append(safe_text(f"data: {report['preprocessing']['summary']}", style="dim"))
    if report.get("loading"):
        parts.append(safe_text(f"to load it: {loading(report['loading'])}", style="dim"))
    if report.get("estimate"):
        took = formatting.duration(report["seconds"])
        parts.append(safe_text(f"expected: {report['estimate']['summary']} It took {took}.", style="dim"))
    if not is_profile and report["latency"] and not report["latency"]["stable"]:
        because = report["latency"].get("unstable_because") or "the machine was too disturbed"
        parts.append(safe_text(f"latency is not stable: {because}", style="yellow"))
    parts += [safe_text(f"warning: {warning}", style="yellow") for warning in report.get("warnings") or ()]
    parts.append(_verdict(verdict))
    return Group(*parts)


def _unfinished(job: Json) -> RenderableType:
    """Say of a job that ended without a result that it did, and why."""
    did = "was cancelled" if job["status"] == "cancelled" else job["status"]
    node = f", node {job['node']}" if job.get("node") else ""
    lines = [safe_text(f"the {job['job_kind']} job {did}", style=STYLES["fail"])]
    lines += [safe_text(str(job[name])) for name in ("reason", "hint") if job.get(name)]
    lines += [safe_text(f"code {job['code']}{node}", style="dim")] if job.get("code") else []
    return Group(*lines)


def loading(needs: Json) -> str:
    """Say in a line what the result is loaded with; the model's card has lines to paste."""
    options, least = needs["options"], needs["onnxruntime"]
    threads = f"{options['threads']} thread{'s' * (options['threads'] > 1)}"
    more = [options["execution_mode"]] if options["execution_mode"] != "sequential" else []
    more += [] if options["spinning"] else ["no spinning"]
    more += [f"graph optimisation {options['graph_optimization']}"] if options["graph_optimization"] != "all" else []
    told = ", ".join([needs["provider"], threads, *more])
    newest = f"onnxruntime {least} or newer" if least else f"onnxruntime {needs['measured_with']}"
    return f"{newest}, {told}{' (tuned)' if needs['tuned'] else ''}; `onnxpress card` gives the lines"


def numbers(report: Json, *, title: str | None = None) -> Table:
    """Give what was measured: original, compressed, change with its interval."""
    table = Table(
        title=safe_text(title) if title else None,
        title_justify="left",
        caption=safe_text(_caption(report)),
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("original", justify="right", no_wrap=True)
    table.add_column("compressed", justify="right", no_wrap=True)
    table.add_column("change")
    for row in _rows(report):
        table.add_row(*map(safe_text, row))
    return table


def _rows(report: Json) -> Iterable[tuple[str, str, str, str]]:
    """Give the rows of the service's own reports."""
    size = report["size"]
    for name, end in (("size", ""), ("download (deflate)", "_download")):
        before, after = size.get(f"original{end}"), size.get(f"compressed{end}")
        if before is not None and after is not None:
            yield name, wording.size(before), wording.size(after), wording.times_smaller(before, after)
    if report["latency"]:
        yield from _latency_rows(report["latency"])
    if report.get("generation"):
        yield from _generation_rows(report["generation"])
    yield from _quality_rows(report)
    if report["memory"]:
        yield from _memory_rows(report["memory"])
    before, after = (report[side]["parameters"] for side in ("original", "compressed"))
    more = report.get("more_parameters") or wording.parameters_left(before, after)
    yield "parameters", f"{before:,}", f"{after:,}", more


def _latency_rows(latency: Json) -> Iterable[tuple[str, str, str, str]]:
    for statistic in ("p50", "p95"):
        ratio = latency["ratios"].get(statistic)
        if ratio is None:
            continue
        before, after = (wording.milliseconds(latency[side][f"{statistic}_ms"]) for side in ("original", "compressed"))
        yield f"latency {statistic}", before, after, wording.speed(ratio) + ("" if latency["stable"] else ", disturbed")
    if latency.get("counts") == "cpu":
        yield "CPU time p50", "", "", f"{wording.speed(latency['cpu_ratio'])}; the machine was busy, so this counts"


def _generation_rows(generation: Json) -> Iterable[tuple[str, str, str, str]]:
    """Give a decoder's time to the first token, and the tokens per second of reading a prompt and of writing."""
    prefill, texts, tokens = generation["prefill"], generation["texts"], generation["prompt_tokens"]
    before, after = (wording.milliseconds(prefill[f"{side}_ms"]) for side in ("original", "compressed"))
    yield f"first token after {f'{texts} x ' if texts > 1 else ''}{tokens} tokens", before, after, _faster(prefill)
    for load, name in (("prefill", "prompt read"), ("decode", "text written")):
        rate = generation[load]
        before, after = (f"{rate[f'{side}_tokens_per_s']:.4g} tokens/s" for side in ("original", "compressed"))
        yield name, before, after, _faster(rate)


def _faster(rate: Json) -> str:
    doubt = "" if rate["stable"] else " by CPU time" if rate.get("clock") == "cpu" else ", measured on a busy machine"
    return f"{wording.speed(rate['ratio'])}{doubt}"


def _quality_rows(report: Json) -> Iterable[tuple[str, str, str, str]]:
    """Give a row for each metric of the main output, which comes first, and one for each other output."""
    qualities = report["quality"]
    main = qualities[0].get("output") if qualities else None
    selected = {(each.get("output"), each["metric"]): each["compressed"] for each in report.get("selected_quality", ())}
    for quality in qualities:
        name = quality["metric"]
        if quality.get("output") != main:
            continue
        original = "" if quality["original"] is None else wording.metric_value(name, quality["original"])
        change = wording.quality_change(quality)
        if (main, name) in selected:
            change += f"; chosen at {wording.metric_value(name, selected[main, name])}"
        yield name, original, wording.metric_value(name, quality["compressed"]), change
    for output in dict.fromkeys(each.get("output") for each in qualities if each.get("output") != main):
        metrics = [each for each in qualities if each.get("output") == output]
        told = ", ".join(
            f"{each['metric']} {wording.metric_value(each['metric'], each['compressed'])}" for each in metrics
        )
        yield f"output {output} ({metrics[0].get('kind')})", "", "", told


def outputs(reports: Iterable[Json]) -> Iterable[Text]:
    """Give a line for each output: what it was judged as, and why."""
    for one in reports:
        judged = "not judged" if one["ignored"] or one["kind"] is None else f"judged as {one['kind']}"
        yield safe_text(f"output {one['name']}: {judged}, because {one['reason']}", style="dim")


def _memory_rows(memory: Json) -> Iterable[tuple[str, str, str, str]]:
    original, compressed = memory["original"], memory["compressed"]
    for name, what in (("peak memory", "peak_rss_bytes"), ("peak GPU memory", "device_peak_bytes")):
        before, after = original.get(what), compressed.get(what)
        if before and after is not None:
            yield name, wording.size(before), wording.size(after), wording.times_less(before, after)
    yield "load", wording.milliseconds(original["load_ms"]), wording.milliseconds(compressed["load_ms"]), ""


def _caption(report: Json) -> str:
    target, machine = report["target"], report["environment"]
    return f"{wording.target_name(target)} on {machine.get('gpu') or machine['cpu']}, onnxruntime {machine['onnxruntime']}; {_samples(report)}"


def _samples(report: Json) -> str:
    """Say how many samples judged, and whether steps were chosen on others."""
    parts = report.get("parts")
    if parts is None and not report["held_out_samples"]:
        return "no data: compared on random inputs"
    if parts is None:
        return f"{report['held_out_samples']:,} held-out samples, {report['calibration_samples']:,} for calibration"
    calibrated = f"{parts['calibrate']:,} for calibration"
    if parts["select_is_judge"]:
        return f"chosen and judged on the same {parts['judge']:,} samples, {calibrated}"
    return f"judged on {parts['judge']:,} samples, chosen on {parts['select']:,} others, {calibrated}"


def bytes_held(account: Json | None) -> Iterable[Table]:
    """Give what the compressed network's file holds, row by row; older reports do not say."""
    if account is None:
        return
    table = Table(title="where the bytes are", title_justify="left")
    table.add_column("", ratio=1)
    table.add_column("tensors", justify="right")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for row in account["rows"]:
        # A worker of a newer version may know further kinds.
        what = BYTE_KINDS.get(row["kind"], row["kind"]) + (f": {row['reason']}" if row.get("reason") else "")
        share = wording.share(row["bytes"] / account["total"])
        table.add_row(safe_text(what), str(row["tensors"] or ""), f"{row['bytes']:,}", share)
    table.add_row("all", "", f"{account['total']:,}", "")
    yield table


def learners(report: Json) -> Iterable[RenderableType]:
    """Name the student and the teacher, where they are other networks than the original."""
    for role, did in (("student", "the recipe worked on the student"), ("teacher", "it learnt from the teacher")):
        told = report.get(role)
        if told is not None:
            facts, name = told["facts"], f"{told['name']}, " if told.get("name") else ""
            yield safe_text(
                f"{did} {name}{facts['parameters']:,} parameters, sha256 {facts['sha256'][:12]}", style="dim"
            )


def steps(reports: Sequence[Json]) -> Table:
    """Give the steps in order, each with what it did or why it was refused."""
    table = Table(title="steps", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("pass")
    table.add_column("status")
    table.add_column("what", ratio=1)
    table.add_column("time", justify="right", no_wrap=True)
    for step in reports:
        status = safe_text(step["status"], style=STYLES.get(step["status"], ""))
        table.add_row(
            str(step["index"] + 1), safe_text(step["type"]), status, _what(step), formatting.duration(step["seconds"])
        )
    return table


def _what(step: Json) -> Text:
    refusal = step.get("refusal")
    if refusal:
        hint = f" {refusal['hint']}" if refusal.get("hint") else ""
        return safe_text(f"{refusal['code']}: {refusal['reason']}{hint}")
    change = step.get("change")
    return safe_text(change["summary"] if change else "")


def gates(results: Sequence[Json], targets: Mapping[int, str]) -> Table:
    """Give each gate with its limit, the measured value and the bound that was held against the limit."""
    table = Table(title="gates", title_justify="left")
    if targets:
        table.add_column("target")
    table.add_column("gate")
    table.add_column("measured", justify="right")
    table.add_column("at worst", justify="right")
    table.add_column("outcome")
    table.add_column("why", ratio=1)
    for one in results:
        gate, outcome = one["gate"], one["outcome"]
        softened = outcome != "pass" and gate["level"] == "warn"
        word = f"{outcome} (warn)" if softened else outcome
        label = safe_text(word, style=STYLES["warn"] if softened else STYLES.get(outcome, ""))
        wanted = wording.gate_text(gate)
        where = [safe_text(targets.get(one["target"], ""))] if targets else []
        table.add_row(
            *where,
            safe_text(wanted),
            *(safe_text(_in_its_unit(gate, one[which])) for which in ("measured", "bound")),
            label,
            safe_text(one["reason"]),
        )
    return table


def _verdict(verdict: Json) -> Text:
    outcome = verdict["outcome"]
    text = "verdict: none (the job has no gates)" if outcome == "none" else f"verdict: {outcome}"
    return safe_text(text, style=STYLES.get(outcome, ""))


def _in_its_unit(gate: Json, value: float | None) -> str:
    return "" if value is None else wording.gate_value(gate["metric"], gate["rule"], value)
