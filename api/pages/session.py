"""Who looks at a page: the key lies in a cookie that no script reads and no other site sends."""

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import Response

COOKIE = "onnxpress_key"
# A working day: after it the key is asked for again.
LIFETIME_S = 12 * 3600
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def key_in_cookie(connection: HTTPConnection) -> str | None:
    """Give the key that the browser was given when its user signed in."""
    return connection.cookies.get(COOKIE) or None


def comes_from_here(connection: HTTPConnection) -> bool:
    """Say whether a request may act for who is signed in: it only reads, or a page of ours sent it.

    SameSite=Strict already keeps the cookie from other sites; this holds for other ports and names of the same site too.
    """
    if connection.scope["method"] in _SAFE:
        return True
    origin = connection.headers.get("origin")
    if origin is None:
        return connection.headers.get("sec-fetch-site") == "same-origin"
    return urlsplit(origin).netloc == connection.headers.get("host")


def sign_in(response: Response, key: str, *, secure: bool) -> None:
    """Have the browser keep a key that was checked."""
    response.set_cookie(COOKIE, key, max_age=LIFETIME_S, path="/", httponly=True, samesite="strict", secure=secure)


def sign_out(response: Response) -> None:
    """Have the browser forget the key."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
