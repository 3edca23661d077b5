"""What goes over the wire: the bodies that are taken, and the shape of each noun."""

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from fastapi import Header, Path, Query, Response
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    model_validator,
)
from pydantic_core import PydanticCustomError

import models
from api.errors import ApiError, FieldError, Problem
from engine import (
    Compress,
    DatasetInspection,
    Estimate,
    GateSamples,
    Inspection,
    OutputDeclaration,
    Profile,
    Search,
    default_kind,
    read_spec,
)
from services import aliases, catalog, jobs, overview

_ID = "[0-9a-hjkmnp-tv-z]{26}"
# Letters of any script, no control characters: no database takes a NUL, and no terminal should.
_TEXT = r"^[^\x00-\x1f\x7f]*$"

_ALIAS = "[a-z0-9][a-z0-9._-]{0,63}"
_VERSION = r"[^\x00-\x1f\x7f]{1,200}@[1-9][0-9]{0,8}"
ModelId = Annotated[
    str,
    Field(
        pattern=f"^(mdl_{_ID}|@{_ALIAS}|{_VERSION})$",
        description="A model's id; or `@` and an alias: the model that has it at that moment; or `NAME@VERSION`, such as `net@3`.",
        examples=["mdl_01jc3f9w3e8q4m2y7d5t6v8xbn"],
    ),
]
DatasetId = Annotated[str, Field(pattern=f"^dst_{_ID}$", examples=["dst_01jc3f9w3e8q4m2y7d5t6v8xbn"])]
LabelKey = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
LabelValue = Annotated[str, Field(max_length=256, pattern=_TEXT)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32, description="Free words to find jobs by.")]

Name = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=200,
        pattern=_TEXT,
        description="For people; need not be unique. By default the name of the form's file.",
    ),
]
NewName = Annotated[str, Field(min_length=1, max_length=200, pattern=_TEXT)]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=_TEXT)]
Tags = Annotated[list[Tag], Query(description="Only those with this tag; several must all be there.", max_length=8)]
Alias = Annotated[str, Field(pattern=f"^{_ALIAS}$", examples=["production"])]
AliasName = Annotated[str, Path(pattern=f"^{_ALIAS}$")]
WaitForCheck = Annotated[float, Query(ge=0, le=60, description="Seconds to wait until the upload has been inspected.")]
Wait = Annotated[
    float, Query(ge=0, le=60, description="Seconds to wait for a change (with If-None-Match: since that version).")
]
WaitForAnalysis = Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the result.")]
PageSize = Annotated[int, Query(ge=1, le=200, description="At most so many items.")]
Cursor = Annotated[str | None, Query(pattern="^[A-Za-z0-9_-]{40}$", description="`next_cursor` of the page before.")]
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

_JUDGE = (
    "A second dataset: the report's quality and the gates on it are computed on this one alone, and nothing that is chosen"
    " has seen it."
)

View = TypeVar("View", bound=BaseModel)
Row = TypeVar("Row", models.Model, models.Dataset, models.Job, models.Audit, models.WebhookDelivery)


class _Asked(BaseModel):
    """What a job of any kind says beside what the engine is to do."""

    model: ModelId
    judge: DatasetId | None = Field(None, description=_JUDGE)
    labels: Labels = Field(default_factory=dict)
    priority: int = Field(0, ge=-100, le=100, description="The higher, the sooner among your own jobs.")


class CompressJob(Compress, _Asked):
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

    dataset: DatasetId | None = Field(None, description="Needed by passes that calibrate and by gates on quality.")
    student: ModelId | None = Field(
        None,
        description="A network of another architecture with the same inputs and outputs: the recipe works on it instead of the"
        " model, and a step that distils teaches it. Everything is measured beside the model all the same.",
    )
    teacher: ModelId | None = Field(
        None,
        description="A network with the same inputs and outputs that a step that distils learns from; by default the model.",
    )
    cache: Literal["use", "refuse"] = Field(
        "use",
        description="`use`: where the same work was done before, its result answers at once; `refuse`: do it again.",
    )

    def request(self) -> jobs.Request:
        """Give what the services are asked for."""
        return jobs.Request(
            self.model,
            self.dataset,
            self.spec(),
            self.labels,
            priority=self.priority,
            cache=self.cache,
            judge_id=self.judge,
            student_id=self.student,
            teacher_id=self.teacher,
        )

    def spec(self) -> Compress:
        """Give the part that the engine knows."""
        return Compress.model_construct(**{name: getattr(self, name) for name in Compress.model_fields})


