"""Which bytes are stored already, so that nobody sends them twice."""

from typing import Any

from fastapi import APIRouter, Response

from api.dependencies import ReadScope
from api.errors import problems
from api.schemas import Sha256
from api.uploads import repr_digest
from services import artifacts

router = APIRouter(prefix="/v1/blobs", tags=["blobs"])

_THERE: dict[int | str, dict[str, Any]] = {
    200: {"description": 'They are stored: POST `{"blob": sha256}` instead of the bytes.'}
}


@router.head("/{sha256}", response_class=Response, responses=problems(403, 404) | _THERE)
def head_blob(sha256: Sha256, scope: ReadScope) -> Response:
    """Tell whether these bytes need not be sent, and how many they are: they are stored, or as what was in them."""
    stored = artifacts.known(scope.session, scope.tenant_id, sha256)
    headers = {"ETag": f'"{sha256}"', "Content-Length": str(stored.size), "Repr-Digest": repr_digest(sha256)}
    return Response(headers=headers, media_type="application/octet-stream")
