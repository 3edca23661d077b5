"""A report for people: the summary sentences, and the whole as Markdown."""

from collections.abc import Iterator, Sequence
from typing import assert_never

from engine.report.byte_account import BYTE_KINDS
from engine.report.counted_time import counted
from engine.report.detail_parts import Detail
from engine.report.figures.layers import LAYERS_CAPTION, layer_table
from engine.report.folded import folded
from engine.report.generation_markdown import generation_gain, generation_rows
from engine.report.loading_markdown import loading_lines
from engine.report.outputs_markdown import output_lines, quality_rows
from engine.report.profile_markdown import profile_lines
from engine.report.pruning_markdown import pruning_lines
from engine.report.quantization_markdown import quantization_lines
from engine.report.search_markdown import search_lines
from engine.report.training_markdown import training_lines
from engine.report.tuning_markdown import tuning_lines
from engine.report.values import (
    AnyReport,
    Generation,
    LatencyComparison,
    Learner,
    ProfileReport,
    Quality,
    Report,
    Size,
    StepReport,
)
from engine.report.wording import (
    CONFIDENCE,
    MARKS,
    data_sentence,
    difference,
    gate_text,
    machine,
    metric_value,
    milliseconds,
    parameters_left,
    parts_sentence,
    share,
    speed,
    speed_between,
    table,
    target_name,
    tf32_sentence,
    times_less,
    times_smaller,
)
from engine.report.wording import size as size_text

_MOST_LAYERS = 40


def summarise(
    steps: Sequence[StepReport],
    size: Size,
    latency: LatencyComparison | None,
    quality: Sequence[Quality],
    *,
    unchanged: bool,
    generation: Generation | None = None,
) -> str:
    """Say in one or two plain sentences what was gained at what cost."""
    refused = [f"{step.type}: {step.refusal.reason}" for step in steps if step.refusal is not None]
    if unchanged:
        return "No step was kept, so the result is the original network. " + " ".join(refused)
    gains = [times_smaller(size.original, size.compressed)]
    if size.original_download is not None and size.compressed_download is not None:
        gains.append(f"{times_smaller(size.original_download, size.compressed_download)} to download (deflated)")
    if latency is not None:
        time = counted(latency)
        gains.append(f"{speed(time.ratio)}{time.said}")
    if generation is not None:
        gains.append(generation_gain(generation))
    lost = next((_cost(each) for each in quality if each.difference is not None), None) or next(
        (_cost(each) for each in quality), None
    )
    text = f"The network is {_and(gains)}" + (f"; {lost}" if lost else "") + "."
    return f"{text} Refused: {' '.join(refused)}" if refused else text


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 2 else parts)


def markdown(report: AnyReport) -> str:
    """Give the whole report as GitHub-flavoured Markdown."""
    match report:
        case Report():
            lines = _lines(report)
        case ProfileReport():
            lines = profile_lines(report)
        case _:
            assert_never(report)
    return "\n".join(lines) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# Compression report: {MARKS[report.verdict.outcome]}"
    yield ""
    yield report.summary
    yield ""
    yield from table(("", "original", "compressed", "change"), headline(report))
    yield from _learners(report)
    if report.verdict.gates:
        yield from ("", "## Gates", "")
        yield from table(
            ("gate", "outcome", "reason"),
            (
                (
                    gate_text(result.gate),
                    MARKS[result.outcome] + (" (warning only)" if result.gate.level == "warn" else ""),
                    result.reason,
                )
                for result in report.verdict.gates
            ),
        )
    for warning in report.warnings:
        yield from ("", f"> {warning}")
    yield from folded(_details(report))
    yield from ("", *_conditions(report))


def headline(report: Report) -> Iterator[tuple[str, ...]]:
    """Yield the rows that a verdict is about: one each for size, time, quality and memory."""
    seen = set()
    main = report.quality[0].metric if report.quality else None
    kinds = {"size": "size", "latency p50": "time", "CPU time p50": "clock", "peak memory": "memory"}
    for row in measures(report):
        kind = kinds.get(row[0]) or ("quality" if main is not None and row[0].startswith(main) else None)
        if kind is not None and kind not in seen:
            seen.add(kind)
            yield row


def _details(report: Report) -> Iterator[str]:
    """Yield what is looked up, a section for each subject."""
    if report.search is not None:
        yield from search_lines(report.search)
    yield from ("", "## All that was measured", "")
    yield from table(("", "original", "compressed", "change"), measures(report))
    yield from output_lines(report.outputs)
    yield from _bytes(report)
    if report.steps:
        yield from ("", "## Steps", "")
        yield from table(("step", "status", "what happened", "seconds"), (_step(step) for step in report.steps))
    yield from _layers(report)
    for step in report.steps:
        yield from quantization_lines(step)
        if step.change is not None and isinstance(step.change.details, Detail):
            yield from pruning_lines(step.change.details, step.number)
            yield from training_lines(step.change.details, step.number)
    if report.tuning is not None:
        yield from tuning_lines(report.tuning.original, "## Session options of the original")
        yield from tuning_lines(report.tuning.compressed, "## Session options of the result")
    yield from loading_lines(report.loading, report.preprocessing)