class ProfileJob(Profile, _Asked):
    """Measure a stored network as it is, on one or more targets; it makes no new one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "profile",
                    "model": "mdl_01jc3f9w3e8q4m2y7d5t6v8xbn",
                    "targets": [{"provider": "cpu", "threads": 1}, {"provider": "cpu", "threads": 2}],
                    "gates": [{"metric": "latency_p99", "rule": "max", "value": 8.0, "provider": "cpu"}],
                    "labels": {"branch": "main"},
                }
            ]
        }
    )

    baseline: ModelId | None = Field(None, description="A network that it is compared with, run by run in turn.")
    dataset: DatasetId | None = Field(None, description="Inputs to run on, and what quality is judged by.")

    def request(self) -> jobs.Request:
        """Give what the services are asked for."""
        return jobs.Request(
            self.model,
            self.dataset,
            self.spec(),
            self.labels,
            priority=self.priority,
            baseline_id=self.baseline,
            judge_id=self.judge,
        )

    def spec(self) -> Profile:
        """Give the part that the engine knows."""
        return Profile.model_construct(**{name: getattr(self, name) for name in Profile.model_fields})


class SearchJob(Search, _Asked):
    """Say what a deployment needs, and have the network found that gives the most of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "search",
                    "model": "mdl_01jc3f9w3e8q4m2y7d5t6v8xbn",
                    "dataset": "dst_01jc3f9w3e8q4m2y7d5t6v8xbn",
                    "goal": {
                        "minimise": "latency",
                        "subject_to": [{"metric": "top1", "rule": "max_drop", "value": 0.01}],
                        "effort": "medium",
                    },
                    "target": {"provider": "cpu", "threads": 1, "batch": 1},
                    "labels": {"branch": "main"},
                }
            ]
        }
    )

    dataset: DatasetId | None = Field(
        None, description="What candidates are refitted and chosen by; without it only the storage of numbers changes."
    )
    cache: Literal["use", "refuse"] = Field(
        "use",
        description="`use`: where the same search was done before, its result answers at once; `refuse`: do it again.",
    )

    def request(self) -> jobs.Request:
        """Give what the services are asked for."""
        return jobs.Request(
            self.model,
            self.dataset,
            self.spec(),
            self.labels,
            priority=self.priority,
            cache=self.cache,
            judge_id=self.judge,
        )

    def spec(self) -> Search:
        """Give the part that the engine knows."""
        return Search.model_construct(**{name: getattr(self, name) for name in Search.model_fields})


class NewJob(RootModel[Annotated[CompressJob | ProfileJob | SearchJob, Field(discriminator="kind")]]):
    """A job of any kind; without `kind` it is `search` where it has a `goal`, else `compress`."""

    @model_validator(mode="before")
    @classmethod
    def _with_kind(cls, body: Any) -> Any:
        return default_kind(body)

    def request(self) -> jobs.Request:
        """Give what the services are asked for."""
        return self.root.request()


AnySpec = Annotated[Compress | Profile | Search, Field(discriminator="kind")]


class Fault(BaseModel):
    """Why a job failed or an upload was rejected; the codes are a closed set."""

    model_config = ConfigDict(extra="allow", json_schema_serialization_defaults_required=True)

    code: str
    blame: Literal["user", "service", "transient"] = Field("service", alias="class")
    retryable: bool = False
    message: str
    hint: str | None = None
    node: str | None = None
    step: int | None = None


