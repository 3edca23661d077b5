"""Jobs: all of them as they go on, a new one, one with its report, two beside each other."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

import engine
from api.dependencies import Context, ReadScope, TenantScope
from api.errors import ApiError
from api.pages.job_view import live_values, read_report, report_values, row_values
from api.pages.rendering import render
from api.schemas import Cursor, next_cursor, read_cursor
from models import JobStatus
from services import artifacts, jobs, overview, workers
from services.errors import ServiceError

router = APIRouter(include_in_schema=False)

_PAGE = 50
# How often a list asks what is new, and when it has the browser ask again: an open page needs no connection for days.
_LOOK_S = 0.5
_STREAM_S = 600.0
_CHOICES = 200


@router.get("/")
def home() -> Response:
    """Lead to the jobs."""
    return RedirectResponse("/jobs", 303)


@router.get("/jobs")
def jobs_page(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    scope: ReadScope,
    status: Annotated[str, Query(pattern="^(|[a-z]+)$")] = "",
    label: str = "",
    cursor: Cursor = None,
    part: bool = False,
) -> Response:
    """List jobs, the newest first."""
    if status and status not in {*JobStatus}:
        raise ApiError(422, f"A job is never {status}. Its status is one of {', '.join(JobStatus)}.")
    rows = jobs.list_jobs(
        scope.session,
        scope.tenant_id,
        status=JobStatus(status) if status else None,
        labels=_label(label),
        limit=_PAGE + 1,
        before=read_cursor(cursor),
        whole=True,
    )
    values = {
        "rows": row_values(scope.session, scope.tenant_id, rows[:_PAGE]),
        "counts": overview.counts(scope.session, scope.tenant_id),
        "status": status,
        "label": label,
        "cursor": cursor,
        "next_cursor": next_cursor(rows, _PAGE),
        "may_write": may_write(scope),
    }
    return render(request, "jobs_rows.html" if part else "jobs.html", values)


def _label(text: str) -> dict[str, str]:
    if not text:
        return {}
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ApiError(422, "A label is looked for as name=value, such as branch=main.")
    return {name: value}


def may_write(scope: TenantScope) -> bool:
    """Say whether the key may start and cancel."""
    return bool(scope.caller.scopes & {"write", "admin"})


@router.get("/jobs/events")
async def jobs_events(context: Context) -> Response:
    """Tell, as server-sent events, that one of the jobs is new, moved on or ended."""

    def look(scope: TenantScope) -> str:
        return overview.stamp(scope.session, scope.tenant_id)

    first = await context.read(look)

    async def stream() -> AsyncIterator[str]:
        seen = first
        yield "retry: 2000\n\n"
        loop = asyncio.get_running_loop()
        end = loop.time() + _STREAM_S
        while loop.time() < end and not context.resources.watcher.closed:
            await asyncio.sleep(_LOOK_S)
            try:
                stamp = await context.read(look)
            except (ApiError, ServiceError, SQLAlchemyError):
                # The key was revoked or the database is away: who comes back is told so by a proper answer.
                return
            if stamp != seen:
                seen = stamp
                yield "event: changed\ndata: {}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/jobs/new")
def new_job_page(request: Request, scope: ReadScope, model: str = "", dataset: str = "") -> Response:
    """Offer a new job: what it works on, a goal or a recipe, where it is to run."""
    session, tenant_id = scope.session, scope.tenant_id
    passes = [
        {name: each[name] for name in ("type", "summary", "schema", "defaults", "needs_data", "trains", "lossless")}
        for each in engine.list_passes()
    ]
    recipes = [{name: each[name] for name in ("name", "summary", "passes")} for each in engine.list_recipes()]
    values = {
        "networks": [
            row for row in artifacts.list_models(session, tenant_id, limit=_CHOICES, whole=True) if row.state == "ready"
        ],
        "datasets": [
            row
            for row in artifacts.list_datasets(session, tenant_id, limit=_CHOICES, whole=True)
            if row.state == "ready"
        ],
        "model": model,
        "dataset": dataset,
        "choices": {"passes": passes, "recipes": recipes},
        "targets": _providers(scope),
        "may_write": may_write(scope),
    }
    return render(request, "new_job.html", values)


def _providers(scope: TenantScope) -> list[str]:
    found = [str(each.get("provider")) for each in workers.targets(scope.session) if each["live"]]
    return list(dict.fromkeys([*found, "cpu"]))


@router.get("/jobs/compare")
def compare_page(request: Request, scope: ReadScope, a: str = "", b: str = "") -> Response:
    """Show two jobs beside each other."""
    sides = [_side(scope, job_id) for job_id in (a, b) if job_id]
    recent = jobs.list_jobs(scope.session, scope.tenant_id, status=JobStatus.SUCCEEDED, limit=_CHOICES)
    names = overview.model_names(scope.session, scope.tenant_id, {job.model_id for job in recent})
    values = {"sides": sides, "a": a, "b": b, "recent": recent, "names": names, "compared": _compared(sides)}
    return render(request, "compare.html", values)


def _side(scope: TenantScope, job_id: str) -> dict[str, Any]:
    job = jobs.get(scope.session, scope.tenant_id, job_id)
    names = overview.model_names(scope.session, scope.tenant_id, {job.model_id})
    report = read_report(scope, job)
    return {"job": job, "name": names.get(job.model_id, ""), "report": report}


def _compared(sides: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Give rows of a table: a cost or metric, and what each job made of it."""
    if len(sides) < 2:
        return []
    tables = [dict(_measures(side["report"])) for side in sides]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [(name, [table.get(name, "") for table in tables]) for name in names]


def _measures(report: engine.AnyReport | None) -> Iterator[tuple[str, str]]:
    if isinstance(report, engine.Report):
        for figure in engine.figures(report):
            if figure.name in {"before-after", "quality"}:
                yield from ((row[0], ", ".join(filter(None, (f"{row[1]} → {row[2]}", row[3])))) for row in figure.rows)
            elif figure.name == "fidelity":
                yield from ((row[0], row[1]) for row in figure.rows)
    elif isinstance(report, engine.ProfileReport):
        for target in report.targets:
            if target.measured is not None:
                name = f"p50 on {engine.target_name(target.target)}"
                yield name, engine.milliseconds(target.measured.latency.p50_ms)


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str, scope: ReadScope, part: bool = False) -> Response:
    """Show a job: what it does, and what came of it."""
    job = jobs.get(scope.session, scope.tenant_id, job_id)
    values = {**live_values(scope, job), "may_write": may_write(scope)}
    if part:
        return render(request, "job_live.html", values)
    return render(request, "job.html", {**values, **report_values(read_report(scope, job))})
