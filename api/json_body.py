"""JSON bodies that say that they are JSON."""

from fastapi import Depends, Request

from api.dependencies import Context
from api.errors import ApiError


async def json_body(request: Request, _context: Context) -> None:
    """Refuse a body that does not say that it is JSON, after a request without a key."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send the body as JSON, with the Content-Type application/json.")


JSON_BODY = [Depends(json_body)]
