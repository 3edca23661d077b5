"""Signing in with a key, and out."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from api.dependencies import RequestContext
from api.errors import ApiError
from api.pages import session
from api.pages.rendering import render
from services.errors import UnauthorizedError

router = APIRouter(include_in_schema=False)

_UNKNOWN = "This key is unknown, expired or revoked. A key looks like opk_..., and is copied whole."


@router.get("/sign-in")
def sign_in_page(request: Request, next: str = "/jobs", expired: bool = False) -> Response:  # noqa: A002 - the address says so
    """Ask for a key."""
    said = "You are no longer signed in: the key has ended, was revoked, or half a day is over." if expired else None
    values = {"next": _inside(next), "problem": None, "said": said, "signed_in": False}
    return render(request, "sign_in.html", values)


@router.post("/sign-in")
def sign_in(
    request: Request,
    key: Annotated[str, Form(max_length=200)] = "",
    next: Annotated[str, Form(max_length=2000)] = "/jobs",  # noqa: A002 - likewise
) -> Response:
    """Check a key, and have the browser keep it in a cookie."""
    if not session.comes_from_here(request):
        raise ApiError(403, "This was sent by another site. Open /sign-in here and try again.", code="cross_site")
    text = key.strip()
    try:
        with RequestContext(request, text).reading():
            pass
    except UnauthorizedError:
        values = {"next": _inside(next), "problem": _UNKNOWN, "said": None, "signed_in": False}
        return render(request, "sign_in.html", values, status=401)
    response = RedirectResponse(_inside(next), 303)
    # A proxy that ends TLS says so; whoever makes it up only keeps the cookie from himself.
    secure = "https" in {request.url.scheme, request.headers.get("x-forwarded-proto")}
    session.sign_in(response, text, secure=secure)
    return response


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    """Forget the key."""
    if not session.comes_from_here(request):
        raise ApiError(403, "This was sent by another site.", code="cross_site")
    response = RedirectResponse("/sign-in", 303)
    session.sign_out(response)
    return response


def _inside(address: str) -> str:
    """Give an address of ours, whatever a link asks for."""
    return address if address.startswith("/") and not address.startswith(("//", "/\\")) else "/jobs"