class _Changes(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: NewName | None = None
    tags: list[Tag] | None = Field(None, max_length=32)


class ModelChanges(_Changes):
    """What is to change of a network; what is left out stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "net", "tags": ["int8"], "alias": "production"}]}
    )

    alias: Alias | None = Field(
        None,
        description="A name that one network has at a time: it moves here from whichever had it, beside the aliases that are"
        " here already. null takes all of them away.",
    )

    def changes(self) -> catalog.Changes:
        """Give what the services are asked for."""
        alias = self.alias or "" if "alias" in self.model_fields_set else None
        return catalog.Changes(self.name, self.tags, alias)


class DatasetChanges(_Changes):
    """What is to change of a dataset; what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "calibration", "tags": ["small"]}]})

    def changes(self) -> catalog.Changes:
        """Give what the services are asked for."""
        return catalog.Changes(self.name, self.tags)


class Page(BaseModel, Generic[View]):
    """A part of a list, the newest first."""

    items: list[View]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null: this is the last one.")


class ModelSummary(BaseModel):
    """A network as lists show it; what it is, its inspection, stands with itself."""

    id: str
    name: str
    version: int | None = Field(
        description="Which one of its name it is, from 1: `NAME@VERSION` stands for the id. The same bytes under a name are the same"
        " version, and no other bytes ever get its number. null: it is not ready."
    )
    state: models.ModelState = Field(description="Only a `ready` one can be worked on.")
    sha256: str | None = Field(description="Of the bytes at `content`; null until there are some.")
    artifact: str | None = Field(description="The artifact's digest.")
    size_bytes: int | None
    problem: Fault | None = Field(description="Why it was rejected.")
    tags: list[str]
    alias: str | None = Field(description="The alias that it got last.")
    aliases: list[str] = Field(description="Every alias that it has; `@` and one of them names it in place of the id.")
    parent: str | None = Field(description="The model that this one was made from.")
    job: str | None = Field(description="The job that made it.")
    expires_at: datetime | None = Field(
        None,
        description="When it is removed with its job, unless something names it until then: an alias, a tag, a job. null: it is kept.",
    )
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: models.Model, expires_at: datetime | None = None, **more: Any) -> Self:
        """Show a row."""
        return cls(
            id=row.id,
            name=row.name,
            version=row.version,
            state=row.in_state,
            sha256=content_sha256(row.artifact),
            artifact=row.artifact_digest,
            size_bytes=row.artifact.size if row.artifact else None,
            problem=Fault.model_validate(row.problem) if row.problem else None,
            tags=row.tags,
            alias=row.alias,
            aliases=[one.name for one in row.aliases],
            parent=row.parent_id,
            job=row.job_id,
            expires_at=expires_at,
            created_at=row.created_at,
            updated_at=row.updated_at,
            **more,
        )


class ModelView(ModelSummary):
    """A network; several files, where it has external data, are one zip at `content`."""

    inspection: Inspection | None

    @classmethod
    def of(cls, row: models.Model, expires_at: datetime | None = None, **more: Any) -> Self:
        """Show a row."""
        inspection = Inspection.model_validate(row.inspection) if row.inspection else None
        return super().of(row, expires_at, inspection=inspection, **more)


class _Move(BaseModel):
    model_config = ConfigDict(extra="forbid")

    expected: Annotated[str, Field(pattern=f"^mdl_{_ID}$")] | None = Field(
        None,
        description="The model that has the alias as far as you know, null: none. Where another one has it by now, nothing is"
        " moved and the answer is 409. Left out, it is moved whoever has it.",
    )
    note: str | None = Field(None, max_length=500, pattern=_TEXT, description="Why, for the history.")

    def expects(self) -> aliases.Expected | None:
        """Give what was said of the model that has it, if anything was."""
        return aliases.Expected(self.expected) if "expected" in self.model_fields_set else None


class AliasTarget(_Move):
    """Which network an alias is to name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "mdl_01jc3f9w3e8q4m2y7d5t6v8xbn"}]})

    model: ModelId


class AliasRollback(_Move):
    """That an alias is to name what it named before."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "p99 rose"}]})


class AliasView(BaseModel):
    """A name that one network has at a time."""

    name: str
    model: str = Field(description="The model that has it now.")
    moved_at: datetime

    @classmethod
    def of(cls, row: models.Alias) -> Self:
        """Show a row."""
        return cls(name=row.name, model=row.model_id, moved_at=row.moved_at)


