"""A report in every format, by the name of its file."""

from engine.report.junit import junit
from engine.report.markdown import markdown
from engine.report.openmetrics import prometheus
from engine.report.values import AnyReport

# The formats of a report, each with its media type; a report's files are called `report.<format>`.
REPORT_FORMATS: dict[str, str] = {
    "json": "application/json",
    "md": "text/markdown",
    "junit.xml": "application/xml",
    # Of Prometheus' text format.
    "prom": "text/plain; version=0.0.4",
}


def report_files(report: AnyReport) -> dict[str, bytes]:
    """Give a report in every format, by the name of its file."""
    return {
        "report.md": markdown(report).encode(),
        "report.junit.xml": junit(report),
        "report.prom": prometheus(report).encode(),
        # Last: who finds it finds the others.
        "report.json": report.model_dump_json(indent=2).encode(),
    }
