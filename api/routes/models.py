"""Networks: uploaded ones and the results of jobs."""

from fastapi import APIRouter, Request, Response

from api.deps import AskedFor, At, Reading
from api.downloads import Content, download
from api.errors import ApiError, problems
from api.schemas import (
    Cursor,
    IdempotencyKey,
    ModelView,
    Name,
    Page,
    PageSize,
    WaitForCheck,
    page,
    read_cursor,
)
from api.settled import settled
from api.uploads import BYTES, received, upload_body
from services import artifacts, uploads

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.post(
    "",
    status_code=201,
    responses=problems(403, 408, 409, 413, 415),
    openapi_extra=upload_body("The bytes of one `.onnx` file."),
)
async def upload_model(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    response: Response,
    asked: AskedFor,
    name: Name = "model",
    wait: WaitForCheck = 0,
    idempotency_key: IdempotencyKey = None,
) -> ModelView:
    """Store a network and have it inspected.

    The answer is 201 while it is `checking` or once it is `ready`, and 422 if it was rejected within `wait` seconds. With the
    header Repr-Digest or Content-Digest (sha-256), bytes that were damaged on the way are refused.
    """
    parts = asked.parts
    caller = await asked.read(lambda at: at.caller, scope="write")
    async with received(request, parts, caller.tenant_id, limit=parts.settings.max_model_bytes) as writer:

        def register(at: At) -> str:
            return uploads.upload_model(at.session, at.tenant_id, writer, name=name, idempotency_key=idempotency_key).id

        model_id = await asked.write(register)
    response.headers["Location"] = f"/v1/models/{model_id}"
    return await settled(asked, lambda at: get_model(model_id, at), wait)


@router.get("", responses=problems(403))
def list_models(at: Reading, limit: PageSize = 50, cursor: Cursor = None) -> Page[ModelView]:
    """List networks, the newest first."""
    rows = artifacts.list_models(at.session, at.tenant_id, limit=limit + 1, before=read_cursor(cursor))
    return page(ModelView.of, rows, limit)


@router.get("/{model_id}", responses=problems(403, 404))
def get_model(model_id: str, at: Reading) -> ModelView:
    """Give one network."""
    return ModelView.of(artifacts.get_model(at.session, at.tenant_id, model_id))


@router.get("/{model_id}/content", response_class=Response, responses=problems(403, 404, 409) | BYTES)
async def get_model_content(model_id: str, request: Request, asked: AskedFor) -> Response:
    """Download a network: its `.onnx` file, or a stored zip where it has external data."""

    def find(at: At) -> Content:
        row = artifacts.get_model(at.session, at.tenant_id, model_id)
        if row.artifact is None:
            raise ApiError(409, f"The model is {row.state} and has no bytes.", code=f"model_{row.state}")
        name = row.name if row.name.endswith(".onnx") else f"{row.name}.onnx"
        return Content.of(row.artifact, name)

    return await download(request, asked.parts, await asked.read(find))