class AliasMoveView(BaseModel):
    """One move of an alias."""

    model: str | None = Field(description="null: it was taken away.")
    rollback: bool
    key: str | None = Field(description="Id of the key that it came with.")
    note: str | None
    at: datetime

    @classmethod
    def of(cls, row: models.AliasMove) -> Self:
        """Show a row."""
        return cls(model=row.model_id, rollback=row.is_rollback, key=row.key_id, note=row.note, at=row.created_at)


class AliasHistoryView(AliasView):
    """An alias with its last moves."""

    history: list[AliasMoveView] = Field(description="The newest first; the last 20 are remembered, their models kept.")


class AliasList(BaseModel):
    """Every alias of the tenant, by name."""

    items: list[AliasView]


class AnalysisView(BaseModel):
    """An analysis that is under way."""

    model: str
    status: Literal["queued", "running"]


class LineageNode(BaseModel):
    """A network in a lineage."""

    id: str
    name: str
    state: models.ModelState = Field(description="A `deleted` one is only remembered.")
    size_bytes: int | None
    parent: str | None
    job: str | None

    @classmethod
    def of(cls, row: models.Model) -> Self:
        """Show a row."""
        return cls(
            id=row.id,
            name=row.name,
            state=row.in_state,
            # Of what was deleted no more is left of its inspection.
            size_bytes=row.artifact.size if row.artifact else (row.inspection or {}).get("size_bytes"),
            parent=row.parent_id,
            job=row.job_id,
        )


class LineageView(BaseModel):
    """Where a network comes from and what was made from it."""

    model: str
    ancestors: list[LineageNode] = Field(description="The nearest first.")
    descendants: list[LineageNode] = Field(description="Generation by generation.")
    complete: bool = Field(description="False: there are more than are shown.")


class DatasetSummary(BaseModel):
    """Arrays for calibration and evaluation as lists show them; what they are, their inspection, stands with themselves."""

    id: str
    name: str
    state: models.DatasetState = Field(description="Only a `ready` one can be used.")
    sha256: str | None
    artifact: str | None = Field(description="The artifact's digest.")
    size_bytes: int | None
    outputs: dict[str, OutputDeclaration] = Field(description="What was declared of the network's outputs.")
    problem: Fault | None = Field(description="Why it was rejected.")
    tags: list[str]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: models.Dataset, **more: Any) -> Self:
        """Show a row."""
        return cls(
            id=row.id,
            name=row.name,
            state=row.in_state,
            sha256=content_sha256(row.artifact),
            artifact=row.artifact_digest,
            size_bytes=row.artifact.size if row.artifact else None,
            outputs=row.declaration.get("outputs", {}),
            problem=Fault.model_validate(row.problem) if row.problem else None,
            tags=row.tags,
            created_at=row.created_at,
            updated_at=row.updated_at,
            **more,
        )


class DatasetView(DatasetSummary):
    """Arrays for calibration and evaluation."""

    metric: str | None = Field(description="What the labels are judged by.")
    inspection: DatasetInspection | None

    @classmethod
    def of(cls, row: models.Dataset, **more: Any) -> Self:
        """Show a row."""
        inspection = DatasetInspection.model_validate(row.inspection) if row.inspection else None
        return super().of(row, metric=row.declared.get("metric"), inspection=inspection, **more)


class JobOutput(BaseModel):
    """A network that a job makes."""

    name: str = Field(description="What it is among the job's outputs; the first one is `model`.")
    model: str = Field(description="Its id, known from the start.")


class PlaceInQueue(BaseModel):
    """Where a queued job stands among all that the same workers take; turns go round among tenants."""

    ahead: int = Field(description="How many run, or have their turn before: jobs, and candidates of searches.")
    begins_in_s: float | None = Field(
        description="In how many seconds it may begin, by what the last ones took; null: nobody knows."
    )
    slots: int = Field(description="How many the workers that are there take at a time; 0: nobody is there to take it.")

    @classmethod
    def of(cls, place: overview.Place | None) -> Self | None:
        """Show a place, if there is one."""
        return None if place is None else cls(ahead=place.ahead, begins_in_s=place.seconds, slots=place.slots)


