"""Reports in the form that a file's name asks for."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from onnxpress.client import Client

Form = Literal["json", "md", "junit.xml", "prom", "html"]
_FORMS: dict[str, Form] = {".json": "json", ".xml": "junit.xml", ".prom": "prom", ".html": "html"}
FORMS_HELP = ".json, .xml (JUnit), .prom (OpenMetrics), .html (one file that opens anywhere), else Markdown"


def form_of(path: Path) -> Form:
    """Give the form that a file's name asks for."""
    return _FORMS.get(path.suffix, "md")


def report_text(client: Client, job_id: str, form: Form) -> str:
    """Give a job's report in one form."""
    return (
        json.dumps(client.jobs.report(job_id), indent=2)
        if form == "json"
        else client.jobs.report_markdown(job_id)
        if form == "md"
        else client.jobs.report_as(job_id, form)
    )


def report_texts(client: Client, job_id: str, forms: Iterable[Form]) -> dict[Form, str]:
    """Give a job's report in several forms, JSON left out: that one is at hand."""
    return {form: report_text(client, job_id, form) for form in sorted({*forms} - {"json"})}
