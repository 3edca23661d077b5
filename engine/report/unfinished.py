"""What is to be read of a job that ended without a result: that, and why."""

from typing import Literal
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field

from engine.report.junit import printable
from engine.report.openmetrics import family, openmetrics, verdict_family


class Unfinished(BaseModel):
    """A job that failed or was cancelled; `code`, `reason` and the rest are of its problem, where it has one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1] = 1
    kind: Literal["unfinished"] = "unfinished"
    job_kind: str = Field(description="What the job was to do.")
    status: str = Field(description="`failed` or `cancelled`.")
    code: str | None = None
    reason: str | None = None
    hint: str | None = Field(None, description="What to do about it.")
    node: str | None = Field(None, description="The node of the network that it is about.")
    step: int | None = Field(None, description="Index of the step that it is about.")

    @property
    def title(self) -> str:
        """What happened to it."""
        return f"The {self.job_kind} job {self._did}"

    @property
    def said(self) -> str:
        """Why, in a sentence; where nobody said it, what happened."""
        return self.reason or f"The job {self._did}."

    @property
    def _did(self) -> str:
        return "was cancelled" if self.status == "cancelled" else self.status


def unfinished_files(job: Unfinished) -> dict[str, bytes]:
    """Give every format that a report has, by the name of the file."""
    unfinished = [(f'status="{job.status}"', 1.0)]
    return {
        "report.json": job.model_dump_json(indent=2).encode(),
        "report.md": _markdown(job).encode(),
        "report.junit.xml": _junit(job),
        "report.prom": openmetrics([*verdict_family(None), *family("unfinished", unfinished)]).encode(),
    }


def _markdown(job: Unfinished) -> str:
    lines = [f"# {job.title}", "", f"**{job.said}**"]
    lines += ["", job.hint] if job.hint else []
    lines += ["", f"Code: `{job.code}`."] if job.code else []
    return "\n".join(lines) + "\n"


def _junit(job: Unfinished) -> bytes:
    """Give a suite of one case, an error: that is how pipelines tell what broke from what was judged."""
    suite = ET.Element(
        "testsuite", name=f"onnxpress {job.job_kind}", tests="1", failures="0", errors="1", skipped="0", time="0"
    )
    case = ET.SubElement(suite, "testcase", classname=f"onnxpress.{job.job_kind}", name="the job ended")
    error = ET.SubElement(case, "error", message=printable(job.said), type=job.code or job.status)
    error.text = printable(job.hint or "")
    return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True))