class JobSummary(BaseModel):
    """A piece of work as lists show it: its spec, its steps and its warnings stand with itself."""

    id: str
    kind: str
    status: models.JobStatus
    verdict: Literal["pass", "fail", "inconclusive", "none"]
    model: str
    dataset: str | None
    judge: str | None = Field(description="The dataset that quality is judged on, where it is one of its own.")
    baseline: str | None = Field(description="The model that a profile compares with.")
    student: str | None = Field(description="The network that it starts from, where that is not `model`.")
    teacher: str | None = Field(description="The network that it learns from, where that is not `model`.")
    output_model: str | None = Field(
        description="Known from the start; `ready` once the job has succeeded. null: a profile makes none."
    )
    outputs: list[JobOutput] = Field(description="Every model that it makes, `output_model` first.")
    labels: dict[str, str]
    priority: int
    cache: Literal["miss", "hit", "refused"] = Field(description="`hit`: an earlier job's result answered at once.")
    cached_from: str | None = Field(description="The job that did the work.")
    retry_of: str | None = Field(description="The job that this one tries again.")
    queue: PlaceInQueue | None = Field(
        None, description="Its place while it is queued; null otherwise, and in answers that change a job."
    )
    progress: dict[str, Any] | None = Field(description="What goes on right now: step, fraction of it, message.")
    summary: dict[str, Any] | None = Field(description="The report's main figures.")
    report: str | None = Field(description="Digest of the artifact that holds report.json and report.md.")
    problem: Fault | None = Field(description="Why it failed.")
    isolation: str | None = Field(description="How strongly the process that touched the network was confined.")
    paused_at: datetime | None = Field(
        description="Since when a search is paused: what of it runs ends, nothing more is queued. null: it goes on."
    )
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str]

    @classmethod
    def of(cls, row: models.Job, **more: Any) -> Self:
        """Show a row."""
        base = f"/v1/jobs/{row.id}"
        links = {
            "self": base,
            "cancel": f"{base}:cancel",
            "events": f"{base}/events",
            "logs": f"{base}/logs",
        }
        if row.kind == "search":
            links |= {"trials": f"{base}/trials", "front": f"{base}/front"}
        if row.output_model_id:
            links["output"] = f"/v1/models/{row.output_model_id}/content"
        if row.report_digest:
            links["report"] = f"{base}/report"
        return cls(
            id=row.id,
            kind=row.kind,
            status=row.in_status,
            verdict=row.verdict,
            model=row.model_id,
            dataset=row.dataset_id,
            judge=row.judge_id,
            baseline=row.baseline_id,
            student=row.student_id,
            teacher=row.teacher_id,
            output_model=row.output_model_id,
            outputs=[JobOutput(name=name, model=model_id) for name, model_id in row.named_outputs.items()],
            labels=row.labels,
            priority=row.priority,
            cache=row.cache,
            cached_from=row.cached_from,
            retry_of=row.retry_of,
            progress=row.progress,
            summary=row.summary,
            report=row.report_digest,
            problem=Fault.model_validate(row.problem) if row.problem else None,
            isolation=row.isolation,
            paused_at=None if models.is_final(row.in_status) else row.paused_at,
            created_at=row.created_at,
            updated_at=row.updated_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            links=links,
            **more,
        )


class JobView(JobSummary):
    """A piece of work: `status` says how far it is, `verdict` what the gates say of its result."""

    spec: AnySpec
    steps: list[dict[str, Any]] = Field(
        description="Of the recipe, or a profile's targets: each with its status and, when ended, what came of it."
    )
    warnings: list[str]

    @classmethod
    def of(cls, row: models.Job, **more: Any) -> Self:
        """Show a row."""
        # Most of what showing a job takes, and the same however often it is shown.
        spec = _spec(json.dumps(row.spec))
        return super().of(row, spec=spec, steps=row.steps, warnings=row.warnings, **more)


