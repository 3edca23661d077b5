"""What goes over the wire: the bodies that are taken, and the shape of each noun."""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from fastapi import Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field

import models
from api.errors import ApiError, FieldError
from engine import Compress, DatasetInspection, Inspection

_ID = "[0-9a-hjkmnp-tv-z]{26}"
# Letters of any script, no control characters: no database takes a NUL, and no terminal should.
_TEXT = r"^[^\x00-\x1f\x7f]*$"

ModelId = Annotated[str, Field(pattern=f"^mdl_{_ID}$", examples=["mdl_01jc3f9w3e8q4m2y7d5t6v8xbn"])]
DatasetId = Annotated[str, Field(pattern=f"^dst_{_ID}$", examples=["dst_01jc3f9w3e8q4m2y7d5t6v8xbn"])]
LabelKey = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
LabelValue = Annotated[str, Field(max_length=256, pattern=_TEXT)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32, description="Free words to find jobs by.")]

Name = Annotated[str, Query(min_length=1, max_length=200, pattern=_TEXT, description="For people; need not be unique.")]
WaitForCheck = Annotated[float, Query(ge=0, le=60, description="Seconds to wait until the upload has been inspected.")]
Wait = Annotated[
    float, Query(ge=0, le=60, description="Seconds to wait for a change (with If-None-Match: since that version).")
]
PageSize = Annotated[int, Query(ge=1, le=200, description="At most so many items.")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same body gives the same answer, however often it is sent.",
    ),
]
Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]

View = TypeVar("View", bound=BaseModel)
Row = TypeVar("Row", models.Model, models.Dataset, models.Job)


