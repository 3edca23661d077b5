"""Work on a model, with limits and gates."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Self

from fastapi import APIRouter, Header, Query, Request, Response

import models
from api.conditional_requests import NOT_MODIFIED, etag_matches
from api.dependencies import Context, ReadScope, TenantScope, WriteScope
from api.errors import ApiError, FieldError, problem_of, problems
from api.event_stream import EVENT_STREAM, event_stream, log_line
from api.json_body import JSON_BODY
from api.plotly_script import plotly_script
from api.schemas import (
    Cursor,
    IdempotencyKey,
    JobSummary,
    JobView,
    NewJob,
    Page,
    PageSize,
    PlaceInQueue,
    PlanView,
    Wait,
    job_etag,
    page,
    read_cursor,
    written,
)
from api.uploads import repr_digest
from engine import (
    REPORT_FORMATS,
    AnyReport,
    Heading,
    Unfinished,
    beyond_limits,
    read_report,
    report_page,
    unfinished_files,
    unfinished_page,
    with_heading,
)
from models import Job
from services import jobs, overview
from services.errors import ConflictError, ServiceError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Label = Annotated[list[str], Query(description="`key=value`; several must all hold.", max_length=8)]
_NOT_CHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "With If-None-Match: nothing changed within `wait` seconds."}
}
_REPORTS = [{"$ref": f"#/components/schemas/{name}"} for name in ("Report", "ProfileReport", "Unfinished")]
_JSON = {"application/json": {"schema": {"oneOf": _REPORTS}}}
_MARKDOWN = {"text/markdown": {"schema": {"type": "string"}}}
_LOGS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The lines.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
# A worker tells of at most 2,000 events of an attempt.
_MOST_LINES = 20_000
_LAST_ID = (1 << 63) - 1
_REPORT_JSON = NOT_MODIFIED | {200: {"description": "The report.", "content": _JSON}}
_REPORT_MARKDOWN = NOT_MODIFIED | {200: {"description": "The report.", "content": _MARKDOWN}}
_REPORT_JUNIT = NOT_MODIFIED | {
    200: {"description": "The gates.", "content": {"application/xml": {"schema": {"type": "string"}}}}
}
_REPORT_PROMETHEUS = NOT_MODIFIED | {
    200: {"description": "The main figures.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
_REPORT_HTML: dict[int | str, dict[str, Any]] = {
    200: {"description": "The report.", "content": {"text/html": {"schema": {"type": "string"}}}}
}
_REPORT = NOT_MODIFIED | {200: {"description": "The report.", "content": _JSON | _MARKDOWN}}


@dataclass(frozen=True)
class _Seen:
    """A job as it was read, written out in the thread that read it."""

    version: str
    etag: str
    final: bool
    text: str

    @classmethod
    def of(cls, row: Job, place: overview.Place | None) -> Self:
        return cls(
            str(row.version),
            job_etag(row, place),
            models.is_final(row.in_status),
            JobView.of(row, queue=PlaceInQueue.of(place)).model_dump_json(by_alias=True),
        )


@router.post("", status_code=202, dependencies=JSON_BODY, responses=problems(403, 408, 409, 413, 415))
def create_job(body: NewJob, scope: WriteScope, response: Response, idempotency_key: IdempotencyKey = None) -> JobView:
    """Accept a job; it reaches a final state whatever happens to API, workers or broker. Poll it at Location.

    The model may be the output of a job that is not done yet: this one waits for it, and fails if it fails.
    """
    submission = jobs.submit(
        scope.session,
        scope.tenant_id,
        body.request(),
        key_id=scope.caller.key_id,
        idempotency_key=idempotency_key,
        settings=scope.resources.settings,
        store=scope.resources.store,
    )
    return _accepted(scope, response, submission)


@router.post(":validate", dependencies=JSON_BODY, responses=problems(403, 408, 413, 415))
def validate_job(body: NewJob, scope: ReadScope) -> PlanView:
    """Tell what would come of a job without accepting it: the whole spec, warnings, or why it would be refused."""
    request = body.request()
    view = PlanView(
        valid=True,
        problem=None,
        spec=request.spec,
        warnings=[],
        cache="refused" if request.cache == "refuse" else "miss",
        cached_from=None,
        waits_for=None,
    )
    try:
        resources = scope.resources
        plan = jobs.plan(scope.session, scope.tenant_id, request, store=resources.store, settings=resources.settings)
    except ServiceError as error:
        return view.model_copy(update={"valid": False, "problem": problem_of(error)})
    expected = plan.estimate()
    beyond = [] if expected is None else list(beyond_limits(expected, plan.spec.limits))
    found: dict[str, Any] = {
        "spec": plan.spec,
        "warnings": [*plan.warnings, *beyond],
        "gate_samples": plan.gate_samples,
        "waits_for": plan.inputs.model.job_id if plan.waits else None,
        "estimate": expected,
    }
    if plan.answer is not None:
        found |= {"cache": "hit", "cached_from": plan.answer.job.id}
    return view.model_copy(update=found)


@router.get("", responses=problems(403))
def list_jobs(
    scope: ReadScope,
    status: Annotated[models.JobStatus | None, Query(description="Only jobs in this status.")] = None,
    label: Label = [],  # noqa: B006 - FastAPI copies it
    limit: PageSize = 50,
    cursor: Cursor = None,
) -> Page[JobSummary]:
    """List jobs, the newest first."""
    rows = jobs.list_jobs(
        scope.session,
        scope.tenant_id,
        status=status,
        labels=dict(_label(one) for one in label),
        limit=limit + 1,
        before=read_cursor(cursor),
    )
    places = overview.places(scope.session, rows)

    def show(row: Job) -> JobSummary:
        return JobSummary.of(row, queue=PlaceInQueue.of(places.get(row.id)))

    return written(page(show, rows, limit))  # type: ignore[return-value]  # FastAPI sends it as it is


@router.get("/{job_id}", responses=problems(403, 404) | _NOT_CHANGED)
async def get_job(job_id: str, request: Request, context: Context, wait: Wait = 0) -> JobView:
    """Give one job. With `wait`, the answer comes at the next change, at the latest after so many seconds."""

    def read(scope: TenantScope) -> _Seen:
        row = jobs.get(scope.session, scope.tenant_id, job_id)
        return _Seen.of(row, overview.places(scope.session, [row]).get(row.id))

    seen = await context.read(read)
    conditional = "if-none-match" in request.headers
    if wait and not seen.final and (not conditional or etag_matches(request, seen.etag)):
        change = await context.resources.watcher.wait(job_id, seen.version, wait)
        # Read and written out once, though hundreds may have waited.
        seen = await context.read_after(change, "job", read)
    headers = {"ETag": seen.etag}
    if conditional and etag_matches(request, seen.etag):
        return Response(status_code=304, headers=headers)  # type: ignore[return-value]  # FastAPI sends it as it is
    return Response(seen.text, headers=headers, media_type="application/json")  # type: ignore[return-value]  # likewise


@router.get("/{job_id}/events", response_class=Response, responses=problems(403, 404) | EVENT_STREAM)
async def watch_job(
    job_id: str,
    context: Context,
    last_event_id: Annotated[
        str | None, Header(max_length=20, pattern="^[0-9]+$", description="Go on after this event.")
    ] = None,
) -> Response:
    """Tell what happens to a job as server-sent events, from its first one to its last, and end there.

    Each carries an id to go on from. Whoever comes back after the last one is told so by 204.
    """
    # None has an id beyond what the database counts to.
    return await event_stream(context, job_id, after=min(int(last_event_id or 0), _LAST_ID))


@router.get("/{job_id}/logs", response_class=Response, responses=problems(403, 404) | _LOGS)
def get_job_logs(job_id: str, scope: ReadScope) -> Response:
    """Give what happened to a job, a line for each event."""
    events = jobs.events(scope.session, scope.tenant_id, job_id, limit=_MOST_LINES)
    return Response("".join(map(log_line, events)), media_type="text/plain")


@router.post("/{job_id}:retry", status_code=202, responses=problems(403, 404, 409))
def retry_job(job_id: str, scope: WriteScope, response: Response, idempotency_key: IdempotencyKey = None) -> JobView:
    """Ask again, as a new job, for what a failed or cancelled one was to do; 409 for any other."""
    submission = jobs.retry(
        scope.session,
        scope.tenant_id,
        job_id,
        key_id=scope.caller.key_id,
        idempotency_key=idempotency_key,
        settings=scope.resources.settings,
        store=scope.resources.store,
    )
    return _accepted(scope, response, submission)


@router.post("/{job_id}:cancel", responses=problems(403, 404, 409))
def cancel_job(job_id: str, scope: WriteScope) -> JobView:
    """Cancel a queued job at once and have a running one stopped within seconds; 409 where it has ended otherwise."""
    return JobView.of(jobs.cancel(scope.session, scope.tenant_id, job_id))


@router.get("/{job_id}/report", response_class=Response, responses=problems(403, 404, 406, 409) | _REPORT)
def get_report(job_id: str, request: Request, scope: ReadScope) -> Response:
    """Give the measured report in the format that Accept asks for, JSON by default; of a job that ended without one, why."""
    accept = request.headers.get("accept", "*/*").lower()
    if "text/markdown" in accept:
        return _report(scope, request, job_id, "md")
    if any(kind in accept for kind in ("*/*", "application/*", "application/json")):
        return _report(scope, request, job_id, "json")
    raise ApiError(406, "The report is offered as application/json and text/markdown.")


@router.get("/{job_id}/report.json", response_class=Response, responses=problems(403, 404, 409) | _REPORT_JSON)
def get_report_json(job_id: str, request: Request, scope: ReadScope) -> Response:
    """Give the measured report for programs; of a job that ended without one, that and why, as the kind `unfinished`."""
    return _report(scope, request, job_id, "json")


@router.get("/{job_id}/report.md", response_class=Response, responses=problems(403, 404, 409) | _REPORT_MARKDOWN)
def get_report_markdown(job_id: str, request: Request, scope: ReadScope) -> Response:
    """Give the measured report for people; of a job that ended without one, that and why."""
    return _report(scope, request, job_id, "md")


@router.get("/{job_id}/report.junit.xml", response_class=Response, responses=problems(403, 404, 409) | _REPORT_JUNIT)
def get_report_junit(job_id: str, request: Request, scope: ReadScope) -> Response:
    """Give the gates as JUnit's test cases, for pipelines; a job that ended without a result is one with an error."""
    return _report(scope, request, job_id, "junit.xml")


