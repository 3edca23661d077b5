"""What came of one command that had a job done: for its reports, for its pipeline, and for its exit code."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from onnxpress import wording
from onnxpress.documents import Job, Outcome
from onnxpress.errors import JobFailedError, OnnxpressError, ServiceError, WaitTimeoutError
from onnxpress.exit_codes import ExitCode, code_of, code_of_verdict
from onnxpress.report_formats import Form

Json = Mapping[str, Any]
Ended = Literal[
    "pass",
    "fail",
    "inconclusive",
    "none",
    "job_failed",
    "timeout",
    "interrupted",
    "service_unavailable",
    "refused",
    "error",
]
# How an end is called in a title.
WORDS: Mapping[Ended, str] = {
    "pass": "pass",
    "fail": "FAIL",
    "inconclusive": "inconclusive",
    "none": "no gates",
    "job_failed": "the job failed",
    "timeout": "timed out",
    "interrupted": "interrupted",
    "service_unavailable": "the service is away",
    "refused": "refused",
    "error": "unexpected error",
}
_WORST_FIRST: tuple[Outcome, ...] = ("fail", "inconclusive", "pass", "none")


@dataclass(frozen=True)
class Comparison:
    """The result beside the network that it is to replace: a profile of both, judged by gates of its own."""

    named: str
    model: str
    job: Job
    report: Json


@dataclass
class RunRecord:
    """Filled in as the command goes on; what it holds at the end is what its reports say."""

    kind: str
    # What was asked about: a file's name or a model's id.
    subject: str
    url: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    job: Job | None = None
    report: Json | None = None
    comparison: Comparison | None = None
    promoted: str | None = None
    # What is to be said beside the figures.
    notes: list[str] = field(default_factory=list)
    # The service's reports of the job and of the comparison, by form.
    texts: dict[Form, str] = field(default_factory=dict)
    texts_beside: dict[Form, str] = field(default_factory=dict)
    ended: Ended = "error"
    reason: str | None = None
    exit_code: int = int(ExitCode.UNEXPECTED)
    skipped: bool = False
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def verdict(self) -> Outcome:
        """The worst of what the gates say, those on the network that it is to replace among them."""
        jobs = [self.job, self.comparison.job if self.comparison else None]
        outcomes = {job.verdict for job in jobs if job is not None}
        return next((each for each in _WORST_FIRST if each in outcomes), "none")

    @property
    def title(self) -> str:
        """How it ended, in a few words."""
        return f"skipped, {WORDS[self.ended]}" if self.skipped else WORDS[self.ended]

    def judged(self, on_inconclusive: ExitCode) -> ExitCode:
        """Take the gates' verdict as the end; gives the exit code."""
        self.ended = self.verdict
        code = on_inconclusive if self.verdict == "inconclusive" else code_of_verdict(self.verdict)
        self.exit_code = int(code)
        return code

    def failed(self, error: OnnxpressError, *, skip_outage: bool) -> None:
        """Take an error as the end; with `skip_outage` a service that is away is no failure of the pipeline."""
        self.ended, self.reason, self.exit_code = _kind_of(error), str(error), int(code_of(error))
        if isinstance(error, JobFailedError) or (isinstance(error, WaitTimeoutError) and error.job is not None):
            # A comparison's job is not the one that the run is about.
            self.job = error.job if self.job is None or self.job.id == getattr(error.job, "id", None) else self.job
        if skip_outage and isinstance(error, ServiceError):
            self.skipped, self.exit_code = True, int(ExitCode.OK)

    def interrupted(self) -> None:
        """Take Ctrl-C or SIGTERM as the end."""
        self.ended, self.reason = "interrupted", "The run was interrupted before there was a result."
        self.exit_code = int(ExitCode.INTERRUPTED)

    def gates(self) -> Iterator[tuple[str, Json]]:
        """Yield every judged gate with what it compares with: `` for the original."""
        for named, report in (
            ("", self.report),
            (self.comparison.named, self.comparison.report) if self.comparison else ("", None),
        ):
            for one in (report or {}).get("verdict", {}).get("gates", ()):
                yield named, one

    def unfinished(self) -> dict[str, Any]:
        """Give what stands for a report where there is none, as the service writes it; without a job its status is `none`."""
        problem = (self.job.document.get("problem") if self.job else None) or {}
        return {
            "version": 1,
            "kind": "unfinished",
            "job_kind": self.job.kind if self.job else self.kind,
            "status": self.job.status if self.job else "none",
            "reason": problem.get("message") or self.reason,
            **{name: problem.get(name) for name in ("code", "hint", "node", "step")},
        }

    def document(self) -> dict[str, Any]:
        """Give the run as JSON, as `run.schema.json` describes it."""
        found: dict[str, Any] = {
            "version": 1,
            "ended": self.ended,
            "reason": self.reason,
            "exit_code": self.exit_code,
            "skipped": self.skipped,
            "model": self.subject,
            "job": self.job.id if self.job else None,
            "output_model": self.job.output_model if self.job else None,
            "labels": dict(self.labels),
            "began": self.began.isoformat(timespec="seconds"),
            "service": self.url or None,
            "promoted": self.promoted,
            "notes": list(self.notes),
        }
        if self.comparison is not None:
            one = self.comparison
            found["beside"] = {"named": one.named, "model": one.model, "job": one.job.id, "report": dict(one.report)}
        return found

    def outputs(self) -> dict[str, str]:
        """Give what later steps of a pipeline go by."""
        size = (self.report or {}).get("size") or {}
        latency = (self.report or {}).get("latency") or {}
        told: dict[str, object] = {
            "ended": self.ended,
            "verdict": self.verdict,
            "exit-code": self.exit_code,
            "skipped": str(self.skipped).lower(),
            "job": self.job.id if self.job else "",
            "output-model": (self.job.output_model or "") if self.job and self.job.succeeded else "",
            "promoted": self.promoted or "",
            "size-ratio": f"{size['compressed'] / size['original']:.4f}" if size else "",
            "speedup": f"{1 / latency['ratios']['p50']['value']:.3f}" if latency else "",
        }
        return {name: str(value) for name, value in told.items()}


def gate_name(result: Json) -> str:
    """Write a judged gate as a job may."""
    return wording.gate_text(result["gate"])


def _kind_of(error: OnnxpressError) -> Ended:
    match error:
        case JobFailedError():
            return "job_failed"
        case WaitTimeoutError():
            return "timeout"
        case ServiceError():
            return "service_unavailable"
    return "refused"
