"""Stored bytes, named by their SHA-256."""

from pathlib import PurePosixPath

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from api.dependencies import Context
from api.downloads import Downloadable, WantReprDigest, download
from api.errors import problems
from api.schemas import Sha256
from api.uploads import BYTES
from models import ArtifactFile
from services import artifacts
from services.errors import NotFoundError

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])


@router.get("/{sha256}", response_class=Response, responses=problems(403, 404, 416) | BYTES)
async def get_artifact(
    sha256: Sha256, request: Request, context: Context, want_repr_digest: WantReprDigest = None
) -> Response:
    """Download an artifact by its digest, or a single file by its own.

    An artifact of one file is that file; one of several is a zip, always of the same bytes.
    """
    found = await context.read(lambda scope: downloadable(scope.session, scope.tenant_id, sha256))
    return await download(request, context.resources, found, want_repr_digest)


def downloadable(session: Session, tenant_id: str, sha256: str, name: str | None = None) -> Downloadable:
    """Give what is downloaded under a digest, an artifact's or a single file's; raises NotFoundError."""
    try:
        artifact = artifacts.get_artifact(session, tenant_id, sha256)
    except NotFoundError:
        blob = artifacts.get_blob(session, tenant_id, sha256)
        file = ArtifactFile(path=sha256[:16], sha256=sha256, size=blob.size)
        return Downloadable(tenant_id, sha256, [file], name or file.path)
    one = artifact.files[0].path if len(artifact.files) == 1 else artifact.kind
    return Downloadable.of(artifact, name or PurePosixPath(one).name)