@router.get("/{job_id}/report.prom", response_class=Response, responses=problems(403, 404, 409) | _REPORT_PROMETHEUS)
def get_report_prometheus(job_id: str, request: Request, scope: ReadScope) -> Response:
    """Give the verdict and the main figures as OpenMetrics; a job that ended without a result has no outcome and no figures."""
    return _report(scope, request, job_id, "prom")


@router.get("/{job_id}/report.html", response_class=Response, responses=problems(403, 404, 409) | _REPORT_HTML)
def get_report_page(
    job_id: str,
    request: Request,
    scope: ReadScope,
    beside: Annotated[
        str | None,
        Query(description="A profile of the result beside the network that it is to replace: its figures come last."),
    ] = None,
) -> Response:
    """Give the whole report with its figures as one HTML file that opens anywhere and asks nothing of anybody.

    Of a job that ended without a result it says that, and why.
    """
    heading = _heading(scope, request, job_id)
    measured = _measured(scope, job_id)
    other = None if beside is None else (_measured(scope, beside), _heading(scope, request, beside))
    if isinstance(measured, Unfinished):
        page = unfinished_page(measured, heading)
    else:
        compared = None if other is None or isinstance(other[0], Unfinished) else (other[0], other[1])
        page = report_page(measured, heading, _plotly(), beside=compared)
    # A file of its own: its scripts are in it, and nothing else may run or be fetched.
    headers = {
        "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:",
        "Content-Disposition": f'attachment; filename="{job_id}.html"',
        "Repr-Digest": repr_digest(hashlib.sha256(page.encode()).hexdigest()),
    }
    return Response(page, headers=headers, media_type="text/html")


