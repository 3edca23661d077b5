"""Networks: uploaded ones and the results of jobs."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from api.conditional_requests import NOT_MODIFIED, etag_of, not_modified
from api.dependencies import Context, ReadScope, TenantScope, WriteScope
from api.downloads import Downloadable, WantReprDigest, download
from api.errors import ApiError, problems
from api.json_body import JSON_BODY
from api.schemas import (
    Alias,
    AnalysisView,
    Cursor,
    IdempotencyKey,
    LineageNode,
    LineageView,
    ModelChanges,
    ModelSummary,
    ModelView,
    Name,
    Page,
    PageSize,
    Tags,
    WaitForAnalysis,
    WaitForCheck,
    page,
    read_cursor,
    written,
)
from api.uploads import BYTES, receive_upload, upload_body
from api.wait_for_inspection import wait_for_inspection
from engine import Prunability
from models import ModelState
from services import analyses, artifacts, catalog, quotas, retention, uploads
from services.analyses import Analysis
from services.quotas import Room

router = APIRouter(prefix="/v1/models", tags=["models"])

_UNDER_WAY: dict[int | str, dict[str, Any]] = {
    202: {"model": AnalysisView, "description": "It is under way; ask again after Retry-After seconds."}
}


@router.post(
    "",
    status_code=201,
    responses=problems(403, 404, 408, 409, 410, 413, 415),
    openapi_extra=upload_body("One `.onnx` file, or a zip of one with its external data."),
)
async def upload_model(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    response: Response,
    context: Context,
    name: Name = None,
    wait: WaitForCheck = 0,
    idempotency_key: IdempotencyKey = None,
) -> ModelView:
    """Store a network and have it inspected.

    The answer is 201 while it is `checking` or once it is `ready`, and 422 if it was rejected within `wait` seconds. With the
    header Repr-Digest or Content-Digest (sha-256), bytes that were damaged on the way are refused.
    """
    resources = context.resources

    def may(scope: TenantScope) -> tuple[str, Room | None]:
        return scope.tenant_id, quotas.room(scope.session, scope.tenant_id, resources.settings)

    tenant_id, room = await context.read(may, needs="write")
    most = resources.settings.max_model_bytes
    async with receive_upload(request, context, tenant_id, limit=most, room=room) as upload:

        def register(scope: TenantScope) -> str:
            scope.subject = uploads.upload_model(
                scope.session,
                scope.tenant_id,
                upload.source,
                name=upload.named(name, "model"),
                idempotency_key=idempotency_key,
                settings=resources.settings,
                before=lambda: upload.use(scope),
            ).id
            return scope.subject

        model_id = await context.write(register)
    response.headers["Location"] = f"/v1/models/{model_id}"
    return await wait_for_inspection(context, lambda scope: _view(scope, model_id), wait)


@router.get("", responses=problems(403))
def list_models(  # noqa: PLR0917 - FastAPI calls it by name
    scope: ReadScope,
    state: Annotated[ModelState | None, Query(description="Only models in this state.")] = None,
    name: Annotated[
        str | None, Query(max_length=200, description="Only those of this name: its versions, the newest first.")
    ] = None,
    version: Annotated[
        int | None, Query(ge=1, le=999_999_999, description="With a name: only those that are this version of it.")
    ] = None,
    alias: Annotated[Alias | None, Query(description="Only the one that has this alias.")] = None,
    tag: Tags = [],  # noqa: B006 - FastAPI copies it
    limit: PageSize = 50,
    cursor: Cursor = None,
) -> Page[ModelSummary]:
    """List networks, the newest first."""
    rows = artifacts.list_models(
        scope.session,
        scope.tenant_id,
        state=state,
        name=name,
        version=version,
        alias=alias,
        tags=tag,
        limit=limit + 1,
        before=read_cursor(cursor),
    )
    ends = retention.expiring(scope.session, [row.job_id for row in rows if row.job_id], scope.resources.settings)
    shown = page(lambda row: ModelSummary.of(row, ends.get(row.job_id or "")), rows, limit)
    return written(shown)  # type: ignore[return-value]  # FastAPI sends it as it is


@router.get("/{model_id}", responses=problems(403, 404) | NOT_MODIFIED)
def get_model(model_id: str, request: Request, response: Response, scope: ReadScope) -> ModelView:
    """Give one network."""
    view = _view(scope, model_id)
    return not_modified(request, response, etag_of(view.id, view.state, view.updated_at, view.expires_at)) or view


@router.patch("/{model_id}", dependencies=JSON_BODY, responses=problems(403, 404, 408, 409, 413, 415))
def change_model(model_id: str, body: ModelChanges, scope: WriteScope) -> ModelView:
    """Rename or tag a network, or give it an alias."""
    scope.check_room()
    changed = catalog.update_model(scope.session, scope.tenant_id, model_id, body.changes(), key_id=scope.caller.key_id)
    return ModelView.of(changed)


@router.delete("/{model_id}", status_code=204, responses=problems(403, 404, 409))
def delete_model(model_id: str, scope: WriteScope) -> None:
    """Remove a network, and its bytes where nothing else has the same; 409 while a job needs it."""
    catalog.delete_model(scope.session, scope.resources.store, scope.tenant_id, model_id)


@router.get("/{model_id}/lineage", responses=problems(403, 404))
def get_lineage(model_id: str, scope: ReadScope) -> LineageView:
    """Trace a network: what it was made from, what was made from it, and by which jobs."""
    found = catalog.lineage(scope.session, scope.tenant_id, model_id)
    return LineageView(
        model=found.model.id,
        ancestors=[LineageNode.of(row) for row in found.ancestors],
        descendants=[LineageNode.of(row) for row in found.descendants],
        complete=found.complete,
    )


@router.get("/{model_id}/prunability", responses=problems(403, 404, 409) | NOT_MODIFIED | _UNDER_WAY)
async def get_prunability(
    model_id: str, request: Request, response: Response, context: Context, wait: WaitForAnalysis = 0
) -> Prunability:
    """Tell what of a network could be pruned: shares, groups of channels, and which nodes keep theirs and why.

    A worker finds it out when it is asked for first, once for the same bytes: until then the answer is 202. It is 422
    where the network cannot be analysed.
    """
    found = await _analysis(context, model_id, time.monotonic() + wait)
    if found.problem is not None:
        more = {key: found.problem[key] for key in ("hint", "node") if key in found.problem}
        raise ApiError(422, found.problem["message"], code=found.problem["code"], **more)
    if found.result is None:
        view = AnalysisView(model=model_id, status="queued" if found.status == "queued" else "running")
        return JSONResponse(view.model_dump(mode="json", by_alias=True), 202, {"Retry-After": "1"})  # type: ignore[return-value]  # FastAPI sends it as it is
    shown: Any = not_modified(request, response, etag_of(found.digest, found.version))
    return shown or Prunability.model_validate(found.result)


async def _analysis(context: Context, model_id: str, end: float) -> Analysis:
    """Give the analysis, started where it was not, when it has ended, at the latest at `end`."""

    def find(scope: TenantScope) -> Analysis | None:
        return analyses.find(scope.session, scope.tenant_id, model_id)

    def start(scope: TenantScope) -> Analysis:
        return analyses.start(scope.session, scope.tenant_id, model_id, scope.resources.settings)

    watcher = context.resources.watcher
    while True:
        found = await context.read(find)
        if found is None:
            # Whoever may read the network may have this found out.
            found = await context.write(start, needs="read")
        left = end - time.monotonic()
        if found.result is not None or found.problem is not None or watcher.closed or left <= 0:
            return found
        await watcher.wait(found.unit_id, found.status, left)


@router.get("/{model_id}/content", response_class=Response, responses=problems(403, 404, 409, 416) | BYTES)
async def get_model_content(
    model_id: str, request: Request, context: Context, want_repr_digest: WantReprDigest = None
) -> Response:
    """Download a network: its `.onnx` file, or a stored zip where it has external data."""

    def find(scope: TenantScope) -> Downloadable:
        row = artifacts.get_model(scope.session, scope.tenant_id, model_id)
        if row.artifact is None:
            raise ApiError(409, f"The model is {row.state} and has no bytes.", code=f"model_{row.state}")
        name = row.name if row.name.endswith(".onnx") else f"{row.name}.onnx"
        return Downloadable.of(row.artifact, name)

    return await download(request, context.resources, await context.read(find), want_repr_digest)


def _view(scope: TenantScope, model_id: str) -> ModelView:
    row = artifacts.get_model(scope.session, scope.tenant_id, model_id)
    ends = retention.expiring(scope.session, [row.job_id] if row.job_id else [], scope.resources.settings)
    return ModelView.of(row, ends.get(row.job_id or ""))