class PlanView(BaseModel):
    """What would come of a job, if it were posted now."""

    valid: bool
    problem: Problem | None = Field(description="What POST /v1/jobs would answer instead of accepting it.")
    spec: AnySpec = Field(description="With every default filled in.")
    warnings: list[str]
    gate_samples: list[GateSamples] = Field(
        [],
        description="Of gates on quality whose limit tells how many samples they take: how many, and how many judge.",
    )
    cache: Literal["miss", "hit", "refused"] = Field(description="`hit`: an earlier job's result would answer at once.")
    cached_from: str | None
    waits_for: str | None = Field(description="The job that is still to make the model.")
    estimate: Estimate | None = Field(
        None, description="What the work would take; null where it is not known, and where an earlier result answers."
    )


def _text_only(value: object) -> object:
    if not isinstance(value, str | datetime):
        raise PydanticCustomError("moment", "Give a date and time with its zone as text, like 2040-01-01T00:00:00Z.")
    return value


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError(
            "moment", "In UTC this moment is outside of the calendar: the years 1 to 9999."
        ) from None


# Numbers would be read as seconds since 1970, which the description does not say.
Moment = Annotated[AwareDatetime, BeforeValidator(_text_only), AfterValidator(_in_utc)]


class NewKeyBody(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "ci", "scopes": ["write"]}]})

    name: NewName
    scopes: list[Literal["read", "write", "admin", "metrics", "operator"]] = Field(
        min_length=1,
        max_length=5,
        description="`operator`, which reaches over all tenants, is given by keys that have it.",
    )
    expires_at: Moment | None = Field(None, description="null: never.")


class KeyChanges(BaseModel):
    """A new end of a key's validity."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"expires_at": "2040-01-01T00:00:00Z"}]})

    expires_at: Moment | None = Field(description="null: never.")


class KeyView(BaseModel):
    """A key, without its secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: models.ApiKey) -> Self:
        """Show a row."""
        return cls.model_validate({name: getattr(row, name) for name in KeyView.model_fields})


class NewKeyView(KeyView):
    """A key that was just made."""

    key: str | None = Field(
        description="What goes into the header Authorization. Shown once: null where the same Idempotency-Key made it before."
    )


class AuditView(BaseModel):
    """One change: who asked for it and what it was about."""

    id: str
    key: str = Field(description="Id of the key that it came with.")
    action: str = Field(description="The operation, by its name in this description.")
    subject: str | None = Field(description="What was made or changed.")
    request_id: str
    at: datetime

    @classmethod
    def of(cls, row: models.Audit) -> Self:
        """Show a row."""
        return cls(
            id=row.id,
            key=row.key_id,
            action=row.action,
            subject=row.subject_id,
            request_id=row.request_id,
            at=row.created_at,
        )


class KeyList(BaseModel):
    """Every key of the tenant, the newest first."""

    items: list[KeyView]


@lru_cache(maxsize=1024)
def _spec(stored: str) -> Compress | Profile | Search:
    return read_spec(json.loads(stored))


def job_etag(row: models.Job, place: overview.Place | None) -> str:
    """Name the state of a job that an answer shows: weakly while it is queued, for when it begins is estimated anew each time."""
    return f'"{row.id}.{row.version}"' if place is None else f'W/"{row.id}.{row.version}.{place.ahead}.{place.slots}"'


def content_sha256(artifact: models.Artifact | None) -> str | None:
    """Give the digest of the bytes that a download of the artifact gives, where it is one file."""
    if artifact is None or len(artifact.files) != 1:
        return None
    return artifact.files[0].sha256


def page(view: Callable[[Row], View], rows: Sequence[Row], limit: int) -> Page[View]:
    """Make a page of at most `limit` rows; one more of them tells that there is a next page."""
    return Page(items=[view(row) for row in rows[:limit]], next_cursor=next_cursor(rows, limit))


def next_cursor(rows: Sequence[Row], limit: int) -> str | None:
    """Give the cursor of the page after the first `limit` rows; None where these are all."""
    if len(rows) <= limit:
        return None
    return base64.urlsafe_b64encode(rows[limit - 1].id.encode()).decode().rstrip("=")


def written(found: Page[View]) -> Response:
    """Give a page written out where it was made: in the thread of its route, not on the event loop."""
    return Response(found.model_dump_json(by_alias=True), media_type="application/json")


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
