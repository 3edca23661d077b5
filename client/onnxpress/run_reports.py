"""The files that a run leaves behind, in the form that each one's name asks for: also where there is nothing measured."""

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from xml.etree import ElementTree as ET

from onnxpress.errors import UsageError
from onnxpress.pipeline import Annotation, Pipeline
from onnxpress.report_formats import Form, form_of
from onnxpress.run_record import RunRecord, gate_name

_STYLE = ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}"


def write_reports(record: RunRecord, paths: Sequence[Path]) -> None:
    """Write every file; raises UsageError for one that cannot be, when the others are there."""
    wrong: list[str] = []
    for path in paths:
        try:
            path.write_text(report_of(record, form_of(path)), encoding="utf-8")
        except OSError as error:
            wrong.append(f"{path} cannot be written: {error.strerror}")
    if wrong:
        raise UsageError("; ".join(wrong))


def report_of(record: RunRecord, form: Form) -> str:
    """Give a run's report in one form."""
    match form:
        case "json":
            document = dict(record.report or record.unfinished())
            return json.dumps({**document, "run": record.document()}, indent=2, ensure_ascii=False)
        case "junit.xml":
            return _junit(record)
        case "prom":
            return _prom(record)
        case "html":
            return _page(record)
    return markdown(record)


def markdown(record: RunRecord) -> str:
    """Give what a pull request or a summary shows: how it ended on top, then what was measured."""
    measured = record.texts.get("md")
    if measured and record.comparison is None and record.ended == record.verdict and not record.promoted:
        return measured
    lines = [f"# onnxpress: {record.title}", "", _facts(record), ""]
    lines += [f"**{record.reason}**", ""] if record.reason else []
    lines += [f"- {note}" for note in record.notes]
    lines += _gates_beside(record)
    parts = [text for text in (measured, record.texts_beside.get("md")) if text]
    return "\n".join(lines).rstrip() + "\n" + "".join("\n" + _demoted(text) for text in parts)


def _gates_beside(record: RunRecord) -> Iterator[str]:
    """Yield the gates beside what the result is to replace; those beside the original are in the service's report."""
    if record.comparison is None:
        return
    yield from ("", f"| beside {record.comparison.named} | outcome | reason |", "|---|---|---|")
    for result in record.comparison.report["verdict"]["gates"]:
        cells = (gate_name(result), result["outcome"], result["reason"])
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def annotations(record: RunRecord) -> Iterator[Annotation]:
    """Yield what a CI system is to show beside the run."""
    if record.reason is not None:
        yield Annotation("warning" if record.skipped else "error", f"onnxpress: {record.title}", record.reason)
    for named, result in record.gates():
        if result["outcome"] != "pass":
            softened = result["gate"].get("level") == "warn" or (record.exit_code == 0)
            beside = f" beside {named}" if named else ""
            title = f"{gate_name(result)}{beside}: {result['outcome']}"
            yield Annotation("warning" if softened else "error", title, str(result["reason"]))


def tell_pipeline(record: RunRecord, pipeline: Pipeline) -> Iterator[str]:
    """Write outputs and summary where the CI system reads them; yields lines for its log."""
    return pipeline.tell(record.outputs(), markdown(record), list(annotations(record)))


def _facts(record: RunRecord) -> str:
    """Give in one line what the run was about."""
    job = record.job
    told = [
        f"`{record.subject}`",
        f"job `{job.id}`" if job else "",
        f"commit `{record.labels['commit'][:12]}`" if record.labels.get("commit") else "",
        record.began.strftime("%Y-%m-%d %H:%M UTC"),
    ]
    return ", ".join(word for word in told if word)


def _demoted(text: str) -> str:
    """Give Markdown with its headings one level lower."""
    return re.sub(r"^#(?=#* )", "##", text, flags=re.MULTILINE)


def _junit(record: RunRecord) -> str:
    found = [ET.fromstring(text) for text in _texts(record, "junit.xml")]  # noqa: S314 - our own service's
    for suite, comparison in zip(found[1:], [record.comparison], strict=False):
        if comparison is not None:
            suite.set("name", f"onnxpress beside {comparison.named}")
    if record.reason is not None or not found:
        found.append(_run_suite(record))
    if len(found) == 1:
        root = found[0]
    else:
        root = ET.Element("testsuites", name="onnxpress")
        root.extend(found)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def _run_suite(record: RunRecord) -> ET.Element:
    """Give a suite of one case: that the run came to its end."""
    kind = "skipped" if record.skipped else "failure" if record.ended == "refused" else "error"
    suite = ET.Element("testsuite", name=f"onnxpress {record.kind}", tests="1")
    for attribute, counted in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(int(kind == counted)))
    case = ET.SubElement(suite, "testcase", classname=f"onnxpress.{record.kind}", name="the run ended with a result")
    if record.reason is not None:
        ET.SubElement(case, kind, message=_printable(f"{record.title}: {record.reason}"), type=record.ended)
    return suite


def _prom(record: RunRecord) -> str:
    lines = [line for text in _texts(record, "prom")[:1] for line in text.splitlines() if line != "# EOF"]
    lines += [
        "# TYPE onnxpress_run_exit_code gauge",
        "# HELP onnxpress_run_exit_code How the run ended, as the command's exit code.",
        f'onnxpress_run_exit_code{{ended="{record.ended}"}} {record.exit_code}',
    ]
    return "\n".join(lines) + "\n# EOF\n"


def _texts(record: RunRecord, form: Form) -> list[str]:
    return [texts[form] for texts in (record.texts, record.texts_beside) if form in texts]


def _page(record: RunRecord) -> str:
    """Give the service's page with what the run adds on top; where there is none, a page that says how it ended."""
    measured = record.texts.get("html")
    if measured is not None and record.comparison is None and record.ended == record.verdict and not record.promoted:
        return measured
    told = [_facts(record).replace("`", ""), record.reason, *record.notes]
    title = f"onnxpress: {record.title}"
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(one)}</p>" for one in told if one), *_beside(record)]
    if measured is not None:
        return measured.replace("<main>", f"<main>{''.join(parts)}", 1)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _beside(record: RunRecord) -> Iterator[str]:
    """Yield what the comparison with production says: its figures have a report of their own."""
    if record.comparison is None:
        return
    gates = record.comparison.report["verdict"]["gates"]
    cells = [(gate_name(one), one["outcome"], one["reason"]) for one in gates]
    rows = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in cells)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("gate", "outcome", "reason"))
    yield f"<h2>Beside {escape(record.comparison.named)}</h2><p>{escape(str(record.comparison.report['summary']))}</p>"
    yield f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _printable(text: str) -> str:
    """Leave out what XML cannot hold."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