def _measured(scope: TenantScope, job_id: str) -> AnyReport | Unfinished:
    """Give what a job measured, or why it did not."""
    try:
        file = jobs.report(scope.session, scope.tenant_id, job_id)["report.json"]
    except ConflictError as error:
        if error.exact_code != "no_report":
            raise
        return _unfinished(scope, job_id)
    return read_report(json.loads(b"".join(scope.resources.store.read(scope.tenant_id, file.sha256))))


def _heading(scope: TenantScope, request: Request, job_id: str) -> Heading:
    return jobs.heading(scope.session, scope.tenant_id, job_id, link=f"{request.base_url}jobs/{job_id}")


@cache
def _plotly() -> str:
    return plotly_script().read_text(encoding="utf-8")


def _accepted(scope: TenantScope, response: Response, submission: jobs.Submission) -> JobView:
    scope.subject = submission.job.id
    response.headers["Location"] = f"/v1/jobs/{submission.job.id}"
    response.headers["Retry-After"] = "1"
    return JobView.of(submission.job)


def _report(scope: TenantScope, request: Request, job_id: str, form: str) -> Response:
    try:
        file = jobs.report(scope.session, scope.tenant_id, job_id).get(f"report.{form}")
    except ConflictError as error:
        if error.exact_code != "no_report":
            raise
        told = unfinished_files(_unfinished(scope, job_id))
        return _sent(scope, request, job_id, form, told[f"report.{form}"])
    if file is None:
        raise ApiError(
            404,
            f"The report was written by a version that did not know the format {form}; report.json has all of it.",
            code="report_format_missing",
        )
    if form != "md" and etag_matches(request, f'"{file.sha256}"'):
        return Response(status_code=304, headers=_report_headers(file.sha256))
    return _sent(scope, request, job_id, form, b"".join(scope.resources.store.read(scope.tenant_id, file.sha256)))


def _sent(scope: TenantScope, request: Request, job_id: str, form: str, text: bytes) -> Response:
    if form == "md":
        # Which job it is of the report does not know: the same measurements may answer several.
        text = with_heading(text.decode(), _heading(scope, request, job_id)).encode()
    headers = _report_headers(hashlib.sha256(text).hexdigest())
    if etag_matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(text, headers=headers, media_type=REPORT_FORMATS[form])


def _report_headers(sha256: str) -> dict[str, str]:
    return {"ETag": f'"{sha256}"', "Vary": "Accept", "Repr-Digest": repr_digest(sha256)}


def _unfinished(scope: TenantScope, job_id: str) -> Unfinished:
    job = jobs.get(scope.session, scope.tenant_id, job_id)
    problem = job.problem or {}
    told = {name: problem.get(name) for name in ("code", "hint", "node", "step")}
    return Unfinished(job_kind=job.kind, status=job.status, reason=problem.get("message"), **told)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ApiError(422, errors=[FieldError(parameter="label", detail="A label is looked for as key=value.")])
    return key, value