class CompressJob(Compress):
    """Apply a recipe to a stored network."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "compress",
                    "model": "mdl_01jc3f9w3e8q4m2y7d5t6v8xbn",
                    "dataset": "dst_01jc3f9w3e8q4m2y7d5t6v8xbn",
                    "recipe": {"passes": [{"type": "simplify"}, {"type": "quantize_static"}]},
                    "target": {"provider": "cpu", "threads": 1, "batch": 1},
                    "gates": [{"metric": "top1", "rule": "max_drop", "value": 0.01}],
                    "labels": {"branch": "main"},
                }
            ]
        }
    )

    model: ModelId
    dataset: DatasetId | None = Field(None, description="Needed by passes that calibrate and by gates on quality.")
    labels: Labels = Field(default_factory=dict)

    def spec(self) -> Compress:
        """Give the part that the engine knows."""
        return Compress.model_construct(**{name: getattr(self, name) for name in Compress.model_fields})


# Further kinds of jobs join here, discriminated by `kind`.
NewJob = CompressJob


class Fault(BaseModel):
    """Why a job failed or an upload was rejected; the codes are a closed set."""

    model_config = ConfigDict(extra="allow")

    code: str
    blame: Literal["user", "service", "transient"] = Field("service", alias="class")
    retryable: bool = False
    message: str
    hint: str | None = None
    node: str | None = None
    step: int | None = None


class Page(BaseModel, Generic[View]):
    """A part of a list, the newest first."""

    items: list[View]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null: this is the last one.")


class ModelView(BaseModel):
    """A network."""

    id: str
    name: str
    state: models.ModelState = Field(description="Only a `ready` one can be worked on.")
    sha256: str | None = Field(description="Of the bytes at `content`; null until there are some.")
    artifact: str | None = Field(description="The artifact's digest.")
    size_bytes: int | None
    inspection: Inspection | None
    problem: Fault | None = Field(description="Why it was rejected.")
    tags: list[str]
    alias: str | None
    parent: str | None = Field(description="The model that this one was made from.")
    job: str | None = Field(description="The job that made it.")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: models.Model) -> Self:
        """Show a row."""
        return cls(
            id=row.id,
            name=row.name,
            state=row.in_state,
            sha256=content_sha256(row.artifact),
            artifact=row.artifact_digest,
            size_bytes=row.artifact.size if row.artifact else None,
            inspection=Inspection.model_validate(row.inspection) if row.inspection else None,
            problem=Fault.model_validate(row.problem) if row.problem else None,
            tags=row.tags,
            alias=row.alias,
            parent=row.parent_id,
            job=row.job_id,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class DatasetView(BaseModel):
    """Arrays for calibration and evaluation."""

    id: str
    name: str
    state: models.DatasetState = Field(description="Only a `ready` one can be used.")
    sha256: str | None
    artifact: str | None = Field(description="The artifact's digest.")
    size_bytes: int | None
    metric: str | None = Field(description="What the labels are judged by.")
    inspection: DatasetInspection | None
    problem: Fault | None = Field(description="Why it was rejected.")
    tags: list[str]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: models.Dataset) -> Self:
        """Show a row."""
        inspection = DatasetInspection.model_validate(row.inspection) if row.inspection else None
        return cls(
            id=row.id,
            name=row.name,
            state=row.in_state,
            sha256=content_sha256(row.artifact),
            artifact=row.artifact_digest,
            size_bytes=row.artifact.size if row.artifact else None,
            metric=inspection.metric if inspection else row.metric,
            inspection=inspection,
            problem=Fault.model_validate(row.problem) if row.problem else None,
            tags=row.tags,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class JobView(BaseModel):
    """A piece of work: `status` says how far it is, `verdict` what the gates say of its result."""

    id: str
    kind: str
    status: models.JobStatus
    verdict: Literal["pass", "fail", "inconclusive", "none"]
    model: str
    dataset: str | None
    output_model: str = Field(description="Known from the start; `ready` once the job has succeeded.")
    spec: Compress
    labels: dict[str, str]
    steps: list[dict[str, Any]] = Field(description="Of the recipe, each with its status and, when ended, what it did.")
    progress: dict[str, Any] | None = Field(description="What goes on right now: step, fraction of it, message.")
    summary: dict[str, Any] | None = Field(description="The report's main figures.")
    report: str | None = Field(description="Digest of the artifact that holds report.json and report.md.")
    problem: Fault | None = Field(description="Why it failed.")
    warnings: list[str]
    isolation: str | None = Field(description="How strongly the process that touched the network was confined.")
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str]

    @classmethod
    def of(cls, row: models.Job) -> Self:
        """Show a row."""
        base = f"/v1/jobs/{row.id}"
        links = {"self": base, "cancel": f"{base}:cancel", "output": f"/v1/models/{row.output_model_id}/content"}
        if row.report_digest:
            links["report"] = f"{base}/report"
        return cls(
            id=row.id,
            kind=row.kind,
            status=row.in_status,
            verdict=row.verdict,
            model=row.model_id,
            dataset=row.dataset_id,
            output_model=row.output_model_id,
            spec=Compress.model_validate(row.spec),
            labels=row.labels,
            steps=row.steps,
            progress=row.progress,
            summary=row.summary,
            report=row.report_digest,
            problem=Fault.model_validate(row.problem) if row.problem else None,
            warnings=row.warnings,
            isolation=row.isolation,
            created_at=row.created_at,
            updated_at=row.updated_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            links=links,
        )


def job_etag(row: models.Job) -> str:
    """Name the state of a job that an answer shows."""
    return f'"{row.id}.{row.version}"'


def content_sha256(artifact: models.Artifact | None) -> str | None:
    """Give the digest of the bytes that a download of the artifact gives, where it is one file."""
    if artifact is None or len(artifact.files) != 1:
        return None
    return artifact.files[0].sha256


def page(view: Callable[[Row], View], rows: Sequence[Row], limit: int) -> Page[View]:
    """Make a page of at most `limit` rows; one more of them tells that there is a next page."""
    shown = rows[:limit]
    following = base64.urlsafe_b64encode(shown[-1].id.encode()).decode().rstrip("=") if len(rows) > limit else None
    return Page(items=[view(row) for row in shown], next_cursor=following)


def read_cursor(cursor: str | None) -> str | None:
    """Give the row that a cursor continues after."""
    if cursor is None:
        return None
    try:
        found = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, UnicodeError, ValueError):
        found = ""
    if not re.fullmatch(f"[a-z]{{3}}_{_ID}", found):
        wrong = FieldError(parameter="cursor", detail="This is no cursor that a list has given.")
        raise ApiError(422, "The cursor is not valid.", errors=[wrong])
    return found
