"""What is to be read of a job that ended without a result: that, and why."""

from dataclasses import dataclass
from xml.etree import ElementTree as ET

from engine.report.junit import printable

_GAUGE = "onnxpress_report_verdict"


@dataclass(frozen=True)
class Unfinished:
    """A job that failed or was cancelled; `code`, `reason` and `hint` are of its problem, where it has one."""

    kind: str
    status: str
    code: str | None = None
    reason: str | None = None
    hint: str | None = None


def unfinished_files(job: Unfinished) -> dict[str, bytes]:
    """Give the formats that people and pipelines read, by the name of the file; there are no figures for the others."""
    return {
        "report.md": _markdown(job).encode(),
        "report.junit.xml": _junit(job),
        "report.prom": _prometheus(job).encode(),
    }


def _markdown(job: Unfinished) -> str:
    lines = [f"# The {job.kind} job {_did(job)}", "", f"**{_said(job)}**"]
    lines += ["", job.hint] if job.hint else []
    lines += ["", f"Code: `{job.code}`."] if job.code else []
    return "\n".join(lines) + "\n"


def _junit(job: Unfinished) -> bytes:
    """Give a suite of one case, an error: that is how pipelines tell what broke from what was judged."""
    suite = ET.Element(
        "testsuite", name=f"onnxpress {job.kind}", tests="1", failures="0", errors="1", skipped="0", time="0"
    )
    case = ET.SubElement(suite, "testcase", classname=f"onnxpress.{job.kind}", name="the job ended")
    error = ET.SubElement(case, "error", message=printable(_said(job)), type=job.code or job.status)
    error.text = printable(job.hint or "")
    return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def _prometheus(job: Unfinished) -> str:
    lines = [f"# TYPE {_GAUGE} gauge"]
    lines += [f'{_GAUGE}{{outcome="{outcome}"}} 0' for outcome in ("pass", "fail", "inconclusive", "none")]
    lines += ["# TYPE onnxpress_report_unfinished gauge", f'onnxpress_report_unfinished{{status="{job.status}"}} 1']
    return "\n".join([*lines, "# EOF"]) + "\n"


def _did(job: Unfinished) -> str:
    return "was cancelled" if job.status == "cancelled" else job.status


def _said(job: Unfinished) -> str:
    return job.reason or f"The job {_did(job)}."
