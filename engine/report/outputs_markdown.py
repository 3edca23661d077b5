"""What each output was taken for, and how near it stayed, as lines and rows for people."""

from collections.abc import Iterable, Iterator, Sequence

from engine.report.values import OutputReport, Quality
from engine.report.wording import metric_value, quality_change, table

Row = tuple[str, str, str, str]


def quality_rows(quality: Sequence[Quality], selected: Sequence[Quality] = ()) -> Iterator[Row]:
    """Yield (name, original, compressed, change): a row for each metric of the main output, one for each other output.

    `selected`: the same on the samples that steps were chosen on.
    """
    chosen = {(each.output, each.metric): each.compressed for each in selected}
    main = quality[0].output if quality else None
    for each in quality:
        if each.output != main:
            continue
        original = "" if each.original is None else metric_value(each.metric, each.original)
        change = [quality_change(each)]
        if (main, each.metric) in chosen:
            change.append(f"chosen at {metric_value(each.metric, chosen[main, each.metric])}")
        yield each.metric, original, metric_value(each.metric, each.compressed), "; ".join(change)
    for output in dict.fromkeys(each.output for each in quality if each.output != main):
        metrics = [each for each in quality if each.output == output]
        told = ", ".join(f"{each.metric} {metric_value(each.metric, each.compressed)}" for each in metrics)
        yield f"output `{output}` ({metrics[0].kind})", "", told, ""


def output_lines(outputs: Iterable[OutputReport]) -> Iterator[str]:
    """Yield a table of what each output was taken for and why."""
    rows = [
        (f"**`{each.name}`**" if each.main else f"`{each.name}`", *_taken_for(each), each.reason) for each in outputs
    ]
    if rows:
        yield from ("", "## Outputs", "")
        yield from table(("output", "judged as", "weight", "because"), rows)


def _taken_for(output: OutputReport) -> tuple[str, str]:
    if output.ignored or output.kind is None:
        return "not judged", ""
    return output.kind, "" if output.judged_with else f"{output.weight:g}"
