"""Named arrays for calibration and evaluation."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.deps import AskedFor, At, Reading
from api.errors import problems
from api.schemas import (
    Cursor,
    DatasetView,
    IdempotencyKey,
    ModelId,
    Name,
    Page,
    PageSize,
    WaitForCheck,
    page,
    read_cursor,
)
from api.settled import settled
from api.uploads import received, upload_body
from engine import TaskMetric
from services import artifacts, uploads

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

Metric = Annotated[
    TaskMetric | None, Query(description="What the labels are judged by; by default top1 where they are class numbers.")
]
Fits = Annotated[
    ModelId | None, Query(description="Check the arrays' names, types and shapes against this model's inputs.")
]


@router.post(
    "",
    status_code=201,
    responses=problems(403, 404, 408, 409, 413, 415),
    openapi_extra=upload_body(
        "The bytes of one `.npz`: an array per model input (first axis = samples), optionally `label` (-1 = unlabelled)."
    ),
)
async def upload_dataset(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    response: Response,
    asked: AskedFor,
    name: Name = "dataset",
    metric: Metric = None,
    model: Fits = None,
    wait: WaitForCheck = 0,
    idempotency_key: IdempotencyKey = None,
) -> DatasetView:
    """Store arrays and have them inspected.

    The answer is 201 while they are `checking` or once they are `ready`, and 422 if they were rejected within `wait` seconds.
    """
    parts = asked.parts

    def may(at: At) -> str:
        if model is not None:
            uploads.check_fits(at.session, at.tenant_id, model)
        return at.tenant_id

    # Before the body is read: nobody should send gigabytes to learn that the model's id was wrong.
    tenant_id = await asked.read(may, scope="write")
    async with received(request, parts, tenant_id, limit=parts.settings.max_dataset_bytes) as writer:

        def register(at: At) -> str:
            return uploads.upload_dataset(
                at.session, tenant_id, writer, name=name, metric=metric, fits=model, idempotency_key=idempotency_key
            ).id

        dataset_id = await asked.write(register)
    response.headers["Location"] = f"/v1/datasets/{dataset_id}"
    return await settled(asked, lambda at: get_dataset(dataset_id, at), wait)


@router.get("", responses=problems(403))
def list_datasets(at: Reading, limit: PageSize = 50, cursor: Cursor = None) -> Page[DatasetView]:
    """List datasets, the newest first."""
    rows = artifacts.list_datasets(at.session, at.tenant_id, limit=limit + 1, before=read_cursor(cursor))
    return page(DatasetView.of, rows, limit)


@router.get("/{dataset_id}", responses=problems(403, 404))
def get_dataset(dataset_id: str, at: Reading) -> DatasetView:
    """Give one dataset."""
    return DatasetView.of(artifacts.get_dataset(at.session, at.tenant_id, dataset_id))
