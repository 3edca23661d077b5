"""Links that give one artifact to whoever has them, without a key and for a time."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import urlencode

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import Context, Resources, TenantScope
from api.downloads import Downloadable, WantReprDigest, download
from api.errors import ApiError, FieldError, problems
from api.json_body import JSON_BODY
from api.routes.artifacts import downloadable
from api.schemas import NewName
from api.uploads import BYTES
from services import download_links
from services.download_links import Link

router = APIRouter(prefix="/v1/links", tags=["links"])
_LATEST = (1 << 63) - 1
_Text = Annotated[str, Query(max_length=300)]


class NewLinkBody(BaseModel):
    """What a link is to give."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"sha256": "0" * 64, "hours": 24}]})

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="An artifact's digest, or a single file's.")
    hours: float = Field(24, gt=0, le=24 * 365, description="How long it is valid; an operator may allow less.")
    name: NewName | None = Field(None, description="Of the file that is downloaded.")


class LinkView(BaseModel):
    """A link; whoever has it needs no key."""

    path: str = Field(description="Below the service's own address. It is a secret: everything that it takes is in it.")
    expires_at: datetime


@router.post("", status_code=201, dependencies=JSON_BODY, responses=problems(403, 404, 408, 413, 415))
async def create_link(body: NewLinkBody, context: Context) -> LinkView:
    """Make a link to one artifact. It ends with its time, and with the key that made it."""
    resources = context.resources
    most = resources.settings.link_max_hours
    if body.hours > most:
        wrong = FieldError(pointer="/hours", detail=f"Links are valid for at most {most:g} hours here.")
        raise ApiError(422, f"/hours: {wrong.detail}", errors=[wrong])
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=body.hours)

    def make(scope: TenantScope) -> Link:
        scope.subject = body.sha256
        return download_links.make(scope.session, scope.caller, body.sha256, body.name or "", expires_at)

    # Whoever may read may give away what they read; that they did is noted.
    link = await context.write(make, needs="read")
    query = {"tenant": link.tenant_id, "key": link.key_id, "expires": link.expires, "name": link.name}
    signed = urlencode({**query, "signature": link.signature(resources.secret)})
    return LinkView(path=f"/v1/links/{link.digest}?{signed}", expires_at=expires_at)


@router.get("/{digest}", response_class=Response, responses=problems(403, 404, 410, 416) | BYTES)
async def follow_link(  # noqa: PLR0917 - FastAPI calls it by name
    digest: str,
    request: Request,
    tenant: _Text = "",
    key: _Text = "",
    name: _Text = "",
    signature: _Text = "",
    expires: Annotated[int, Query(ge=0, le=_LATEST)] = 0,
    want_repr_digest: WantReprDigest = None,
) -> Response:
    """Download what a link is to; no key is asked for. 401 where the link is not ours, 410 where its time is over."""
    resources: Resources = request.app.state.resources
    link = Link(tenant, key, digest, name, expires)

    def find() -> Downloadable:
        with resources.database.reading() as session:
            caller = download_links.caller_of(session, resources.secret, link, signature)
            request.state.request_state.key = caller.key_id
            resources.rate_limiter.take(caller)
            return downloadable(session, caller.tenant_id, digest, link.name or None)

    return await download(request, resources, await run_sync(find, limiter=resources.reads), want_repr_digest)
