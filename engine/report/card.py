"""A model card: what a network is, what it was made from, what was measured of it, and how to load it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.inspection import Inspection
from engine.report.loading_markdown import loading_lines, one_line
from engine.report.markdown import measures
from engine.report.values import Report
from engine.report.wording import MARKS, limit_value, machine, parts_sentence, size, table


@dataclass(frozen=True)
class Ancestor:
    """A network that another was made from."""

    name: str
    sha256: str | None


def model_card(
    name: str,
    file: str,
    inspection: Inspection,
    report: Report | None,
    ancestors: Sequence[Ancestor],
    *,
    tags: Sequence[str] = (),
    more: Sequence[str] = (),
) -> str:
    """Give the card as Markdown with the front matter that model hubs read.

    Args:
        name: of the network, for people.
        file: where the network lies, seen from the card.
        inspection: what it is.
        report: of the job that made it, if one did.
        ancestors: what it was made from, the nearest first.
        tags: what it is found by.
        more: paragraphs at the end.
    """
    return "\n".join(_lines(name, file, inspection, report, ancestors, tags, more)) + "\n"


def _lines(  # noqa: PLR0917 - the arguments of the one above
    name: str,
    file: str,
    inspection: Inspection,
    report: Report | None,
    ancestors: Sequence[Ancestor],
    tags: Sequence[str],
    more: Sequence[str],
) -> Iterator[str]:
    yield from ("---", "library_name: onnx", "tags:")
    yield from (f"- {tag}" for tag in dict.fromkeys(("onnx", "onnxruntime", "onnxpress", *tags)))
    yield from ("---", "", f"# {one_line(name)}", "")
    if report is None:
        yield f"An ONNX network of {size(inspection.size_bytes)} with {inspection.parameters:,} parameters, as it was uploaded."
    else:
        yield from _of_job(report, file, ancestors)
    for paragraph in more:
        yield from ("", paragraph)


def _of_job(report: Report, file: str, ancestors: Sequence[Ancestor]) -> Iterator[str]:
    yield one_line(report.summary)
    yield ""
    yield from table(("", "original", "compressed", "change"), measures(report))
    yield from ("", _measured_on(report), parts_sentence(report))
    yield from _gates(report)
    yield from _made_from(report, ancestors)
    yield from (
        line.replace('"model.onnx"', f'"{file}"') for line in loading_lines(report.loading, report.preprocessing)
    )


def _measured_on(report: Report) -> str:
    target = report.target
    return (
        f"Measured beside the original in one run on {machine(report.environment)}, {target.provider}, {target.threads} thread(s),"
        f" batch {target.batch}, ONNX Runtime {report.environment.onnxruntime}."
    )


def _gates(report: Report) -> Iterator[str]:
    if not report.verdict.gates:
        return
    yield from ("", f"## Gates: {MARKS[report.verdict.outcome]}", "")
    rows = (
        (f"{each.gate.label} {each.gate.rule} {limit_value(each.gate.value)}", MARKS[each.outcome], each.reason)
        for each in report.verdict.gates
    )
    yield from table(("gate", "outcome", "reason"), rows)


def _made_from(report: Report, ancestors: Sequence[Ancestor]) -> Iterator[str]:
    yield from ("", "## What it was made from", "")
    named = ancestors or (Ancestor("the original", report.original.sha256),)
    yield from (f"* {one_line(each.name)}{f' (sha256 `{each.sha256}`)' if each.sha256 else ''}" for each in named)
    kept = [step for step in report.steps if step.status == "applied"]
    if kept:
        yield from ("", "by these steps:", "")
        yield from (f"1. `{step.type}`: {one_line(step.change.summary if step.change else '')}" for step in kept)
