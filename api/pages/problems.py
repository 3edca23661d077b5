"""What went wrong, on a page: the same words as a program is told, and what to do."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from api.errors import MEDIA_TYPE
from api.pages.rendering import render

Handler = Callable[[Request, Exception], Awaitable[Response]]
_TITLES = {
    403: "This key may not do that",
    404: "There is nothing here",
    409: "Not now",
    422: "That address says something that cannot be",
    429: "Too fast",
    500: "Something broke",
    503: "The service cannot answer right now",
}


def install(app: FastAPI) -> None:
    """Have errors of pages shown as pages; those of the API stay problems for programs."""
    for kind, handler in list(app.exception_handlers.items()):
        app.add_exception_handler(kind, _for_people(cast("Handler", handler)))


def _for_people(handler: Handler) -> Handler:
    async def handle(request: Request, error: Exception) -> Response:
        response = await handler(request, error)
        if not _is_page(request) or response.headers.get("content-type") != MEDIA_TYPE:
            return response
        return problem_page(request, response.status_code, json.loads(bytes(response.body)))

    return handle


def _is_page(request: Request) -> bool:
    return not request.url.path.startswith("/v1/") and "text/html" in request.headers.get("accept", "")


def problem_page(request: Request, status: int, problem: dict[str, Any]) -> Response:
    """Show a problem; who is not signed in, or no longer, is asked to, and comes back after."""
    if status == 401:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        known = "&expired=1" if request.cookies else ""
        return RedirectResponse(f"/sign-in?next={quote(here, safe='/')}{known}", 303)
    title = _TITLES.get(status, str(problem.get("title", "Error")))
    return render(request, "problem.html", {"title": title, "status": status, "problem": problem}, status=status)