def measures(report: Report) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of what was measured: name, original, compressed, change."""
    size = report.size
    yield (
        "size",
        size_text(size.original),
        size_text(size.compressed),
        times_smaller(size.original, size.compressed),
    )
    if size.original_download is not None and size.compressed_download is not None:
        fewer = times_smaller(size.original_download, size.compressed_download)
        yield "download (deflate)", size_text(size.original_download), size_text(size.compressed_download), fewer
    if report.latency is not None:
        before, after = report.latency.original, report.latency.compressed
        busy = "" if report.latency.stable else ", disturbed"
        for name in ("p50", "p95"):
            yield (
                f"latency {name}",
                milliseconds(getattr(before, f"{name}_ms")),
                milliseconds(getattr(after, f"{name}_ms")),
                f"{speed(report.latency.ratios[name])}{busy}",
            )
        if report.latency.counts == "cpu":
            time = counted(report.latency)
            yield "CPU time p50", "", "", f"{speed(time.ratio)}; the machine was busy, so this counts"
    if report.generation is not None:
        yield from generation_rows(report.generation)
    yield from quality_rows(report.quality, report.selected_quality)
    if report.memory is not None:
        left, right = report.memory.original, report.memory.compressed
        less = times_less(left.peak_rss_bytes, right.peak_rss_bytes)
        yield "peak memory", size_text(left.peak_rss_bytes), size_text(right.peak_rss_bytes), less
        if left.device_peak_bytes and right.device_peak_bytes is not None:
            of_device = times_less(left.device_peak_bytes, right.device_peak_bytes)
            yield "peak GPU memory", size_text(left.device_peak_bytes), size_text(right.device_peak_bytes), of_device
        yield "load", milliseconds(left.load_ms), milliseconds(right.load_ms), ""
    counts = report.original.parameters, report.compressed.parameters
    yield "parameters", f"{counts[0]:,}", f"{counts[1]:,}", report.more_parameters or parameters_left(*counts)
    yield "operators", str(report.original.nodes), str(report.compressed.nodes), ""


def _layers(report: Report) -> Iterator[str]:
    """Show what became of each layer, those that cost most first."""
    head, rows = layer_table(report)
    if rows:
        yield from ("", "## Layers", "", LAYERS_CAPTION, "")
        yield from table(head, ((f"`{row[0]}`", *row[1:]) for row in rows[:_MOST_LAYERS]))
    if len(rows) > _MOST_LAYERS:
        yield from ("", f"And {len(rows) - _MOST_LAYERS} more, in report.json.")


def _bytes(report: Report) -> Iterator[str]:
    """Show what the file holds; the rows add up to it."""
    account = report.bytes
    if account is None:
        return
    yield from ("", "## Where the bytes are", "")
    rows = [
        (
            BYTE_KINDS[row.kind] + (f": {row.reason}" if row.reason else ""),
            str(row.tensors) if row.tensors else "",
            f"{row.bytes:,}",
            share(row.bytes / account.total),
        )
        for row in account.rows
    ]
    yield from table(("what", "tensors", "bytes", "share"), (*rows, ("all", "", f"{account.total:,}", "")))


def _step(step: StepReport) -> tuple[str, ...]:
    if step.refusal is not None:
        told = f"{step.refusal.reason} {step.refusal.hint or ''}".strip()
        return f"{step.number}: {step.type}", f"refused ({step.refusal.code})", told, f"{step.seconds:.1f}"
    told = step.change.summary if step.change else ""
    if step.credit is not None:
        told += f" It lost more than is allowed, which training won back: {step.credit.reason}"
    return f"{step.number}: {step.type}", "applied", told.strip(), f"{step.seconds:.1f}"


def _learners(report: Report) -> Iterator[str]:
    """Say which network the recipe worked on, and which it learnt from, where that is not the original."""
    student, teacher = report.student, report.teacher
    if student is not None:
        yield from ("", f"The recipe worked on another network than the original, the student {_named(student)}.")
        if student.quality:
            told = student.quality[0]
            yield (
                f"As it came, its {told.metric} was {metric_value(told.metric, told.compressed)} on the samples that steps are"
                " chosen on."
            )
    if teacher is not None:
        yield from ("", f"It learnt from another network than the original, the teacher {_named(teacher)}.")


def _named(learner: Learner) -> str:
    facts = learner.facts
    named = f"`{learner.name}`: " if learner.name else ""
    return f"({named}sha256 {facts.sha256}, {facts.parameters:,} parameters, {size_text(facts.size_bytes)})"


def _conditions(report: Report) -> Iterator[str]:
    where, latency = report.environment, report.latency
    target = report.target
    yield (
        f"Measured on {machine(where)}, {target_name(target)}, ONNX Runtime {where.onnxruntime}, Python {where.python},"
        f" {where.system}."
    )
    yield from tf32_sentence(where)
    yield CONFIDENCE
    yield parts_sentence(report)
    yield from data_sentence(report)
    if report.tuning is not None:
        yield "Latency is of each network with the session options that it runs best with."
    if report.estimate is not None:
        yield f"When it began, the job was expected to take this: {report.estimate.summary} It took {report.seconds:.0f} s."
    if report.self_difference is not None:
        yield report.self_difference.words
    if latency is not None:
        yield (
            f"Latency from {latency.original.samples:,} runs of the original and {latency.compressed.samples:,} of the result, in"
            f" turn; {latency.original.dropped:,} and {latency.compressed.dropped:,} disturbed runs left out{_by_cpu(latency)}; the"
            f" original beside itself reads {latency.noise_floor.low:.3f} to {latency.noise_floor.high:.3f}."
        )


def _by_cpu(latency: LatencyComparison) -> str:
    cpu = latency.cpu_ratio
    return "" if cpu is None or cpu.value <= 0 else f"; by CPU time {speed_between(cpu.value)}"


def _cost(quality: Quality) -> str:
    if quality.difference is None:
        return f"{quality.metric} is {metric_value(quality.metric, quality.compressed)}"
    return f"{quality.metric} changes by {difference(quality)}"
