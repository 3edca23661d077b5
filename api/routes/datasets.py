"""Named arrays for calibration and evaluation."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, TypeAdapter, ValidationError

from api.conditional_requests import NOT_MODIFIED, etag_of, not_modified
from api.dependencies import Context, ReadScope, TenantScope, WriteScope
from api.downloads import Downloadable, WantReprDigest, download
from api.errors import ApiError, FieldError, problems
from api.json_body import JSON_BODY, not_storable
from api.schemas import (
    Cursor,
    DatasetChanges,
    DatasetSummary,
    DatasetView,
    IdempotencyKey,
    ModelId,
    Name,
    Page,
    PageSize,
    Tags,
    WaitForCheck,
    page,
    read_cursor,
    written,
)
from api.uploads import BYTES, receive_upload, upload_body
from api.wait_for_inspection import wait_for_inspection
from engine import OutputDeclaration, TaskMetric
from services import artifacts, catalog, quotas, uploads
from services.quotas import Room

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_OutputName = Annotated[str, Field(min_length=1, max_length=256)]
_OUTPUTS = TypeAdapter(Annotated[dict[_OutputName, OutputDeclaration], Field(max_length=64)])

Metric = Annotated[
    TaskMetric | None, Query(description="What the labels are judged by; by default top1 where they are class numbers.")
]
Outputs = Annotated[
    str | None,
    Query(
        max_length=8192,
        description="What the outputs of the network are, as JSON by their name, where its owner knows better:"
        ' `{"logits": {"kind": "classes", "weight": 1, "ignore": false}}`.',
    ),
]
Fits = Annotated[
    ModelId | None, Query(description="Check the arrays' names, types and shapes against this model's inputs.")
]


@router.post(
    "",
    status_code=201,
    responses=problems(403, 404, 408, 409, 413, 415),
    openapi_extra=upload_body(
        "An `.npz` or `.safetensors`: an array per model input (first axis = samples), optionally `label` (-1 = unlabelled)."
        " Or a zip of one `.npz` per sample, without the axis of samples, where sizes vary."
    ),
)
async def upload_dataset(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    response: Response,
    context: Context,
    name: Name = None,
    metric: Metric = None,
    outputs: Outputs = None,
    model: Fits = None,
    wait: WaitForCheck = 0,
    idempotency_key: IdempotencyKey = None,
) -> DatasetView:
    """Store arrays and have them inspected.

    The answer is 201 while they are `checking` or once they are `ready`, and 422 if they were rejected within `wait` seconds.
    """
    resources = context.resources

    def may(scope: TenantScope) -> tuple[str, Room | None]:
        if model is not None:
            uploads.check_fits(scope.session, scope.tenant_id, model)
        return scope.tenant_id, quotas.room(scope.session, scope.tenant_id, resources.settings)

    # Before the body is read: nobody should send gigabytes to learn that the model's id was wrong, or the quota used up.
    tenant_id, room = await context.read(may, needs="write")
    most = resources.settings.max_dataset_bytes
    async with receive_upload(request, context, tenant_id, limit=most, room=room) as upload:

        def register(scope: TenantScope) -> str:
            scope.subject = uploads.upload_dataset(
                scope.session,
                tenant_id,
                upload.source,
                name=upload.named(name, "dataset"),
                declaration=_declaration(metric, outputs),
                fits=model,
                idempotency_key=idempotency_key,
                settings=resources.settings,
                before=lambda: upload.use(scope),
            ).id
            return scope.subject

        dataset_id = await context.write(register)
    response.headers["Location"] = f"/v1/datasets/{dataset_id}"
    return await wait_for_inspection(context, lambda scope: _view(scope, dataset_id), wait)


@router.get("", responses=problems(403))
def list_datasets(
    scope: ReadScope,
    tag: Tags = [],  # noqa: B006 - FastAPI copies it
    limit: PageSize = 50,
    cursor: Cursor = None,
) -> Page[DatasetSummary]:
    """List datasets, the newest first."""
    rows = artifacts.list_datasets(
        scope.session, scope.tenant_id, tags=tag, limit=limit + 1, before=read_cursor(cursor)
    )
    return written(page(DatasetSummary.of, rows, limit))  # type: ignore[return-value]  # FastAPI sends it as it is


@router.get("/{dataset_id}", responses=problems(403, 404) | NOT_MODIFIED)
def get_dataset(dataset_id: str, request: Request, response: Response, scope: ReadScope) -> DatasetView:
    """Give one dataset."""
    view = _view(scope, dataset_id)
    return not_modified(request, response, etag_of(view.id, view.state, view.updated_at)) or view


@router.patch("/{dataset_id}", dependencies=JSON_BODY, responses=problems(403, 404, 408, 413, 415))
def change_dataset(dataset_id: str, body: DatasetChanges, scope: WriteScope) -> DatasetView:
    """Rename or tag a dataset."""
    scope.check_room()
    return DatasetView.of(catalog.update_dataset(scope.session, scope.tenant_id, dataset_id, body.changes()))


@router.delete("/{dataset_id}", status_code=204, responses=problems(403, 404, 409))
def delete_dataset(dataset_id: str, scope: WriteScope) -> None:
    """Remove a dataset, and its bytes where nothing else has the same; 409 while a job needs it."""
    catalog.delete_dataset(scope.session, scope.resources.store, scope.tenant_id, dataset_id)


@router.get("/{dataset_id}/content", response_class=Response, responses=problems(403, 404, 409, 416) | BYTES)
async def get_dataset_content(
    dataset_id: str, request: Request, context: Context, want_repr_digest: WantReprDigest = None
) -> Response:
    """Download a dataset as it was uploaded."""

    def find(scope: TenantScope) -> Downloadable:
        row = artifacts.get_dataset(scope.session, scope.tenant_id, dataset_id)
        if row.artifact is None:
            raise ApiError(409, f"The dataset is {row.state} and has no bytes.", code=f"dataset_{row.state}")
        ending = row.artifact.files[0].path.partition(".")[2]
        return Downloadable.of(row.artifact, row.name if row.name.endswith(f".{ending}") else f"{row.name}.{ending}")

    return await download(request, context.resources, await context.read(find), want_repr_digest)


def _declaration(metric: TaskMetric | None, outputs: str | None) -> dict[str, Any]:
    declared: dict[str, Any] = {} if metric is None else {"metric": metric}
    if outputs is not None:
        try:
            read = _OUTPUTS.validate_json(outputs)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            detail = f"{where + ': ' if where else ''}{error.errors()[0]['msg']}"
            raise ApiError(422, errors=[FieldError(parameter="outputs", detail=detail)]) from None
        wrong = next(not_storable(json.loads(outputs)), None)
        if wrong is not None:
            detail = f"{wrong.pointer}: {wrong.detail}"
            raise ApiError(422, errors=[FieldError(parameter="outputs", detail=detail)])
        declared["outputs"] = {name: one.model_dump(exclude_defaults=True) for name, one in read.items()}
    return declared


def _view(scope: TenantScope, dataset_id: str) -> DatasetView:
    return DatasetView.of(artifacts.get_dataset(scope.session, scope.tenant_id, dataset_id))
