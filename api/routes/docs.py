"""The API's description, without a key, for programs and for people: written once, for anybody may ask as often as they like."""

import json
from functools import cached_property

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from api.conditional_requests import etag_matches, etag_of
from api.reference import STYLE, STYLE_PATH, reference_page

router = APIRouter(include_in_schema=False)


class Description:
    """An application's description in both forms."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    @cached_property
    def document(self) -> bytes:
        """The OpenAPI document."""
        return json.dumps(self._app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()

    @cached_property
    def page(self) -> bytes:
        """The page."""
        return reference_page(self._app.openapi()).encode()


@router.get("/openapi.json")
async def get_description(request: Request) -> Response:
    """Give the description for programs."""
    description: Description = request.app.state.description
    return _answer(request, await run_sync(lambda: description.document), "application/json")


@router.get("/docs")
async def get_docs(request: Request) -> Response:
    """Give the description for people."""
    description: Description = request.app.state.description
    return _answer(request, await run_sync(lambda: description.page), HTMLResponse.media_type)


@router.get(STYLE_PATH)
async def get_style(request: Request) -> Response:
    """Give the page's style sheet."""
    return _answer(request, STYLE.encode(), "text/css")


def _answer(request: Request, content: bytes, media_type: str) -> Response:
    headers = {"ETag": etag_of(content)}
    if etag_matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)
