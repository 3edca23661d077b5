"""A report in every format, by the name of its file."""

from engine.report.junit import junit
from engine.report.markdown import markdown
from engine.report.openmetrics import prometheus
from engine.report.values import AnyReport


def report_files(report: AnyReport) -> dict[str, bytes]:
    """Give a report in every format, by the name of its file."""
    return {
        "report.md": markdown(report).encode(),
        "report.junit.xml": junit(report),
        "report.prom": prometheus(report).encode(),
        # Last: who finds it finds the others.
        "report.json": report.model_dump_json(indent=2).encode(),
    }
