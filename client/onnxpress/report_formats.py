"""Reports in the form that a file's name asks for."""

import json
from pathlib import Path

from onnxpress.client import Client


def report_text(client: Client, job_id: str, path: Path) -> str:
    """Give a report in the form that a file's name asks for: JSON, JUnit for .xml, Prometheus for .prom, else Markdown."""
    match path.suffix:
        case ".json":
            return json.dumps(client.jobs.report(job_id), indent=2)
        case ".xml":
            return client.jobs.report_as(job_id, "junit.xml")
        case ".prom":
            return client.jobs.report_as(job_id, "prom")
    return client.jobs.report_markdown(job_id)
